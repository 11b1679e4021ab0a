"""A real uWSGI's http and fast router for tests, which learn their nodes from subscriptions."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Iterator
from pathlib import Path

from tests.integration.real_uwsgi import RealUwsgi, real_uwsgi
from tests.integration.services import PATIENCE, free_port


class RealRouters:
    """A uWSGI with both routers, and without workers.

    :param directory: where it runs.
    """

    def __init__(self, directory: Path) -> None:
        self.http, self.fast = free_port(), free_port()
        #: Where the http router takes announcements.
        self.http_subscriptions = f"127.0.0.1:{free_port()}"
        #: Where the fast router does.
        self.fast_subscriptions = str(directory / "subscriptions")
        self.options = (
            *("--http", f"127.0.0.1:{self.http}", "--http-subscription-server", self.http_subscriptions),
            *("--fastrouter", f"127.0.0.1:{self.fast}"),
            *("--fastrouter-subscription-server", self.fast_subscriptions),
        )
        self.process: RealUwsgi

    def get(self, host: str, path: str) -> tuple[int, bytes]:
        """Send a request to the http router; return the answer's status and body.

        :raises http.client.HTTPException: if it has no node for the host.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("GET", path, headers={"Host": host})
            answer = connection.getresponse()
            return answer.status, answer.read()


@contextlib.contextmanager
def real_routers(directory: Path) -> Iterator[RealRouters]:
    """Run both routers."""
    routers = RealRouters(directory)
    with real_uwsgi(directory, "", *routers.options) as routers.process:
        yield routers
