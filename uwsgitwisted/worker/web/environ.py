"""The WSGI environment of a web request, made of the variables that nginx sends."""

from __future__ import annotations

import io
import sys
from typing import Any

from uwsgitwisted.errors import MalformedPacket
from uwsgitwisted.wire.vars import may_announce_body, split_vars
from uwsgitwisted.worker.exchange import AnyExchange, ClientGone

#: How the names of variables begin that are commands to uWSGI.
_UWSGI = "UWSGI_"
_TRUE = frozenset({"on", "1", "https"})
#: The variables that WSGI requires, where the web server sends none.
_DEFAULTS = {
    "SCRIPT_NAME": "",
    "PATH_INFO": "",
    "QUERY_STRING": "",
    "SERVER_NAME": "",
    "SERVER_PORT": "",
    "SERVER_PROTOCOL": "HTTP/1.0",
}

#: A WSGI environment.
Environ = dict[str, Any]


def read_request(message: bytes, *, streamed: bool) -> tuple[Environ, bytes]:
    """Read the variables of a request, and the body behind them.

    Variables that would load code in uWSGI are dropped.

    :param message: the vars block, and right behind it the body, unless the body comes as a stream.
    :param streamed: whether it does.
    :return: the variables as text, each character a byte, as PEP 3333 has it, and the body.
    :raises MalformedPacket: if the variables don't add up.
    """
    block, body, missing = message, b"", 0
    if not streamed and may_announce_body(message):
        block, body, missing = split_vars(message)
    environ = _decode(block)
    if missing:
        raise MalformedPacket(f"the web request has {missing} bytes less than its CONTENT_LENGTH says")
    if not environ.get("REQUEST_METHOD"):
        raise MalformedPacket("the web request has no REQUEST_METHOD; nginx needs: include uwsgi_params;")
    return environ, body


def _decode(block: bytes) -> Environ:
    """Decode a vars block to text.

    The block is decoded as a whole, and its lengths are put together by hand: this takes a third of the time of
    :func:`uwsgitwisted.wire.vars.decode_vars`.
    """
    environ: Environ = {}
    text = block.decode("latin-1")
    position, available = 0, len(block)
    try:
        while position < available:
            key_at = position + 2
            key_end = key_at + block[position]
            if block[position + 1]:  # as hardly ever
                key_end += block[position + 1] << 8
            value_at = key_end + 2
            position = value_at + block[key_end]
            if block[key_end + 1]:
                position += block[key_end + 1] << 8
            environ[text[key_at:key_end]] = text[value_at:position]
    except IndexError:
        position = -1
    if position != available or "" in environ:
        raise MalformedPacket("the variables of the web request don't add up, or one has no name")
    if _UWSGI in text:
        environ = {name: value for name, value in environ.items() if not name.startswith(_UWSGI)}
    return environ


def complete(variables: Environ, exchange: AnyExchange, body: bytes, shared: Environ) -> Environ:
    """Return the environment of a request: its variables, and what WSGI requires.

    :param shared: what all requests of this worker have in common.
    """
    secure = (variables.get("HTTPS") or variables.get("REQUEST_SCHEME", "")).lower() in _TRUE
    return {
        **_DEFAULTS,
        **variables,
        **shared,
        "wsgi.url_scheme": "https" if secure else "http",
        "wsgi.input": _input(variables, exchange) if exchange.streamed else io.BytesIO(body),
        "wsgi.errors": sys.stderr,
    }


def _input(environ: Environ, exchange: AnyExchange) -> io.BufferedReader:
    return io.BufferedReader(_StreamedBody(exchange, int(environ["CONTENT_LENGTH"])), 64 * 1024)


class _StreamedBody(io.RawIOBase):
    """The body of a request, which is still arriving.

    :param size: how many bytes it has.
    """

    def __init__(self, exchange: AnyExchange, size: int) -> None:
        self._exchange = exchange
        self._left = size

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes; wait for them.

        :raises ClientGone: if the client has gone before it has sent all.
        """
        data = self._exchange.read(len(buffer))
        if not data and self._left:
            raise ClientGone(f"the client has gone; {self._left} bytes of the body are missing")
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)
