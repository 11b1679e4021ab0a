"""Locks that threads of all workers take, one after the other. A lock whose holder ends is free again."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from uwsgitwisted.errors import MisuseError
from uwsgitwisted.shared.client import NOTHING, YES, Call, Client
from uwsgitwisted.wire.calls import decode_number

#: How many locks there are. uWSGI has one, or as many as --locks says.
LOCKS = 256


class Locks:
    """The locks, by their numbers from 0."""

    def __init__(self) -> None:
        self._holders: dict[int, Client] = {}
        self._waiting: dict[int, deque[Call]] = {}

    def lock(self, call: Call, number: bytes) -> Sequence[bytes] | None:
        """Take a lock, as soon as it is free."""
        lock = _check(number)
        holder = self._holders.get(lock)
        if holder is call.client:
            raise MisuseError(
                f"lock({lock}): this thread holds it already, so it would wait for itself for ever"
            )
        if holder is None:
            self._holders[lock] = call.client
            return NOTHING
        waiting = self._waiting.setdefault(lock, deque())
        waiting.append(call)
        call.on_abandon = lambda: waiting.remove(call)
        return None

    def unlock(self, client: Client, number: bytes) -> Sequence[bytes]:
        """Release a lock. If the client doesn't hold it, nothing happens, as in uWSGI."""
        lock = _check(number)
        if self._holders.get(lock) is client:
            self._release(lock)
        return NOTHING

    def is_locked(self, client: Client, number: bytes) -> Sequence[bytes]:
        """Return whether anybody holds a lock."""
        return YES if _check(number) in self._holders else NOTHING

    def forget(self, client: Client) -> None:
        """Release what a client holds that has ended."""
        for lock in [lock for lock, holder in self._holders.items() if holder is client]:
            self._release(lock)

    def _release(self, lock: int) -> None:
        waiting = self._waiting.get(lock)
        if waiting:
            call = waiting.popleft()
            self._holders[lock] = call.client
            call.on_abandon = lambda: None
            call.answer(NOTHING)
        else:
            del self._holders[lock]
            self._waiting.pop(lock, None)


def _check(number: bytes) -> int:
    lock = decode_number(number)
    if not 0 <= lock < LOCKS:
        raise MisuseError(f"Invalid lock number {lock}: there are 0 to {LOCKS - 1}")
    return lock
