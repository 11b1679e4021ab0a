"""Flask and Django applications, unchanged, behind nginx: on our node as on a real uWSGI."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.nginx import Nginx
from tests.integration.real_uwsgi import real_web_server
from tests.integration.services import Launcher
from tests.integration.web_servers import UNBUFFERED, nginx_before

pytestmark = [pytest.mark.integration, pytest.mark.needs("nginx", "uwsgi")]

_FRAMEWORKS = Path(__file__).parents[1] / "frameworks"
_APPLICATIONS = {"flask": "flask_app:create_app()", "django": "django_app:application"}
_BOUNDARY = "a-boundary"
BUFFERING = pytest.mark.parametrize("prefix", ["", UNBUFFERED], ids=["buffered", "unbuffered"])


def _directory_of(application: str, directory: Path) -> Path:
    module = f"{application.partition(':')[0]}.py"
    shutil.copy(_FRAMEWORKS / module, directory / module)
    return directory


@pytest.fixture(scope="module", params=_APPLICATIONS)
def framework(request: pytest.FixtureRequest) -> str:
    """The framework of the application."""
    return str(request.param)


@pytest.fixture(scope="module", params=["ours", "uWSGI"])
def server(request: pytest.FixtureRequest) -> str:
    """The server that runs it."""
    return str(request.param)


@pytest.fixture(scope="module")
def front(
    framework: str, server: str, shared: Launcher, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Nginx]:
    """An nginx in front of a server that runs the application."""
    application = _APPLICATIONS[framework]
    directory = _directory_of(application, tmp_path_factory.mktemp("f"))
    with ExitStack() as stack:
        if server == "ours":
            shared.start("uwsgi-node", "--engine", "processes:2", "--wsgi", application, directory=directory)
        else:
            stack.enter_context(real_web_server(directory, application))
        yield stack.enter_context(nginx_before(f"unix:{directory}/socket", directory / "nginx"))


def _form(size: int) -> bytes:
    """Return a form with a field and a file of *size* bytes."""
    return (
        (
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="field"\r\n\r\nvalu\xe9\r\n'
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        + bytes(size)
        + f"\r\n--{_BOUNDARY}--\r\n".encode()
    )


def test_a_page(front: Nginx) -> None:
    """A path with more than ASCII reaches a view, and the addresses that it makes are right."""
    answer = front.ask("GET", "/hello/caf%C3%A9")
    assert answer.status == 200
    assert answer.body.decode() == "Hello, caf\xe9! http://127.0.0.1/hello/%C3%A4%20b"


def test_head(front: Nginx) -> None:
    """A HEAD has the headers of a GET."""
    answer = front.ask("HEAD", "/hello/ann")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["Content-Type"].startswith("text/html")


@BUFFERING
@pytest.mark.parametrize("size", [0, 100, 5_000_000])
def test_a_form(front: Nginx, prefix: str, size: int) -> None:
    """A form's fields and files arrive."""
    kind = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
    answer = front.ask("POST", f"{prefix}/upload", _form(size), kind)
    assert json.loads(answer.body) == {
        "fields": {"field": "valu\xe9"},
        "files": {"file": hashlib.sha256(bytes(size)).hexdigest()},
    }


def test_a_session(front: Nginx) -> None:
    """A cookie comes back from the browser."""
    first = front.ask("GET", "/count")
    cookie = first.headers["Set-Cookie"].partition(";")[0]
    assert front.ask("GET", "/count", headers={"Cookie": cookie}).body == b"2"


@BUFFERING
def test_a_stream(front: Nginx, prefix: str) -> None:
    """An answer that a generator makes arrives whole."""
    answer = front.ask("GET", f"{prefix}/lines")
    assert answer.body == b"".join(b"%d\n" % number for number in range(1_000))


def test_a_file(front: Nginx) -> None:
    """A file-like object arrives whole."""
    answer = front.ask("GET", "/file")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/x-file")
    assert answer.body == bytes(200_000)


def test_an_error(front: Nginx) -> None:
    """The framework's own page for an error arrives; what went wrong isn't shown."""
    answer = front.ask("GET", "/error")
    assert answer.status == 500
    assert b"secret" not in answer.body


def test_chunks(front: Nginx, framework: str, server: str) -> None:
    """A body that a browser sends in chunks reaches the view.

    On uWSGI it doesn't reach Flask's: nginx passes ``Transfer-Encoding`` on without the chunks, and Werkzeug
    reads such a body only if the server says by ``wsgi.input_terminated`` that it has an end.
    """
    answer = front.ask("POST", "/raw", iter([b"one", b"two"]))
    assert json.loads(answer.body) == {"size": 0 if (server, framework) == ("uWSGI", "flask") else 6}
