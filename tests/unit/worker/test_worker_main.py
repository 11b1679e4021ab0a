"""What runs in a worker process, run here in a thread: tokens, deadlines, failures, limits, the end."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from uwsgitwisted.activity import Slot
from uwsgitwisted.errors import (
    MessageTooLarge,
    RemoteError,
    RequestCancelled,
    RequestTimeout,
    StartupError,
    UnknownModifier,
)
from uwsgitwisted.wire.events import AnswerReceived, ErrorReceived, Event, ShutdownReceived
from uwsgitwisted.wire.packet import PING, Packet, PacketDecoder, encode_packet
from uwsgitwisted.wire.session import Role, Session
from uwsgitwisted.wire.terms import Terms, decode_grant, encode_offer
from uwsgitwisted.worker.accepting import MakeAcceptor
from uwsgitwisted.worker.compat.requests import requests
from uwsgitwisted.worker.handlers.handler import Handler
from uwsgitwisted.worker.main import main
from uwsgitwisted.worker.spec import HandlerTable, Loader, WorkerSpec
from uwsgitwisted.worker.threads import ThreadedWorker
from uwsgitwisted.worker.worker import Worker

LIMIT = 100_000
PATIENCE = 5


def _exit() -> None:
    sys.exit("leaving")


def _raise(error: Exception) -> None:
    raise error


ACTIONS: dict[bytes, Callable[[], Any]] = {
    b"raise": lambda: _raise(KeyError("x")),
    b"exit": _exit,
    b"memory": lambda: _raise(MemoryError()),
    b"ours": lambda: _raise(RequestTimeout("another node's")),
}


class Front:
    """A worker in a thread, and the front's end of its pipe.

    :param handlers: its handlers; without them, it runs :data:`ACTIONS`.
    :param make_acceptor: makes what accepts its connections.
    :param slots: shows what its threads do.
    :param terms: of the front's side of the session.
    """

    def __init__(
        self,
        handlers: HandlerTable | None = None,
        make_acceptor: MakeAcceptor | None = None,
        slots: Sequence[Slot] = (),
        terms: Terms = Terms(),  # noqa: B008 - it is immutable
        **limits: Any,
    ) -> None:
        #: What was run, in order.
        self.ran: list[bytes] = []
        self.ours, theirs = socket.socketpair()
        self.ours.settimeout(PATIENCE)
        reader, self.tokens = os.pipe()
        os.set_blocking(reader, False)
        self._descriptors = (reader, self.tokens)
        self.ended: list[BaseException | None] = []
        spec = WorkerSpec((Loader("nothing:load"),), max_message=LIMIT, **limits)
        handlers = handlers or {33: Handler(self._run, _answer)}
        kind = ThreadedWorker if spec.threads > 1 else Worker
        self.worker = worker = kind(theirs, reader, spec, handlers, "n1 worker 1", make_acceptor, slots)
        self._terms = terms

        def serve() -> None:
            with theirs:
                try:
                    worker.serve()
                except BaseException as error:
                    self.ended.append(error)
                else:
                    self.ended.append(None)

        self.thread = threading.Thread(target=serve, daemon=True)  # a test that fails must not hang
        self.thread.start()
        self.session = Session(Role.CLIENT, terms, terms)
        self._early: list[Event] = []

    def _run(self, request: Packet) -> bytes:
        self.ran.append(request.payload)
        return ACTIONS[request.payload]() if request.payload in ACTIONS else request.payload

    def negotiate(self, first: bytes | None = None, behind: bytes = b"") -> Terms:
        """Offer a session and return what the worker grants."""
        self.ours.sendall((encode_offer(self._terms) if first is None else first) + behind)
        decoder = PacketDecoder(count=1)
        (packet,) = decoder.receive(self.ours.recv(65_536))
        self._early = self.session.receive(decoder.rest())
        terms = decode_grant(packet)
        assert terms is not None
        return terms

    def put(self, number: int) -> None:
        """Let the worker begin *number* requests."""
        os.write(self.tokens, bytes(number))

    def ask(self, *payloads: bytes, start: int = 1, **known: Any) -> None:
        """Give requests, in one write."""
        for request, payload in enumerate(payloads, start):
            self.session.send_request(request, Packet(known.pop("modifier1", 33), 5, payload), **known)
        self.flush()

    def flush(self) -> None:
        while data := self.session.data_to_send():
            self.ours.sendall(data)

    def events(self, number: int) -> list[Event]:
        """Return the next events."""
        found, self._early = self._early, []
        while len(found) < number:
            data = self.ours.recv(65_536)
            assert data, f"the worker ended after {found!r}"
            found += self.session.receive(data)
        return found

    def close(self) -> None:
        self.ours.close()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        for descriptor in self._descriptors:
            os.close(descriptor)


def _answer(request: Packet, value: object) -> Packet:
    assert isinstance(value, bytes)
    return Packet(33, request.modifier2, value * (LIMIT if request.payload == b"large" else 1))


@pytest.fixture
def front() -> Iterator[Front]:
    """Give a worker that has no limits but one of size."""
    made = Front()
    yield made
    made.close()


def test_requests(front: Front) -> None:
    """Requests are run in the order in which they came, each answered with how long it took."""
    assert front.negotiate().max_message == LIMIT
    front.put(3)
    front.ask(b"a", b"b", b"c")
    events = front.events(3)
    assert [(event.id, event.packet) for event in events if isinstance(event, AnswerReceived)] == [
        (1, Packet(33, 5, b"a")),
        (2, Packet(33, 5, b"b")),
        (3, Packet(33, 5, b"c")),
    ]
    assert all(0 <= event.took < PATIENCE for event in events if isinstance(event, AnswerReceived))


def test_requests_behind_the_offer(front: Front) -> None:
    """A front may send requests with its offer; one that tells no terms gets a session all the same."""
    front.put(1)
    front.session.send_request(1, Packet(33, 5, b"early"))
    front.negotiate(first=encode_packet(Packet(PING, 0)), behind=front.session.data_to_send())
    (event,) = front.events(1)
    assert isinstance(event, AnswerReceived)


def test_a_request_without_a_token_is_not_begun(front: Front) -> None:
    """The front has taken it back: the worker says that it has forgotten it, and runs what comes then."""
    front.negotiate()
    front.put(1)
    front.ask(b"first", b"second", b"third")
    assert [event.id for event in front.events(1) if isinstance(event, AnswerReceived)] == [1]
    front.session.send_cancel(3)
    front.session.send_cancel(2)
    front.flush()
    confirmed = front.events(2)
    assert [event.id for event in confirmed if isinstance(event, ErrorReceived)] == [3, 2]
    assert all(
        isinstance(event.error, RequestCancelled) for event in confirmed if isinstance(event, ErrorReceived)
    )
    front.put(1)
    front.ask(b"fourth", start=4)
    assert [event.id for event in front.events(1) if isinstance(event, AnswerReceived)] == [4]
    assert front.ran == [b"first", b"fourth"]


def test_a_token_that_comes_late(front: Front) -> None:
    """A request without a token waits until something comes together with one."""
    front.negotiate()
    front.ask(b"first")
    front.session.send_ping()
    front.flush()
    front.events(1)
    assert front.ran == []
    front.put(2)
    front.ask(b"second", start=2)
    assert len(front.events(2)) == 2
    assert front.ran == [b"first", b"second"]


def test_requests_that_arrive_together() -> None:
    """A handler can tell the requests that one read has brought from later ones."""
    reads: list[int] = []
    front = Front({33: Handler(lambda _: reads.append(requests.read) or b"", _answer)})
    try:
        front.negotiate()
        for start in (1, 3):
            front.put(2)
            front.ask(b"a", b"b", start=start)
            front.events(2)
    finally:
        front.close()
    assert reads[0] == reads[1] != reads[2] == reads[3]
    assert 0 not in reads
    assert requests.read == 0


def test_a_deadline_that_is_over(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request whose caller has given up while others ran is not begun."""
    front.negotiate()
    front.put(2)
    began, gate = threading.Event(), threading.Event()

    def wait() -> bytes:
        began.set()
        gate.wait(PATIENCE)
        return b"waited"

    monkeypatch.setitem(ACTIONS, b"wait", wait)
    front.session.send_request(1, Packet(33, 5, b"wait"))
    front.session.send_request(2, Packet(33, 5, b"late"), 0.001)
    front.flush()
    assert began.wait(PATIENCE)  # it has read both, and the time of the second one runs
    threading.Timer(0.05, gate.set).start()
    first, second = front.events(2)
    assert isinstance(first, AnswerReceived)
    assert isinstance(second, ErrorReceived)
    assert isinstance(second.error, RequestTimeout)
    assert front.ran == [b"wait"]


