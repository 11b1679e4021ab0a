"""The engine `processes:N` with real worker processes, on the tests' own reactor."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, gatherResults
from twisted.logger import formatEvent, globalLogPublisher

from tests.integration.services import PATIENCE, children_of, eventually, is_alive
from uwsgitwisted.engines.processes import ProcessEngine
from uwsgitwisted.errors import (
    Busy,
    Interrupted,
    MessageTooLarge,
    RemoteError,
    RequestCancelled,
    RequestTimeout,
    Unavailable,
    UnknownModifier,
    WorkerDied,
)
from uwsgitwisted.interfaces import Request
from uwsgitwisted.wire.objects import dumps, loads
from uwsgitwisted.wire.packet import MARSHAL, Packet
from uwsgitwisted.worker.spec import Loader, WorkerSpec

pytestmark = pytest.mark.integration

#: Notes the begin and the end of each run in a file, with one write each, and does what the message says.
HANDLER = """
import json, os, signal, time, uwsgi

notes = os.open("notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def note(what, key):
    os.write(notes, (json.dumps([what, key, os.getpid()]) + "\\n").encode())

def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.002)
    return "waited"

ACTIONS = {
    "echo": lambda value: value,
    "sleep": time.sleep,
    "wait_for": wait_for,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "allocate": lambda size: len(bytearray(size)),
    "pid": os.getpid,
    "print": lambda size: print("x" * size, flush=True),
    "print_part": lambda text: os.write(1, text.encode()) and os._exit(0),
}

def handle(message, modifier2):
    key, name, *arguments = message
    note("begin", key)
    result = ACTIONS[name](*arguments)
    note("end", key)
    return [key, result]

uwsgi.message_manager_marshal = handle
"""
TIMEOUT = 20.0
#: The time limit of engines whose requests exceed it: enough for a fast one on a busy machine.
LIMIT = 1.0


class Node:
    """An engine whose workers run :data:`HANDLER` in the current directory."""

    def __init__(self, processes: int, timeout: float, max_queue: int, **limits: Any) -> None:
        loader = Loader("uwsgitwisted.worker.handlers.marshal:load", {"module": "my_handler"})
        spec = WorkerSpec((loader,), **limits)
        self.engine = ProcessEngine(
            reactor,  # type: ignore[arg-type]
            spec,
            processes=processes,
            timeout=timeout,
            max_queue=max_queue,
            node="n1",
        )
        self.processes = processes

    async def start(self) -> None:
        """Start every worker."""
        await self.engine.start()
        await self.all_up()

    async def all_up(self) -> None:
        await eventually(lambda: len(self.engine.workers) == self.processes, "every worker")

    @property
    def pids(self) -> list[int]:
        return sorted(pid for worker in self.engine.workers for pid in children_of(worker.pid))

    def ask(self, key: object, name: str, *arguments: object, **known: Any) -> Deferred[Any]:
        """Have a request run under a key, by which it is found in the notes."""
        request = Request(Packet(MARSHAL, 0, dumps([key, name, *arguments])), **known)
        return self.engine.submit(request).addCallback(lambda answer: loads(answer.packet.payload))

    async def warm_up(self) -> None:
        """Run fast requests until the engine knows that the workers are fast and prefetches for them."""
        await gatherResults([self.ask("warm", "echo", number) for number in range(200)])

    def notes(self, what: str) -> list[tuple[Any, int]]:
        """Return the keys that were noted, and by which worker, in order."""
        return [(key, pid) for noted, key, pid in self._read_notes() if noted == what]

    def _read_notes(self) -> list[Any]:
        lines = [json.loads(line) for line in Path("notes").read_text().splitlines()]
        return [line for line in lines if line[1] != "warm"]

    def begun(self) -> list[Any]:
        """Return the keys of what was begun."""
        return [key for key, _ in self.notes("begin")]


def passed(seconds: float) -> Awaitable[None]:
    """Wait until a deadline that was set before is over."""
    over = time.monotonic() + seconds
    return eventually(lambda: time.monotonic() > over, "the deadline")


Start = Callable[..., Awaitable[Node]]


@pytest_twisted.async_yield_fixture
async def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """Give a function that starts an engine; it is stopped with the test."""
    monkeypatch.chdir(tmp_path)
    Path("my_handler.py").write_text(HANDLER)
    nodes: list[Node] = []

    async def start(
        processes: int, *, timeout: float = TIMEOUT, max_queue: int = 1_000, wait: bool = True, **limits: Any
    ) -> Node:
        nodes.append(Node(processes, timeout, max_queue, **limits))
        if wait:
            await nodes[-1].start()
        return nodes[-1]

    yield start
    for node in nodes:
        pids = node.pids
        await node.engine.stop(0)
        assert not any(map(is_alive, pids))


class Log(list[str]):
    """The lines that were logged, and when, by the monotonic clock."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: list[float] = []

    def moments_of(self, text: str) -> list[float]:
        """Return when lines with that text were logged."""
        return [moment for line, moment in zip(self, self.moments, strict=True) if text in line]


