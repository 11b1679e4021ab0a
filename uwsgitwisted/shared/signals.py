"""uWSGI's signals: numbers that somebody raises, and that workers or mules handle.

The workers know which function handles a number; this module knows its *target*, the processes that get it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from uwsgitwisted.errors import MisuseError
from uwsgitwisted.shared.client import NOTHING, Client
from uwsgitwisted.shared.inboxes import ALL, Inboxes, signal_event
from uwsgitwisted.wire.calls import decode_number

#: How many signals there are, from 0.
SIGNALS = 256
#: How often each signal may wait for workers and mules, or run there. Each has a bound of its own, so that one
#: that is raised without end crowds out no other.
MAX_OUTSTANDING = 1_000
#: How many signals that peers have raised may wait or run, all together and besides the service's own.
MAX_FROM_PEERS = 1_000

_TARGETS = re.compile(rb"(worker|mule)(\d{1,5})")
#: The other targets: whether mules get the signal, and which; see :class:`Target`.
_NAMED = {
    b"": (False, 0),
    b"worker": (False, 0),
    b"workers": (False, ALL),
    b"active-workers": (False, ALL),
    b"mule": (True, 0),
    b"mules": (True, ALL),
}


class Target(NamedTuple):
    """Who gets a signal.

    :param mules: whether mules do; otherwise workers.
    :param number: which one of them; 0 for any, :data:`~.inboxes.ALL` for all.
    """

    mules: bool
    number: int


#: Runs a signal in a worker: with the worker's number, or 0 for any, the signal's, and what to call at the end.
#: Returns whether the signal was taken.
Deliver = Callable[[int, int, Callable[[], None]], bool]


class Signals:
    """The signals of a service.

    :param workers: how many workers it has.
    :param has_spooler: whether its workers are those of a spooler.
    :param inboxes: the mules'.
    :param deliver: gives a signal to a worker.
    :param log: takes a line for the log.
    """

    def __init__(
        self,
        workers: int,
        inboxes: Inboxes,
        deliver: Deliver,
        log: Callable[[str], None],
        *,
        has_spooler: bool = False,
    ) -> None:
        self._workers = workers
        self._inboxes = inboxes
        self._deliver = deliver
        self._log = log
        self._has_spooler = has_spooler
        self._targets: dict[int, Target] = {}
        # How often each signal of the service itself waits or runs, which of them are to be raised once more
        # after that, and how many signals of peers wait or run.
        self._outstanding: Counter[int] = Counter()
        self._again: set[int] = set()
        self._from_peers = 0

    def register(self, client: Client, number: bytes, target: bytes) -> Sequence[bytes]:
        """Set who gets a signal. What is registered last holds, as each worker registers the same."""
        self._targets[check_signal(number)] = self._parse(target)
        return NOTHING

    def _parse(self, target: bytes) -> Target:
        named = _NAMED.get(target)
        match = _TARGETS.fullmatch(target)
        if target == b"spooler" and self._has_spooler:
            return Target(False, 0)
        if named is None and match is None:
            text = target.decode(errors="replace")[:64]
            others = "'', worker, workers, workerN, mule, mules, muleN"
            raise MisuseError(f"no signal target {text!r}; this service has {others}")
        parsed = Target(*named) if named else Target(match[1] == b"mule", int(match[2]))  # type: ignore[index]
        if parsed.mules:
            self._inboxes.check(parsed.number)
        elif parsed.number > self._workers:
            raise MisuseError(f"there is no worker {parsed.number}: this service has {self._workers}")
        return parsed

    def raise_signal(self, client: Client, number: bytes) -> Sequence[bytes]:
        """Raise a signal, as a worker or a mule asks for it."""
        self.fire(check_signal(number))
        return NOTHING

    def tick(self, number: int) -> None:
        """Raise a signal at its time, unless its last run has not ended."""
        if not self._outstanding[number]:
            self.fire(number)

    def change(self, number: int) -> None:
        """Raise a signal because something has changed; while it waits or runs, do so once more after that."""
        if self._outstanding[number]:
            self._again.add(number)
        else:
            self.fire(number)

    def fire(self, number: int) -> None:
        """Raise a signal of the service itself; if that isn't possible, log why."""
        receivers = self._receivers(number)
        if self._outstanding[number] + len(receivers) > MAX_OUTSTANDING:
            self._log(f"signal {number} is dropped: it waits {MAX_OUTSTANDING} times already")
            return
        if receivers:
            self._outstanding[number] += len(receivers)
        for receiver in receivers:
            self._send(receiver, number, self._deliver, partial(self._end, number))

    def _end(self, number: int) -> None:
        self._outstanding[number] -= 1
        if not self._outstanding[number]:
            del self._outstanding[number]
            if number in self._again:
                self._again.discard(number)
                self.fire(number)

    def fire_for_peer(self, number: int, deliver: Deliver) -> bool:
        """Raise a signal for a peer; return whether it was taken. Otherwise, log why not.

        :param deliver: gives the signal to a worker in the name of the peer.
        """
        receivers = self._receivers(number)
        if self._from_peers + len(receivers) > MAX_FROM_PEERS:
            self._log(f"signals of peers are dropped: {MAX_FROM_PEERS} wait already")
            return False
        self._from_peers += len(receivers)
        taken = [self._send(each, number, deliver, self._end_of_peer) for each in receivers]
        return bool(taken) and all(taken)

    def _end_of_peer(self) -> None:
        self._from_peers -= 1

    def _receivers(self, number: int) -> list[Target]:
        """Return the mules or the workers that get a signal; if there are none, log why."""
        target = self._targets.get(number)
        if target is None:
            self._log(f"signal {number} was raised, and nothing has registered it")
            return []
        if target.number != ALL:
            return [target]
        count = self._inboxes.mules if target.mules else self._workers
        return [Target(target.mules, each) for each in range(1, count + 1)]

    def _send(self, to: Target, number: int, deliver: Deliver, done: Callable[[], None]) -> bool:
        """Give a signal to a mule or a worker; return whether it was taken. *done* is called at its end."""
        if to.mules:
            if self._inboxes.post(to.number, signal_event(number, done)):
                return True
            self._log(f"signal {number} is dropped: too much waits for the mules")
            done()
            return False
        return self._inboxes.offer(to.number, signal_event(number, done)) or deliver(to.number, number, done)


def check_signal(number: bytes) -> int:
    """Return the number of a signal.

    :raises MisuseError: if it is none.
    """
    signal = decode_number(number)
    if not 0 <= signal < SIGNALS:
        raise MisuseError(f"there is no signal {signal}: they are 0 to {SIGNALS - 1}")
    return signal
