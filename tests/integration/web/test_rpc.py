"""RPC (173) in both directions between our node and clients, a real uWSGI, and nginx."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted

from tests.integration.nginx import Nginx
from tests.integration.real_uwsgi import real_web_server
from tests.integration.services import Launcher, Service, free_port, script
from uwsgitwisted import blocking
from uwsgitwisted.client import Client
from uwsgitwisted.errors import MessageTooLarge, NoAnswer, RemoteError, UnencodableMessage, UnknownFunction
from uwsgitwisted.wire.array import encode_array
from uwsgitwisted.wire.packet import RPC, Packet, encode_packet
from uwsgitwisted.wire.vars import encode_vars

pytestmark = pytest.mark.integration

#: What both servers register. It is code for uWSGI: it imports nothing of ours.
FUNCTIONS = """
import uwsgi
from uwsgidecorators import rpc

@rpc("join")
def join(*arguments):
    return b"|".join(arguments)

@rpc("size")
def size(*arguments):
    return b"%d" % sum(map(len, arguments))

@rpc("big")
def big(number):
    return b"x" * int(number)

@rpc("page")
def page(*arguments):
    return b"HTTP/1.0 200 OK\\r\\nContent-Type: text/plain\\r\\n\\r\\n" + b"|".join(arguments)

@rpc("boom")
def boom():
    raise KeyError("missing")

def nothing():
    return None

uwsgi.register_rpc("nothing", nothing, 0)
uwsgi.register_rpc("empty", lambda: b"")
"""
#: An application in the real uWSGI that calls: its query names the way, the node, the function and arguments.
CALLER = """
import json, uwsgi
import rpc_functions

def application(environ, start_response):
    way, *arguments = json.loads(environ["QUERY_STRING"])
    arguments = [argument if argument is None else argument.encode() for argument in arguments]
    try:
        result = getattr(uwsgi, way)(*arguments)
    except Exception as error:
        result = repr(error).encode()
    start_response("200 OK", [])
    text = None if result is None else [len(result), result[:100].decode()]
    return [json.dumps(text).encode()]
"""
#: The same as a function of our node, which calls as uWSGI's code does.
OUR_CALLER = (
    FUNCTIONS
    + """
import json

@rpc("ask")
def ask(text):
    way, *arguments = json.loads(text)
    try:
        result = getattr(uwsgi, way)(*arguments)
    except Exception as error:
        result = repr(error).encode()
    return json.dumps(None if result is None else [len(result), result[:200].decode()])
"""
)
SIZES = [1, 65_535, 65_536, 1 << 20]
APPLICATION = """
def application(environ, start_response):
    start_response("200 OK", [])
    return [b"web"]
"""


@pytest.fixture(scope="module")
def node(shared: Launcher) -> Service:
    """A node with RPC functions only."""
    return shared.start("uwsgi-node", "--engine", "processes:1", handler=OUR_CALLER, tcp=True)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The address of a real uWSGI with the same functions."""
    directory = tmp_path_factory.mktemp("u")
    (directory / "rpc_functions.py").write_text(FUNCTIONS)
    (directory / "caller.py").write_text(CALLER)
    address = ("127.0.0.1", free_port())
    with real_web_server(directory, "caller:application", "--socket", _at(address)):
        yield address


def _ask(real: Any, way: str, *arguments: object) -> Any:
    """Have the real uWSGI call; return the size and the beginning of what it got."""
    block = encode_vars(
        {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "QUERY_STRING": json.dumps([way, *arguments])}
    )
    answer = script(blocking.send_message, real, 0, 0, block)
    return json.loads(answer.partition(b"\r\n\r\n")[2])


def _at(address: tuple[str, int]) -> str:
    host, port = address
    return f"{host}:{port}"


def _rpc(address: Any, name: str, *arguments: Any) -> Any:
    return script(blocking.rpc, address, name, *arguments)


@pytest.mark.parametrize("server", ["node", "real"])
def test_blocking(server: str, node: Service, real: Any) -> None:
    """A script calls functions of our node and of a real uWSGI in the same way."""
    address = real if server == "real" else node.address
    assert _rpc(address, "join", b"a", "\xe9", 3) == b"a|\xc3\xa9|3"
    for size in SIZES:
        assert _rpc(address, "big", str(size)) == b"x" * size
    assert _rpc(address, "size", b"x" * 60_000) == b"60000"


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("server", ["node", "real"])
async def test_deferred(server: str, node: Service, real: Any, client: Client) -> None:
    """So does a Twisted program."""
    address = real if server == "real" else node.address
    assert await client.rpc(address, "join", b"a", "\xe9", 3) == b"a|\xc3\xa9|3"
    for size in SIZES:
        assert await client.rpc(address, b"big", str(size)) == b"x" * size
    assert await client.rpc(address, "size", b"x" * 60_000) == b"60000"


