"""What docs/protocol.md says, held against the code: the bytes of its examples, its names and its numbers."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from uwsgitwisted import errors
from uwsgitwisted.engines import pipe
from uwsgitwisted.responders import http_tasks as http_answers
from uwsgitwisted.responders import rpc as rpc_responder
from uwsgitwisted.responders.manage import MAX_COMMAND, MAX_WAIT
from uwsgitwisted.responders.spool import BODIES, HTTP_VARS, SPOOL_OVER_HTTP
from uwsgitwisted.spool.management.operations import OPERATIONS
from uwsgitwisted.spool.management.queries import ANSWER_BYTES, MAX_QUEUES
from uwsgitwisted.spool.stores.interface import SMALL_RESULT
from uwsgitwisted.spool.waiters import MAX_PEER_WAITERS, MAX_WAITERS
from uwsgitwisted.transport.server import session as server_session
from uwsgitwisted.transport.server.limits import Limits
from uwsgitwisted.transport.server.streamed_answers import ANSWER_MEMORY
from uwsgitwisted.wire import (
    array,
    bundle,
    failure,
    frame,
    key_check,
    marshal_check,
    objects,
    outgoing,
    packet,
    rpc,
    session,
    web_status,
)
from uwsgitwisted.wire import terms as wire_terms
from uwsgitwisted.wire.events import (
    AnswerReceived,
    CancelReceived,
    DataReceived,
    EndReceived,
    ErrorReceived,
    RequestReceived,
    ShutdownReceived,
    StreamedAnswerReceived,
    StreamedRequestReceived,
    WindowGranted,
)
from uwsgitwisted.wire.packet import BUNDLE, MARSHAL, PING, SESSION, SPOOL, Packet, PacketDecoder, encode_packet
from uwsgitwisted.wire.session import Role, Session
from uwsgitwisted.wire.tasks import MAX_BATCH, SPOOL_WITH_ID, BatchItem, TaskMessage, decode_batch, encode_batch
from uwsgitwisted.wire.terms import Terms
from uwsgitwisted.wire.vars import body_size, decode_vars, encode_vars, split_vars
from uwsgitwisted.worker.handlers import bundle as bundle_handler

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "protocol.md").read_text()

_BLOCK = re.compile(r"^```hex\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HTTP = re.compile(r"^```http\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MENTION = re.compile(r"`([A-Z][A-Z_]+)` \(([\d.]+)")
_QUOTED = re.compile(r"`([^`]+)`")

KINDS = ("REQUEST", "ANSWER", "ERROR", "MORE", "CANCEL", "SHUTDOWN", "IDEMPOTENT")
KINDS += ("STREAMED_REQUEST", "STREAMED_ANSWER", "DATA", "END", "WINDOW")
#: Terms with everything in them.
STREAMING = Terms(window=100_000, workers=2, bundle=256)
MODIFIERS = ("WSGI", "SPOOL", "MARSHAL", "SESSION", "BUNDLE", "PING", "ECHO", "SIGNAL", "RPC", "ANSWER")
#: Where the document's numbers are from, by the names that it has for them.
NUMBERS: dict[str, float] = {
    **{name: getattr(packet, name) for name in ("HEADER_SIZE", "MAX_PAYLOAD")},
    "MAX_BATCH": MAX_BATCH,
    "MAX_COMMAND": MAX_COMMAND,
    "MAX_WAIT": MAX_WAIT,
    "MAX_PEER_WAITERS": MAX_PEER_WAITERS,
    "MAX_WAITERS": MAX_WAITERS,
    "SMALL_RESULT": SMALL_RESULT,
    "ANSWER_BYTES": ANSWER_BYTES,
    "MAX_QUEUES": MAX_QUEUES,
    **{
        name: value
        for name, value in {**vars(frame), **vars(session), **vars(wire_terms)}.items()
        if name[0] != "_" and name.isupper() and isinstance(value, (int, float)) and not hasattr(packet, name)
    },
    **{name: getattr(rpc, name) for name in ("MAX_NAME", "LONG_ANSWER", "NO_RESULT")},
    "MAX_ARGUMENTS": array.MAX_ARGUMENTS,
    "MAX_SIZE": session._MAX_SIZE,
    "MAX_BUNDLE": bundle.MAX_BUNDLE,
    "MAX_BUNDLE_SIZE": bundle.MAX_BUNDLE_SIZE,
    "LEAST_FOR_BUNDLES": wire_terms._LEAST_FOR_BUNDLES,
    "MAX_TIME": bundle_handler.MAX_TIME,
    "ENOUGH_BYTES": bundle_handler.ENOUGH_BYTES,
    "KEEPALIVE": wire_terms.KEEPALIVE,
    "SHUTDOWN_TIME": server_session._SHUTDOWN_TIME,
    "RACE_TIME": server_session._RACE_TIME,
    "FIRST_REQUESTS": server_session._FIRST_REQUESTS,
    "OVERHEAD": outgoing.OVERHEAD,
    "ANSWER_MEMORY": ANSWER_MEMORY,
    "MAX_TEXT": failure.MAX_TEXT,
    "MAX_DEPTH": marshal_check.MAX_DEPTH,
    "MAX_SHARED": marshal_check.MAX_SHARED,
    "FEW_KEYS": key_check.FEW_KEYS,
    "MAX_KEY_DEPTH": key_check.MAX_KEY_DEPTH,
    "MAX_KEY_SHARED": key_check.MAX_KEY_SHARED,
    "MAX_SET_DEPTH": objects.MAX_SET_DEPTH,
    "MAX_IN_FLIGHT": pipe.MAX_IN_FLIGHT,
}
for name in KINDS:
    NUMBERS.pop(name, None)


def tables(heading: str) -> list[list[list[str]]]:
    """Return the tables of a section: of each, the rows without the header, as cells."""
    section = DOCUMENT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
    return [[re.split(r" *\| *", line)[1:-1] for line in table.splitlines()[2:]] for table in found]


def code(cell: str) -> str:
    """Return what stands in a cell as code."""
    found = _QUOTED.search(cell)
    assert found, cell
    return found.group(1)


def layout(rows: list[list[str]]) -> str:
    """Return a table of fields as a format of :mod:`struct`."""
    return "<" + "".join({"u8": "B", "u16": "H", "u32": "I"}[row[1]] for row in rows)


def from_hex(text: str) -> bytes:
    """Return the bytes that an example shows; ``00*5`` is five times 00."""
    data = bytearray()
    for line in text.splitlines():
        for token in line.partition("#")[0].split():
            byte, _, count = token.partition("*")
            data += bytes.fromhex(byte) * int(count or 1)
    return bytes(data)


def client() -> Session:
    return Session(Role.CLIENT, STREAMING, STREAMING)


def server() -> Session:
    return Session(Role.SERVER, STREAMING, STREAMING)


# What an example may say that its bytes are.


@dataclass(frozen=True)
class Said:
    """What an example says.

    :param data: the bytes that our code makes of it.
    :param read: decodes bytes.
    :param meaning: what that has to give.
    """

    data: bytes
    read: Callable[[bytes], object]
    meaning: object


Payload = Said | bytes


def bytes_of(payload: Payload) -> bytes:
    return payload.data if isinstance(payload, Said) else payload


def sent(side: Session) -> bytes:
    return b"".join(iter(side.data_to_send, b""))


def a_packet(modifier1: int, modifier2: int, payload: Payload = b"") -> Said:
    made = Packet(modifier1, modifier2, bytes_of(payload))
    return Said(encode_packet(made), PacketDecoder().receive, [made])


def some_vars(variables: dict[bytes, bytes]) -> Said:
    return Said(encode_vars(variables.items()), decode_vars, variables)


def an_array(*items: bytes) -> Said:
    return Said(array.encode_array(items), array.decode_array, list(items))


def an_object(value: object) -> Said:
    return Said(objects.dumps(value), objects.loads, value)


def a_task(variables: dict[bytes, bytes], body: bytes) -> Said:
    def read(message: bytes) -> object:
        block, rest, missing = split_vars(message)
        return decode_vars(block), rest, missing

    told = {b"CONTENT_LENGTH": b"%d" % len(body), **variables}
    return Said(TaskMessage(variables, body).encode(), read, (told, body, 0))


def a_packet_and_its_body(modifier1: int, modifier2: int, variables: dict[bytes, bytes], body: bytes) -> Said:
    made = Packet(modifier1, modifier2, encode_vars(variables.items()))

    def read(data: bytes) -> object:
        decoder = PacketDecoder(count=1)
        (packet,) = decoder.receive(data)
        return packet, decoder.rest(), body_size(packet.payload)

    return Said(encode_packet(made) + body, read, (made, body, len(body)))


def a_bundle(modifier2: int, *payloads: Said) -> Said:
    made = [Packet(MARSHAL, modifier2, payload.data) for payload in payloads]

    def read(payload: bytes) -> object:
        return bundle.decode_bundle(Packet(BUNDLE, modifier2, payload))

    return Said(bundle.encode_bundle(made).payload, read, made)


def some_outcomes(*outcomes: Said) -> Said:
    """The outcomes of a bundle: values, or the vars blocks of errors."""
    data, meaning = b"", []
    for outcome in outcomes:
        if outcome.read is objects.loads:
            data += bundle.encode_value(outcome.data)
            meaning.append((outcome.meaning, None))
        else:
            data += bundle.encode_error(outcome.data)
            meaning.append((None, str(failure.decode_failure(outcome.data))))

    def read(payload: bytes) -> object:
        decoded = bundle.decode_outcomes(Packet(BUNDLE, 0, payload))
        return [(value, error and str(error)) for value, error in decoded]

    return Said(data, read, meaning)


def a_batch(*tasks: tuple[dict[bytes, bytes], bytes, dict[bytes, bytes]]) -> Said:
    items = [
        BatchItem(encode_vars(task.items()), body, encode_vars(settings.items()))
        for task, body, settings in tasks
    ]
    return Said(encode_batch(items), decode_batch, items)


def an_offer(**terms: Any) -> Said:
    ours = Terms(**terms)
    return Said(
        wire_terms.encode_offer(ours),
        lambda data: wire_terms.decode_offer(*PacketDecoder().receive(data)),
        ours,
    )


def a_grant(**terms: Any) -> Said:
    ours = Terms(**terms)
    return Said(
        wire_terms.encode_grant(ours),
        lambda data: wire_terms.decode_grant(*PacketDecoder().receive(data)),
        ours,
    )


def a_request(
    *,
    id: int,  # noqa: A002 - the document's word
    modifier1: int,
    modifier2: int,
    payload: Payload,
    seconds: float | None,
    again: bool = False,
) -> Said:
    made = Packet(modifier1, modifier2, bytes_of(payload))
    side = client()
    side.send_request(id, made, seconds, idempotent=again)
    return Said(sent(side), server().receive, [RequestReceived(id, made, seconds, again)])


def an_idempotent_one(**request: Any) -> Said:
    return a_request(**request, again=True)


def an_answer(
    *,
    id: int,  # noqa: A002
    modifier1: int,
    modifier2: int,
    payload: Payload,
    seconds: float,
) -> Said:
    made = Packet(modifier1, modifier2, bytes_of(payload))
    side = server()
    side.send_answer(id, made, seconds)
    return Said(sent(side), client().receive, [AnswerReceived(id, made, seconds)])


def an_error(*, id: int, payload: Said) -> Said:  # noqa: A002
    told = {key.decode(): value.decode() for key, value in decode_vars(payload.data).items()}
    cls = getattr(errors, told["class"])
    names = ("type", "message", "node") if cls is errors.RemoteError else ("text",)
    attributes = {name: told[name] for name in names}
    side = server()
    side.send_error(id, failure.encode_failure(cls(**attributes), node=told["node"]))

    def read(data: bytes) -> object:
        (event,) = client().receive(data)
        assert isinstance(event, ErrorReceived)
        return event.id, type(event.error), {name: getattr(event.error, name) for name in names}

    return Said(sent(side), read, (id, cls, attributes))


def a_cancel(*, id: int) -> Said:  # noqa: A002
    side = client()
    side.send_cancel(id)
    return Said(sent(side), server().receive, [CancelReceived(id)])


def a_shutdown() -> Said:
    side = client()
    side.send_shutdown()
    return Said(sent(side), server().receive, [ShutdownReceived()])


def a_streamed_answer(
    *,
    id: int,  # noqa: A002
    modifier1: int,
    modifier2: int,
    payload: bytes,
    data: bytes,
    seconds: float,
) -> Said:
    made = Packet(modifier1, modifier2, payload)
    side = server()
    side.send_streamed_answer(id, made)
    side.streams.send(id, data)
    side.streams.send_end(id, seconds)
    meaning = [StreamedAnswerReceived(id, made), DataReceived(id, data), EndReceived(id, seconds)]
    return Said(sent(side), client().receive, meaning)


def a_streamed_request(
    *,
    id: int,  # noqa: A002
    modifier1: int,
    modifier2: int,
    payload: bytes,
    data: bytes,
    seconds: float | None,
) -> Said:
    made = Packet(modifier1, modifier2, payload)
    side = client()
    side.send_streamed_request(id, made, seconds)
    side.streams.send(id, data)
    side.streams.send_end(id)
    meaning = [StreamedRequestReceived(id, made, seconds), DataReceived(id, data), EndReceived(id, 0)]
    return Said(sent(side), server().receive, meaning)


def a_window(*, id: int, size: int) -> Said:  # noqa: A002
    side, other = server(), client()
    other.send_streamed_request(id, Packet(0, 0))
    side.receive(sent(other))
    side.streams.grant(id, size)
    return Said(sent(side), other.receive, [WindowGranted(id)])


SAYINGS: dict[str, Callable[..., Said]] = {
    "packet": a_packet,
    "vars": some_vars,
    "array": an_array,
    "marshal": an_object,
    "task": a_task,
    "packet_and_body": a_packet_and_its_body,
    "batch": a_batch,
    "bundle": a_bundle,
    "outcomes": some_outcomes,
    "offer": an_offer,
    "grant": a_grant,
    "request": a_request,
    "idempotent": an_idempotent_one,
    "answer": an_answer,
    "error": an_error,
    "cancel": a_cancel,
    "shutdown": a_shutdown,
    "streamed_answer": a_streamed_answer,
    "streamed_request": a_streamed_request,
    "window": a_window,
}


def examples() -> list[tuple[str, str]]:
    """Return each example of the document: what it says, and its bytes in hexadecimal."""
    found = []
    for block in _BLOCK.findall(DOCUMENT):
        for example in block.strip().split("\n\n"):
            saying, _, data = example.partition("\n")
            found.append((saying.removeprefix("= "), data))
    return found


EXAMPLES = examples()


def test_examples_of_everything() -> None:
    """The document has an example of whatever an example can be."""
    assert {name for saying, _ in EXAMPLES for name in re.findall(r"(\w+)\(", saying)} >= set(SAYINGS)
    assert len(EXAMPLES) >= 21


@pytest.mark.parametrize(("saying", "data"), EXAMPLES, ids=[saying[:40] for saying, _ in EXAMPLES])
def test_example(saying: str, data: str) -> None:
    """What an example says is encoded as its bytes, and its bytes are decoded as what it says."""
    said: Said = eval(saying, dict(SAYINGS))
    assert said.data == from_hex(data)
    assert said.read(from_hex(data)) == said.meaning


# Tables


def test_header() -> None:
    """The packet's header has the fields that the document says."""
    header, modifiers = tables("The packet")
    assert layout(header) == packet._HEADER.format
    assert {code(row[0]): int(row[1]) for row in modifiers} == {
        name: getattr(packet, name) for name in MODIFIERS
    }


