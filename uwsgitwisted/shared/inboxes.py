"""The mules' inboxes, and the calls that wait for a message or a signal.

A worker may wait for signals too. It has no inbox: a signal that it doesn't wait for goes to it as a request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from uwsgitwisted.errors import MisuseError
from uwsgitwisted.shared.client import NOTHING, YES, Call, Client, Clock
from uwsgitwisted.wire.calls import decode_number, encode_number

#: The kinds of events, and of what a call waits for.
SIGNAL, MESSAGE = b"signal", b"message"
#: Stands for all mules, or all workers; 0 is any one of them.
ALL = -1
#: How many events may wait for mules, and how many bytes their data may have.
MAX_EVENTS, MAX_BYTES = 10_000, 16 * 1024 * 1024


class Event(NamedTuple):
    """Something that happens to a mule or a worker.

    :param kind: :data:`SIGNAL` or :data:`MESSAGE`.
    :param data: the signal's number, or the message.
    :param on_taken: called when somebody has it.
    """

    kind: bytes
    data: bytes
    on_taken: Callable[[], object] = lambda: None


class Inboxes:
    """The inboxes of a service's mules.

    :param clock: for waiting calls.
    :param mules: how many mules there are.
    """

    def __init__(self, clock: Clock, mules: int) -> None:
        self._clock = clock
        #: How many mules there are.
        self.mules = mules
        # The inbox of number 0 is all mules' together.
        self._events: list[deque[Event]] = [deque() for _ in range(mules + 1)]
        self._waiting: dict[Call, frozenset[bytes]] = {}
        self._count = self._size = 0
        # By mule: the first connection of its process, and the calls of its successors.
        self._owners: dict[int, Client] = {}
        self._successors: dict[int, deque[Call]] = {}

    def check(self, mule: int) -> int:
        """Return the number of a mule, or :data:`ALL`.

        :raises MisuseError: if there is no such mule.
        """
        if not self.mules or not ALL <= mule <= self.mules:
            there = f"it has 1 to {self.mules}" if self.mules else "it has none"
            raise MisuseError(f"this service has no mule {mule or ''}: {there} (--mules N, --mule MODULE)")
        return mule

    def post(self, mule: int, event: Event) -> bool:
        """Give a mule an event; return whether there was room for it.

        :param mule: its number; 0 for the first that takes it.
        """
        for call in self._waiting:
            if call.client.mule_id and mule in (0, call.client.mule_id) and self._give(call, event):
                return True
        if self._count >= MAX_EVENTS or self._size + len(event.data) > MAX_BYTES:
            return False
        self._events[mule].append(event)
        self._count += 1
        self._size += len(event.data)
        return True

    def offer(self, worker: int, event: Event) -> bool:
        """Give an event to a worker that waits for one; return whether there was one.

        :param worker: its number; 0 for any worker.
        """
        return any(
            call.client.worker_id and worker in (0, call.client.worker_id) and self._give(call, event)
            for call in list(self._waiting)
        )

    def _give(self, call: Call, event: Event) -> bool:
        if event.kind not in self._waiting[call]:
            return False
        call.on_abandon()
        event.on_taken()
        call.answer((event.kind, event.data))
        return True

    def send(self, client: Client, mule: bytes, message: bytes) -> Sequence[bytes]:
        """Send a mule a message; say whether there was room for it."""
        number = self.check(decode_number(mule))
        return YES if self.post(max(0, number), Event(MESSAGE, message)) else NOTHING

    def wait(self, call: Call, milliseconds: bytes, *kinds: bytes) -> Sequence[bytes] | None:
        """Return the next event.

        :param milliseconds: after this time return nothing; negative for never.
        :param kinds: which kinds of events to wait for.
        """
        event = self._take(call.client.mule_id, kinds) if call.client.mule_id else None
        if event is not None:
            event.on_taken()
            return event.kind, event.data
        limit = decode_number(milliseconds)
        self._waiting[call] = frozenset(kinds)
        expiry = self._clock.callLater(limit / 1_000, self._expire, call) if limit >= 0 else None

        def abandon() -> None:
            self._waiting.pop(call, None)
            call.on_abandon = lambda: None
            if expiry is not None:
                expiry.cancel()

        call.on_abandon = abandon
        return None

    def _expire(self, call: Call) -> None:
        self._waiting.pop(call, None)
        call.on_abandon = lambda: None
        call.answer(NOTHING)

    def _take(self, mule: int, kinds: Sequence[bytes]) -> Event | None:
        for events in (self._events[mule], self._events[0]):
            for event in events:
                if event.kind in kinds:
                    events.remove(event)
                    self._count -= 1
                    self._size -= len(event.data)
                    return event
        return None

    def become(self, call: Call) -> Sequence[bytes] | None:
        """Answer a mule's process once it is the only one with its number."""
        mule = call.client.mule_id
        if not 1 <= mule <= self.mules:
            raise MisuseError(f"there is no mule {mule}")
        if self._owners.setdefault(mule, call.client) is call.client:
            return NOTHING
        successors = self._successors.setdefault(mule, deque())
        successors.append(call)
        call.on_abandon = lambda: successors.remove(call)
        return None

    def forget(self, client: Client) -> None:
        """Answer the successor of a mule's process that has ended."""
        if self._owners.get(client.mule_id) is not client:
            return
        del self._owners[client.mule_id]
        successors = self._successors.get(client.mule_id)
        if successors:
            call = successors.popleft()
            call.on_abandon = lambda: None
            self._owners[client.mule_id] = call.client
            call.answer(NOTHING)


def signal_event(number: int, on_taken: Callable[[], object]) -> Event:
    """Return the event of a signal."""
    return Event(SIGNAL, encode_number(number), on_taken)
