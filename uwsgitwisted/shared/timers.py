"""The sources of signals: timers, cron jobs, and file monitors."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from uwsgitwisted.errors import MisuseError
from uwsgitwisted.shared.client import NOTHING, YES, Client, Clock, Scheduled
from uwsgitwisted.shared.registry import Registry
from uwsgitwisted.shared.signals import Signals, check_signal
from uwsgitwisted.wire.calls import decode_number

#: The longest time between two ticks, in milliseconds: some years.
_MOST = 10**11
#: Watches a path: called with it, and with what to call when it has changed; returns what ends the watch.
Watch = Callable[[str, Callable[[], None]], Callable[[], object]]


class _Timer(NamedTuple):
    signal: int
    milliseconds: int
    ticks: int


class CronFields(NamedTuple):
    """When a cron job runs: numbers; -1 is any, and -n each that n divides."""

    minute: int
    hour: int
    day: int
    month: int
    weekday: int

    def match(self, moment: time.struct_time) -> bool:
        """Return whether a local time matches.

        As in uWSGI, one of the day and the weekday is enough, where both are single ones.
        """
        now = (moment.tm_min, moment.tm_hour, moment.tm_mday, moment.tm_mon, (moment.tm_wday + 1) % 7)
        minute, hour, day, month, weekday = (
            value == field if field >= 0 else value % -field == 0
            for value, field in zip(now, self, strict=True)
        )
        is_day = day or weekday if self.day >= 0 and self.weekday >= 0 else day and weekday
        return minute and hour and month and is_day


#: The fields of a cron job, and from where to where they go.
_RANGES = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))


def _check_cron(values: Sequence[bytes]) -> CronFields:
    fields = [decode_number(value) for value in values]
    for (name, first, last), value in zip(_RANGES, fields, strict=True):
        if value > last or 0 <= value < first:
            raise MisuseError(f"add_cron: there is no {name} {value}; it goes from {first} to {last}")
    minute, hour, day, month, weekday = fields
    return CronFields(minute, hour, day, month, weekday % 7 if weekday >= 0 else weekday)


class Sources:
    """The timers, cron jobs and file monitors of a service.

    :param clock: for the timers.
    :param signals: what they raise.
    :param watch: watches files.
    :param now: the wall clock, in unix seconds.
    """

    def __init__(
        self, clock: Clock, signals: Signals, watch: Watch, now: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._signals = signals
        self._watch = watch
        self._now = now
        self._timers: Registry[_Timer] = Registry("timers", self._start_timer)
        self._crons: Registry[tuple[int, CronFields]] = Registry("cron jobs", self._start_cron)
        self._files: Registry[tuple[int, str]] = Registry("file monitors", self._start_file)
        #: All of them.
        self.registries: tuple[
            Registry[_Timer] | Registry[tuple[int, CronFields]] | Registry[tuple[int, str]], ...
        ]
        self.registries = (self._timers, self._crons, self._files)
        self._jobs: set[tuple[int, CronFields]] = set()
        self._minute = 0
        self._next_minute: Scheduled | None = None

    def add_timer(self, client: Client, number: bytes, milliseconds: bytes, ticks: bytes) -> Sequence[bytes]:
        """Raise a signal periodically.

        :param ticks: how often; 0 for as long as the service runs.
        """
        timer = _Timer(check_signal(number), decode_number(milliseconds), decode_number(ticks))
        if not 0 < timer.milliseconds <= _MOST or timer.ticks < 0:
            raise MisuseError(
                f"a timer of {timer.milliseconds} ms and {timer.ticks} ticks: a timer has 1 to {_MOST} ms"
            )
        self._timers.add(timer, client.generation)
        return NOTHING

    def add_cron(self, client: Client, number: bytes, *fields: bytes) -> Sequence[bytes]:
        """Raise a signal in each minute that matches."""
        self._crons.add((check_signal(number), _check_cron(fields)), client.generation)
        return YES

    def add_file(self, client: Client, number: bytes, path: bytes) -> Sequence[bytes]:
        """Raise a signal when a file or a directory changes."""
        name = os.fsdecode(path)
        if not os.path.isabs(name) or "\0" in name:
            raise MisuseError(f"add_file_monitor: {name[:100]!r} is no absolute path")
        self._files.add((check_signal(number), name), client.generation)
        return NOTHING

    def _start_timer(self, timer: _Timer) -> Callable[[], object]:
        interval = timer.milliseconds / 1_000
        started = self._clock.seconds()
        ticks = 0
        scheduled: Scheduled | None

        def schedule() -> None:
            nonlocal scheduled, ticks
            if timer.ticks and ticks >= timer.ticks:
                scheduled = None
                return
            # From its start, so that it doesn't drift; ticks that were missed are skipped.
            passed = int((self._clock.seconds() - started) / interval + _SLACK)
            scheduled = self._clock.callLater(
                max(0.0, started + (passed + 1) * interval - self._clock.seconds()), tick
            )

        def tick() -> None:
            nonlocal ticks
            ticks += 1
            schedule()
            self._signals.tick(timer.signal)

        schedule()
        return lambda: scheduled.cancel() if scheduled is not None else None

    def _start_cron(self, job: tuple[int, CronFields]) -> Callable[[], object]:
        self._jobs.add(job)
        if self._next_minute is None:
            self._minute = int(self._now() // 60)
            self._await_minute()

        def end() -> None:
            self._jobs.discard(job)
            if not self._jobs and self._next_minute is not None:
                self._next_minute.cancel()
                self._next_minute = None

        return end

    def _await_minute(self) -> None:
        self._next_minute = self._clock.callLater(60 - self._now() % 60, self._on_minute)

    def _on_minute(self) -> None:
        """Raise the signals of this minute, unless the wall clock has not reached it."""
        self._await_minute()
        now = self._now()
        if int(now // 60) == self._minute:
            return
        self._minute = int(now // 60)
        moment = time.localtime(now)
        for number, fields in sorted(self._jobs):
            if fields.match(moment):
                self._signals.tick(number)

    def _start_file(self, file: tuple[int, str]) -> Callable[[], object]:
        number, path = file
        return self._watch(path, lambda: self._signals.change(number))


#: The part of an interval by which a tick may come too early: a float's rounding.
_SLACK = 1e-6