OBJECTS = tables("Objects")[0]


@pytest.mark.parametrize("row", OBJECTS, ids=[code(row[0]) for row in OBJECTS])
def test_object(row: list[str]) -> None:
    """An example of each type code is read as its value, and written so if the document says that it is."""
    letter, written, _, data, value = row
    wanted = eval(code(value))
    read = objects.loads(from_hex(code(data)))
    assert (read, type(read)) == (wanted, type(wanted))
    assert code(letter).encode() in from_hex(code(data))
    assert (objects.dumps(wanted) == from_hex(code(data))) is (written == "yes")


def test_type_codes() -> None:
    """The document has every type code that is accepted, and no other."""
    accepted = set()
    for number in range(128):
        with pytest.raises(errors.UnsafeObject) as caught:
            objects.loads(bytes((number,)) + bytes(20))
        if f"type code 0x{number:02x}" not in str(caught.value):
            accepted.add(chr(number))
    assert {code(row[0]) for row in OBJECTS} == accepted


def test_forms_of_tasks() -> None:
    """The document has the ways to ask for a task, and says of the right ones that a body follows."""
    rows = tables("Tasks")[0]
    assert [int(row[0]) for row in rows] == [0, SPOOL_OVER_HTTP, SPOOL_WITH_ID]
    assert {(SPOOL, int(row[0])) for row in rows if "body" in row[2]} == BODIES


