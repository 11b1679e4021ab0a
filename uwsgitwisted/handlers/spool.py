"""Tasks (modifier1 17): calls the function that the handler module put in ``uwsgi.spooler``.

It turns a vars block into the dict that a uWSGI spooler function gets, and the number that the function
returns into a verdict. What a verdict leads to is the spooler's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from uwsgitwisted.compat.install import install
from uwsgitwisted.errors import StartupError, UnknownModifier
from uwsgitwisted.handlers.handler import Handler
from uwsgitwisted.handlers.module import load_handlers
from uwsgitwisted.spool.task import DONE, IGNORE, RETRY
from uwsgitwisted.wire.packet import ANSWER, SPOOL, Packet
from uwsgitwisted.wire.vars import decode_vars

#: What the numbers mean that a spooler function returns; every other value means done. Of uWSGI 2.0, where
#: anything unknown, None included, runs again for ever, only the three numbers are kept.
RETURN_CODES: dict[str, Mapping[int, int]] = {
    "2.0": {-2: DONE, -1: RETRY, 0: IGNORE},
    "0.9": {17: RETRY},
}

#: uWSGI hands this one key to Python 3 as text, all others as bytes.
TASK_NAME = "spooler_task_name"
_TASK_NAME_KEY = TASK_NAME.encode()


def load(module: str, *, text: bool = False, return_codes: str = "2.0") -> dict[int, Handler]:
    """Import the handler *module* and return what runs its tasks, by modifier1.

    :param text: whether the function gets its keys and values as text; as uWSGI does it on Python 3, they are
        bytes, except for the key ``'spooler_task_name'``.
    :param return_codes: which uWSGI's numbers the function returns, ``"2.0"`` or ``"0.9"``.
    :raises StartupError: if it can't be imported, or sets no ``uwsgi.spooler``, or there are no such
        return codes.
    """
    verdicts = RETURN_CODES.get(return_codes)
    if verdicts is None:
        known = ", ".join(sorted(RETURN_CODES))
        raise StartupError(f"no return codes of uWSGI {return_codes!r} are known; there are {known}")
    load_handlers(module, "spooler")

    def run(request: Packet) -> object:
        return _spooler()(_task(request.payload, text))

    def answer(request: Packet, result: object) -> Packet:
        return Packet(ANSWER, _verdict(result, verdicts))

    return {SPOOL: Handler(run, answer)}


def _spooler() -> Callable[[dict[str | bytes, str | bytes]], object]:
    """Return the function that is set now."""
    function: Callable[[dict[str | bytes, str | bytes]], object] | None = install().spooler
    if function is None:
        raise UnknownModifier(
            "the handler module set no uwsgi.spooler, which would run tasks (modifier1 17); it sets it to a "
            "function of one dict",
            modifier1=SPOOL,
        )
    return function


def _task(block: bytes, text: bool) -> dict[str | bytes, str | bytes]:
    """Return the dict that a spooler function gets for a vars *block*.

    Bytes that are no UTF-8 become lone surrogates in text, so that none is lost.
    """
    variables = decode_vars(block)
    if text:
        return {_to_text(key): _to_text(value) for key, value in variables.items()}
    task: dict[str | bytes, str | bytes] = {}
    for key, value in variables.items():
        task[TASK_NAME if key == _TASK_NAME_KEY else key] = value
    return task


def _to_text(value: bytes) -> str:
    return value.decode(errors="surrogateescape")


def _verdict(result: object, verdicts: Mapping[int, int]) -> int:
    return verdicts.get(result, DONE) if isinstance(result, int) else DONE
