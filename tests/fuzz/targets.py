"""What is fuzzed: a table of functions that take any bytes, by name.

A target fails if it raises. It returns how much work it did: the bytes that went through the code, and some for
each call; :func:`check` holds its time against that.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

from tests.fuzz.objects import keys, objects, stretched_objects
from tests.fuzz.sessions import conversation, hostile_peer, streaming_conversation, streaming_peer
from tests.fuzz.source import Source
from tests.fuzz.timing import assert_linear
from uwsgitwisted.errors import MalformedPacket, ProtocolError, UwsgiError
from uwsgitwisted.responders.http_tasks import (
    HttpRequest,
    accepted_answer,
    not_allowed_answer,
    not_found_answer,
    refused_answer,
)
from uwsgitwisted.spool.management.arguments import read_arguments
from uwsgitwisted.spool.management.operations import OPERATIONS, WAIT
from uwsgitwisted.spool.task import new_task
from uwsgitwisted.spool.uwsgi.broken import BROKEN
from uwsgitwisted.spool.uwsgi.directory import SpoolDirectory
from uwsgitwisted.spool.uwsgi.files import PREFIX
from uwsgitwisted.wire.array import decode_array
from uwsgitwisted.wire.bundle import MAX_BUNDLE, decode_bundle, decode_outcomes, encode_bundle
from uwsgitwisted.wire.exchange import PlainExchange
from uwsgitwisted.wire.failure import decode_failure, encode_failure
from uwsgitwisted.wire.message import decode_answer
from uwsgitwisted.wire.objects import loads_plain
from uwsgitwisted.wire.packet import BUNDLE, HEADER_SIZE, MAX_PAYLOAD, RPC, Packet, PacketDecoder, encode_packet
from uwsgitwisted.wire.rpc import decode_call, encode_result
from uwsgitwisted.wire.tasks import (
    decode_batch,
    decode_run,
    encode_batch,
    read_accepted,
    read_changed,
    read_ids,
    read_single,
)
from uwsgitwisted.wire.terms import Terms, decode_grant, decode_offer
from uwsgitwisted.wire.vars import (
    body_size,
    decode_vars,
    encode_item,
    encode_vars,
    may_announce_body,
    split_vars,
)
from uwsgitwisted.worker.accepting import _web_request
from uwsgitwisted.worker.handlers.render import read_page
from uwsgitwisted.worker.templates.directories import check_name
from uwsgitwisted.worker.templates.errors import TemplateRefused
from uwsgitwisted.worker.templates.mako_engine import RESERVED
from uwsgitwisted.worker.templates.variables import VariableNames
from uwsgitwisted.worker.web.environ import read_request as read_web_request

Target = Callable[[bytes], int]

#: How long a target may take: a base, and for each unit of its work, in seconds. A quadratic one takes many
#: times this on a stretched input.
BASE, PER_UNIT = 0.1, 0.000_002
#: How much slower the fuzzer's instruments make code.
INSTRUMENTED = 8.0
_NOW = 1_767_225_600.0


def packets(data: bytes) -> int:
    """Cut packets: the same ones whatever the chunks, and no byte twice."""
    source = Source(data)
    limit, count = source.choose((MAX_PAYLOAD, 100, 0)), source.choose((None, 1, 3))
    chunked, whole = (PacketDecoder(limit=limit, count=count) for _ in range(2))
    size = source.byte() or MAX_PAYLOAD
    stream = source.stretch()
    found = _receive(chunked, [stream[start : start + size] for start in range(0, len(stream), size)])
    assert found == _receive(whole, [stream])
    if found is not None:
        assert b"".join(map(encode_packet, found)) + chunked.rest() == stream
    return 3 * len(stream)


def _receive(decoder: PacketDecoder, chunks: list[bytes]) -> list[Packet] | None:
    """Return the packets in *chunks*, or None if they break the protocol."""
    try:
        return [packet for chunk in chunks for packet in decoder.receive(chunk)]
    except ProtocolError:
        return None


def exchange(data: bytes) -> int:
    """Read a hostile server's answer to a plain request."""
    source = Source(data)
    request = Packet(source.choose((33, 17, 100, 101, 173, 0, 255)), source.byte() % 6)
    plain = PlainExchange(request, limit=source.choose((1 << 20, 100, 0)))
    done = source.byte()
    stream = source.stretch()
    try:
        for chunk in Source(bytes([done])).cut(stream):
            plain.receive(chunk)
        plain.receive_eof()
        plain.result()
    except UwsgiError:
        pass
    return 3 * len(stream)


def variables(data: bytes) -> int:
    """Read a vars block, with and without a body behind it."""
    block = Source(data).stretch()
    try:
        found = decode_vars(block)
    except ProtocolError:
        pass
    else:
        assert decode_vars(encode_vars(found)) == found
        with contextlib.suppress(ProtocolError):
            assert 0 <= body_size(block) < 10**20
    with contextlib.suppress(UwsgiError):
        head, body, missing = split_vars(block)
        assert head + body == block
        assert len(head) <= MAX_PAYLOAD
        assert missing == 0 or not body
    return 3 * len(block)


