"""Answers modifier1 17: enqueues tasks, and reports their state over HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import NamedTuple

from twisted.internet.defer import CancelledError, Deferred, DeferredLock, fail, maybeDeferred
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from uwsgitwisted.errors import Busy, MessageTooLarge, UwsgiError
from uwsgitwisted.interfaces import Answer, IResponder, Request
from uwsgitwisted.responders.http_tasks import (
    ENQUEUING,
    HTTP_VARS,
    QUERYING,
    HttpRequest,
    accepted_answer,
    json_answer,
    not_allowed_answer,
    not_found_answer,
    refused_answer,
)
from uwsgitwisted.spool.records import Description, describe_record, for_json
from uwsgitwisted.spool.slices import at_once
from uwsgitwisted.spool.spooler import Spooler
from uwsgitwisted.transport.reports import Reports
from uwsgitwisted.wire.packet import ANSWER, NO, SPOOL, YES, Packet
from uwsgitwisted.wire.tasks import SPOOL_WITH_ID, load_result
from uwsgitwisted.wire.vars import CONTENT_LENGTH, decode_vars, encode_vars, split_vars

__all__ = ["BODIES", "HTTP_VARS", "SPOOL_OVER_HTTP", "SpoolResponder"]

#: The modifier2 of a task from nginx, whose answer is HTTP.
SPOOL_OVER_HTTP = 1
#: How many requests may wait for large results, which are read and encoded as JSON one after the other. A
#: result has up to a mebibyte; encoding it takes some tens of mebibytes and a few tenths of a second. Two at
#: once would slow each other down.
MAX_WAITING_CONVERSIONS = 50
#: The modifiers of packets that are followed by a body.
BODIES = frozenset({(SPOOL, SPOOL_OVER_HTTP), (SPOOL, SPOOL_WITH_ID)})


class _RequestForm(NamedTuple):
    """One of the forms of requests.

    :param handle: decodes a request's payload, and answers it.
    :param refuse: turns an error into an answer; None to pass the failure on.
    """

    handle: Callable[[Request], Deferred[Answer]]
    refuse: Callable[[BaseException], Answer] | None


@implementer(IResponder)
class SpoolResponder:
    """Enqueues tasks. modifier2 selects the form of the request and of its answer.

    - 1, from nginx: a web request's variables and a body; the answer is HTTP.
    - 2, from our own clients: variables and a body; the answer is ``{255, n, 1}`` with the task's id in decimal
      digits. Errors are passed on as failures.
    - Any other, as in uWSGI: variables; the answer is ``{255, 0, 1}``, or ``{255, 0, 0}`` if the task was
      refused.

    A yes, an id or a 202 means that the task is on the disk. A task is refused if its bytes are malformed, one
    of its keys is invalid, too many tasks wait, or the disk is full; the log says which.

    :param http_vars: the variables of a web request that its task gets.
    :param monotonic: a monotonic clock, in seconds.
    :param in_thread: calls a function with its arguments in another thread.
    """

    _log = Logger()

    def __init__(
        self,
        spooler: Spooler,
        *,
        http_vars: Iterable[str] = HTTP_VARS,
        monotonic: Callable[[], float] = time.monotonic,
        in_thread: Callable[..., Deferred[bytes]] = deferToThread,
    ) -> None:
        self._spooler = spooler
        self._http_vars = tuple(name.encode() for name in http_vars)
        self._reports = Reports(self._log, monotonic)
        self._in_thread = in_thread
        self._conversions = DeferredLock()
        self._plain = _RequestForm(self._enqueue_plain, lambda _: NO)
        self._forms = {
            SPOOL_OVER_HTTP: _RequestForm(self._handle_http, refused_answer),
            SPOOL_WITH_ID: _RequestForm(self._enqueue_with_id, None),
        }

    def respond(self, request: Request) -> Deferred[Answer]:
        """Enqueue a task or report the state of one, and return a Deferred of the answer.

        Cancelling it drops the task if its commit has not started.
        """
        form = self._forms.get(request.packet.modifier2, self._plain)
        answer = maybeDeferred(form.handle, request) if request.refused is None else fail(request.refused)
        if form.refuse is not None:
            answer.addErrback(self._refuse, form.refuse, request)
        return answer

    # The forms.

    def _enqueue_plain(self, request: Request) -> Deferred[Answer]:
        return self._spooler.enqueue(request.packet.payload).addCallback(lambda _: YES)

    def _enqueue_with_id(self, request: Request) -> Deferred[Answer]:
        block, body = _split_body(request.packet.payload)
        if CONTENT_LENGTH in block:  # it only frames the body, and isn't the task's
            variables = decode_vars(block)
            variables.pop(CONTENT_LENGTH, None)
            block = encode_vars(variables.items())
        return self._spooler.enqueue(block, body).addCallback(lambda task: Packet(ANSWER, 1, b"%d" % task))

    def _handle_http(self, request: Request) -> Deferred[Answer]:
        return Deferred.fromCoroutine(self._answer_http(request))

    async def _answer_http(self, asked: Request) -> bytes:
        block, body = _split_body(asked.packet.payload)
        request = HttpRequest.read(block)
        group = asked.peer.group
        if request.method in ENQUEUING:
            identifier = await self._spooler.enqueue(request.task_variables(self._http_vars), body)
            return accepted_answer(request, identifier, await self._find_state(identifier, group))
        if request.method in QUERYING:
            return await self._answer_status(request, group)
        return not_allowed_answer(request.method)

    async def _find_state(self, identifier: int, group: str) -> str:
        """Return the state of an accepted task: with a known idempotency key, it may have run long ago."""
        query = self._spooler.jobs.submit(group, at_once(lambda store: store.states([identifier])))
        try:
            states = await query
        except UwsgiError:  # the task is stored nevertheless
            return "accepted"
        return states[identifier].name.lower() if states else "done"

    async def _answer_status(self, request: HttpRequest, group: str) -> bytes:
        head = request.method == b"HEAD"
        identifier = request.task
        if identifier is None:
            return not_found_answer("a path that ends with a task's id is needed", head=head)
        found = await self._spooler.jobs.submit(group, at_once(lambda store: store.find([identifier])))
        if not found:
            return not_found_answer("there is no task with that id, or not any more", head=head)
        described = describe_record(found[0])
        if described["result"] is not None:
            return _status_answer(described, head)
        if len(self._conversions.waiting) >= MAX_WAITING_CONVERSIONS:
            raise Busy("too many requests wait for large results; try again later")
        return await self._conversions.run(
            lambda: Deferred.fromCoroutine(self._answer_large_result(described, group, head))
        )

    async def _answer_large_result(self, described: Description, group: str, head: bool) -> bytes:
        """Answer with a large result; another thread encodes it, since that takes a while."""
        identifier = described["id"]
        reading = self._spooler.jobs.submit(group, at_once(lambda store: store.result(identifier)))
        return await self._in_thread(_status_answer, described | {"result": await reading}, head)

    def _refuse(self, failure: Failure, answer: Callable[[BaseException], Answer], request: Request) -> Answer:
        """Log the error and answer with a refusal; a cancelled request needs neither."""
        error = failure.value
        assert error is not None
        if isinstance(error, CancelledError):
            failure.raiseException()
        self._reports.failed(failure, request)
        return answer(error)


def _status_answer(described: Description, head: bool) -> bytes:
    """Make the answer that describes a task."""
    loaded = described | {"result": load_result(described["result"])}
    return json_answer(HTTPStatus.OK, for_json(loaded), head=head)


def _split_body(payload: bytes) -> tuple[bytes, bytes]:
    """Split a request into its vars block and its body."""
    block, body, missing = split_vars(payload)
    if missing:
        raise MessageTooLarge(
            f"a body of {missing} bytes is announced, but is missing: it is larger than this spooler accepts "
            "(--max-message), or was not sent",
            size=missing,
        )
    return block, body
