"""The engine of twisted.web resources: they run in the reactor's thread, as in twisted.web's own server."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web.resource import IResource
from zope.interface import implementer

from uwsgitwisted.access import Peer
from uwsgitwisted.access_log import Entry
from uwsgitwisted.engines.fair import refusal
from uwsgitwisted.engines.resource.channel import Channel
from uwsgitwisted.engines.resource.request import WebRequest, read_request
from uwsgitwisted.engines.resource.site import ResourceSite
from uwsgitwisted.errors import Busy, MalformedPacket, MessageTooLarge, Unavailable, UwsgiError
from uwsgitwisted.interfaces import Answer, IEngine, Request
from uwsgitwisted.stream import Stream
from uwsgitwisted.transport.server.budget import Account, Budget
from uwsgitwisted.transport.timer import Timer
from uwsgitwisted.wire.vars import split_vars


@implementer(IEngine)
class ResourceEngine:
    """Runs a twisted.web resource.

    Requests with large bodies are limited in number, since twisted.web keeps those bodies in files. The limits
    of connections bound the others.

    :param clock: keeps the time.
    :param resource: the application.
    :param name: its name, for logs.
    :param timeout: within how many seconds of the end of a request its answer has to begin.
    :param max_queue: how many requests with large bodies there may be at once.
    :param max_form: the largest form, in bytes: forms are parsed in memory.
    :param max_forms: how many bytes of large forms there may be at once.
    :param log: gets a line for each request that the resource has answered; None for no lines.
    """

    def __init__(
        self,
        clock: IReactorTime,
        resource: IResource,
        *,
        name: str,
        timeout: float,
        max_queue: int,
        max_form: int,
        max_forms: int,
        log: Callable[[Entry], None] | None = None,
    ) -> None:
        self.description = f"reactor, with {name}"
        self._clock = clock
        self._site = ResourceSite(clock, resource)
        self._timeout = timeout
        self._max_queue = max_queue
        self._max_form = max_form
        self._log = log
        self._forms = Budget(max_forms)
        self._uploads = 0
        self._by_peer: Counter[str] = Counter()
        self._running: set[Channel] = set()
        self._stopping = False
        self._drained: Deferred[None] = Deferred()
        self._stop_timer = Timer(clock, self._end_all)

    def start(self) -> Deferred[None]:
        """Do nothing: the resource is there."""
        return succeed(None)

    def stop(self, seconds: float) -> Deferred[None]:
        """Let the requests in flight finish for up to *seconds*, then end them."""
        self._stopping = True
        self._stop_timer.set(seconds)
        self._check_drained()
        return self._drained

    def submit(self, request: Request) -> Deferred[Answer]:
        """Run the resource.

        :return: fires with the answer, or when it has begun.
        """
        if self._stopping:
            return fail(Unavailable("the node is stopping"))
        try:
            web, body = _read(request)
            upload = None if request.body is None else self._admit(request.peer, web)
        except UwsgiError as error:
            return fail(error)
        channel = Channel(
            self._clock,
            self._site,
            request,
            web,
            timeout=self._timeout if request.seconds is None else min(self._timeout, request.seconds),
            on_end=partial(self._end, upload),
        )
        self._running.add(channel)
        channel.receive(body)
        return channel.answer

    def _admit(self, peer: Peer, web: WebRequest) -> _Upload:
        """Make room for a large body.

        :raises Busy: if there is none now.
        :raises MessageTooLarge: if there is never any.
        """
        size = web.size if web.is_form else 0
        if size > self._max_form:
            limit = self._max_form
            text = f"a form of {size} bytes, which is parsed in memory; the limit is {limit} (--max-message)"
            raise MessageTooLarge(text, size=size, limit=limit)
        busy = refusal(peer, self._by_peer[peer.group], self._uploads, self._max_queue)
        if busy is not None:
            raise busy
        account = self._forms.account(peer.group)
        if not account.admits(size):
            account.close()
            raise Busy(f"no room for a form of {size} bytes now; try again later")
        account.set(size)
        self._uploads += 1
        self._by_peer[peer.group] += 1
        return _Upload(peer.group, account)

    def _end(self, upload: _Upload | None, channel: Channel) -> None:
        """Forget a request that is over."""
        self._running.discard(channel)
        if channel.status and self._log is not None:
            given = channel.web.variables.items()
            variables = {name.decode("latin-1"): value.decode("latin-1") for name, value in given}
            took = self._clock.seconds() - channel.started
            self._log(Entry(variables, channel.status, channel.size, took, 0, time.time()))
        if upload is not None:
            upload.account.close()
            self._uploads -= 1
            self._by_peer[upload.group] -= 1
            if not self._by_peer[upload.group]:
                del self._by_peer[upload.group]
        self._check_drained()

    def _end_all(self) -> None:
        for channel in list(self._running):
            channel.fail(Failure(Unavailable("the node is stopping")))

    def _check_drained(self) -> None:
        if self._stopping and not self._running:
            self._stop_timer.clear()
            if not self._drained.called:
                self._drained.callback(None)


class _Upload(NamedTuple):
    """What a request with a large body takes.

    :param group: whose request it is.
    :param account: of the memory for its form.
    """

    group: str
    account: Account


def _read(request: Request) -> tuple[WebRequest, bytes | Stream]:
    """Return a request and its body.

    :raises ProtocolError: if it isn't a complete web request.
    """
    modifier1, _, message = request.packet
    if request.body is not None:
        return read_request(message, modifier1, request.peer), request.body
    block, body, missing = split_vars(message)
    if missing:
        raise MalformedPacket(f"{missing} bytes of the request's body are missing")
    return read_request(block, modifier1, request.peer), body