@pytest.mark.parametrize(
    ("payload", "type_", "message"),
    [
        (b"raise", "KeyError", "'x'"),
        (b"exit", "SystemExit", "leaving"),
        (b"ours", "RequestTimeout", "another node's"),
    ],
)
def test_failures(front: Front, payload: bytes, type_: str, message: str) -> None:
    """What a handler raises is described, also an error of ours that it got from elsewhere."""
    front.negotiate()
    front.put(2)
    front.ask(payload, b"next")
    failed, answered = front.events(2)
    assert isinstance(failed, ErrorReceived)
    assert isinstance(failed.error, RemoteError)
    assert (failed.error.type, failed.error.message) == (type_, message)
    assert failed.error.node == "n1 worker 1"
    assert isinstance(answered, AnswerReceived)


def test_an_unknown_modifier(front: Front) -> None:
    """A modifier that no handler answers is named."""
    front.negotiate()
    front.put(1)
    front.ask(b"x", modifier1=9)
    (failed,) = front.events(1)
    assert isinstance(failed, ErrorReceived)
    assert isinstance(failed.error, UnknownModifier)
    assert "modifier1 9" in failed.error.text


def test_a_large_answer() -> None:
    """An answer that the front doesn't take is an error instead; the worker goes on."""
    front = Front()
    front.negotiate(first=encode_offer(Terms(max_message=1_000)))
    front.put(2)
    front.ask(b"large", b"small")
    failed, answered = front.events(2)
    front.close()
    assert isinstance(failed, ErrorReceived)
    assert isinstance(failed.error, MessageTooLarge)
    assert isinstance(answered, AnswerReceived)


