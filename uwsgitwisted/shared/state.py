"""All that the processes of a service share, and the table of the operations that they call.

It has no socket and no thread: a clock and callables come from outside. The front owns one for its service. A
process without a front, such as the check of a handler module, has one of its own, without signals and mules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from uwsgitwisted.errors import MalformedPacket, MisuseError, UwsgiError
from uwsgitwisted.shared.cache import CacheLimits, Caches
from uwsgitwisted.shared.client import Call, Client, Clock, Reply
from uwsgitwisted.shared.facts import Facts
from uwsgitwisted.shared.inboxes import Inboxes
from uwsgitwisted.shared.locks import Locks
from uwsgitwisted.shared.metrics import Metrics
from uwsgitwisted.shared.ring import QueueLimits, Ring
from uwsgitwisted.shared.signals import Deliver, Signals
from uwsgitwisted.shared.timers import Sources, Watch


@dataclass(frozen=True, slots=True)
class SharedLimits:
    """What may be shared.

    :param caches: the limits of the caches by their names. The one called ``default`` is always there.
    :param queue: those of the queue.
    """

    caches: dict[bytes, CacheLimits] = field(default_factory=dict)
    queue: QueueLimits = field(default_factory=QueueLimits)


class _Operation(NamedTuple):
    """What a call does.

    :param run: is called with the client and the arguments, and returns the result.
    :param arguments: how many arguments it takes; any number, if it is None.
    :param waits: whether *run* gets the call in place of the client, and may return None and answer later.
    """

    run: Callable[..., Sequence[bytes] | None]
    arguments: int | None
    waits: bool = False


class Events:
    """The signals of a service with workers, what raises them, and the mules' messages.

    :param clock: the reactor.
    :param deliver: gives a signal to a worker.
    :param watch: watches files.
    :param log: takes a line for the log.
    :param workers: how many workers there are.
    :param mules: how many mules there are.
    :param has_spooler: whether the workers are those of a spooler.
    """

    def __init__(
        self,
        clock: Clock,
        deliver: Deliver,
        watch: Watch,
        log: Callable[[str], None],
        *,
        workers: int,
        mules: int = 0,
        has_spooler: bool = False,
    ) -> None:
        self.inboxes = Inboxes(clock, mules)
        self.signals = Signals(workers, self.inboxes, deliver, log, has_spooler=has_spooler)
        self.sources = Sources(clock, self.signals, watch)

    @property
    def operations(self) -> dict[bytes, _Operation]:
        """The calls that need this, by their names."""
        return {
            b"signal_register": _Operation(self.signals.register, 2),
            b"signal": _Operation(self.signals.raise_signal, 1),
            b"wait": _Operation(self.inboxes.wait, None, waits=True),
            b"timer": _Operation(self.sources.add_timer, 3),
            b"cron": _Operation(self.sources.add_cron, 6),
            b"file": _Operation(self.sources.add_file, 2),
            b"mule_msg": _Operation(self.inboxes.send, 2),
            b"mule_become": _Operation(self.inboxes.become, 0, waits=True),
        }


class SharedState:
    """The state of a service.

    :param now: the time in seconds, for what expires.
    :param limits: what it may hold.
    :param log: takes a line for the log.
    :param events: the signals; None where there are none.
    :param facts: what the service tells of itself; None for nothing.
    """

    def __init__(
        self,
        now: Callable[[], float],
        limits: SharedLimits | None = None,
        log: Callable[[str], None] = lambda line: None,
        events: Events | None = None,
        facts: Facts | None = None,
    ) -> None:
        limits = limits or SharedLimits()
        self._log = log
        self._events = events
        self._locks = Locks()
        self._generation = 0
        caches = Caches(dict(limits.caches), now, self._note_full)
        self._operations = {
            **_cache_operations(caches),
            **_other_operations(self._locks, Ring(limits.queue), Metrics()),
            **(events.operations if events else {}),
            **(_questions(facts) if facts else {}),
        }

    def _note_full(self, name: str) -> None:
        self._log(f"the cache {name!r} has refused an item: it is full, or the item is too large (--cache)")

    def connect(self, worker_id: int, mule_id: int = 0) -> Client:
        """Return a new client.

        :param worker_id: the number of its worker; 0 in a mule.
        :param mule_id: the number of its mule; 0 in a worker.
        """
        return Client(worker_id, mule_id, self._generation)

    def call(self, client: Client, items: Sequence[bytes], reply: Reply) -> None:
        """Run an operation. If its client still waits for another one, that is forgotten.

        :param items: the operation's name, and its arguments.
        :param reply: called with the result, or with one of our errors, now or later.
        """
        if client.pending is not None:
            client.pending.abandon()
        client.pending = call = Call(client, reply)
        try:
            operation = self._operations.get(items[0] if items else b"")
            if operation is None:
                name = items[0].decode(errors="replace")[:40] if items else ""
                raise MisuseError(
                    f"{name!r} needs a service with worker processes, and runs in a worker or a mule"
                )
            arguments: Sequence[Any] = items[1:]
            if operation.arguments not in (None, len(arguments)):
                raise MalformedPacket(
                    f"{items[0]!r} takes {operation.arguments} arguments, not {len(arguments)}"
                )
            result = operation.run(call if operation.waits else client, *arguments)
        except UwsgiError as error:
            call.answer(error)
        else:
            if result is not None:
                call.answer(result)

    def lost(self, client: Client) -> None:
        """Forget a client that has ended, and free what it holds."""
        if client.pending is not None:
            client.pending.abandon()
            client.pending = None
        self._locks.forget(client)
        if self._events is not None:
            self._events.inboxes.forget(client)

    def begin_reload(self) -> None:
        """Note that processes that connect from now on have new code."""
        self._generation += 1

    def end_reload(self, succeeded: bool) -> None:
        """Keep only what the new code has registered; or drop that, if it can't be used."""
        for registry in self._events.sources.registries if self._events is not None else ():
            if succeeded:
                registry.keep(self._generation)
            else:
                registry.undo(self._generation)

    def stop(self) -> None:
        """End timers, cron jobs and file monitors."""
        for registry in self._events.sources.registries if self._events is not None else ():
            registry.clear()


