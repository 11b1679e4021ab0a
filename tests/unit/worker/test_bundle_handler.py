"""The handler of objects, run for each object of a bundle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from uwsgitwisted.errors import MalformedPacket, MessageTooLarge, RemoteError, UnsafeObject
from uwsgitwisted.wire.bundle import Outcome, decode_outcomes, encode_bundle
from uwsgitwisted.wire.objects import dumps
from uwsgitwisted.wire.packet import BUNDLE, MARSHAL, Packet
from uwsgitwisted.wire.terms import MAX_MESSAGE
from uwsgitwisted.worker.compat import uwsgi
from uwsgitwisted.worker.compat.requests import request_id
from uwsgitwisted.worker.handlers import bundle, marshal
from uwsgitwisted.worker.handlers.bundle import BundleHandler
from uwsgitwisted.worker.recycling import recycling_due
from uwsgitwisted.worker.spec import WorkerSpec

Ask = Callable[..., list[Outcome]]
Function = Callable[[Any, int], object]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Return what has a function handle objects that are a bundle."""

    def ask(function: Function, *objects: object, limit: int = MAX_MESSAGE) -> list[Outcome]:
        monkeypatch.setattr(uwsgi, "message_manager_marshal", function)
        requests = [Packet(MARSHAL, 17, each if type(each) is bytes else dumps(each)) for each in objects]
        handler = BundleHandler.of(marshal.table()[MARSHAL], limit)
        answer = handler(encode_bundle(requests), "n1 worker 1")
        assert answer[:2] == (BUNDLE, 17)
        return decode_outcomes(answer)

    return ask


def test_one_by_one(ask: Ask) -> None:
    """The function gets each object with the modifier2, in their order; each is a request of its own to it."""
    seen = []

    def function(message: object, modifier2: int) -> object:
        seen.append((message, modifier2, request_id()))
        return [message]

    assert ask(function, 1, "two", (3,)) == [([1], None), (["two"], None), ([(3,)], None)]
    first = seen[0][2]
    assert seen == [(1, 17, first), ("two", 17, first + 1), ((3,), 17, first + 2)]


def test_failures(ask: Ask) -> None:
    """An object that fails, can't be read, or has no answer that can be sent, fails alone."""

    def function(message: object, modifier2: int) -> object:
        if message == 2:
            raise KeyError("user")
        return object() if message == 3 else message

    outcomes = ask(function, 1, 2, b"?", 3, 4)
    assert [value for value, error in outcomes if error is None] == [1, 4]
    raised, unsafe, unencodable = (error for _, error in outcomes if error)
    assert isinstance(raised, RemoteError)
    assert (raised.type, raised.node) == ("KeyError", "n1 worker 1")
    assert "KeyError" in raised.traceback
    assert isinstance(unsafe, UnsafeObject)
    assert isinstance(unencodable, RemoteError)
    assert unencodable.type == "UnencodableMessage"


def test_exit(ask: Ask) -> None:
    """sys.exit() ends the request of its object only."""

    def function(message: object, modifier2: int) -> object:
        raise SystemExit(3)

    assert [type(error) for _, error in ask(function, 1, 2)] == [RemoteError, RemoteError]


def test_time(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object that takes long is the last one that is begun."""
    now = [5.0]
    monkeypatch.setattr(bundle, "monotonic", lambda: now[0])

    def function(message: float, modifier2: int) -> object:
        now[0] += message
        return message

    assert [value for value, _ in ask(function, 0.01, 0.02, 0.5, 0.01)] == [0.01, 0.02, 0.5]


def test_bytes(ask: Ask) -> None:
    """With enough bytes of outcomes, no further object is begun."""
    outcomes = ask(lambda message, _: bytes(message), 10, 70_000, 10)
    assert [len(value) for value, _ in outcomes] == [10, 70_000]  # type: ignore[arg-type]


def test_no_room(ask: Ask) -> None:
    """An answer that no longer fits is the error of its object; the others have theirs."""
    outcomes = ask(lambda message, _: bytes(message), 60_000, 70_000, 10, limit=100_000)
    assert outcomes[0] == (bytes(60_000), None)
    error = outcomes[1].error
    assert isinstance(error, MessageTooLarge)
    assert (error.size, error.limit) == (70_010, 100_000 - 60_010)
    assert outcomes[2] == (bytes(10), None)


def test_no_memory(ask: Ask) -> None:
    """What is behind an object that ran out of memory is left to another worker, and this one is replaced."""
    is_due = recycling_due(WorkerSpec(()))

    def function(message: object, modifier2: int) -> object:
        if message == 2:
            raise MemoryError
        return message

    assert ask(function, 1) == [(1, None)]
    assert not is_due()
    first, second = ask(function, 1, 2, 3)
    assert first == (1, None)
    assert isinstance(second.error, RemoteError)
    assert is_due()
    assert not recycling_due(WorkerSpec(()))()


def test_malformed() -> None:
    """What is no bundle is refused as a whole."""
    handler = BundleHandler.of(marshal.table()[MARSHAL], MAX_MESSAGE)
    with pytest.raises(MalformedPacket):
        handler(Packet(BUNDLE, 17, b"\1"))
