"""The clients of shared state, which are threads of workers and mules, and their pending calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

#: Answers a call with the items of its result, or with an error.
Reply = Callable[[Sequence[bytes] | Exception], None]

#: The result of an operation that has none.
NOTHING: Sequence[bytes] = ()
#: The result of an operation that succeeded; :data:`NOTHING` is that of one that did not.
YES: Sequence[bytes] = (b"1",)


class Scheduled(Protocol):
    """A scheduled call."""

    def cancel(self) -> None:
        """Cancel it."""


class Clock(Protocol):
    """A monotonic clock that schedules calls, such as a reactor."""

    def seconds(self) -> float:
        """Return the time, in seconds."""

    def callLater(self, delay: float, callable: Callable[..., object], *args: object) -> Scheduled:  # noqa: N802, A002
        """Call a function in *delay* seconds."""


class Client:
    """A thread with a connection of its own, which ends with it.

    :param worker_id: the number of its worker, from 1; 0 in a mule.
    :param mule_id: the number of its mule, from 1; 0 in a worker.
    :param generation: which code its process has loaded; see :mod:`.registry`.
    """

    def __init__(self, worker_id: int = 0, mule_id: int = 0, generation: int = 0) -> None:
        self.worker_id = worker_id
        self.mule_id = mule_id
        self.generation = generation
        #: The call that it waits for; None if there is none.
        self.pending: Call | None = None


class Call:
    """A call that may be answered later.

    :param client: the caller.
    :param reply: takes the answer.
    """

    def __init__(self, client: Client, reply: Reply) -> None:
        self.client = client
        self._reply: Reply | None = reply
        #: Removes the call from where it waits.
        self.on_abandon: Callable[[], object] = lambda: None

    def answer(self, result: Sequence[bytes] | Exception) -> None:
        """Answer the call, once."""
        reply, self._reply = self._reply, None
        if self.client.pending is self:
            self.client.pending = None
        if reply is not None:
            reply(result)

    def abandon(self) -> None:
        """Drop the call: its client has ended, or has made another one."""
        self._reply = None
        self.on_abandon()
