"""Answers requests for pages from the front's result cache, or forwards them to the engine and keeps the pages.

A page is found by the bytes of its request. The worker that has made it has said of which files; see
:mod:`uwsgitwisted.worker.templates.keeping`. The front looks at their status before it uses the page again.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from uwsgitwisted.activity import CacheCounts
from uwsgitwisted.interfaces import IEngine, IResponder, Reply, Request, TimedAnswer
from uwsgitwisted.transport.batch import BATCH
from uwsgitwisted.wire.packet import MARSHAL, Packet, new_tuple
from uwsgitwisted.worker.templates.keeping import MAY_KEEP, Decoder, Sources
from uwsgitwisted.worker.templates.results import Page, Results


@implementer(IResponder)
class RenderResponder:
    """Answers requests that are objects.

    :param engine: renders.
    :param limit: how many bytes the kept pages may take together.
    :param age: for how many seconds a page is kept.
    :param reload: whether to look for changed files.
    """

    def __init__(self, engine: IEngine, limit: int, age: float, *, reload: bool) -> None:
        self._engine = engine
        self._results: Results[Sources] = Results(limit, age, self._are_current)
        self._reload = reload
        self._decoder = Decoder()
        # The files that were looked at for requests of the same chunk of input.
        self._unchanged: set[Sources] = set()
        self._clears = 0

    def respond(self, request: Request) -> Reply:
        """Return the page, or a Deferred that fires with it."""
        key = request.packet.payload
        page = self._results.get(key)
        if page is not None:
            return new_tuple(Packet, (MARSHAL, request.packet.modifier2, page.body))
        keep = partial(self._keep, key, self._clears)
        answer: Reply = self._engine.submit(request.as_idempotent())
        return answer.addCallback(keep) if isinstance(answer, Deferred) else keep(answer)

    def _keep(self, key: bytes, clears: int, answer: Any) -> Any:
        """Return an answer as its caller gets it, and keep it if that is possible.

        :param clears: how often the cache had been cleared when the request was given to the engine.
        """
        took = answer.took if isinstance(answer, TimedAnswer) else None
        packet = answer if took is None else answer.packet
        if not isinstance(packet, Packet) or packet.modifier1 != MAY_KEEP:
            return answer
        sources, payload = self._decoder.decode(packet.payload)
        if clears == self._clears:
            self._results.put(key, Page(payload), sources, sources.size)
        packet = Packet(MARSHAL, packet.modifier2, payload)
        return packet if took is None else TimedAnswer(packet, took)

    def _are_current(self, sources: Sources) -> bool:
        """Whether files are unchanged; one look is enough for all requests that one chunk of input has brought.

        Whoever changes a file and then asks has asked after the others were there.
        """
        if not self._reload or sources in self._unchanged:
            return True
        if not sources.are_unchanged():
            return False
        self._unchanged.add(sources)
        BATCH.at_end(self._forget)
        return True

    def _forget(self) -> None:
        self._unchanged.clear()

    def clear(self) -> None:
        """Drop all pages, and keep none that older code renders: the workers were replaced."""
        self._clears += 1
        self._results.clear()

    @property
    def statistics(self) -> CacheCounts:
        """The figures of the cache."""
        return self._results.statistics
