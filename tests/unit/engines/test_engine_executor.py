"""The engines `threads:N` and `executor:`: handlers in thread pools, process pools and broken ones."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from uwsgitwisted.engines.executor import ExecutorEngine
from uwsgitwisted.errors import (
    Busy,
    Interrupted,
    RemoteError,
    RequestCancelled,
    RequestTimeout,
    StartupError,
    Unavailable,
    UnencodableMessage,
    UnknownModifier,
    WorkerDied,
)
from uwsgitwisted.interfaces import Request
from uwsgitwisted.wire.objects import dumps, loads
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.worker.handlers.handler import Handler
from uwsgitwisted.worker.spec import HandlerTable, Loader, WorkerSpec

TIMEOUT = 10.0
LIMIT = 3
PATIENCE = 10

# What the executor runs; it is imported by name wherever that is.


class Unpicklable(Exception):
    """An exception that can't travel between processes."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


def _raise(error: Exception) -> None:
    raise error


ACTIONS: dict[str, Callable[..., object]] = {
    "echo": lambda value: value,
    "where": lambda: [os.getpid(), threading.current_thread().name],
    "raise": lambda: _raise(KeyError("x")),
    "unpicklable": lambda: _raise(Unpicklable("locked")),
    "ours": lambda: _raise(Busy("another node's")),
    "exit": lambda: _raise(SystemExit("leaving")),  # type: ignore[arg-type]
    "object": object,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "sleep": time.sleep,
}
loads_done: list[int] = []


def load(**arguments: object) -> HandlerTable:
    """Load the handlers, as an engine does."""
    loads_done.append(1)

    def run(request: Packet) -> object:
        name, *arguments = loads(request.payload)  # type: ignore[misc]
        return ACTIONS[name](*arguments)

    return {33: Handler(run, lambda request, value: Packet(33, request.modifier2, dumps(value)))}


SPEC = WorkerSpec((Loader(f"{__name__}:load"),))


def _engine(make: Callable[[], Executor], clock: Any = reactor, **limits: Any) -> ExecutorEngine:
    limits = {"timeout": TIMEOUT, "max_queue": LIMIT, **limits}
    return ExecutorEngine(clock, SPEC, make, description="executor:here:make", node="n1", **limits)


def _request(*message: object, seconds: float | None = None, modifier1: int = 33) -> Request:
    return Request(Packet(modifier1, 5, dumps(message)), seconds=seconds)


def _processes() -> ProcessPoolExecutor:
    # Not forked: this process has threads.
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


@pytest.fixture(params=[lambda: ThreadPoolExecutor(2), _processes], ids=["threads", "processes"])
def make(request: pytest.FixtureRequest) -> Iterator[Callable[[], Executor]]:
    """Give what makes an executor; it is ended with the test, whatever the engine did."""
    made: list[Executor] = []

    def make() -> Executor:
        made.append(request.param())
        return made[-1]

    yield make
    for executor in made:
        executor.shutdown(wait=True, cancel_futures=True)


@pytest_twisted.ensureDeferred
async def test_results(make: Callable[[], Executor]) -> None:
    """Values come back, and exceptions described, whatever they are; then the engine is stopped."""
    engine = _engine(make)
    await engine.start()
    answer = await engine.submit(_request("echo", {"k": [1, b"x"]}))
    assert answer == Packet(33, 5, dumps({"k": [1, b"x"]}))
    pid, thread = loads((await engine.submit(_request("where"))).payload)  # type: ignore[misc]
    assert (pid, thread) != (os.getpid(), threading.current_thread().name)
    for name, type_, message in (
        ("raise", "KeyError", "'x'"),
        ("unpicklable", "Unpicklable", "locked"),
        ("ours", "Busy", "another node's"),
        ("exit", "SystemExit", "leaving"),
        ("object", "UnencodableMessage", ""),
    ):
        with pytest.raises(RemoteError) as caught:
            await engine.submit(_request(name))
        assert caught.value.type == type_
        assert message in caught.value.message
        assert caught.value.node == "n1"
        assert "Traceback" in caught.value.traceback
    with pytest.raises(UnknownModifier, match="no handler for modifier1 9"):
        await engine.submit(_request(modifier1=9))
    await engine.stop(5)
    with pytest.raises(Unavailable, match="stopping"):
        await engine.submit(_request("echo", 1))


@pytest_twisted.ensureDeferred
async def test_handlers_are_loaded_once() -> None:
    """A process loads the handlers once, however many threads run them."""
    loads_done.clear()
    spec = WorkerSpec((Loader(f"{__name__}:load", {"once": True}),))
    engine = ExecutorEngine(
        reactor, spec, lambda: ThreadPoolExecutor(4), description="threads:4", timeout=TIMEOUT, max_queue=100
    )
    await engine.start()
    asked = [engine.submit(_request("echo", number)) for number in range(20)]
    for number, deferred in enumerate(asked):
        assert loads((await deferred).payload) == number
    await engine.stop(5)
    assert len(loads_done) == 1


