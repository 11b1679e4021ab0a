"""Templates over RPC (modifier1 173): the function ``render`` takes a template's name, and variables as JSON.

A call of modifier2 1, whose answer is nothing but bytes, gets the page as it is rendered. Over HTTP, whose path
has the arguments, all of it behind the function is the name.
"""

from __future__ import annotations

from uwsgitwisted.errors import MisuseError, UnknownFunction
from uwsgitwisted.wire.packet import RPC, Packet
from uwsgitwisted.wire.rpc import RPC_HTTP, RPC_RAW, decode_call, encode_result
from uwsgitwisted.worker.exchange import AnyExchange
from uwsgitwisted.worker.handlers.handler import Handler, StreamHandler
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
        return renderer.kept_page(*asked, key_of(*asked)).body

    def stream(exchange: AnyExchange, asked: tuple[str, dict[str, object]]) -> None:
        renderer.begin()
        renderer.stream(*asked, exchange.send)
        exchange.finish()

    streams = {RPC_RAW: StreamHandler(stream, lambda exchange: read(exchange.packet))}
    return {RPC: Handler(run, encode_result, read, streams)}


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
    if not arguments:
        raise MisuseError("render takes a template's name and, if there are any, the variables as JSON")
    # An argument has at most 65,535 bytes; longer JSON is cut into several.
    return name_from(arguments[0]), variables_of(b"".join(arguments[1:]))