@pytest.fixture
def logged() -> Iterator[Log]:
    """Give what is logged while the test runs."""
    lines = Log()

    def observe(event: Any) -> None:
        lines.append(formatEvent(event))
        lines.moments.append(time.monotonic())

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


# Prefetched, and recalled.


@pytest_twisted.ensureDeferred
async def test_no_fast_request_waits_for_a_slow_one(start: Start) -> None:
    """While one worker runs a slow request, the other answers every fast one, also the recalled ones."""
    node = await start(2)
    await node.warm_up()
    slow = node.ask("slow", "wait_for", "go")
    fast = [node.ask(number, "echo", number) for number in range(200)]
    assert await gatherResults(fast) == [[number, number] for number in range(200)]
    assert not slow.called
    Path("go").touch()
    assert await slow == ["slow", "waited"]
    begun = node.notes("begin")
    (slow_worker,) = [pid for key, pid in begun if key == "slow"]
    behind = begun[begun.index(("slow", slow_worker)) + 1 :]
    assert slow_worker not in {pid for _, pid in behind}
    assert sorted(key for key, _ in begun if key != "slow") == list(range(200))


@pytest_twisted.ensureDeferred
async def test_a_mixture(start: Start) -> None:
    """Slow requests among many fast ones: each runs once, and no worker idles while any wait."""
    node = await start(3)
    await node.warm_up()
    slow = list(range(50, 600, 100))
    asked = [
        node.ask(key, "wait_for", f"go {key}") if key in slow else node.ask(key, "echo", key)
        for key in range(600)
    ]
    for ended, key in enumerate(slow):
        begun = set(slow[: ended + node.processes])
        await eventually(lambda begun=begun: begun <= set(node.begun()), f"slow requests at once: {begun}")
        if len(slow) - ended < node.processes:  # a worker is free for all that are behind the slow ones
            await gatherResults([each for key, each in enumerate(asked) if key not in slow])
        Path(f"go {key}").touch()
    assert [key for key, _ in await gatherResults(asked)] == list(range(600))
    assert sorted(node.begun()) == list(range(600))


@pytest_twisted.ensureDeferred
async def test_behind_a_request_that_is_killed(start: Start) -> None:
    """What was given ahead to a worker that is killed for its slow request runs once, on its successor."""
    node = await start(1, timeout=LIMIT)
    await node.warm_up()
    slow = node.ask("slow", "sleep", 60)
    fast = [node.ask(number, "echo", number) for number in range(50)]
    with pytest.raises(RequestTimeout, match=rf"exceeded the node's limit of {LIMIT:g} s"):
        await slow
    assert await gatherResults(fast) == [[number, number] for number in range(50)]
    assert sorted(node.begun(), key=str) == sorted(["slow", *range(50)], key=str)


@pytest_twisted.ensureDeferred
async def test_large_among_small(start: Start) -> None:
    """Requests and answers of a megabyte, which travel in pieces, among small ones: each its own answer."""
    node = await start(2)
    await node.warm_up()
    sizes = [1_000_000 if number % 10 == 5 else number for number in range(100)]
    asked = [node.ask(number, "echo", bytes([number]) * size) for number, size in enumerate(sizes)]
    results = await gatherResults(asked)
    assert results == [[number, bytes([number]) * size] for number, size in enumerate(sizes)]
    assert sorted(node.begun()) == list(range(100))


@pytest_twisted.ensureDeferred
async def test_a_slow_one_behind_a_large_one(start: Start) -> None:
    """A large request waits for no slow one either, nor does what is behind it."""
    node = await start(2)
    await node.warm_up()
    slow = node.ask("slow", "wait_for", "go")
    others = [node.ask(number, "echo", b"x" * (500_000 if number < 3 else 1)) for number in range(40)]
    await gatherResults(others)
    assert not slow.called
    Path("go").touch()
    await slow


