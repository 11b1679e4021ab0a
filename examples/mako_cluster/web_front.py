"""The same pages for browsers: a WSGI application, which front nodes run behind nginx.

Start a renderer as my_server.py says, then, in this directory, as many front nodes as you like:

    RENDERERS=127.0.0.1:3033 twistd -n --pidfile= uwsgi-node --listen tcp:3031 --wsgi web_front:application

docs/nginx.md has nginx's configuration. A browser then gets http://.../?n=12
"""

import os
from collections.abc import Callable
from typing import Any

from front import page

from uwsgitwisted.errors import UwsgiError

#: What a page's header X-Node says, so that one can see who has answered.
NODE = os.environ.get("NODE", "front")


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Answer a browser."""
    try:
        status, text = "200 OK", str(page(environ.get("QUERY_STRING", ""), "page.html"))
    except ValueError:
        status, text = "400 Bad Request", "<p>n and time have to be numbers.</p>"
    except UwsgiError:
        status, text = "503 Service Unavailable", "<p>No page can be rendered at the moment.</p>"
    body = text.encode()
    start_response(
        status,
        [
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("X-Node", NODE),
        ],
    )
    return [body]