def test_operations() -> None:
    """The document names every operation that a spooler can be asked for, but for what a batch replaces."""
    rows = next(table for table in tables("Tasks") if any("`stats`" in row[0] for row in table))
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    assert named == {*OPERATIONS, "wait"} - {"enqueue"}


def test_answer_in_http() -> None:
    """The example of an answer to nginx is what ours writes to the example of a request."""
    (request,) = (saying for saying, _ in EXAMPLES if saying.startswith("packet_and_body"))
    made: Said = eval(request, dict(SAYINGS))
    packet, _, _ = made.read(made.data)  # type: ignore[misc]
    answer = http_answers.accepted_answer(http_answers.HttpRequest.read(packet.payload), 17, "ready")
    assert _HTTP.findall(DOCUMENT) == [answer.decode().replace("\r\n", "\n")]


def test_statuses_of_calls() -> None:
    """The document has the statuses that calls over HTTP are answered with."""
    forms, statuses = tables("RPC")
    assert [int(row[0]) for row in forms] == [rpc.RPC_FRAMED, rpc.RPC_RAW, rpc.RPC_HTTP]
    told = {status for row in statuses for status in map(int, row[0].split(", "))}
    assert told == {status.value for _, status in (*rpc_responder.STATUSES, *web_status.STATUSES)} - {400}