def test_large_arguments(node: Service, real: Any) -> None:
    """A session carries a megabyte of arguments; what uWSGI would wrap or drop is refused before it is sent."""
    assert _rpc(node.address, "size", b"x" * 65_535) == b"65535"
    assert _rpc(node.address, "size", *[b"x" * 65_535] * 16) == b"%d" % (16 * 65_535)
    for address in (node.address, real):
        with pytest.raises(MessageTooLarge):
            _rpc(address, "size", b"x" * 65_536)
        with pytest.raises(UnencodableMessage, match="item 2 is empty"):
            _rpc(address, "join", b"a", b"", b"c")
    with pytest.raises(MessageTooLarge, match="one uwsgi packet"):
        _rpc(real, "size", b"x" * 65_530)


def test_failures_in_a_session(node: Service) -> None:
    """Our own node says what failed, and tells None from an empty result."""
    with pytest.raises(RemoteError, match="KeyError: 'missing'") as raised:
        _rpc(node.address, "boom")
    assert "in boom" in raised.value.traceback
    with pytest.raises(UnknownFunction, match="'nope'; registered are: ask, big, boom, empty, join, nothing"):
        _rpc(node.address, "nope")
    with pytest.raises(RemoteError, match="TypeError"):
        _rpc(node.address, "boom", b"too many")
    assert _rpc(node.address, "empty") == b""
    assert _rpc(node.address, "nothing") is None


@pytest.mark.parametrize("name", ["boom", "nope", "empty", "nothing"])
def test_failures_in_plain_uwsgi(name: str, node: Service, real: Any) -> None:
    """To a plain peer our node says as little as uWSGI, and its log says why."""
    with pytest.raises(NoAnswer, match="unknown, or returned nothing"):
        _rpc(real, name)
    assert node.exchange(encode_packet(Packet(RPC, 0, encode_array([name])))) == b""
    reason = {"boom": "KeyError: 'missing'", "nope": "no RPC function is called 'nope'"}.get(name)
    if reason:
        node.wait_for(reason)


def test_a_real_uwsgi_calls(node: Service, real: Any) -> None:
    """A real uWSGI calls functions of our node, with answers of any size."""
    place = _at(node.address)
    assert _ask(real, "rpc", place, "join", "a", "", "c") == [4, "a||c"]
    assert _ask(real, "rpc", place, "size", "x" * 50_000) == [5, "50000"]
    for size in SIZES:
        assert _ask(real, "rpc", place, "big", str(size)) == [size, "x" * min(size, 100)]
    for name in ("boom", "nope", "empty", "nothing"):
        assert _ask(real, "rpc", place, name) is None


def test_our_handlers_call(node: Service, real: Any) -> None:
    """A function of our node calls a real uWSGI's with the same code, and functions of its own process."""
    place = _at(real)

    def ask(*arguments: object) -> Any:
        return json.loads(_rpc(node.address, "ask", json.dumps(arguments)))

    assert ask("rpc", place, "join", "a", "b") == [3, "a|b"]
    assert ask("call", f"join@{place}", "a", "b") == [3, "a|b"]
    assert ask("rpc", place, "big", str(1 << 20)) == [1 << 20, "x" * 200]
    for node_name in (None, ""):
        assert ask("rpc", node_name, "join", "a", "b") == [3, "a|b"]
        assert ask("rpc", node_name, "nope") is None
    for name in ("boom", "nope", "empty", "nothing"):
        assert ask("rpc", place, name) is ask("call", name) is None
    assert ask("rpc", None, "join", "", "b") == [2, "|b"]
    _, text = ask("rpc", place, "join", "a", "")
    assert text.startswith("UnencodableMessage('item 2 is empty")


def test_raw(node: Service, real: Any) -> None:
    """With modifier2 1 the answer is raw bytes, at any size, as a real uWSGI's."""
    for size in SIZES:
        request = encode_packet(Packet(RPC, 1, encode_array(["big", str(size)])))
        assert node.exchange(request) == b"x" * size
        assert script(blocking.send_message, real, RPC, 1, ["big", str(size)]) == b"x" * size


