"""A fair, bounded queue: whose request is next, and whose requests may wait.

A peer's first request waits for at most one request of each other peer, however many those have. And no peer
can take all places. It may have three times as many as are free: three quarters of all if it is alone, and
three sevenths beside a peer that wants as many. (:mod:`uwsgitwisted.transport.server.budget` shares the memory
by the same kind of rule.)
"""

from __future__ import annotations

from uwsgitwisted.access import NOBODY, Peer
from uwsgitwisted.engines.job import Job
from uwsgitwisted.errors import Busy
from uwsgitwisted.turns import Turns

#: One peer may have this many times the number of free places.
_TIMES_FREE = 3


def refusal(peer: Peer, own: int, taken: int, limit: int) -> Busy | None:
    """Return why *peer* gets no place, or None if it gets one.

    Requests that come from no peer, such as a spooler's tasks, may take all places.

    :param own: how many places *peer* has.
    :param taken: how many places are taken.
    :param limit: how many places there are.
    """
    if taken >= limit:
        return Busy(f"{limit} requests are already waiting (--max-queue); try another node, or try again later")
    if own and own >= _TIMES_FREE * (limit - taken) and peer is not NOBODY:
        return Busy(
            f"{own} requests from your address are already waiting, and the rest of the {limit} places "
            "(--max-queue) are for others; try another node, or try again later"
        )
    return None


class FairQueue(Turns[Job]):
    """The requests that wait for a worker. Peers take turns, each with its first request.

    :param limit: how many requests may wait.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit
        #: Below this length no peer can have so many that it is refused, whosever the jobs are.
        self.harmless = _TIMES_FREE * limit / (1 + _TIMES_FREE)

    def refusal(self, peer: Peer) -> Busy | None:
        """Return why *peer* may not queue another request, or None if it may."""
        return refusal(peer, self.count(peer.group), self.length, self._limit)
