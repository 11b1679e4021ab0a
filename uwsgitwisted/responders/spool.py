"""Answers modifier1 17: a task for the spooler."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import NamedTuple

from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from uwsgitwisted.errors import MessageTooLarge, UwsgiError
from uwsgitwisted.interfaces import Answer, IResponder, Request
from uwsgitwisted.responders.http import (
    ASKING,
    ENQUEUING,
    HTTP_VARS,
    HttpRequest,
    accepted,
    json_answer,
    not_allowed,
    not_found,
    refused,
)
from uwsgitwisted.spool.records import describe_record, for_json
from uwsgitwisted.spool.spooler import Spooler
from uwsgitwisted.transport.reports import Reports
from uwsgitwisted.wire.message import SPOOL_WITH_ID
from uwsgitwisted.wire.packet import ANSWER, NO, SPOOL, YES, Packet
from uwsgitwisted.wire.vars import CONTENT_LENGTH, decode_vars, encode_vars, split_vars

__all__ = ["BODIES", "HTTP_VARS", "SPOOL_OVER_HTTP", "SpoolResponder"]

#: The modifier2 of a task that nginx asks for, whose answer is HTTP.
SPOOL_OVER_HTTP = 1
#: The modifiers of packets that a body follows.
BODIES = frozenset({(SPOOL, SPOOL_OVER_HTTP), (SPOOL, SPOOL_WITH_ID)})


class _Form(NamedTuple):
    """A way to ask for a task.

    :param ask: gets the request's payload.
    :param refused: the answer when that failed; None to leave the failure to whoever sends the answer.
    """

    ask: Callable[[bytes], Deferred[Answer]]
    refused: Callable[[BaseException], Answer] | None


@implementer(IResponder)
class SpoolResponder:
    """Hands tasks to the spooler. modifier2 says how they are asked for and answered.

    - 1, by nginx: variables of a web request and a body; HTTP.
    - 2, by our own clients: variables and a body; ``{255, n, 1}`` with the task's id in decimal digits. What
      goes wrong is a failure.
    - Any other, as uWSGI has it: variables; ``{255, 0, 1}``, or ``{255, 0, 0}`` if the task was refused.

    A yes, an id and a 202 mean that the task is on the disk. It is refused if its bytes are malformed, a key of
    it can't be understood, too many wait, or the disk is full; the log says which.

    :param http_vars: the variables of a web request that enter its task.
    :param monotonic: a clock that is never set, in seconds.
    """

    _log = Logger()

    def __init__(
        self,
        spooler: Spooler,
        *,
        http_vars: Iterable[str] = HTTP_VARS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spooler = spooler
        self._http_vars = tuple(name.encode() for name in http_vars)
        self._reports = Reports(self._log, monotonic)
        self._plain = _Form(self._ask_plain, lambda _: NO)
        self._forms = {
            SPOOL_OVER_HTTP: _Form(self._ask_over_http, refused),
            SPOOL_WITH_ID: _Form(self._ask_with_id, None),
        }

    def respond(self, request: Request) -> Deferred[Answer]:
        """Enqueue the task, or do what else the request asks for, and return a Deferred of the answer.

        Cancelling it takes the task out if its commit has not begun.
        """
        _, modifier2, payload = request.packet
        form = self._forms.get(modifier2, self._plain)
        asked = maybeDeferred(form.ask, payload) if request.refused is None else fail(request.refused)
        if form.refused is not None:
            asked.addErrback(self._refused, form.refused, request)
        return asked

    # The forms.

    def _ask_plain(self, payload: bytes) -> Deferred[Answer]:
        return self._spooler.enqueue(payload).addCallback(lambda _: YES)

    def _ask_with_id(self, payload: bytes) -> Deferred[Answer]:
        block, body = _split(payload)
        if CONTENT_LENGTH in block:  # it was for the way here
            kept = decode_vars(block)
            kept.pop(CONTENT_LENGTH, None)
            block = encode_vars(kept.items())
        return self._spooler.enqueue(block, body).addCallback(lambda task: Packet(ANSWER, 1, b"%d" % task))

    def _ask_over_http(self, payload: bytes) -> Deferred[Answer]:
        return Deferred.fromCoroutine(self._answer_http(payload))

    async def _answer_http(self, payload: bytes) -> bytes:
        block, body = _split(payload)
        request = HttpRequest.read(block)
        if request.method in ENQUEUING:
            identifier = await self._spooler.enqueue(request.task_variables(self._http_vars), body)
            return accepted(request, identifier, await self._state_of(identifier))
        if request.method in ASKING:
            return await self._status(request)
        return not_allowed(request.method)

    async def _state_of(self, identifier: int) -> str:
        """Return the state of a task that was accepted: one whose key is known may have run long ago."""
        try:
            found = await self._spooler.find([identifier])
        except UwsgiError:  # it is stored all the same
            return "accepted"
        return found[0].state.name.lower() if found else "done"

    async def _status(self, request: HttpRequest) -> bytes:
        head = request.method == b"HEAD"
        if request.task is None:
            return not_found("a path that ends with a task's id is needed", head=head)
        found = await self._spooler.find([request.task])
        if not found:
            return not_found("no task of that id is known, or it is over and forgotten", head=head)
        return json_answer(HTTPStatus.OK, for_json(describe_record(found[0])), head=head)

    def _refused(self, failure: Failure, answer: Callable[[BaseException], Answer], request: Request) -> Answer:
        """Answer no, with the reason in the log; a request that was withdrawn needs neither."""
        error = failure.value
        assert error is not None
        if isinstance(error, CancelledError):
            failure.raiseException()
        self._reports.failed(failure, request)
        return answer(error)


def _split(payload: bytes) -> tuple[bytes, bytes]:
    """Return the vars block of a request and its body."""
    block, body, missing = split_vars(payload)
    if missing:
        raise MessageTooLarge(
            f"a body of {missing} bytes is announced, but isn't there: it is larger than this spooler takes "
            "(--max-message), or was not sent",
            size=missing,
        )
    return block, body