def _split(answer: bytes) -> tuple[bytes, list[bytes], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *headers = head.split(b"\r\n")
    return status, sorted(headers), body


@pytest.mark.parametrize(
    "variables",
    [
        {"PATH_INFO": "/join/a/b"},
        {"PATH_INFO": "join//a///b/", "SERVER_PROTOCOL": "HTTP/1.1"},
        {"PATH_INFO": "/join/a", "HTTP_ACCEPT": "text/html, */*", "SERVER_PROTOCOL": "HTTP/1.1"},
        {"PATH_INFO": "/join/a", "HTTP_ACCEPT": "*/*"},
        {"PATH_INFO": "/big/1048576"},
    ],
)
def test_http(variables: dict[str, str], node: Service, real: Any) -> None:
    """With modifier2 2 our node's answer is the same HTTP as a real uWSGI's."""
    block = encode_vars(variables)
    answer = node.exchange(encode_packet(Packet(RPC, 2, block)))
    assert _split(answer) == _split(script(blocking.send_message, real, RPC, 2, block))


@pytest.mark.parametrize(
    ("path", "status"), [("/nope", 404), ("/empty", 404), ("/nothing", 404), ("/", 500), ("", 500)]
)
def test_http_failures(path: str, status: int, node: Service, real: Any) -> None:
    """So are the statuses of its failures."""
    block = encode_vars({"PATH_INFO": path, "REQUEST_METHOD": "GET"})
    answers = [
        node.exchange(encode_packet(Packet(RPC, 2, block))),
        script(blocking.send_message, real, RPC, 2, block),
    ]
    assert [int(answer.split()[1]) for answer in answers] == [status, status]


def test_http_exception(node: Service) -> None:
    """A function that raises is a 500, where uWSGI has a 404."""
    answer = node.exchange(encode_packet(Packet(RPC, 2, encode_vars({"PATH_INFO": "/boom"}))))
    assert answer.split()[1] == b"500"


LOCATIONS = """
        location /raw {{
            uwsgi_modifier1 173;
            uwsgi_modifier2 1;
            uwsgi_pass_request_headers off;
            uwsgi_param page first;
            uwsgi_param second third;
            uwsgi_pass {address};
        }}
        location / {{
            include /etc/nginx/uwsgi_params;
            uwsgi_modifier1 173;
            uwsgi_modifier2 2;
            uwsgi_pass {address};
        }}
"""


@pytest.fixture(scope="module")
def nginx(node: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """An nginx in front of the node."""
    running = Nginx(tmp_path_factory.mktemp("n"), LOCATIONS.format(address=_at(node.address)))
    yield running
    running.stop()


@pytest.mark.needs("nginx")
def test_nginx_raw(nginx: Nginx) -> None:
    """A web server calls a function with its variables as arguments, which answers with HTTP."""
    answer = nginx.ask("GET", "/raw")
    assert (answer.status, answer.body) == (200, b"first|second|third")


@pytest.mark.needs("nginx")
def test_nginx_http(nginx: Nginx) -> None:
    """A web server calls a function that the path names; a body of any size is ignored."""
    for size in SIZES:
        answer = nginx.ask("GET", f"/big/{size}", headers={"Accept": "image/png"})
        assert (answer.status, answer.body) == (200, b"x" * size)
        assert answer.headers["Content-Type"] == "image/png"
        assert nginx.ask("POST", "/join/a/b", bytes(2 * size)).body == b"a|b"
    assert nginx.ask("GET", "/nope").status == 404
    assert nginx.ask("GET", "/boom").status == 500
    assert nginx.ask("GET", "/").status == 500


def test_beside_web_requests(launch: Launcher) -> None:
    """A node whose workers accept web requests themselves answers calls, too."""
    directory = launch.new_directory()
    (directory / "web.py").write_text(APPLICATION)
    node = launch.start(
        "uwsgi-node", "--wsgi", "web:application", handler=FUNCTIONS, tcp=True, directory=directory
    )
    web = encode_packet(Packet(0, 0, encode_vars({"REQUEST_METHOD": "GET"})))
    for _ in range(3):
        assert node.exchange(web).endswith(b"web")
        request = encode_packet(Packet(RPC, 1, encode_array(["join", "a", "b"])))
        assert node.exchange(request) == b"a|b"
    assert _rpc(node.address, "big", "65536") == b"x" * 65_536


def test_a_coroutine(launch: Launcher) -> None:
    """With the engine `reactor`, a function may return something to wait for."""
    source = """
import uwsgi

async def later(argument):
    return b"later " + argument

uwsgi.register_rpc("later", later)
"""
    node = launch.start("uwsgi-node", "--engine", "reactor", handler=source)
    assert _rpc(node.address, "later", "x") == b"later x"
    block = encode_vars({"PATH_INFO": "/later/y"})
    assert node.exchange(encode_packet(Packet(RPC, 2, block))).endswith(b"\r\n\r\nlater y")


def test_too_large_a_body(launch: Launcher) -> None:
    """A web request whose body is over --max-message is a 413."""
    node = launch.start("uwsgi-node", "--max-message", "100000", handler=FUNCTIONS)
    block = encode_vars({"PATH_INFO": "/join/a", "CONTENT_LENGTH": 200_000})
    answer = node.exchange(encode_packet(Packet(RPC, 2, block)) + bytes(200_000))
    assert answer.split()[1] == b"413"


def test_neither(launch: Launcher) -> None:
    """A handler module that answers neither objects nor calls is refused at the start; the error says how."""
    with pytest.raises(AssertionError) as raised:
        launch.start("uwsgi-node", handler="import uwsgi\n")
    text = " ".join(str(raised.value).split())
    assert "set no uwsgi.message_manager_marshal and registered no RPC function" in text
    assert "uwsgi.register_rpc(name, function)" in text
