"""The spooler: accepts tasks, and runs each when its time has come.

This is its face, and its life from start to stop. :class:`.loop.CycleLoop` claims tasks and writes their
outcomes, :class:`.runs.Runs` runs them, :class:`.group_commit.GroupCommit` stores new ones.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import TypeVar, cast

from twisted.internet.defer import Deferred, DeferredLock, fail
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.logger import Logger

from uwsgitwisted.errors import Unavailable, UwsgiError
from uwsgitwisted.interfaces import IEngine
from uwsgitwisted.spool.clock import WallClockMonitor
from uwsgitwisted.spool.group_commit import GroupCommit
from uwsgitwisted.spool.job_scheduler import JobScheduler
from uwsgitwisted.spool.loop import CycleLoop
from uwsgitwisted.spool.records import Description
from uwsgitwisted.spool.retry import RetryPolicy
from uwsgitwisted.spool.runs import Runs
from uwsgitwisted.spool.store_thread import Runner, StoreThread
from uwsgitwisted.spool.stores.interface import ISpoolStore
from uwsgitwisted.spool.task import new_task
from uwsgitwisted.spool.waiters import Waiters
from uwsgitwisted.spool.worker_slots import MAX_PREFETCH, WorkerSlots

#: How many tasks may wait for their commit: at 64 KiB each, 64 MiB of memory.
MAX_PENDING = 1_000

_T = TypeVar("_T")
_log = Logger()


class _State(Enum):
    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


#: The states in which tasks are accepted. While the spooler starts, the store's thread opens the store first.
_ACCEPTING = frozenset({_State.STARTING, _State.RUNNING})


class Spooler:
    """A durable queue in front of an engine.

    It owns the store and the engine: it starts and stops both.

    :param reactor: its clock must be monotonic.
    :param policy: how often a task is tried.
    :param workers: how many tasks run at once of the queues that share workers.
    :param queues: how many run at once of each queue that has workers of its own.
    :param max_prefetch: how many more each of them claims while its tasks are short.
    :param max_pending: how many tasks may wait for their commit before more are refused.
    :param runner: makes the store's blocking calls; None for a thread of its own.
    :param now: the wall clock, in unix seconds.
    :param random: gives numbers from 0 up to 1, for the jitter of retries.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        store: ISpoolStore,
        engine: IEngine,
        policy: RetryPolicy | None = None,
        *,
        workers: int = 1,
        queues: Mapping[str, int] | None = None,
        max_prefetch: int = MAX_PREFETCH,
        max_pending: int = MAX_PENDING,
        runner: Runner | None = None,
        now: Callable[[], float] = time.time,
        random: Callable[[], float] = random.random,
    ) -> None:
        self._reactor = reactor
        self._store = store
        #: Runs the handlers.
        self.engine = engine
        self._runner: Runner = runner or StoreThread(IReactorFromThreads(reactor))
        self._now = now
        self._state = _State.STOPPED
        self._changing_state = DeferredLock()
        #: Runs the jobs that peers submit for the store.
        self.jobs = JobScheduler(self._runner, store)
        self._waiters = Waiters(self.jobs)
        policy = policy or RetryPolicy()
        slots = WorkerSlots(workers, queues or {}, max_prefetch)
        self._runs = Runs(reactor, engine, slots, policy, random)
        clock = WallClockMonitor(now, lambda: reactor.seconds())  # a service replaces it when it starts
        self._loop = CycleLoop(
            reactor, store, self._runner, self._runs, clock, policy.max_delay, written=self._waiters.look
        )
        self._commits = GroupCommit(
            reactor, store, self._runner, max_pending=max_pending, committed=self._loop.note_new_tasks
        )

    # From start to stop.

    def start(self) -> Deferred[None]:
        """Open the store, start the engine and start to run tasks.

        :return: fires when tasks can be enqueued. Fails with ``SpoolError`` if the store can't be opened and
            with what the engine failed with; then nothing is left running.
        """
        return self._changing_state.run(lambda: Deferred.fromCoroutine(self._start()))

    async def _start(self) -> None:
        if self._state is _State.RUNNING:
            return
        self._runner.start()
        self.jobs.open()
        self._state = _State.STARTING
        try:
            await self._runner.run(self._store.open, self._wake_from_thread)
            await self._loop.prepare()
            await self.engine.start()
        except BaseException:
            self._state = _State.STOPPED
            await self._close_store()
            raise
        self._state = _State.RUNNING
        self._runs.open()
        self._loop.start()
        self._waiters.look()

    def stop(self, seconds: float) -> Deferred[None]:
        """Refuse new tasks, claim none, let the running ones finish, write their outcomes, close the store.

        :param seconds: how long the engine lets them run.
        :return: fires when everything is closed. It doesn't fail: a task whose outcome could not be written
            runs again after the next start.
        """
        return self._changing_state.run(lambda: Deferred.fromCoroutine(self._stop(seconds)))

    async def _stop(self, seconds: float) -> None:
        if self._state is not _State.RUNNING:
            return
        self._state = _State.STOPPING
        await self._commits.drained()
        self._runs.close()
        # The loop goes on meanwhile: it writes outcomes and sends the store's heartbeats.
        try:
            await self.engine.stop(seconds)
        except Exception:
            _log.failure("stopping the engine {engine}", engine=self.engine.description)
        self._runs.cancel_all()
        await self._loop.flush()
        self._waiters.look()
        await self._waiters.looked()
        self._waiters.give_up(Unavailable("the spooler is stopping, and the task is not finished"))
        await self._close_store()
        self._state = _State.STOPPED

    async def _close_store(self) -> None:
        self.jobs.close()
        try:
            await self._runner.run(self._store.close)
        except Exception:
            _log.failure("closing the spool {store}", store=self._store.description)
        self._runner.stop()

    # What callers ask for.

    def enqueue(self, variables: bytes, body: bytes = b"") -> Deferred[int]:
        """Accept a task.

        :param variables: its vars block.
        :param body: what its handler gets besides.
        :return: fires with its id when it is on the disk. Fails with ``MalformedPacket``, ``MessageTooLarge``
            or ``SpoolError`` if it can't be understood or stored, ``Busy`` if too many wait or the queue has
            reached a bound, and ``Unavailable`` if the spooler doesn't run. Cancelling it drops the task if its
            commit has not begun; otherwise the task stays.
        """
        if self._state not in _ACCEPTING:
            return fail(_not_running())
        try:
            task = new_task(variables, self._now(), body)
        except UwsgiError as error:
            return fail(error)
        return self._commits.add(task)

    def wait(self, identifier: int, group: str) -> Deferred[Description]:
        """Wait until a task is finished.

        :param group: who waits, as :attr:`uwsgitwisted.access.Peer.group` says it.
        :return: fires with the task's description then. Fails with ``NoSuchTask``, or ``Busy`` if too many
            wait. Cancelling it leaves the task alone.
        """
        return self._waiters.wait(identifier, group) if self._state in _ACCEPTING else fail(_not_running())

    def call_store(self, change: Callable[[ISpoolStore], _T]) -> Deferred[_T]:
        """Call *change* with the store, where it may block and before the jobs of peers; look for new tasks.

        :return: fires with what it returned; fails with what it raised.
        """
        if self._state is _State.STOPPED:
            return fail(_not_running())
        return self._runner.run(change, self._store).addCallback(self._note_call)

    def _note_call(self, result: _T) -> _T:
        self.note_change(())
        return result

    def note_change(self, finished: Iterable[int]) -> None:
        """Act on a change that a peer's job made to the store.

        :param finished: the tasks that it may have finished.
        """
        self._waiters.look(finished)
        self._loop.look_for_tasks()

    def _wake_from_thread(self) -> None:
        """Act on a change that another process made to the store; called in any thread."""
        cast(IReactorFromThreads, self._reactor).callFromThread(self._wake)

    def _wake(self) -> None:
        self._waiters.look()
        self._loop.look_for_tasks()


def _not_running() -> Unavailable:
    return Unavailable("the spooler is not running; try again later")