# Cancelled, timed out, refused.


@pytest.mark.parametrize("at_once", [True, False])
@pytest_twisted.ensureDeferred
async def test_cancelling_what_waits(start: Start, at_once: bool) -> None:
    """A request that is cancelled before its start never runs, even if a worker has it already."""
    node = await start(1)
    await node.warm_up()
    running = node.ask("running", "wait_for", "go")
    waiting = [node.ask(number, "echo", number) for number in range(40)]
    if not at_once:
        await eventually(lambda: node.begun() == ["running"], "the first request to run")
    for number in range(0, 40, 2):
        waiting[number].cancel()
    await eventually(lambda: node.begun() == ["running"], "the first request to run")
    (worker,) = node.engine.workers
    await eventually(lambda: worker.pipe.in_flight == 1, "the recall of those that the worker has ahead")
    Path("go").touch()
    results = await DeferredList(waiting, consumeErrors=True)
    assert await running == ["running", "waited"]
    assert [ok for ok, _ in results] == [False, True] * 20
    assert all(isinstance(failure.value, RequestCancelled) for ok, failure in results if not ok)
    assert node.begun() == ["running", *range(1, 40, 2)]


@pytest_twisted.ensureDeferred
async def test_cancelling_what_runs(start: Start) -> None:
    """A cancelled request that runs finishes; its answer is dropped, and the next one gets its own."""
    node = await start(1)
    pids = node.pids
    running = node.ask("running", "wait_for", "go")
    await eventually(lambda: node.begun() == ["running"], "the request to run")
    running.cancel()
    with pytest.raises(RequestCancelled):
        await running
    following = node.ask("next", "echo", 1)
    Path("go").touch()
    assert await following == ["next", 1]
    assert [key for key, _ in node.notes("end")] == ["running", "next"]
    assert node.pids == pids


@pytest_twisted.ensureDeferred
async def test_a_deadline_that_is_over(start: Start) -> None:
    """A request that times out before a worker is free fails and never runs."""
    node = await start(1)
    running = node.ask("running", "wait_for", "go")
    late = node.ask("late", "echo", 1, seconds=0.05)
    patient = node.ask("patient", "echo", 1, seconds=PATIENCE)
    await passed(0.05)
    Path("go").touch()
    with pytest.raises(RequestTimeout, match="before a worker was free"):
        await late
    assert await patient == ["patient", 1]
    await running
    assert node.begun() == ["running", "patient"]


@pytest_twisted.ensureDeferred
async def test_a_full_queue(start: Start) -> None:
    """Over the limit a request is refused at once; the accepted ones are answered."""
    node = await start(1, max_queue=3)
    running = node.ask("running", "wait_for", "go")
    waiting = [node.ask(number, "echo", number) for number in range(3)]
    with pytest.raises(Busy, match="3 requests are already waiting"):
        await node.ask("refused", "echo", 1)
    Path("go").touch()
    await running
    await gatherResults(waiting)
    assert "refused" not in node.begun()


@pytest_twisted.ensureDeferred
async def test_what_no_worker_takes(start: Start) -> None:
    """A request over the limit, or of a modifier without a handler, fails alone."""
    node = await start(1, max_message=100_000)
    with pytest.raises(MessageTooLarge):
        await node.ask("large", "echo", b"x" * 200_000)
    with pytest.raises(MessageTooLarge):
        await node.ask("bomb", "echo", "x" * 99_990)  # the answer is a little longer than the request
    with pytest.raises(UnknownModifier, match="no handler for modifier1 9"):
        await node.engine.submit(Request(Packet(9, 0, b"")))
    assert await node.ask("next", "echo", 1) == ["next", 1]


# Workers that die.


@pytest.mark.parametrize(("idempotent", "runs"), [(False, 1), (True, 2)])
@pytest_twisted.ensureDeferred
async def test_a_request_that_kills_its_worker(start: Start, idempotent: bool, runs: int) -> None:
    """It fails with WorkerDied; one that may be run again is, once, on another worker, and no more."""
    node = await start(2)
    await node.warm_up()
    killing = node.ask("killing", "kill", idempotent=idempotent)
    others = [node.ask(number, "echo", number) for number in range(100)]
    with pytest.raises(WorkerDied, match="killed by SIGKILL") as caught:
        await killing
    assert ("has crashed 2 workers" in caught.value.text) == idempotent
    assert await gatherResults(others) == [[number, number] for number in range(100)]
    assert sorted(node.begun(), key=str) == sorted(["killing"] * runs + list(range(100)), key=str)
    assert len({pid for key, pid in node.notes("begin") if key == "killing"}) == runs
    await node.all_up()