def test_statuses() -> None:
    """The document has every status that is answered to nginx."""
    refusals = {line[1].value for line in http_answers._REFUSALS}
    others = (
        http_answers.not_allowed_answer(b"X"),
        http_answers.not_allowed_answer(b""),
        http_answers.not_found_answer("", head=False),
        http_answers.accepted_answer(http_answers.HttpRequest(b"", "", {}), 1, ""),
    )
    told = {int(row[0]) for row in tables("Tasks")[1]}
    assert told == refusals | {int(answer.split()[1]) for answer in others} | {200}


def test_variables_of_tasks() -> None:
    """The document has the variables that always enter a task that nginx asks for, and none of the others."""
    paragraph = DOCUMENT.partition("The task's variables are those")[2].partition("The latter")[0]
    assert _QUOTED.findall(paragraph) == [name.decode() for name in http_answers._TASK_VARS]
    assert not set(HTTP_VARS) & set(_QUOTED.findall(paragraph))


def test_terms() -> None:
    """The keys of an offer are those that the document lists."""
    rows = tables("Offer and grant")[0]
    terms = decode_vars(STREAMING.encode())
    assert {code(row[0]).encode() for row in rows} == set(terms)
    assert code(rows[0][1]).encode() == terms[code(rows[0][0]).encode()]