def array(data: bytes) -> int:
    """Read the arguments of a call."""
    block = Source(data).stretch()
    with contextlib.suppress(ProtocolError):
        assert b"".join(map(encode_item, decode_array(block))) == block
    for modifier2 in range(4):
        with contextlib.suppress(UwsgiError):
            request = Packet(RPC, modifier2, block)
            assert decode_call(request).name
            assert encode_result(request, b"x").payload.endswith(b"x")
    return 5 * len(block)


def bundle(data: bytes) -> int:
    """Read a bundle, and the answer to one."""
    source = Source(data)
    modifier2 = source.byte()
    block = source.stretch()
    with contextlib.suppress(ProtocolError):
        requests = decode_bundle(Packet(BUNDLE, modifier2, block))
        assert 0 < len(requests) <= MAX_BUNDLE
        assert encode_bundle(requests) == Packet(BUNDLE, modifier2, block)
    with contextlib.suppress(ProtocolError):
        outcomes = decode_outcomes(Packet(BUNDLE, modifier2, block))
        assert 0 < len(outcomes) <= MAX_BUNDLE
        assert all(isinstance(error, (UwsgiError, type(None))) for _, error in outcomes)
    return 10 * len(block)


def terms(data: bytes) -> int:
    """Read the offer or the grant of a session."""
    block = Source(data).stretch()[:MAX_PAYLOAD]
    for read in (decode_offer, decode_grant):
        for modifier2 in (0, 1):
            found = read(Packet(100, modifier2, block))
            assert found is None or (found.max_message >= 0 and found.max_requests >= 0)
            assert found is None or 0 <= found.bundle_from(Terms()) <= MAX_BUNDLE
    found = Terms.decode(block)
    if found is not None:
        with contextlib.suppress(UwsgiError):  # what can't be decoded may grow beyond an item's size
            assert Terms.decode(found.encode()) == found
    return 5 * len(block)


def failure(data: bytes) -> int:
    """Make an exception of what a peer says that one is."""
    block = Source(data).stretch()
    try:
        error = decode_failure(block)
    except ProtocolError:
        return len(block)
    assert isinstance(error, UwsgiError)
    again = encode_failure(error)
    assert len(again) <= MAX_PAYLOAD
    assert type(decode_failure(again)) is type(error)
    assert isinstance(str(error), str)
    return 4 * len(block)


_HEADER = re.compile(rb"[A-Za-z-]+: [\x20-\x7e]*")


def http(data: bytes) -> int:
    """Read a web request for a task; every answer is HTTP with one head, whatever stands in the request."""
    block = Source(data).stretch()[:MAX_PAYLOAD]
    try:
        request = HttpRequest.read(block)
    except ProtocolError as error:
        _check_http(refused_answer(error))
        return len(block)
    assert request.task is None or 0 <= request.task < 2**63
    _check_http(accepted_answer(request, 1, "ready"))
    _check_http(not_allowed_answer(request.method))
    _check_http(not_found_answer("nothing", head=False))
    try:
        task = new_task(request.task_variables((b"PATH_INFO", b"QUERY_STRING")), _NOW)
    except UwsgiError as error:
        _check_http(refused_answer(error))
    else:
        assert (
            not task.key.startswith("http:")
            or b"HTTP_IDEMPOTENCY_KEY" in request.variables
            or (b"idempotency_key" in request.variables)
        )
    return 6 * len(block)


def _check_http(answer: bytes) -> None:
    head, end, body = answer.partition(b"\r\n\r\n")
    status, *headers = head.split(b"\r\n")
    assert end
    HTTPStatus(int(status.split()[1]))
    assert all(map(_HEADER.fullmatch, headers)), "a header that nobody wrote"
    assert b"Content-Length: %d" % len(body) in headers
    json.loads(body)


def spool_file(data: bytes) -> int:
    """Take a task out of a spool directory; what is broken is set aside, and nothing is lost."""
    source = Source(data)
    name = PREFIX + re.sub(rb"[/\0]", b"", source.take(source.byte() % 40)).decode(errors="surrogateescape")
    modified = int.from_bytes(source.take(source.byte() % 6), "little", signed=True)
    content = source.stretch()
    with tempfile.TemporaryDirectory(dir=_SCRATCH) as scratch:
        path = Path(scratch, name)
        path.write_bytes(content)
        with contextlib.suppress(OSError):  # a file system has its own limits
            os.utime(path, (modified, modified))
        directory = SpoolDirectory(scratch, max_size=60_000, now=lambda: time.time() + 3_600)
        batches = directory.batches()
        for batch in batches:
            assert not batch.left
            assert len(batch.tasks) + len(batch.set_aside) == 1
            for task in batch.tasks:
                block = encode_packet(Packet(17, content[3], task.variables))
                assert block + task.body == content
                again = directory.write(task)
                assert stat.S_ISREG(os.stat(Path(scratch, again)).st_mode)
                os.unlink(Path(scratch, again))
            for _ in batch.set_aside:
                assert Path(scratch, BROKEN, name).read_bytes() == content
            batch.remove()
            break
        else:
            raise AssertionError("the file was not seen")
        batches.close()
        assert not path.exists()
    return 10 * len(content) + 3_000


