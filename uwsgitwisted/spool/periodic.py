"""Enqueues tasks periodically: by a cron expression, or every so many seconds.

If times of a periodic task passed while no spooler ran, one occurrence is caught up on, the last. Several
spoolers of one store agree on the times, and the store makes sure that each occurrence is stored once.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import takewhile
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from uwsgitwisted.errors import StartupError, UwsgiError
from uwsgitwisted.spool.stores.interface import OCCURRENCE_SPAN, ISpoolStore
from uwsgitwisted.spool.task import new_task
from uwsgitwisted.wire.vars import encode_vars

#: The longest sleep before the wall clock, which may have stepped, is read again, in seconds.
MAX_SLEEP = 5.0
#: How long to wait after an occurrence could not be stored, in seconds.
PAUSE = 1.0

_log = Logger()


class Schedule(Protocol):
    """The times at which something happens."""

    def after(self, moment: float) -> float:
        """Return the first time after *moment*, both in unix seconds; infinity if there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Interval:
    """Every so many seconds, counted from the beginning of unix time so that all spoolers agree."""

    seconds: float

    def after(self, moment: float) -> float:
        """Return the first time after *moment*."""
        return (math.floor(moment / self.seconds) + 1) * self.seconds


class Cron:
    """The times of a cron expression, in the local time zone.

    :param expression: five fields, as ``crontab`` takes them, or six with seconds first.
    :raises StartupError: if it is no such expression, or the library for it is not installed.
    """

    def __init__(self, expression: str) -> None:
        try:
            from cronsim import CronSim, CronSimError
            from tzlocal import get_localzone
        except ImportError as error:
            raise StartupError(
                f"cron expressions need {error.name}: pip install 'uwsgitwisted[cron]'"
            ) from error
        self._cronsim = CronSim
        # By its rules, not by today's distance from UTC, which daylight saving changes.
        self._zone = get_localzone()
        self._expression = expression
        try:
            self.after(0.0)
        except CronSimError as error:
            raise StartupError(
                f"{expression!r} is no cron expression ({error}); write for example '*/5 * * * *'"
            ) from error

    def after(self, moment: float) -> float:
        """Return the first time after *moment*."""
        start = datetime.fromtimestamp(moment, self._zone)
        found = next(self._cronsim(self._expression, start), None)
        return math.inf if found is None else found.timestamp()


@dataclass(frozen=True, slots=True)
class PeriodicTask:
    """A task that is enqueued periodically.

    :param name: identifies it, also after a restart.
    :param variables: the vars block of each of its tasks.
    """

    name: str
    schedule: Schedule
    variables: bytes


def parse_cron(text: str) -> PeriodicTask:
    """Return the periodic task that a line such as ``*/5 * * * * job=cleanup`` describes.

    :raises StartupError: if it can't be understood.
    """
    try:
        words = shlex.split(text)
        fields = list(takewhile(lambda word: "=" not in word, words))
        pairs = [word.partition("=") for word in words[len(fields) :]]
        if not pairs or not all(name and equals for name, equals, _ in pairs):
            raise ValueError("the task's keys and values follow the fields of the time")
        variables = encode_vars([(name, value) for name, _, value in pairs])
        new_task(variables, 0.0)
    except (ValueError, UwsgiError) as error:
        raise StartupError(f"{text!r}: {error}; write for example '*/5 * * * * job=cleanup'") from error
    return PeriodicTask(text, Cron(" ".join(fields)), variables)


class PeriodicScheduler:
    """Stores the occurrences of periodic tasks when their times come.

    :param clock: a monotonic clock.
    :param call_store: calls a function with the store, where it may block;
        :meth:`~uwsgitwisted.spool.spooler.Spooler.call_store`.
    :param now: the wall clock, in unix seconds.
    """

    def __init__(
        self,
        clock: IReactorTime,
        tasks: Iterable[PeriodicTask],
        call_store: Callable[[Callable[[ISpoolStore], float]], Deferred[float]],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._tasks = list(tasks)
        self._call_store = call_store
        self._now = now
        self._calls: dict[str, IDelayedCall] = {}
        #: Whether it was started, and not stopped since.
        self.running = False

    def start(self) -> None:
        """Begin."""
        self.running = True
        for task in self._tasks:
            self._store_or_wait(task, 0.0)

    def stop(self) -> None:
        """Store no further occurrence."""
        self.running = False
        for call in self._calls.values():
            call.cancel()
        self._calls.clear()

    def _store_or_wait(self, task: PeriodicTask, at: float) -> None:
        """Store an occurrence if its time *at* has come, or wait for it."""
        self._calls.pop(task.name, None)
        wait = at - self._now()
        if wait > 0:
            self._schedule(min(wait, MAX_SLEEP), task, at)
            return
        stored = self._call_store(partial(occur, task, now=self._now()))
        stored.addCallbacks(
            lambda following: self._schedule(0.0, task, following), self._note_failure, errbackArgs=(task,)
        )

    def _schedule(self, delay: float, task: PeriodicTask, at: float) -> None:
        if self.running:
            self._calls[task.name] = self._clock.callLater(delay, self._store_or_wait, task, at)

    def _note_failure(self, failure: Failure, task: PeriodicTask) -> None:
        _log.warn("the periodic task {name}: {reason}", name=task.name, reason=failure.getErrorMessage())
        self._schedule(PAUSE, task, 0.0)


def occur(task: PeriodicTask, store: ISpoolStore, now: float) -> float:
    """Store the last occurrence of *task* that is due, if it isn't yet.

    :return: the time of the next, in unix seconds.
    """
    last = store.last_occurrence(task.name)
    if last is None or last > now + OCCURRENCE_SPAN:  # a new task, or the clock was wrong then
        store.occur(task.name, now, None)
        last = now
    due = last_until(task.schedule, last, now)
    if due is not None:
        store.occur(task.name, due, new_task(task.variables, now))
    return task.schedule.after(max(now, last))


def last_until(schedule: Schedule, last: float, now: float) -> float | None:
    """Return the last time of *schedule* after *last* and until *now*; None if there is none."""
    # If a whole day was missed, its last day is enough, or the times are so rare that all can be gone through.
    start = max(last, now - OCCURRENCE_SPAN)
    if schedule.after(start) > now:
        start = last
    found = None
    following = schedule.after(start)
    while following <= now:
        found, following = following, schedule.after(following)
    return found