@pytest.mark.parametrize(
    "answer",
    [
        Packet(PING, 1),
        Packet(PING, 1, b"a warning"),
        Packet(PING, 0, Terms().encode()),
        Packet(33, 1, Terms().encode()),
    ],
)
def test_no_grant(answer: Packet) -> None:
    """What the document says is no grant, is none."""
    assert wire_terms.decode_grant(answer) is None


FRAMES = tables("Frames")[0]


def test_kinds_of_frames() -> None:
    """The document has the number of every kind of frame."""
    assert {code(row[0]): int(row[1]) for row in FRAMES} == {kind: getattr(frame, kind) for kind in KINDS}


@pytest.mark.parametrize("row", FRAMES, ids=[code(row[0]) for row in FRAMES])
def test_who_sends_a_frame(row: list[str]) -> None:
    """A kind of frame is refused by the side from which the document says it comes, and taken by the other."""
    name, number, sender, _ = row
    data = encode_packet(Packet(SESSION, int(number), b"" if "SHUTDOWN" in name else bytes(14)))
    for role, make in (("client", client), ("server", server)):
        if sender in ("both", "server" if role == "client" else "client"):
            make().receive(data)
        else:
            with pytest.raises(errors.MalformedPacket):
                make().receive(data)


def test_head() -> None:
    """The head of a message has the fields that the document says."""
    assert layout(tables("Frames")[1]) == frame.BEGIN.format