@pytest_twisted.ensureDeferred
async def test_an_idempotent_request_whose_worker_is_killed(start: Start) -> None:
    """It is answered all the same, by its second run."""
    node = await start(2)
    running = node.ask("running", "wait_for", "go", idempotent=True)
    await eventually(lambda: node.begun() == ["running"], "the request to run")
    os.kill(node.notes("begin")[0][1], signal.SIGKILL)
    await eventually(lambda: node.begun() == ["running"] * 2, "the second run")
    Path("go").touch()
    assert await running == ["running", "waited"]


@pytest_twisted.ensureDeferred
async def test_max_requests(start: Start) -> None:
    """Workers are replaced after so many requests; every request is run once and answered."""
    node = await start(2, max_requests=20)
    answers: list[Any] = []

    def pids() -> set[int]:
        return {pid for _, pid in answers}

    # A worker goes on until its successor is up, so that it isn't known when that takes over.
    while len(pids()) < 6:
        assert len(answers) < 100_000, "no worker is replaced"
        asked = [node.ask(len(answers) + number, "pid") for number in range(100)]
        answers += await gatherResults(asked)
    assert [key for key, _ in answers] == list(range(len(answers)))
    assert sorted(node.begun()) == list(range(len(answers)))


@pytest_twisted.ensureDeferred
async def test_max_memory(start: Start) -> None:
    """A handler that needs too much memory fails with MemoryError, and its worker is replaced."""
    node = await start(1, max_memory=400_000_000)
    (before,) = node.pids
    with pytest.raises(RemoteError) as caught:
        await node.ask("large", "allocate", 1_000_000_000)
    assert caught.value.type == "MemoryError"
    await eventually(lambda: node.pids not in ([before], []), "a new worker")
    assert await node.ask("small", "allocate", 1_000_000) == ["small", 1_000_000]


@pytest_twisted.ensureDeferred
async def test_a_worker_that_can_not_come_up(start: Start, logged: Log) -> None:
    """It is tried again, with pauses; requests wait, and are answered when it is up."""
    Path("my_handler.py").write_text("raise ValueError('not yet')")
    node = await start(1, wait=False)
    started = node.engine.start()
    waiting = node.ask("early", "echo", 1)

    def attempts() -> list[float]:
        return logged.moments_of("it failed to start: it ended with status 1")

    await eventually(lambda: len(attempts()) == 2, "the second attempt")
    assert any("ValueError: not yet" in line for line in logged)
    Path("my_handler.py").write_text(HANDLER)
    await started
    assert time.monotonic() - attempts()[1] > 0.4
    assert await waiting == ["early", 1]


# Fresh code.


@pytest_twisted.ensureDeferred
async def test_reloading_under_load(start: Start) -> None:
    """Every worker is replaced, and no request fails or runs twice meanwhile."""
    node = await start(2)
    before = node.pids
    Path("my_handler.py").write_text(HANDLER.replace("[key, result]", "[key, result, 'fresh']"))
    results: list[Any] = []
    going_on = True

    async def load(name: str) -> None:
        number = 0
        while going_on:
            results.append(await node.ask(f"{name} {number}", "echo", number))
            number += 1

    loads_ = [Deferred.fromCoroutine(load(f"load {number}")) for number in range(20)]
    assert await node.engine.reload() is True
    assert (await node.ask("after", "echo", 1))[-1] == "fresh"
    going_on = False
    await gatherResults(loads_)
    assert not set(before) & set(node.pids)
    assert len(node.pids) == 2
    begun = node.begun()
    assert len(begun) == len(set(begun)) == len(results) + 1
    await eventually(lambda: not any(map(is_alive, before)), "the end of the old workers")


@pytest_twisted.ensureDeferred
async def test_reloading_broken_code(start: Start, logged: list[str]) -> None:
    """If the new code can't be loaded, the old workers keep working, and the log says why."""
    node = await start(2)
    before = node.pids
    Path("my_handler.py").write_text("this is no Python")
    assert await node.engine.reload() is False
    assert node.pids == before
    assert await node.ask("after", "echo", 1) == ["after", 1]
    assert any("its replacement failed to start" in line for line in logged)
    assert any("SyntaxError" in line for line in logged)


