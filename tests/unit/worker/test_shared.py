"""uWSGI's shared state from the side of a worker: with a front of the same process, and without one."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest

from uwsgitwisted import blocking
from uwsgitwisted.errors import (
    ConnectionFailed,
    MisuseError,
    RequestTimeout,
    SignalRefused,
    Unavailable,
    UnencodableMessage,
    UnknownFunction,
    UnknownModifier,
)
from uwsgitwisted.wire.calls import FAILED, OK, FrameDecoder, encode_frame
from uwsgitwisted.worker.compat import calls, shared, signal_decorators, signals, stores, uwsgi


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a process without a front that has registered nothing."""
    monkeypatch.setattr(shared, "_front", None)
    monkeypatch.setattr(shared, "_own", None)
    monkeypatch.setattr(shared, "_threads", threading.local())
    monkeypatch.setattr(signals, "_functions", {})
    monkeypatch.setattr(signals, "mule_functions", {})
    monkeypatch.setattr(signals, "mule_msg_extra_hooks", [])
    monkeypatch.setattr(uwsgi, "mule_msg_hook", None)


def test_without_a_front() -> None:
    """A process without a front has caches, locks, a queue and metrics of its own, and no signals."""
    assert stores.cache_set("key", "text") is True
    assert stores.cache_set("key", "other") is None
    assert stores.cache_get(b"key") == b"text"
    assert (stores.cache_exists("key"), stores.cache_exists("no")) == (True, None)
    assert stores.queue_last() is None
    assert stores.queue_push(b"a") is True
    assert (stores.queue_last(), stores.queue_last(2)) == (b"a", [b"a", None])
    assert stores.metric_inc("m", 3) is True
    assert stores.metric_get("m") == 3
    signals.add_timer(1, 5)
    with pytest.raises(MisuseError, match="needs a service with worker processes"):
        signals.signal(1)


def test_lock_without_a_front() -> None:
    """Threads of such a process exclude each other; one that ends frees what it holds."""
    shared.lock()
    assert shared.is_locked() is True
    results: list[str] = []

    def other() -> None:
        shared.lock()
        results.append("locked")

    thread = threading.Thread(target=other)
    thread.start()
    shared.unlock()
    thread.join()
    assert results == ["locked"]
    assert shared.is_locked() is False


@pytest.mark.parametrize("value", [5, None, 1.5])
def test_values_are_bytes_or_text(value: object) -> None:
    """As in uWSGI, a key or a value of another type is a TypeError; a metric is an integer."""
    with pytest.raises(TypeError):
        stores.cache_set("key", value)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        stores.cache_get(value)  # type: ignore[arg-type]
    with pytest.raises(MisuseError):
        stores.metric_set("m", str(value))  # type: ignore[arg-type]


class Front:
    """The front, as a script that takes one connection."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        shared.connect_front(theirs.detach(), 3)

    def accept(self) -> tuple[bytes, socket.socket]:
        """Return what a connection says of itself, and the connection."""
        hello, (descriptor,), _, _ = socket.recv_fds(self.ours, 64, 1)
        return hello, socket.socket(fileno=descriptor)


@pytest.fixture
def front() -> Iterator[Front]:
    made = Front()
    yield made
    made.ours.close()
    assert shared._front is not None
    shared._front._handover.close()
    if hasattr(shared._threads, "connection"):
        shared._threads.connection._socket.close()


def test_late_answers_are_dropped(front: Front) -> None:
    """The answer to a call that was interrupted is not taken for the next one's."""
    served: list[object] = []

    def serve() -> None:
        hello, connection = front.accept()
        with connection:
            (frame,) = FrameDecoder().receive(connection.recv(1_000))
            served.extend((hello, frame.items))
            late = encode_frame(frame.sequence - 1, OK, [b"late"])
            connection.sendall(late + encode_frame(frame.sequence, OK, [b"right"]))
            (frame,) = FrameDecoder().receive(connection.recv(1_000))
            connection.sendall(encode_frame(frame.sequence, FAILED, [b"no such cache"]))

    thread = threading.Thread(target=serve)
    thread.start()
    assert stores.cache_get("key") == b"right"
    with pytest.raises(MisuseError, match="no such cache"):
        stores.cache_get("key", "none")
    thread.join()
    assert served == [b"3 0 %d" % os.getpid(), (b"cache_get", b"key", b"")]
    with pytest.raises(Unavailable, match="the service's front can't be reached"):
        stores.cache_get("key")