def test_keys_of_errors() -> None:
    """An error has the keys that the document lists."""
    remote = errors.RemoteError(type="t", message="m", traceback="t", node="n")
    facts = (errors.MessageTooLarge(), errors.RequestTimeout(), errors.UnknownModifier())
    made = [failure.encode_failure(error, node="n1") for error in (remote, errors.Busy("text"), *facts)]
    told = {key.decode() for one in made for key in decode_vars(one)}
    assert {key for row in tables("Errors")[0] for key in re.findall(r"`(\w+)`", row[0])} == told


def told_classes() -> dict[str, type[errors.UwsgiError]]:
    """Return the classes that an error's name is made again as."""
    found = {}
    for name, cls in vars(errors).items():
        if isinstance(cls, type) and issubclass(cls, errors.UwsgiError):
            made = failure.decode_failure(encode_vars([(b"class", name)]))
            if type(made) is cls:
                found[name] = cls
    return found


def test_classes_of_errors() -> None:
    """The document has every class that an error can be, and says which of them may be sent again."""
    rows = tables("Errors")[1]
    assert {code(row[0]) for row in rows} == set(told_classes())
    again = {name for name, cls in told_classes().items() if issubclass(cls, errors.Unavailable)}
    assert {code(row[0]) for row in rows if row[2] == "yes"} == again


def test_limits() -> None:
    """The document has every limit of a server's connections, with its default where that is a number."""
    defaults = {field.name: field.default for field in fields(Limits)}
    table = {code(row[0]): row[1] for row in tables("What a server limits")[0]}
    assert table.keys() == defaults.keys()
    assert int(table["max_peer_connections"]) == Limits().peer_connections
    numbers = {name: float(number) for name, number in defaults.items() if number is not None}  # type: ignore[arg-type]
    assert {name: float(table[name]) for name in numbers} == numbers


def test_numbers() -> None:
    """The document's list of numbers is complete and right."""
    said = {code(name): float(value.partition(" ")[0]) for name, value in tables("Numbers")[0]}
    assert said == NUMBERS


def test_mentions() -> None:
    """Wherever a number stands behind its name, it is the right one."""
    mentions = _MENTION.findall(DOCUMENT)
    assert len(mentions) >= 20
    assert [(name, value) for name, value in mentions if float(value) != NUMBERS[name]] == []


def test_first_frames_fill_a_packet() -> None:
    """The sizes of pieces follow from the head and the packet, as the document has them."""
    head = struct.calcsize(layout(tables("Frames")[1]))
    assert NUMBERS["FIRST_PIECE"] + head == NUMBERS["NEXT_PIECE"] + 4 == NUMBERS["MAX_PAYLOAD"]
