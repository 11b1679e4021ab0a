"""Tasks (modifier1 17): calls the function that the handler module sets as ``uwsgi.spooler``.

It converts a task to the dict that a uWSGI spooler function gets, and the function's return value to a verdict
and a result. The spooler decides what follows from them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping

from uwsgitwisted.errors import MisuseError, StartupError, UnencodableMessage, UnknownModifier
from uwsgitwisted.wire.objects import dumps
from uwsgitwisted.wire.packet import ANSWER, SPOOL, Packet
from uwsgitwisted.wire.tasks import DONE, RETURN_CODES, decode_run
from uwsgitwisted.wire.vars import decode_vars
from uwsgitwisted.worker.compat import decorators
from uwsgitwisted.worker.compat.decorators import Returned
from uwsgitwisted.worker.compat.install import install, run_tasks
from uwsgitwisted.worker.handlers.handler import Handler
from uwsgitwisted.worker.handlers.module import load_handlers

#: The largest result to keep, in bytes: each one stays in the store for a while.
RESULT_LIMIT = 1024 * 1024

#: uWSGI passes these two keys to Python 3 as text, all others as bytes.
TASK_NAME, BODY = "spooler_task_name", "body"

_Function = Callable[[dict[str | bytes, str | bytes]], object]


def load(module: str, *, text: bool = False, return_codes: str = "2.0") -> dict[int, Handler]:
    """Import the handler *module* and return the handler of its tasks, by modifier1.

    :param text: whether the function gets its keys and values as text, apart from the body. Otherwise they are
        bytes, as in uWSGI on Python 3, except for the keys ``'spooler_task_name'`` and ``'body'``.
    :param return_codes: the version of uWSGI whose return codes the function uses, ``"2.0"`` or ``"0.9"``.
    :raises StartupError: if the module can't be imported, or doesn't set ``uwsgi.spooler``, or the return codes
        are unknown.
    """
    verdicts = RETURN_CODES.get(return_codes)
    if verdicts is None:
        known = ", ".join(sorted(RETURN_CODES))
        raise StartupError(f"the return codes of uWSGI {return_codes!r} are unknown; there are {known}")
    run_tasks()
    load_handlers(module, "spooler")
    notices = _Notices()

    def run(request: Packet) -> object:
        identifier, block, body = decode_run(request)
        variables = decode_vars(block)
        return _function_for(variables)(_task(identifier, variables, body, text))

    def answer(request: Packet, result: object) -> Packet:
        returned = result if isinstance(result, Returned) else _returned(result, verdicts)
        payload = _result(request, returned.value, notices) if returned.verdict == DONE else b""
        return Packet(ANSWER, returned.verdict, payload)

    return {SPOOL: Handler(run, answer)}


def periodic() -> list[dict[str, str | float]]:
    """Return the periodic tasks of the handler module in this process.

    Each has a ``name``, which is the ``ud_spool_func`` of its tasks, and either ``cron``, five fields in local
    time, or ``seconds``. All types are JSON types, for a front that loads handlers in another process.
    """
    return [
        {"name": one.name, "cron": one.cron} if one.cron else {"name": one.name, "seconds": one.seconds}
        for one in decorators.periodic.values()
    ]


def _function_for(variables: Mapping[bytes, bytes]) -> _Function:
    """Return the function that runs a task: the one set now, or for periodic tasks that of uwsgidecorators."""
    name = variables.get(b"ud_spool_func", b"").decode(errors="surrogateescape")
    if name in decorators.periodic:
        return decorators.manage_spool_request
    function: _Function | None = install().spooler
    if function is None:
        raise UnknownModifier(
            "the handler module set no uwsgi.spooler, which would run tasks (modifier1 17); it sets it to a "
            "function of one dict",
            modifier1=SPOOL,
        )
    return function


def _task(
    identifier: int, variables: Mapping[bytes, bytes], body: bytes, text: bool
) -> dict[str | bytes, str | bytes]:
    """Make the dict that a spooler function gets.

    In text, bytes that are not UTF-8 become lone surrogates, so that no byte is lost.
    """
    name = str(identifier)
    task: dict[str | bytes, str | bytes] = {}
    if text:
        task.update((_to_text(key), _to_text(value)) for key, value in variables.items())
        task[TASK_NAME] = name
    else:
        task.update(variables.items())
        task[TASK_NAME] = name.encode()
    if body:
        task[BODY] = body
    return task


def _to_text(value: bytes) -> str:
    return value.decode(errors="surrogateescape")


def _returned(result: object, verdicts: Mapping[int, int]) -> Returned:
    """Interpret a function's return value: a return code, or else the result of a task that is done."""
    if isinstance(result, int) and result in verdicts:
        return Returned(verdicts[result])
    return Returned(DONE, result)


def _result(request: Packet, value: object, notices: _Notices) -> bytes:
    """Encode a result for the store; log a result that can't be kept, and return nothing.

    :raises MisuseError: if the result is awaitable, so that the function has not run yet.
    """
    if value is None:
        return b""
    if isinstance(value, Awaitable):
        if isinstance(value, Coroutine):
            value.close()
        raise MisuseError(
            "the spooler function returned something to wait for; run such functions with --engine reactor, "
            "which waits for it"
        )
    try:
        result = dumps(value)
    except UnencodableMessage as error:
        return _dropped(request, str(error), notices)
    if len(result) > RESULT_LIMIT:
        return _dropped(request, f"it has {len(result)} bytes, and {RESULT_LIMIT} is the most", notices)
    return result


def _dropped(request: Packet, reason: str, notices: _Notices) -> bytes:
    identifier, _, _ = decode_run(request)
    notices.say(f"task {identifier} is done, but its result is not kept: {reason}")
    return b""


class _Notices:
    """Says things in the log, at most once a second: callers can cause any number of them."""

    def __init__(self) -> None:
        self._silent_until = 0.0
        self._unsaid = 0

    def say(self, text: str) -> None:
        """Print a line, or count it."""
        now = time.monotonic()
        if now < self._silent_until:
            self._unsaid += 1
            return
        more = f" ({self._unsaid} more since the last such line)" if self._unsaid else ""
        print(text + more, file=sys.stderr, flush=True)
        self._silent_until, self._unsaid = now + 1.0, 0