def test_what_the_front_tells(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """The front's figures of all workers become what uWSGI has: bytes, memory, applications, and respawns."""
    told = [
        {"id": 1, "pid": os.getpid(), "requests": 7, "status": "busy", "respawn_count": 3},
        {"id": 2, "pid": 0, "requests": 0, "status": "cheap", "respawn_count": 0},
    ]
    answers = iter([[json.dumps(told).encode()], [b"7"], [b"4711"]])
    names: list[bytes] = []

    def serve() -> None:
        _, connection = front.accept()
        with connection:
            for answer in answers:
                (frame,) = FrameDecoder().receive(connection.recv(1_000))
                names.extend(frame.items)
                connection.sendall(encode_frame(frame.sequence, OK, answer))

    thread = threading.Thread(target=serve)
    thread.start()
    monkeypatch.setattr(calls.process, "applications", [("", "/srv"), ("/api", "/srv")])
    busy, cheap = uwsgi.workers()
    assert (uwsgi.total_requests(), uwsgi.logsize()) == (7, 4711)
    thread.join()
    assert names == [b"workers", b"total_requests", b"log_size"]
    assert (busy["status"], busy["respawn_count"], busy["requests"]) == (b"busy", 2, 7)
    assert 1_000_000 < busy["rss"] < busy["vsz"]
    assert [(app["id"], app["mountpoint"]) for app in busy["apps"]] == [(0, b""), (1, b"/api")]
    assert (cheap["status"], cheap["rss"], cheap["apps"], cheap["respawn_count"]) == (b"cheap", 0, (), 0)


def test_no_descriptor_is_left(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that can't connect, since its process may open no further file, gets our error."""

    def socketpair() -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(socket, "socketpair", socketpair)
        with pytest.raises(Unavailable, match=r"can't connect to the service's front: .*Too many open files"):
            stores.cache_get("key")


def test_the_front_has_too_many_connections(front: Front) -> None:
    """A thread whose connection the front closes at once gets our error."""

    def refuse() -> None:
        _, connection = front.accept()
        connection.close()

    thread = threading.Thread(target=refuse)
    thread.start()
    with pytest.raises(Unavailable, match="the service's front can't be reached"):
        stores.cache_get("key")
    thread.join()


def test_the_default_timeout_of_sockets(front: Front) -> None:
    """A handler module that calls socket.setdefaulttimeout doesn't limit how long a lock is waited for."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(5)
    try:
        assert shared._front is not None
        with shared._front.connect() as connection:
            assert connection.gettimeout() is None
    finally:
        socket.setdefaulttimeout(before)


def test_a_forked_process_keeps_no_connection(front: Front) -> None:
    """A connection ends with its thread, also while a process lives that was forked before."""
    connection = shared._threads.connection = shared._Connection(shared._front.connect())  # type: ignore[union-attr]
    _, accepted = front.accept()
    ready, end = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.close(end[1])
        os.write(ready[1], b"1")
        os.read(end[0], 1)
        os._exit(0)
    try:
        assert os.read(ready[0], 1) == b"1"
        connection.close()
        accepted.setblocking(False)
        with accepted:
            assert accepted.recv(1) == b""
    finally:
        for descriptor in (*ready, *end):
            os.close(descriptor)
        os.waitpid(child, 0)


def test_an_interrupted_lock_is_released(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a signal's handler raises while a thread waits for a lock, the lock is released."""
    calls: list[tuple[object, ...]] = []

    def call(*items: object) -> tuple[bytes, ...]:
        calls.append(items)
        if items[0] == "lock":
            raise KeyboardInterrupt
        return ()

    monkeypatch.setattr(shared, "call", call)
    with pytest.raises(KeyboardInterrupt):
        shared.lock(5)
    assert calls == [("lock", 5), ("unlock", 5)]


def test_signals_of_a_process() -> None:
    """A process knows its own functions, and finds the first number that is free."""
    signal_decorators.signal(0)(len)  # type: ignore[arg-type]
    assert (signals.signal_registered(0), signals.signal_registered(1)) == (True, None)
    assert signals.get_free_signal() == 1
    assert signals.find_function(0) is len
    with pytest.raises(UnknownFunction, match="no function for signal 1"):
        signals.find_function(1)
    for number in (-1, 256, True, "1"):
        with pytest.raises(MisuseError, match="there is no signal"):
            signals.register_signal(number, "", print)  # type: ignore[arg-type]
    with pytest.raises(MisuseError, match="can't be called"):
        signals.register_signal(1, "", 5)  # type: ignore[arg-type]
    for number in range(1, 256):
        signals.register_signal(number, "", print)
    with pytest.raises(MisuseError, match="all 256 signals are registered"):
        signals.get_free_signal()


def test_messages_of_mules(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A message that calls a function runs it; any other goes to the hooks. Nothing is unpickled."""
    sent: list[tuple[bytes, int]] = []
    monkeypatch.setattr(signals, "mule_msg", lambda message, mule: sent.append((message, mule)) or True)
    ran: list[object] = []

    def work(a: int, b: str = "") -> None:
        ran.append((a, b))
        if a < 0:
            raise ValueError("too small")

    decorated = signal_decorators.mulefunc(work)
    assert decorated(1, b="x") is True
    assert signal_decorators.mulefunc(2)(work)(-1) is True
    assert [mule for _, mule in sent] == [0, 2]
    for message, _ in sent:
        signals.dispatch(message)
    assert ran == [(1, "x"), (-1, "")]
    assert "ValueError: too small" in capsys.readouterr().err
    signals.mule_functions.clear()
    signals.dispatch(sent[0][0])
    assert "this mule has no function 'work' (@mulefunc)" in capsys.readouterr().err
    monkeypatch.setattr(uwsgi, "mule_msg_hook", ran.append)
    signals.install_mule_msg_hook(lambda message: ran.append(len(message)))
    signals.dispatch(b"hello")
    assert ran[2:] == [b"hello", 5]
    with pytest.raises(UnencodableMessage):
        decorated(object())


def test_timers_that_make_no_sense() -> None:
    """A timer takes a time above 0."""
    for add in (signals.add_timer, signals.add_rb_timer, signals.add_ms_timer):
        with pytest.raises(MisuseError, match="it takes a time above 0"):
            add(1, 0)
    with pytest.raises(MisuseError, match=r"@mstimer\(-5\): it takes a time above 0"):
        signal_decorators.mstimer(-5)
    with pytest.raises(MisuseError, match="there are no farms"):
        signals.mule_msg(b"x", "farm")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (True, None),
        (False, SignalRefused),
        (b"", SignalRefused),
        (UnknownModifier("it answers no 110"), ConnectionFailed),
        (ConnectionFailed("refused"), ConnectionFailed),
        (RequestTimeout("30 s"), TimeoutError),
    ],
)
def test_signals_for_nodes(monkeypatch: pytest.MonkeyPatch, answer: Any, error: type[Exception] | None) -> None:
    """A signal for a node is a packet there; a no is a ValueError and all else an OSError, as in uWSGI."""
    sent: list[tuple[object, ...]] = []

    def send(*arguments: object) -> object:
        sent.append(arguments)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(blocking, "send_message", send)
    if error is None:
        signals.signal(17, b"10.0.0.1:3031")
    else:
        assert issubclass(error, (OSError, ValueError))
        with pytest.raises(error):
            signals.signal(17, "10.0.0.1:3031")
    assert sent == [("10.0.0.1:3031", 110, 17, b"", calls.DEFAULT_TIMEOUT)]
    with pytest.raises(MisuseError, match="there is no signal 256"):
        signals.signal(256, "10.0.0.1:3031")


def test_queue_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of slots is the one that the service was given, or the default."""
    assert stores.queue_size == 1_000
    monkeypatch.setitem(calls.opt, "queue", b"50")
    assert stores.queue_size == 50
