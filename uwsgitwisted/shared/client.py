"""Who calls: a thread of a worker or of a mule, and the call that it waits for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

#: Answers a call: with the items of its result, or with an error.
Reply = Callable[[Sequence[bytes] | Exception], None]

#: The result of an operation that has none.
NOTHING: Sequence[bytes] = ()
#: A result that says yes. Where an operation has done nothing, its result is :data:`NOTHING`.
YES: Sequence[bytes] = (b"1",)


class Scheduled(Protocol):
    """A function that will be called."""

    def cancel(self) -> None:
        """Don't call it."""


class Clock(Protocol):
    """A monotonic clock that calls functions: a reactor."""

    def seconds(self) -> float:
        """Return the time, in seconds."""

    def callLater(self, delay: float, callable: Callable[..., object], *args: object) -> Scheduled:  # noqa: N802, A002
        """Call a function in *delay* seconds."""


class Client:
    """A thread that calls; it has a connection of its own, which ends with it.

    :param worker_id: the number of its worker, from 1; 0 in a mule.
    :param mule_id: the number of its mule, from 1; 0 in a worker.
    :param generation: which code its process has loaded; see :mod:`.generations`.
    """

    def __init__(self, worker_id: int = 0, mule_id: int = 0, generation: int = 0) -> None:
        self.worker_id = worker_id
        self.mule_id = mule_id
        self.generation = generation
        #: The call that it waits for.
        self.pending: Call | None = None


class Call:
    """A call whose answer may come later.

    :param client: who calls.
    :param reply: takes the answer.
    """

    def __init__(self, client: Client, reply: Reply) -> None:
        self.client = client
        self._reply: Reply | None = reply
        #: What forgets the call, where something has it noted.
        self.on_abandon: Callable[[], object] = lambda: None

    def answer(self, result: Sequence[bytes] | Exception) -> None:
        """Answer the call, once."""
        reply, self._reply = self._reply, None
        if self.client.pending is self:
            self.client.pending = None
        if reply is not None:
            reply(result)

    def abandon(self) -> None:
        """Forget the call: nobody waits for the answer any more."""
        self._reply = None
        self.on_abandon()
