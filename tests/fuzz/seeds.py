"""Inputs to begin with: valid ones of each kind, so that the fuzzer needn't guess what one looks like."""

from __future__ import annotations

import marshal

from uwsgitwisted.errors import Busy, RemoteError
from uwsgitwisted.wire.bundle import encode_bundle, encode_error, encode_value
from uwsgitwisted.wire.failure import encode_failure
from uwsgitwisted.wire.packet import Packet, encode_packet
from uwsgitwisted.wire.tasks import BatchItem, encode_batch
from uwsgitwisted.wire.terms import Terms
from uwsgitwisted.wire.vars import encode_vars

_VALUES = (
    None,
    [1, -1, 1 << 70, 2.5, 1j, True, None],
    {"a": b"b", 1: (2, 3), (4, 5): frozenset([6])},
    ["same", "same", {"k": ["same"] * 3}],
    {1, 2.5, "x", (1, (2,))},
)
_WEB = encode_vars(
    {"REQUEST_METHOD": "POST", "DOCUMENT_URI": "/tasks/17", "HTTP_IDEMPOTENCY_KEY": "k", "CONTENT_LENGTH": "2"}
)
_TASK = encode_vars({"at": "1767225600.5", "priority": "-3", "spooler": "mail", "idempotency_key": "k"})
_OBJECTS = [marshal.dumps(value, version) for value in _VALUES for version in (0, 2, 4)]

#: A peer's stream and ours: begin, data, window, more data, and end; see ``tests/fuzz/sessions.py``.
_STREAMS = (
    *(0, 7, 0, 1, 1, 0, 0, 0, 0, 0, 0, 9, 1, 5, 1, 0, 0, 0, 0, 10, 1, 2, 0, 9, 1, 2, 1, 0, 0, 0, 0),
    *(7, 1, 1, 8, 1, 5, 0, 11, 1, 1, 2, 0, 0, 0, 0, 8, 1, 9, 5, 0, 9, 1, 5),
    *(0, 11, 0, 1, 0, 0, 0, 0, 0, 11, 1),
)
_STREAM_TALK = (6, 9, 2, 0, 0, 8, 0, 0, 5, 2, 0, 6, 7, 0, 4, 8, 1, 0, 3, 11, 0, 0, 5, 2)

_SEEDS: dict[str, list[bytes]] = {
    "packets": [b"\0\0\5\0" + encode_packet(Packet(33, 17, b"N")) * 2],
    "exchange": [
        b"\0\0\0\0\0" + encode_packet(Packet(33, 17, marshal.dumps([1], 2))),
        b"\4\0\0\0\0" + encode_packet(Packet(173, 5, encode_vars({"CONTENT_LENGTH": "3"}))) + b"abc",
    ],
    "session": [
        # A server, or a client; frames of each kind, each many times.
        *(
            bytes([role, 0, 0, role]) + bytes([0, frame, 1, 8, 2, 2, 8]) * 3
            for role in (0, 1)
            for frame in range(7)
        ),
    ],
    "conversation": [bytes([0, 0, *([0, 9, 2, 0, 0, 2, 0, 6, 1, 0, 1, 3, 1, 0] * 4)])],
    "streaming_session": [bytes([*role, *_STREAMS]) for role in ([0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0])],
    "streaming_conversation": [bytes([0, 0, 0, 0, *(_STREAM_TALK * 4)])],
    "objects": _OBJECTS,
    "stretched_objects": [bytes([index % 5, 9]) + data for index, data in enumerate(_OBJECTS)],
    "keys": [bytes([index % 3, 8, index % 7]) + bytes(range(1, 16)) for index in range(21)],
    "vars": [b"\0" + _WEB + b"ok", b"\3" + _TASK],
    "array": [b"\0\3\0add\1\x001"],
    "bundle": [
        b"\21\0" + encode_bundle([Packet(33, 17, data) for data in _OBJECTS]).payload,
        b"\21\0" + b"".join(map(encode_value, _OBJECTS)) + encode_error(encode_failure(Busy("later"))),
    ],
    "terms": [b"\0" + Terms(node="here", bundle=256).encode()],
    "failure": [
        b"\0" + encode_failure(Busy("later", address=None), node="here"),
        b"\0" + encode_failure(RemoteError(type="KeyError", message="x", traceback="t", node="n")),
    ],
    "http": [b"\0" + _WEB],
    "web_request": [b"\2" + _WEB + b"ok", b"\7" + encode_packet(Packet(30, 0, _WEB)) + b"ok"],
    "spool_file": [b"\0\0\0" + encode_packet(Packet(17, 0, _TASK)) + b"body"],
    "tasks": [b"\3\0" + _TASK, b"\0\0" + encode_batch([BatchItem(_TASK, b"body", b"")])],
    "questions": [marshal.dumps(value, 2) for value in (7, [1, 2], {"ids": [1]}, [(b"", b"", b"")])],
    "answers": [b"\0\0" + marshal.dumps(value, 2) for value in ([1], {"changed": [1]}, [{"id": 1}])],
    "template_request": [b"\5\0a/b.t" + marshal.dumps({"self": 1, "x": 2}, 2)],
}


def seeds(target: str) -> list[bytes]:
    """Return what a target is seeded with."""
    return _SEEDS[target]
