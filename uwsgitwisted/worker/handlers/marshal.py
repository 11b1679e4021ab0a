"""Objects (modifier1 33): calls the function that the handler module sets as ``uwsgi.message_manager_marshal``.

An engine loads this module, in a worker process or in the reactor's own process.
"""

from __future__ import annotations

from functools import partial

from uwsgitwisted.errors import UnknownModifier
from uwsgitwisted.wire.objects import dumps, loads
from uwsgitwisted.wire.packet import MARSHAL, Packet
from uwsgitwisted.wire.python2 import explain, to_text
from uwsgitwisted.worker.compat.install import install
from uwsgitwisted.worker.handlers.handler import Handler
from uwsgitwisted.worker.handlers.module import load_handlers


def load(module: str) -> dict[int, Handler]:
    """Import the handler *module* and return its handlers, by modifier1.

    :raises StartupError: if it can't be imported, or doesn't set ``uwsgi.message_manager_marshal``.
    """
    load_handlers(module, "message_manager_marshal")
    return table()


def table(python2: str = "") -> dict[int, Handler]:
    """Return the handler of objects, by modifier1, for a module that is loaded.

    :param python2: the encoding of the text of Python 2 callers, which is decoded; empty to leave it bytes.
    """
    return {MARSHAL: Handler(run, answer, partial(read_text, encoding=python2) if python2 else read)}


def read(request: Packet) -> tuple[object, int]:
    """Decode *request*; return its object and its modifier2.

    :raises UnsafeObject: if the payload is not a plain marshalled object.
    """
    return loads(request.payload), request.modifier2


def read_text(request: Packet, encoding: str) -> tuple[object, int]:
    """Do as :func:`read`, and make text of the bytes in the object."""
    return to_text(loads(request.payload), encoding), request.modifier2


def run(message: tuple[object, int]) -> object:
    """Call the module's function with an object and its modifier2, and return its result.

    The function is looked up at each call, so that a handler may replace it.

    :raises UnknownModifier: if the handler module has set no function.
    """
    function = install().message_manager_marshal
    if function is None:
        raise UnknownModifier(
            "the handler module set no uwsgi.message_manager_marshal, which would answer modifier1 33; it sets "
            "it to a function (object, modifier2) that returns the answer",
            modifier1=MARSHAL,
        )
    try:
        return function(*message)
    except Exception as error:
        explain(error, message)
        raise


def answer(request: Packet, result: object) -> Packet:
    """Encode *result* as an answer.

    :raises UnencodableMessage: if the function's result can't be encoded.
    """
    return Packet(MARSHAL, request.modifier2, dumps(result))