def _cache_operations(caches: Caches) -> dict[bytes, _Operation]:
    return {
        b"cache_get": _Operation(caches.get, 2),
        b"cache_set": _Operation(caches.set, 4),
        b"cache_update": _Operation(caches.update, 4),
        b"cache_del": _Operation(caches.delete, 2),
        b"cache_clear": _Operation(caches.clear, 1),
        b"cache_keys": _Operation(caches.keys, 1),
        b"cache_num": _Operation(caches.number, 2),
        b"cache_calculate": _Operation(caches.calculate, 5),
    }


def _questions(facts: Facts) -> dict[bytes, _Operation]:
    return {
        b"workers": _Operation(facts.workers, 0),
        b"total_requests": _Operation(facts.total_requests, 0),
        b"log_size": _Operation(facts.log_size, 0),
    }


def _other_operations(locks: Locks, ring: Ring, metrics: Metrics) -> dict[bytes, _Operation]:
    return {
        b"lock": _Operation(locks.lock, 1, waits=True),
        b"unlock": _Operation(locks.unlock, 1),
        b"is_locked": _Operation(locks.is_locked, 1),
        b"queue_push": _Operation(ring.push, 1),
        b"queue_pull": _Operation(ring.pull, 0),
        b"queue_pop": _Operation(ring.pop, 0),
        b"queue_get": _Operation(ring.get, 1),
        b"queue_set": _Operation(ring.set, 2),
        b"queue_last": _Operation(ring.last, 1),
        b"queue_slot": _Operation(ring.slot, 0),
        b"queue_pull_slot": _Operation(ring.pull_slot, 0),
        b"metric_get": _Operation(metrics.get, 1),
        b"metric_change": _Operation(metrics.change, 3),
    }
