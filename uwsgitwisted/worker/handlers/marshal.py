"""Objects (modifier1 33): calls the function that the handler module put in ``uwsgi.message_manager_marshal``.

It is plain code that an engine loads, in a worker process or in the reactor's own.
"""

from __future__ import annotations

from uwsgitwisted.errors import UnknownModifier
from uwsgitwisted.wire.objects import dumps, loads
from uwsgitwisted.wire.packet import MARSHAL, Packet
from uwsgitwisted.worker.compat.install import install
from uwsgitwisted.worker.handlers.handler import Handler
from uwsgitwisted.worker.handlers.module import load_handlers


def load(module: str) -> dict[int, Handler]:
    """Import the handler *module* and return what runs its requests, by modifier1.

    :raises StartupError: if it can't be imported, or sets no ``uwsgi.message_manager_marshal``.
    """
    load_handlers(module, "message_manager_marshal")
    return {MARSHAL: Handler(run, answer, read)}


def read(request: Packet) -> tuple[object, int]:
    """Return the object in *request* and its modifier2.

    :raises UnsafeObject: if the payload is not a plain marshalled object.
    """
    return loads(request.payload), request.modifier2


def run(message: tuple[object, int]) -> object:
    """Have an object and its modifier2 handled, and return what the module's function returns.

    The function is looked up now, so that a handler may set another one later.

    :raises UnknownModifier: if the handler module set no function.
    """
    function = install().message_manager_marshal
    if function is None:
        raise UnknownModifier(
            "the handler module set no uwsgi.message_manager_marshal, which would answer modifier1 33; it sets "
            "it to a function (object, modifier2) that returns the answer",
            modifier1=MARSHAL,
        )
    return function(*message)


def answer(request: Packet, result: object) -> Packet:
    """Return the answer that carries *result*.

    :raises UnencodableMessage: if the function returned something that can't travel.
    """
    return Packet(MARSHAL, request.modifier2, dumps(result))
