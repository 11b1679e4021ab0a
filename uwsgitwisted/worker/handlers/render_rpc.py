"""Templates over RPC (modifier1 173): the function ``render`` takes a template's name, and variables as JSON.

Over HTTP, whose path has the arguments, all of it behind the function is the name.
"""

from __future__ import annotations

from uwsgitwisted.errors import MisuseError, UnknownFunction
from uwsgitwisted.wire.packet import RPC, Packet
from uwsgitwisted.wire.rpc import RPC_HTTP, decode_call, encode_result
from uwsgitwisted.worker.handlers.handler import Handler
from uwsgitwisted.worker.templates.directories import name_from
from uwsgitwisted.worker.templates.json_variables import key_of, variables_of
from uwsgitwisted.worker.templates.renderer import Renderer

#: The function's name.
FUNCTION = b"render"


def table(renderer: Renderer) -> dict[int, Handler]:
    """Return the handler of RPC, by modifier1."""

    def run(asked: tuple[str, dict[str, object]]) -> bytes:
        renderer.begin()
        if not renderer.caches:
            return renderer.render(*asked)
        key = key_of(*asked)
        return (renderer.cached(key) or renderer.page(*asked, key)).body

    return {RPC: Handler(run, encode_result, read)}


def read(request: Packet) -> tuple[str, dict[str, object]]:
    """Decode a call; return the template's name and the variables.

    :raises MalformedPacket: if it is none.
    :raises UnknownFunction: if it is one of another function.
    :raises MisuseError: if its arguments are others than a name and a JSON object.
    """
    function, arguments = decode_call(request)
    if function != FUNCTION:
        raise UnknownFunction(f"a renderer has no function {function[:100]!r}; it has {FUNCTION.decode()!r}")
    if request.modifier2 == RPC_HTTP:
        return name_from(b"/".join(arguments)), {}
    if len(arguments) not in (1, 2):
        raise MisuseError("render takes a template's name and, if there are any, the variables as JSON")
    return name_from(arguments[0]), variables_of(b"".join(arguments[1:]))
