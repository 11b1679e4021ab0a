"""Nodes that announce themselves to a real uWSGI's http and fast router, which forward requests to them."""

from __future__ import annotations

import http.client
from collections.abc import Iterator

import pytest

from tests.integration.real_router import RealRouters, real_routers
from tests.integration.services import TERMINATED, Launcher, free_port, script, until
from uwsgitwisted import blocking
from uwsgitwisted.wire.vars import encode_vars

pytestmark = [pytest.mark.integration, pytest.mark.needs("uwsgi")]

APPLICATION = """
def application(environ, start_response):
    start_response("200 OK", [])
    return [environ["PATH_INFO"].encode()]
"""
FUNCTIONS = """
import uwsgi

uwsgi.register_rpc("join", lambda *arguments: b"|".join(arguments))
"""
WEB, CALLS = "web.example.com", "calls.example.com"


@pytest.fixture(scope="module")
def routers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRouters]:
    """Both routers."""
    with real_routers(tmp_path_factory.mktemp("r")) as running:
        until(lambda: "spawned uWSGI http 1" in running.process.log, "the routers")
        yield running


def announced(routers: RealRouters, host: str, times: int = 1) -> None:
    """Wait until a node has been announced for a host."""
    until(lambda: routers.process.log.count(f"{host} => new node") >= times, routers.process.log)


def test_routers_find_the_node(routers: RealRouters, launch: Launcher) -> None:
    """Requests through either router arrive at a node that is announced, and stop when it shuts down."""
    directory = launch.new_directory()
    (directory / "web.py").write_text(APPLICATION)
    node = launch.start(
        *("uwsgi-node", "--wsgi", "web:application", "--engine", "processes:1"),
        *("--subscribe", f"{routers.http_subscriptions},{WEB}"),
        *("--subscribe", f"{routers.fast_subscriptions},{WEB}"),
        tcp=True,
        directory=directory,
    )
    announced(routers, WEB, 2)
    assert routers.get(WEB, "/through") == (200, b"/through")
    block = encode_vars({"REQUEST_METHOD": "GET", "PATH_INFO": "/fast", "HTTP_HOST": WEB})
    answer = script(blocking.send_message, ("127.0.0.1", routers.fast), 0, 0, block)
    assert answer.endswith(b"\r\n\r\n/fast")

    assert node.terminate() == TERMINATED
    gone = f"{WEB} => marking 127.0.0.1:{node.address[1]} as failed"
    until(lambda: routers.process.log.count(gone) == 2, "both routers know")
    with pytest.raises(http.client.HTTPException):
        routers.get(WEB, "/after")
    assert "unable to connect" not in routers.process.log


def test_calls_over_http(routers: RealRouters, launch: Launcher) -> None:
    """A node without web applications has its functions called by the path; it may name its address itself."""
    port = free_port()
    launch.start(
        *("uwsgi-node", "--engine", "reactor", "--listen", f"tcp:{port}"),
        *("--subscribe", f"{routers.http_subscriptions},{CALLS},127.0.0.1:{port}"),
        handler=FUNCTIONS,
    )
    announced(routers, CALLS)
    assert routers.get(CALLS, "/join/a/b") == (200, b"a|b")
    assert routers.get(CALLS, "/nope")[0] == 404


def test_a_router_that_is_not_there(launch: Launcher) -> None:
    """A node without its router takes requests all the same, and says so once."""
    node = launch.start(
        "uwsgi-node", "--engine", "reactor", "--subscribe", "/nowhere,example.com", handler=FUNCTIONS
    )
    node.wait_for("--subscribe /nowhere,example.com: not announced:")
    assert script(blocking.rpc, node.address, "join", "a") == b"a"