def test_large_messages(front: Front) -> None:
    """Messages of several pieces go both ways."""
    front.negotiate()
    front.put(2)
    front.ask(b"x" * 90_000, b"small")
    events = front.events(2)
    assert {len(event.packet.payload) for event in events if isinstance(event, AnswerReceived)} == {90_000, 5}


def test_max_requests() -> None:
    """After that many requests the worker announces its shutdown, before the answer, and goes on for now."""
    front = Front(max_requests=2)
    front.negotiate()
    front.put(4)
    front.ask(b"1", b"2", b"3", b"4")
    events = front.events(5)
    front.close()
    kinds = [type(event) for event in events]
    assert kinds.count(ShutdownReceived) == 1
    assert ShutdownReceived in kinds[1:3]
    assert front.ran == [b"1", b"2", b"3", b"4"]


def test_out_of_memory(front: Front) -> None:
    """A worker that ran out of memory asks to be replaced, whoever is to blame for it."""
    front.negotiate()
    front.put(1)
    front.ask(b"memory")
    failed, shutdown = sorted(front.events(2), key=lambda event: isinstance(event, ShutdownReceived))
    assert isinstance(failed, ErrorReceived)
    assert isinstance(failed.error, RemoteError)
    assert failed.error.type == "MemoryError"
    assert isinstance(shutdown, ShutdownReceived)


def test_out_of_memory_again(front: Front) -> None:
    """A worker asks to be replaced only once, so that its successor isn't replaced too."""
    front.negotiate()
    front.put(3)
    front.ask(b"memory", b"memory", b"next")
    events = front.events(4)
    assert [type(event) for event in events].count(ShutdownReceived) == 1


def test_the_end() -> None:
    """It ends when the front closes the pipe; without an error if the session had begun."""
    front = Front()
    front.negotiate()
    front.close()
    assert front.ended == [None]


def test_an_end_before_the_beginning() -> None:
    """A front that goes away before it offers anything ends the worker as well."""
    front = Front()
    front.close()
    (error,) = front.ended
    assert isinstance(error, SystemExit)
    assert error.code == 0


# The specification.


def load(**arguments: object) -> HandlerTable:
    """Load no handlers."""
    if arguments.get("broken"):
        raise StartupError("it is broken")
    return {}


def test_a_spec_travels() -> None:
    """What a worker is told survives being written and read."""
    loaders = (Loader("module:load", {"name": "x", "list": [1, None]}), Loader("other:load"))
    options = {"listen": ["a", "b"], "node": "c", "text": True}
    for spec in (WorkerSpec(loaders, 5, 6, 7, 8, options, 9, 10), WorkerSpec(loaders[1:])):
        assert WorkerSpec.decode(spec.encode()) == spec


def _nothing(request: Packet) -> object:
    return None


def load_two(first: int, second: int) -> HandlerTable:
    """Load handlers that answer two values of modifier1."""
    return {modifier1: Handler(_nothing, _answer) for modifier1 in (first, second)}


def test_several_loaders() -> None:
    """A worker answers what each of its loaders answers."""
    spec = WorkerSpec(
        (
            Loader(f"{__name__}:load_two", {"first": 33, "second": 34}),
            Loader(f"{__name__}:load_two", {"first": 173, "second": 0}),
        )
    )
    assert sorted(spec.load()) == [0, 33, 34, 35, 110, 173]


def test_loaders_that_collide() -> None:
    """Two loaders that answer the same modifier1 are a mistake, and both are named."""
    one = Loader(f"{__name__}:load_two", {"first": 33, "second": 34})
    other = Loader(f"{__name__}:load_two", {"first": 35, "second": 33})
    with pytest.raises(StartupError) as caught:
        WorkerSpec((one, other)).load()
    assert str(caught.value) == (
        f"both {__name__}:load_two(first=33, second=34) and {__name__}:load_two(first=35, second=33) answer "
        "modifier1 33; leave one out"
    )


def test_checking() -> None:
    """With --check the handlers are loaded, and nothing else is done."""
    main(["--check", WorkerSpec((Loader(f"{__name__}:load"),)).encode()])
    with pytest.raises(StartupError, match="it is broken"):
        main(["--check", WorkerSpec((Loader(f"{__name__}:load", {"broken": True}),)).encode()])