@pytest_twisted.ensureDeferred
async def test_a_handler_that_can_not_be_loaded() -> None:
    """Each request fails with the reason, and the next one tries again."""
    engine = ExecutorEngine(
        reactor,
        WorkerSpec((Loader("no_such_module:load"),)),
        lambda: ThreadPoolExecutor(1),
        description="threads:1",
        timeout=TIMEOUT,
        max_queue=10,
    )
    await engine.start()
    for _ in range(2):
        with pytest.raises(RemoteError, match="no_such_module"):
            await engine.submit(_request("echo", 1))
    await engine.stop(5)


@pytest_twisted.ensureDeferred
async def test_a_broken_pool() -> None:
    """A process pool whose process is killed fails what it runs; for the next request there is another."""
    engine = _engine(_processes)
    await engine.start()
    with pytest.raises(WorkerDied, match="the executor failed: BrokenProcessPool"):
        await engine.submit(_request("kill"))
    for _ in range(2):
        assert loads((await engine.submit(_request("echo", 1))).payload) == 1
    await engine.stop(5)


class Held(Executor):
    """An executor that runs nothing; the test decides what becomes of each call."""

    def __init__(self) -> None:
        self.futures: list[Future[Any]] = []
        self.shut_down = threading.Event()
        #: Its shutdown ends when this is set, with this error, if any.
        self.go_on = threading.Event()
        self.error: Exception | None = None
        self.calls: list[tuple[Any, ...]] = []

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.calls.append((function, *args))
        self.futures.append(Future())
        return self.futures[-1]

    def shutdown(self, wait: bool = True) -> None:  # type: ignore[override]  # as Dask's has it
        self.shut_down.set()
        self.go_on.wait(PATIENCE)
        if self.error is not None:
            raise self.error


class ThreadClock(Clock):
    """A clock that does in its next turn what a thread wants done in the reactor's."""

    def __init__(self) -> None:
        super().__init__()
        self._called: queue.Queue[Callable[[], object]] = queue.Queue()

    def callFromThread(self, function: Callable[..., object], *arguments: object) -> None:
        self._called.put(partial(function, *arguments))

    def wait(self) -> None:
        """Wait for the next thing that a thread wants done, and do it."""
        self._called.get(timeout=PATIENCE)()


class Outcome:
    """What becomes of a Deferred."""

    def __init__(self, deferred: Deferred[Any]) -> None:
        self.deferred = deferred
        self.results: list[Any] = []
        deferred.addCallbacks(self.results.append, lambda failure: self.results.append(failure.value))


class Running:
    """An engine with an executor that runs nothing."""

    def __init__(self) -> None:
        self.clock = ThreadClock()
        self.executor = Held()
        self.engine = _engine(lambda: self.executor, self.clock)
        self.started = Outcome(self.engine.start())

    def ask(self, **known: Any) -> Outcome:
        return Outcome(self.engine.submit(_request("echo", 1, **known)))


ANSWER = Packet(33, 5, b"N")


def test_an_answer() -> None:
    """The answer comes when the future has it."""
    running = Running()
    assert running.started.results == [None]
    outcome = running.ask()
    assert outcome.results == []
    running.executor.futures[0].set_result((ANSWER, b""))
    running.clock.wait()
    assert outcome.results == [ANSWER]


def test_equal_requests_are_not_the_same() -> None:
    """Two requests with the same bytes are told apart, for an executor that runs equal calls only once."""
    running = Running()
    running.ask()
    running.ask()
    first, second = running.executor.calls
    assert first != second


@pytest.mark.parametrize(("seconds", "limit"), [(None, TIMEOUT), (2.0, 2.0), (99.0, TIMEOUT)])
def test_the_time_limit(seconds: float | None, limit: float) -> None:
    """A call that takes too long is cancelled, if it isn't running, and its late result is dropped."""
    running = Running()
    outcomes = [running.ask(seconds=seconds) for _ in range(2)]
    waiting, begun = running.executor.futures
    begun.set_running_or_notify_cancel()
    running.clock.advance(limit - 0.1)
    assert [outcome.results for outcome in outcomes] == [[], []]
    running.clock.advance(0.2)
    for outcome in outcomes:
        (error,) = outcome.results
        assert isinstance(error, RequestTimeout)
        assert error.seconds == limit
    assert waiting.cancelled()
    begun.set_result((ANSWER, b""))
    running.clock.wait()
    assert len(outcomes[1].results) == 1


def test_busy() -> None:
    """Over the limit a request is refused and not handed to the executor."""
    running = Running()
    for _ in range(LIMIT):
        running.ask()
    (error,) = running.ask().results
    assert isinstance(error, Busy)
    assert len(running.executor.futures) == LIMIT
    running.executor.futures[0].set_result((ANSWER, b""))
    running.clock.wait()
    assert running.ask().results == []


