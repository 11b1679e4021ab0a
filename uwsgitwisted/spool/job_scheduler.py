"""What peers ask of the store: done in slices, a peer at a time, behind the spooler's own work.

The spooler's own calls and these share one thread, in which at most one slice of a question is at a time, or
waits. So a commit and a heartbeat wait for one slice at most, however much is asked. Peers take turns: each has
one question in progress, up to a number of peers, whose slices alternate.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from uwsgitwisted.errors import Busy, Unavailable
from uwsgitwisted.spool.slices import Job, Steps
from uwsgitwisted.spool.store_thread import Runner
from uwsgitwisted.spool.stores.interface import ISpoolStore

#: How much work may wait, of one peer and in all, in slices.
MAX_PEER_PENDING, MAX_PENDING = 1_000, 4_000
#: How many bytes of questions may wait, before no other is taken: of one peer and in all.
MAX_PEER_PENDING_BYTES, MAX_PENDING_BYTES = 32 * 1024 * 1024, 64 * 1024 * 1024
#: How many questions are in progress at once; each may have an answer in the making.
MAX_STARTED = 8
_T = TypeVar("_T")

_log = Logger()


class _Share:
    """What one peer has asked that is not answered.

    :param group: whose it is; None for the spooler itself.
    """

    __slots__ = ("group", "in_progress", "size", "waiting", "weight")

    def __init__(self, group: str | None) -> None:
        self.group = group
        self.weight = 0
        self.size = 0
        self.in_progress = False
        #: What is not in progress.
        self.waiting: deque[_Question] = deque()


class _Question:
    """Something that was asked."""

    __slots__ = ("answer", "done", "job", "share", "size", "steps", "weight")

    def __init__(self, share: _Share, job: Job[Any], weight: int, size: int) -> None:
        self.share = share
        self.job = job
        self.weight = weight
        self.size = size
        self.steps: Steps[Any] | None = None
        self.answer: Any = None
        #: Fires when it is answered, whether anybody still waits for that or not.
        self.done: Deferred[Any] = Deferred()

    def step(self, store: ISpoolStore) -> bool:
        """Do a slice of it, in the store's thread; return whether it was the last."""
        if self.steps is None:
            self.steps = self.job(store)
        try:
            next(self.steps)
        except StopIteration as end:
            self.answer = end.value
            return True
        return False


class Questions:
    """Asks the store, for peers that must not hold up anybody.

    :param runner: has the store's thread.
    """

    def __init__(self, runner: Runner, store: ISpoolStore) -> None:
        self._runner = runner
        self._store = store
        self._open = False
        self._shares: dict[str | None, _Share] = {}
        # What peers have asked together; what the spooler itself asks is not counted.
        self._weight = 0
        self._size = 0
        # Those of which something waits and nothing is in progress, in turn.
        self._next: deque[_Share] = deque()
        # What is in progress; a slice of the first one is being done.
        self._started: deque[_Question] = deque()
        self._asking = False

    def open(self) -> None:
        """Take questions, as soon as the store's thread runs."""
        self._open = True

    def close(self) -> None:
        """Take none any more, and fail those that wait.

        The one of which a slice is being done is answered if that was the last.
        """
        self._open = False
        in_hand = [self._started.popleft()] if self._asking else []
        waiting = [*self._started, *(question for share in self._shares.values() for question in share.waiting)]
        self._started = deque(in_hand)
        self._next.clear()
        for question in waiting:
            question.share.waiting.clear()
            self._forget(question)
            question.done.errback(_not_running())

    def ask(
        self,
        group: str | None,
        job: Job[_T],
        *,
        weight: int = 1,
        size: int = 0,
        then: Callable[[_T], object] | None = None,
    ) -> Deferred[_T]:
        """Ask something.

        :param group: who asks, see :attr:`uwsgitwisted.access.Peer.group`. None for the spooler itself, whose
            questions are bounded by what it asks them for.
        :param weight: how many slices it has, about.
        :param size: how many bytes are held until it is answered.
        :param then: is called with the answer, also if nobody waits for that any more.
        :return: fires with the answer; fails with what the job raised, with ``Busy`` if too much waits, and
            with ``Unavailable`` if the spooler doesn't run. Cancelling it takes the question out if it has not
            begun; otherwise it is done all the same, and counts until then.
        """
        if not self._open:
            return fail(_not_running())
        share = self._shares.get(group) or _Share(group)
        if group is not None and self._is_full(share):
            return fail(Busy("too many questions wait for the spool already; try again later"))
        self._shares[group] = share
        question = _Question(share, job, weight, size)
        answer: Deferred[_T] = Deferred(lambda _: self._withdraw(question))
        if then is not None:
            question.done.addCallback(_tell, then)
        question.done.addBoth(_pass_on, answer).addErrback(_unexpected)
        self._count(question, 1)
        share.waiting.append(question)
        if len(share.waiting) == 1 and not share.in_progress:
            self._next.append(share)
        self._go_on()
        return answer

    def _is_full(self, share: _Share) -> bool:
        return (
            share.weight >= MAX_PEER_PENDING
            or share.size >= MAX_PEER_PENDING_BYTES
            or self._weight >= MAX_PENDING
            or self._size >= MAX_PENDING_BYTES
        )

    def _count(self, question: _Question, sign: int) -> None:
        share, weight, size = question.share, sign * question.weight, sign * question.size
        share.weight += weight
        share.size += size
        if share.group is not None:
            self._weight += weight
            self._size += size

    def _forget(self, question: _Question) -> None:
        self._count(question, -1)
        if not question.share.weight:
            del self._shares[question.share.group]

    def _go_on(self) -> None:
        """Have the next slice done, unless one is being done."""
        while self._next and len(self._started) < MAX_STARTED:
            share = self._next.popleft()
            share.in_progress = True
            self._started.append(share.waiting.popleft())
        if self._started and not self._asking:
            self._asking = True
            question = self._started[0]
            stepping = self._runner.run(question.step, self._store)
            stepping.addCallbacks(self._stepped, self._ended, callbackArgs=(question,), errbackArgs=(question,))
            stepping.addErrback(_unexpected)

    def _stepped(self, last: bool, question: _Question) -> None:
        if last:
            self._ended(question.answer, question)
        elif not self._open:
            self._ended(Failure(_not_running()), question)
        else:
            self._asking = False
            self._started.rotate(-1)
            self._go_on()

    def _ended(self, result: object, question: _Question) -> None:
        """Make room for others, and let the peer's next question wait for its turn."""
        self._asking = False
        self._started.popleft()
        self._forget(question)
        share = question.share
        share.in_progress = False
        if share.waiting:
            self._next.append(share)
        self._go_on()
        question.done.callback(result)

    def _withdraw(self, question: _Question) -> None:
        """Take out a question that has not begun."""
        share = question.share
        if question not in share.waiting:
            return
        share.waiting.remove(question)
        if not share.waiting and not share.in_progress:
            self._next.remove(share)
        self._forget(question)


def _tell(answer: _T, then: Callable[[_T], object]) -> _T:
    then(answer)
    return answer


def _pass_on(result: object, answer: Deferred[Any]) -> None:
    if not answer.called:  # else nobody waits for it any more
        answer.callback(result)


def _not_running() -> Unavailable:
    return Unavailable("the spooler is not running; try again later")


def _unexpected(failure: Failure) -> None:
    _log.failure("asking the store", failure)
