"""Every client with every server: ours and uWSGI's, for every modifier that both know, and for every size.

A cell of the matrix is a kind of request, a client, a server and a size.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_twisted

from tests.integration.peers.conftest import Servers
from tests.integration.services import PATIENCE, script
from uwsgitwisted import blocking
from uwsgitwisted.client import Client
from uwsgitwisted.errors import UwsgiError
from uwsgitwisted.wire.message import WSGI_STRIPPED
from uwsgitwisted.wire.packet import PING, RPC, SPOOL, WSGI
from uwsgitwisted.wire.rpc import RPC_FRAMED, RPC_HTTP, RPC_RAW

pytestmark = [pytest.mark.integration, pytest.mark.needs("uwsgi")]

SIZES = (0, 1, 4_095, 4_096, 65_535, 65_536, 1 << 20)


def web(path: str, query: str = "", script_name: str = "") -> dict[str, str]:
    """Return the variables of a web request."""
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": script_name,
        "PATH_INFO": script_name + path,
        "QUERY_STRING": query,
    }


def body(answer: Any) -> bytes:
    """Return the body of an HTTP answer."""
    head, _, rest = bytes(answer).partition(b"\r\n\r\n")
    assert head.split()[1] == b"200", head
    return rest


@dataclass(frozen=True)
class Kind:
    """A kind of request: one that carries some bytes, or one whose answer does.

    :param modifier1: its modifier1.
    :param modifier2: its modifier2.
    :param message: makes the message for a size.
    :param expected: what the answer to it is.
    :param read: what makes that of what the client returns.
    """

    modifier1: int
    modifier2: int
    message: Callable[[int], Any]
    expected: Callable[[int], Any]
    read: Callable[[Any], Any] = bytes


def number(size: int) -> bytes:
    """Return the answer of what counts the bytes of its request."""
    return b"%d" % size


def many(size: int) -> bytes:
    """Return the answer of what answers so many bytes."""
    return b"x" * size


KINDS = {
    "web request": Kind(WSGI, 0, lambda size: web("/length", "x" * size), number, body),
    "web answer": Kind(WSGI, 0, lambda size: web(f"/big/{size}"), many, body),
    "modifier 30": Kind(WSGI_STRIPPED, 0, lambda size: web(f"/big/{size}"), many, body),
    "stripped answer": Kind(WSGI_STRIPPED, 0, lambda size: web(f"/big/{size}", "", "/app"), many, body),
    "task": Kind(SPOOL, 0, lambda size: {"x": "x" * size}, lambda size: True, bool),
    "ping": Kind(PING, 0, many, lambda size: b""),
    "rpc request": Kind(RPC, RPC_FRAMED, lambda size: ["length", "x" * size], number),
    "rpc answer": Kind(RPC, RPC_FRAMED, lambda size: ["big", size], many),
    "raw rpc request": Kind(RPC, RPC_RAW, lambda size: ["length", "x" * size], number),
    "raw rpc answer": Kind(RPC, RPC_RAW, lambda size: ["big", size], many),
    "http rpc request": Kind(RPC, RPC_HTTP, lambda size: {"PATH_INFO": "/length/" + "x" * size}, number, body),
    "http rpc answer": Kind(RPC, RPC_HTTP, lambda size: {"PATH_INFO": f"/big/{size}"}, many, body),
}

WRONG = "wrong"
#: What a cell is.
Outcome = str | None
#: Cells by their kinds and sizes: on our server, and on uWSGI.
Cells = dict[tuple[str, int], tuple[Outcome, Outcome]]
#: The cells of our clients that are not right on both servers.
DIFFERENCES: Cells = {
    # A session carries more than the 65535 bytes of a packet in plain uwsgi, but no longer variable or item.
    ("web request", 65_535): ("right", "MessageTooLarge"),
    ("rpc request", 65_535): ("right", "MessageTooLarge"),
    ("raw rpc request", 65_535): ("right", "MessageTooLarge"),
    ("ping", 65_536): ("right", "MessageTooLarge"),
    ("ping", 1 << 20): ("right", "MessageTooLarge"),
    **{
        (kind, size): ("MessageTooLarge", "MessageTooLarge")
        for kind in ("web request", "rpc request", "raw rpc request", "task", "http rpc request")
        for size in (65_536, 1 << 20)
    },
    # The variables of tasks and of calls over HTTP are one block of at most 65535 bytes on either server.
    ("task", 65_535): ("MessageTooLarge", "MessageTooLarge"),
    ("http rpc request", 65_535): ("MessageTooLarge", "MessageTooLarge"),
    # uWSGI drops empty arguments, so our clients send none.
    ("rpc request", 0): ("UnencodableMessage", "UnencodableMessage"),
    ("raw rpc request", 0): ("UnencodableMessage", "UnencodableMessage"),
    # Plain uwsgi can't tell an empty result from a failed call, and HTTP has 404 for both.
    ("rpc answer", 0): ("right", "NoAnswer"),
    ("raw rpc answer", 0): ("right", "NoAnswer"),
    ("http rpc answer", 0): (WRONG, WRONG),
    # On Python 3, uWSGI's modifier 30 strips nothing: it looks for bytes where there is text.
    **{("stripped answer", size): ("right", WRONG) for size in SIZES[1:]},
}
#: The same for uWSGI's client, for which None is any failure. It truncates the sizes of arguments to 16 bits,
#: and the size of the packet, which then ends within one.
OF_UWSGI_RPC: Cells = {
    # An empty last argument ends the call on uWSGI.
    ("rpc request", 0): ("right", None),
    ("rpc request", 65_535): (None, None),
    ("rpc request", 65_536): (WRONG, None),
    ("rpc request", 1 << 20): (WRONG, None),
    ("rpc answer", 0): (None, None),
}
#: The same for uwsgi_curl, which can't write sizes of more than 16 bits: it fails, or sends what is no packet,
#: which our node answers with 400, while uWSGI closes the connection.
OF_UWSGI_CURL: Cells = {
    ("web request", 65_535): (None, None),
    ("web request", 65_536): (None, None),
    ("web request", 1 << 20): (WRONG, None),
}


def address_of(kind: Kind, servers: Servers) -> Any:
    """Return where requests of a kind go."""
    return servers.spooler if kind.modifier1 == SPOOL else servers.node


def outcome(kind: Kind, size: int, result: Any) -> Outcome:
    """Say in a word whether a result is right, or what it is instead."""
    if result is None:
        return None
    if isinstance(result, Exception):
        return type(result).__name__
    try:
        return "right" if kind.read(result) == kind.expected(size) else WRONG
    except AssertionError:
        return WRONG


def differences(
    name: str, outcomes: dict[int, list[str | None]]
) -> dict[tuple[str, int], tuple[str | None, ...]]:
    """Return the cells of a kind that are not right on both servers."""
    both = ["right", "right"]
    return {(name, size): tuple(found) for size, found in outcomes.items() if found != both}


def expected(name: str, table: dict[tuple[str, int], Any]) -> dict[tuple[str, int], tuple[str | None, ...]]:
    """Return the same, as the tables say."""
    return {cell: found for cell, found in table.items() if cell[0] == name}


@pytest.mark.parametrize("name", KINDS)
def test_blocking_calls(name: str, ours: Servers, real: Servers) -> None:
    """Our blocking calls get the same from our servers and from uWSGI, but for the listed cells."""
    kind = KINDS[name]

    def send_all(servers: Servers, size: int) -> Any:
        address = address_of(kind, servers)
        return blocking.send_message(address, kind.modifier1, kind.modifier2, kind.message(size))

    found = {size: [_try(kind, size, script, send_all, each, size) for each in (ours, real)] for size in SIZES}
    assert differences(name, found) == expected(name, DIFFERENCES)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("name", KINDS)
async def test_deferred_client(name: str, ours: Servers, real: Servers, client: Client) -> None:
    """So does our client with Deferreds."""
    kind = KINDS[name]
    found: dict[int, list[Outcome]] = {}
    for size in SIZES:
        found[size] = []
        for servers in (ours, real):
            address = address_of(kind, servers)
            result: Any
            try:
                result = await client.send_message(address, kind.modifier1, kind.modifier2, kind.message(size))
            except UwsgiError as error:
                result = error
            found[size].append(outcome(kind, size, result))
    assert differences(name, found) == expected(name, DIFFERENCES)


def _try(kind: Kind, size: int, function: Callable[..., Any], *arguments: Any) -> str | None:
    """Return the outcome of a call."""
    try:
        return outcome(kind, size, function(*arguments))
    except UwsgiError as error:
        return outcome(kind, size, error)


@pytest.mark.parametrize("name", ["rpc request", "rpc answer"])
def test_uwsgi_rpc(name: str, ours: Servers, real: Servers) -> None:
    """A real ``uwsgi.rpc`` gets the same from our node and from a uWSGI, but for what it breaks itself."""
    kind = KINDS[name]

    def call(servers: Servers, size: int) -> Any:
        """Have the real uWSGI call; None is what it makes of any failure."""
        host, port = servers.node
        query = json.dumps([f"{host}:{port}", kind.message(size)[0], size])
        result = json.loads(body(script(blocking.send_message, real.node, WSGI, 0, web("/call", query))))
        return result if result is None else result.encode()

    found = {size: [_try(kind, size, call, each, size) for each in (ours, real)] for size in SIZES}
    assert differences(name, found) == expected(name, OF_UWSGI_RPC)


#: Runs uwsgi_curl for each of the URLs that it is given, and writes the answers as JSON.
_CURL = """
import json, sys
from uwsgi_tools.curl import curl

def ask(url):
    try:
        return curl(sys.argv[1], url)
    except (ValueError, OSError):
        return None

print(json.dumps([ask(url) for url in json.load(sys.stdin)]))
"""


@pytest.mark.parametrize("name", ["web request", "web answer"])
def test_uwsgi_curl(name: str, ours: Servers, real: Servers) -> None:
    """PyPI's ``uwsgi_curl`` gets the same from both servers, as far as it can ask."""
    kind = KINDS[name]
    messages = [kind.message(size) for size in SIZES]
    urls = [f"http://localhost{each['PATH_INFO']}?{each['QUERY_STRING']}" for each in messages]
    answers = [_curl(servers, urls) for servers in (ours, real)]
    found = {
        size: [outcome(kind, size, answer.encode("latin-1") if answer else None) for answer in both]
        for size, *both in zip(SIZES, *answers, strict=True)
    }
    assert differences(name, found) == expected(name, OF_UWSGI_CURL)


def _curl(servers: Servers, urls: list[str]) -> list[str | None]:
    host, port = servers.node
    command = [sys.executable, "-c", _CURL, f"{host}:{port}"]
    ended = subprocess.run(
        command, input=json.dumps(urls), capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    found: list[str | None] = json.loads(ended.stdout)
    return found
