"""A peer in Python 2: the bytes that its marshal writes, through a node, a renderer and both clients.

They are written out here in the format of Python 2.7's marshal, version 2, so that the tests need no such
Python. Python 2.7.18 reads them as the objects that the comments show. Its ``str`` is an ``s``; one that is
interned, as constants like names are, is a ``t``, and from its second time on an ``R`` with its number. ``u``
is its ``unicode``; ``i`` and ``I`` are its ``int``; ``l`` is its ``long``.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.unit.servers import (
    ScriptedServer,
    answering,
    nothing_left_open,  # noqa: F401 - a fixture
    outside_the_reactor,  # noqa: F401 - a fixture
    plain_peers,  # noqa: F401 - a fixture
)
from tests.unit.test_client import A, Cluster
from uwsgitwisted import blocking
from uwsgitwisted.interfaces import Reply, Request
from uwsgitwisted.wire.packet import MARSHAL, Packet, encode_packet
from uwsgitwisted.worker.compat import uwsgi
from uwsgitwisted.worker.handlers import marshal as marshal_handler
from uwsgitwisted.worker.handlers import render
from uwsgitwisted.worker.handlers.handler import Handler


def text(code: bytes, data: bytes) -> bytes:
    """Return a string with its type code and its length."""
    return code + struct.pack("<i", len(data)) + data


#: {"name": "Ann", "same": "name", u"city": u"Grüße", "n": 7, "wide": 2**40, "big": -(2**70), "half": 0.5,
#: "none": None, "yes": True, "list": ["name", "n"], "raw": "\xff"}
VARIABLES = b"".join(
    (
        b"{",
        *(text(b"t", b"name"), text(b"t", b"Ann")),  # the interned strings 0 and 1
        *(text(b"t", b"same"), b"R", struct.pack("<i", 0)),
        *(text(b"u", b"city"), text(b"u", b"Gr\xc3\xbc\xc3\x9fe")),
        *(text(b"t", b"n"), b"i", struct.pack("<i", 7)),  # 3
        *(text(b"t", b"wide"), b"I", struct.pack("<q", 2**40)),
        *(text(b"t", b"big"), b"l", struct.pack("<i5H", -5, 0, 0, 0, 0, 1 << 10)),
        *(text(b"t", b"half"), b"g", struct.pack("<d", 0.5)),
        *(text(b"t", b"none"), b"N", text(b"t", b"yes"), b"T"),
        *(text(b"t", b"list"), b"[", struct.pack("<i", 2), b"R", struct.pack("<i", 0)),
        *(b"R", struct.pack("<i", 3)),
        *(text(b"t", b"raw"), text(b"s", b"\xff")),
        b"0",
    )
)
#: ("letter.txt", {...})
REQUEST = b"(" + struct.pack("<i", 2) + text(b"s", b"letter.txt") + VARIABLES
#: What both are here, with the encoding and without.
TEXTS: dict[str, object] = {
    "name": "Ann",
    "same": "name",
    "city": "Grüße",
    "n": 7,
    "wide": 2**40,
    "big": -(2**70),
    "half": 0.5,
    "none": None,
    "yes": True,
    "list": ["name", "n"],
    "raw": b"\xff",
}
BYTES: dict[object, object] = {
    b"name": b"Ann",
    b"same": b"name",
    "city": "Grüße",
    b"n": 7,
    b"wide": 2**40,
    b"big": -(2**70),
    b"half": 0.5,
    b"none": None,
    b"yes": True,
    b"list": [b"name", b"n"],
    b"raw": b"\xff",
}


@pytest.mark.parametrize(
    ("encoding", "expected"), [("utf-8", ("letter.txt", TEXTS)), ("", (b"letter.txt", BYTES))]
)
def test_node(monkeypatch: pytest.MonkeyPatch, encoding: str, expected: object) -> None:
    """A node's handler gets text with ``--python2``, and bytes without; its answer has text."""
    seen: list[object] = []
    monkeypatch.setattr(uwsgi, "message_manager_marshal", lambda message, _: seen.append(message) or "ä")
    answer = marshal_handler.table(encoding)[MARSHAL](Packet(MARSHAL, 5, REQUEST))
    assert seen == [expected]
    assert answer == Packet(MARSHAL, 5, text(b"u", b"\xc3\xa4"))


@pytest.mark.parametrize("answer", ["text", "bytes"])
def test_renderer(tmp_path: Path, answer: str) -> None:
    """A template gets text with ``--python2``; the page is text or, for Python 2, bytes."""
    (tmp_path / "letter.txt").write_text(
        "${'Dear ' + name} of ${city}: ${n + wide + big}, ${half}, ${none}, "
        "${yes}, ${'+'.join(list)}, ${repr(raw)}"
    )
    handler = render.load([str(tmp_path)], python2="utf-8", answer=answer)[MARSHAL]
    page = f"Dear Ann of Grüße: {7 + 2**40 - 2**70}, 0.5, None, True, name+n, b'\\xff'".encode()
    code = b"u" if answer == "text" else b"s"
    assert isinstance(handler, Handler)
    assert handler(Packet(MARSHAL, 0, REQUEST)).payload == text(code, page)


@pytest.mark.integration
@pytest.mark.usefixtures("outside_the_reactor", "plain_peers", "nothing_left_open")
def test_blocking_client() -> None:
    """The blocking calls give the answer of such a node as text, or as bytes without the encoding."""
    with ScriptedServer(answering(encode_packet(Packet(MARSHAL, 0, VARIABLES)))) as server:
        host, port = server.address
        for encoding, expected in (("utf-8", TEXTS), ("", BYTES)):
            assert blocking.send_message(server.address, 33, 0, None, 10, python2=encoding) == expected
            assert blocking.send_uwsgi_message(host, port, 33, 0, None, 10, python2=encoding) == expected
            nodes = [(server.address, None)]
            assert blocking.send_multi_uwsgi_message(nodes, 33, 0, 10, python2=encoding) == (expected,)


class Python2Nodes(Cluster):
    """A client whose nodes are in Python 2."""

    def respond(self, request: Request) -> Reply:
        return Packet(MARSHAL, 0, VARIABLES)


@pytest.mark.parametrize("plain", [[], [A]])
@pytest.mark.parametrize(("encoding", "expected"), [("utf-8", TEXTS), ("", BYTES)])
def test_deferred_client(encoding: str, expected: object, plain: list[tuple[str, int]]) -> None:
    """The client with Deferreds does the same, on a session and on plain connections."""
    client = Python2Nodes(python2=encoding, plain=plain)
    assert client.result(client.send_message(A, 33, 0, None)) == expected
    assert client.result(client.send_multi_message([(*A, None)], 33, 0)) == [(True, expected)]