def test_cancelling() -> None:
    """Cancelling a request cancels it in the executor."""
    running = Running()
    outcome = running.ask()
    outcome.deferred.cancel()
    assert isinstance(outcome.results[0], RequestCancelled)
    assert running.executor.futures[0].cancelled()


def test_cancelled_by_the_executor() -> None:
    """An executor that cancels a call by itself, when it is shut down elsewhere, is told apart."""
    running = Running()
    outcome = running.ask()
    running.executor.futures[0].cancel()
    running.clock.wait()
    (error,) = outcome.results
    assert isinstance(error, RequestCancelled)
    assert "the executor cancelled" in error.text


def test_an_executor_that_fails() -> None:
    """An exception of the executor's own, not the handler's, means that its worker is gone."""
    running = Running()
    outcome = running.ask()
    running.executor.futures[0].set_exception(OSError("no route to the cluster"))
    running.clock.wait()
    (error,) = outcome.results
    assert isinstance(error, WorkerDied)
    assert "OSError: no route to the cluster" in error.text


def test_an_executor_that_refuses() -> None:
    """So does one that takes nothing, such as a pool that was shut down."""
    executor = ThreadPoolExecutor(1)
    engine = _engine(lambda: executor, Clock())
    Outcome(engine.start())
    executor.shutdown()
    (error,) = Outcome(engine.submit(_request("echo", 1))).results
    assert isinstance(error, WorkerDied)
    assert "after shutdown" in error.text


def test_before_the_start() -> None:
    """An engine that wasn't started refuses, and can be stopped."""
    engine = _engine(Held, Clock())
    (error,) = Outcome(engine.submit(_request("echo", 1))).results
    assert isinstance(error, Unavailable)
    assert Outcome(engine.stop(1)).results == [None]


def test_a_maker_that_raises() -> None:
    """An executor that can't be made is the start's failure, with the engine's description and the reason."""

    def make() -> Executor:
        raise OSError("no cluster there")

    (error,) = Outcome(_engine(make, Clock()).start()).results
    assert isinstance(error, StartupError)
    assert error.args[0] == "--engine executor:here:make: OSError: no cluster there"


def test_stopping() -> None:
    """What runs is waited for; then the executor is shut down, and that is waited for as well."""
    running = Running()
    outcome = running.ask()
    stopped = Outcome(running.engine.stop(5))
    assert (stopped.results, running.executor.shut_down.is_set()) == ([], False)
    running.executor.futures[0].set_result((ANSWER, b""))
    running.clock.wait()
    assert outcome.results == [ANSWER]
    assert running.executor.shut_down.wait(PATIENCE)
    assert stopped.results == []
    running.executor.go_on.set()
    running.clock.wait()
    assert stopped.results == [None]
    assert running.clock.getDelayedCalls() == []
    assert Outcome(running.engine.stop(0)).results == [None]


def test_an_executor_that_does_not_end() -> None:
    """An executor that takes too long to shut down is left behind; its late outcome is ignored."""
    running = Running()
    stopped = Outcome(running.engine.stop(5))
    assert running.executor.shut_down.wait(PATIENCE)
    running.clock.advance(4.9)
    assert stopped.results == []
    running.clock.advance(0.2)
    assert stopped.results == [None]
    running.executor.go_on.set()
    running.clock.wait()
    assert stopped.results == [None]


@pytest.mark.parametrize("again", [False, True])
def test_stopping_in_a_hurry(again: bool) -> None:
    """With no time given, an executor that takes long to be shut down is hardly waited for."""
    running = Running()
    if again:
        running.engine.stop(5)
    stopped = Outcome(running.engine.stop(0))
    running.clock.advance(1)
    assert stopped.results == [None]
    running.executor.go_on.set()


def test_an_executor_whose_shutdown_raises() -> None:
    """It holds up nothing."""
    running = Running()
    running.executor.error = OSError("the scheduler is gone")
    running.executor.go_on.set()
    stopped = Outcome(running.engine.stop(5))
    running.clock.wait()
    assert stopped.results == [None]


@pytest.mark.parametrize("again", [False, True])
def test_stopping_interrupts(again: bool) -> None:
    """Unfinished requests are interrupted when the time is up or cut short; the executor is shut down."""
    running = Running()
    running.executor.go_on.set()
    outcome = running.ask()
    running.executor.futures[0].set_running_or_notify_cancel()
    stopped = Outcome(running.engine.stop(5))
    if again:
        running.engine.stop(0)
    running.clock.advance(0 if again else 5)
    assert isinstance(outcome.results[0], Interrupted)
    assert running.executor.shut_down.wait(PATIENCE)
    running.clock.wait()
    assert stopped.results == [None]


def test_an_answer_that_can_not_travel_is_no_answer() -> None:
    """A failure's bytes become the error that they describe."""
    from uwsgitwisted.wire.failure import encode_failure

    running = Running()
    outcome = running.ask()
    running.executor.futures[0].set_result((None, encode_failure(UnencodableMessage("a socket"))))
    running.clock.wait()
    (error,) = outcome.results
    assert isinstance(error, UnencodableMessage)