@pytest_twisted.ensureDeferred
async def test_reloading_beside_a_long_request(start: Start) -> None:
    """A worker that is busy finishes its request after its successor has taken over."""
    node = await start(1)
    running = node.ask("running", "wait_for", "go")
    await eventually(lambda: node.begun() == ["running"], "the request to run")
    (before,) = node.pids
    assert await node.engine.reload() is True
    assert await node.ask("next", "echo", 1) == ["next", 1]
    assert not running.called
    Path("go").touch()
    assert await running == ["running", "waited"]
    await eventually(lambda: not is_alive(before), "the end of the old worker")


# The end.


@pytest_twisted.ensureDeferred
async def test_stopping(start: Start) -> None:
    """Accepted requests finish, new ones are refused, and then no worker is left."""
    node = await start(1)
    pids = node.pids
    running = node.ask("running", "wait_for", "go")
    waiting = [node.ask(number, "echo", number) for number in range(10)]
    stopped = node.engine.stop(PATIENCE)
    with pytest.raises(Unavailable, match="stopping"):
        await node.ask("late", "echo", 1)
    assert not stopped.called
    Path("go").touch()
    await stopped
    assert await running == ["running", "waited"]
    assert await gatherResults(waiting) == [[number, number] for number in range(10)]
    assert not any(map(is_alive, pids))


@pytest_twisted.ensureDeferred
async def test_stopping_again_with_no_time(start: Start) -> None:
    """Running requests are interrupted, waiting ones refused, and no worker is left."""
    node = await start(1)
    pids = node.pids
    running = node.ask("running", "sleep", 60)
    waiting = node.ask("waiting", "echo", 1)
    await eventually(lambda: node.begun() == ["running"], "the request to run")
    stopped = node.engine.stop(PATIENCE)
    again = node.engine.stop(0)
    for request, error in ((running, Interrupted), (waiting, Unavailable)):
        with pytest.raises(error):
            await request
    await gatherResults([stopped, again])
    assert not any(map(is_alive, pids))
    assert node.begun() == ["running"]


@pytest_twisted.ensureDeferred
async def test_stopping_when_what_waits_is_overdue(start: Start) -> None:
    """Requests that end without having run don't hold up the end."""
    node = await start(1)
    running = node.ask("running", "wait_for", "go")
    late = node.ask("late", "echo", 1, seconds=0.01)
    await passed(0.01)
    begun = time.monotonic()
    stopped = node.engine.stop(PATIENCE)
    Path("go").touch()
    with pytest.raises(RequestTimeout):
        await late
    await running
    await stopped
    assert time.monotonic() - begun < PATIENCE / 2


@pytest_twisted.ensureDeferred
async def test_stopping_before_it_is_up(start: Start) -> None:
    """Starting workers are ended, and the requests that waited for them are refused at the timeout."""
    node = await start(2, wait=False)
    node.engine.start()
    waiting = node.ask("waiting", "echo", 1)
    stopped = node.engine.stop(0)
    with pytest.raises(Unavailable):
        await waiting
    await stopped


@pytest_twisted.ensureDeferred
async def test_stopping_after_what_waited_was_withdrawn(start: Start) -> None:
    """The same if its caller cancels it: there is nothing left to wait for."""
    node = await start(1, wait=False)
    Path("my_handler.py").write_text("raise ValueError('never')")
    node.engine.start()
    waiting = node.ask("waiting", "echo", 1)
    begun = time.monotonic()
    stopped = node.engine.stop(PATIENCE)
    waiting.cancel()
    with pytest.raises(RequestCancelled):
        await waiting
    await stopped
    assert time.monotonic() - begun < PATIENCE / 2


# What workers print.


@pytest_twisted.ensureDeferred
async def test_output(start: Start, logged: list[str]) -> None:
    """Long lines are logged in pieces, and an unfinished one at the worker's end."""
    node = await start(1)
    await node.ask("long", "print", 20_000)
    await eventually(
        lambda: sum(line.count("x") for line in logged if "[worker 1]" in line) >= 20_000, "the output"
    )
    assert max(len(line) for line in logged if "xxx" in line) < 9_000
    with pytest.raises(WorkerDied, match="it ended with status 0"):
        await node.ask("part", "print_part", "without an end")
    await eventually(lambda: any("without an end" in line for line in logged), "the last words")


# Threads.


