"""Objects (modifier1 33): calls the function that the handler module put in ``uwsgi.message_manager_marshal``.

It is plain code that an engine loads, in a worker process or in the reactor's own.
"""

from __future__ import annotations

from collections.abc import Callable

from uwsgitwisted.compat.install import install
from uwsgitwisted.errors import UnknownModifier
from uwsgitwisted.handlers.module import load_handlers
from uwsgitwisted.wire.objects import dumps, loads
from uwsgitwisted.wire.packet import MARSHAL, Packet


def load(module: str) -> dict[int, Callable[[Packet], Packet]]:
    """Import the handler *module* and return what runs its requests, by modifier1.

    :raises StartupError: if it can't be imported, or sets neither of the functions that are called.
    """
    load_handlers(module)
    return {MARSHAL: call}


def call(request: Packet) -> Packet:
    """Have the object in *request* handled and return the result as a packet.

    The function is looked up now, so that a handler may set another one later.

    :raises UnsafeObject: if the payload is not a plain marshalled object.
    :raises UnknownModifier: if the handler module set no function.
    :raises UnencodableMessage: if the function returns something that can't travel.
    """
    function = install().message_manager_marshal
    if function is None:
        raise UnknownModifier(
            "the handler module set no uwsgi.message_manager_marshal, which would answer modifier1 33; it sets "
            "it to a function (object, modifier2) that returns the answer",
            modifier1=MARSHAL,
        )
    result = function(loads(request.payload), request.modifier2)
    return Packet(MARSHAL, request.modifier2, dumps(result))