#: Where files cost no disk, if there is such a place.
_SCRATCH = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def tasks(data: bytes) -> int:
    """Read a task, a batch of tasks, and a task on its way to a worker."""
    source = Source(data)
    cut = source.byte()
    block = source.stretch()
    with contextlib.suppress(UwsgiError):
        task = new_task(block, _NOW, block[:cut])
        assert 0 <= task.at < 2**38
        assert abs(task.priority) <= 2**31
    with contextlib.suppress(UwsgiError):
        assert encode_batch(decode_batch(block)) == block
    with contextlib.suppress(UwsgiError):
        decode_run(Packet(17, 0, block))
    return 3 * len(block)


_QUESTIONS = {**{name: operation.takes for name, operation in OPERATIONS.items()}, "wait": WAIT}


def questions(data: bytes) -> int:
    """Read what a peer asks of a queue: any object, as the arguments of each operation."""
    try:
        value = loads_plain(data)
    except ProtocolError:
        return len(data)
    for name, takes in _QUESTIONS.items():
        for arguments in (value, {"ids": value}, {"id": value}, {"tasks": value}, {"queue": value}):
            with contextlib.suppress(UwsgiError):
                read_arguments(name, takes, arguments)
    return 20 * len(data) + 5_000


def answers(data: bytes) -> int:
    """Read what a hostile spooler answers to our clients."""
    source = Source(data)
    packet = Packet(source.choose((33, 255, 101, 0)), source.byte(), source.rest())
    try:
        answer = decode_answer(packet)
    except ProtocolError:
        return len(data)
    for read in (read_ids, read_changed, read_accepted, lambda value: read_single(value, 7)):
        with contextlib.suppress(UwsgiError):
            read(answer)
    return 5 * len(data)


def template_request(data: bytes) -> int:
    """Read what a renderer is asked: the name never leaves a directory, no variable takes Mako's own names."""
    source = Source(data)
    text = source.take(source.byte()).decode("utf-8", source.choose(("replace", "surrogateescape")))
    with contextlib.suppress(TemplateRefused):
        name = check_name(text)
        assert os.path.normpath(f"/a/b/{name}") == f"/a/b/{name}"
        assert os.path.join("/a/b", name).startswith("/a/b/")
    with contextlib.suppress(UwsgiError):
        _, asked = read_page(("x", loads_plain(source.rest())))
        names = VariableNames(RESERVED).select(asked)
        assert names["attributes"] is asked
        assert not {"self", "local", "context", "UNDEFINED", "capture"} & names.keys()
    return 3 * len(data)


def web_request(data: bytes) -> int:
    """Read a web request as a worker does that has accepted it, and as the front does: they agree."""
    source = Source(data)
    body = source.byte() % 8
    data = source.rest()
    if body < 7:  # with a header in front that fits
        size = min(max(0, len(data) - body), MAX_PAYLOAD)
        data = encode_packet(Packet(0, 0, data[:size])) + data[size:]
    accepted = _web_request(data, 1 << 20)
    if accepted is None:
        return len(data)
    decoder = PacketDecoder(count=1)
    (packet,) = decoder.receive(data)
    behind = decoder.rest()
    assert len(behind) == (body_size(packet.payload) if may_announce_body(packet.payload) else 0)
    assert accepted == packet._replace(payload=packet.payload + behind)
    with contextlib.suppress(MalformedPacket):
        environ, read = read_web_request(accepted.payload, streamed=False)
        sent = {name: value for name, value in decode_vars(packet.payload).items() if name[:6] != b"UWSGI_"}
        assert {name.encode("latin-1"): value.encode("latin-1") for name, value in environ.items()} == sent
        assert read == behind
    return 10 * len(data)


#: The targets by their names, which are also those of their directories of cases.
TARGETS: dict[str, Target] = {
    "packets": packets,
    "exchange": exchange,
    "session": hostile_peer,
    "conversation": conversation,
    "streaming_session": streaming_peer,
    "streaming_conversation": streaming_conversation,
    "objects": objects,
    "stretched_objects": stretched_objects,
    "keys": keys,
    "vars": variables,
    "array": array,
    "bundle": bundle,
    "terms": terms,
    "failure": failure,
    "http": http,
    "web_request": web_request,
    "spool_file": spool_file,
    "tasks": tasks,
    "questions": questions,
    "answers": answers,
    "template_request": template_request,
}


def check(name: str, data: bytes, *, slower: float = 1.0) -> None:
    """Run a target.

    :param slower: how much slower than usual it is.
    :raises Exception: if it fails, or takes more time than in proportion to its work.
    """
    target = TARGETS[name]
    began = time.thread_time()
    work = target(data)
    limit = slower * (BASE + PER_UNIT * work)
    if time.thread_time() - began > limit:
        assert_linear(lambda: target(data), limit, f"{name} of {work} units")


assert HEADER_SIZE == 4, "spool_file knows where a packet has its modifier2"