@pytest_twisted.ensureDeferred
async def test_threads(start: Start) -> None:
    """A worker with threads runs so many requests at once, and the next one when one of them is done."""
    node = await start(2, threads=2)
    asked = [node.ask(number, "wait_for", f"go {number}") for number in range(5)]
    await eventually(lambda: len(node.begun()) == 4, "four requests")
    assert sorted(pid for _, pid in node.notes("begin")) == sorted(node.pids * 2)
    assert sorted(node.begun()) == [0, 1, 2, 3]
    Path("go 2").touch()
    assert await asked[2] == [2, "waited"]
    await eventually(lambda: 4 in node.begun(), "the fifth request")
    for number in range(5):
        Path(f"go {number}").touch()
    await gatherResults(asked)


@pytest_twisted.ensureDeferred
async def test_many_in_threads(start: Start) -> None:
    """Of many requests, large and small, each is run once and gets its own answer."""
    node = await start(2, threads=4)
    sizes = [200_000 if number % 10 == 5 else number for number in range(300)]
    asked = [node.ask(number, "echo", bytes([number % 256]) * size) for number, size in enumerate(sizes)]
    results = await gatherResults(asked)
    assert results == [[number, bytes([number % 256]) * size] for number, size in enumerate(sizes)]
    assert sorted(node.begun()) == list(range(300))


@pytest_twisted.ensureDeferred
async def test_time_limit_of_each_thread(start: Start) -> None:
    """A request times out although others of its worker are answered; those that run beside it die with it."""
    node = await start(1, timeout=2 * LIMIT, threads=3)
    slow = node.ask("slow", "sleep", 60)
    began = time.monotonic()
    while time.monotonic() < began + LIMIT:
        assert await node.ask("fast", "echo", 1) == ["fast", 1]
    beside = node.ask("beside", "sleep", 60)
    with pytest.raises(RequestTimeout, match=rf"exceeded the node's limit of {2 * LIMIT:g} s"):
        await slow
    with pytest.raises(WorkerDied):
        await beside
    assert await node.ask("next", "echo", 1) == ["next", 1]


@pytest_twisted.ensureDeferred
async def test_threads_that_die_with_their_worker(start: Start) -> None:
    """Of the requests in a worker that dies, the idempotent ones run again; those that wait are not hurt."""
    node = await start(1, threads=2)
    beside = node.ask("beside", "wait_for", "go", idempotent=True)
    await eventually(lambda: node.begun() == ["beside"], "the first request")
    killing = node.ask("killing", "kill")
    waiting = [node.ask(number, "echo", number) for number in range(5)]
    with pytest.raises(WorkerDied, match="killed by SIGKILL"):
        await killing
    Path("go").touch()
    assert await beside == ["beside", "waited"]
    assert await gatherResults(waiting) == [[number, number] for number in range(5)]
    assert node.begun().count("beside") == 2


@pytest_twisted.ensureDeferred
async def test_reload_with_threads(start: Start) -> None:
    """A worker that is replaced finishes all of its threads."""
    node = await start(1, threads=2)
    (before,) = node.pids
    asked = [node.ask(number, "wait_for", f"go {number}") for number in range(2)]
    await eventually(lambda: len(node.begun()) == 2, "both requests")
    assert await node.engine.reload()
    for number in range(2):
        assert is_alive(before)
        assert await node.ask(f"new {number}", "pid") != [f"new {number}", before]
        Path(f"go {number}").touch()
        assert await asked[number] == [number, "waited"]
    await eventually(lambda: not is_alive(before), "the end of the old worker")


@pytest_twisted.ensureDeferred
async def test_stop_with_threads(start: Start) -> None:
    """A stop waits for the requests in all threads; those that take too long for it fail."""
    node = await start(1, threads=2)
    asked = [node.ask(number, "wait_for", f"go {number}") for number in range(2)]
    await eventually(lambda: len(node.begun()) == 2, "both requests")
    stopped = node.engine.stop(PATIENCE)
    Path("go 0").touch()
    assert await asked[0] == [0, "waited"]
    assert not stopped.called
    node.engine.stop(0)
    with pytest.raises(Interrupted):
        await asked[1]
    await stopped


@pytest_twisted.ensureDeferred
async def test_more_threads_than_memory(start: Start, logged: list[str]) -> None:
    """A worker that has no memory for its threads says so, and is not taken for one that is ready."""
    node = await start(1, wait=False, threads=100, max_memory=400_000_000)
    started = node.engine.start()
    await eventually(lambda: any("--wsgi-threads 100: " in line for line in logged), "the reason")
    assert not started.called
