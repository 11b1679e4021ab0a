"""The WSGI environment of a web request, made of the variables that nginx sends."""

from __future__ import annotations

import io
import struct
import sys
from typing import Any

from uwsgitwisted.errors import MalformedPacket
from uwsgitwisted.worker.exchange import AnyExchange, ClientGone

_unpack_length = struct.Struct("<H").unpack_from
#: The most digits of a body's size.
_MAX_DIGITS = 20
_TRUE = frozenset({"on", "1", "https"})

#: A WSGI environment.
Environ = dict[str, Any]


def read_request(message: bytes, *, streamed: bool) -> tuple[Environ, bytes]:
    """Read the variables of a request, and the body behind them.

    The variables end where as many bytes are left as their ``CONTENT_LENGTH`` says, as in
    :func:`uwsgitwisted.wire.vars.split_vars`. Variables that would load code in uWSGI are dropped.

    :param message: the vars block, and right behind it the body, unless the body comes as a stream.
    :param streamed: whether it does.
    :return: the variables as text, each character a byte, as PEP 3333 has it, and the body.
    :raises MalformedPacket: if the variables don't add up.
    """
    environ: Environ = {}
    position, available = 0, len(message)
    announced = 0
    while position < available if streamed else available - position != announced:
        try:
            key_at = position + 2
            value_at = key_at + _unpack_length(message, position)[0] + 2
            position = value_at + _unpack_length(message, value_at - 2)[0]
        except struct.error:
            raise MalformedPacket("the variables of the web request end within a length") from None
        if position > available or value_at == key_at + 2:
            raise MalformedPacket("the variables of the web request are cut off, or one has no name")
        key = message[key_at : value_at - 2].decode("latin-1")
        if key.startswith("UWSGI_"):
            continue
        if key == "CONTENT_LENGTH":
            if key in environ:
                raise MalformedPacket("CONTENT_LENGTH occurs twice")
            announced = _size(message[value_at:position])
        environ[key] = message[value_at:position].decode("latin-1")
    if not environ.get("REQUEST_METHOD"):
        raise MalformedPacket("the web request has no REQUEST_METHOD; nginx needs: include uwsgi_params;")
    return environ, message[position:]


def _size(text: bytes) -> int:
    if not text:
        return 0
    if not text.isdigit() or len(text) > _MAX_DIGITS:
        raise MalformedPacket(f"CONTENT_LENGTH is {text[:40]!r}; it must be a number of bytes")
    return int(text)


def complete(environ: Environ, exchange: AnyExchange, body: bytes, shared: Environ) -> None:
    """Add what WSGI requires to the variables of a request.

    :param shared: what all requests of this worker have in common.
    """
    for name in ("SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "SERVER_NAME", "SERVER_PORT"):
        environ.setdefault(name, "")
    environ.setdefault("SERVER_PROTOCOL", "HTTP/1.0")
    secure = (environ.get("HTTPS") or environ.get("REQUEST_SCHEME", "")).lower() in _TRUE
    environ["wsgi.url_scheme"] = "https" if secure else "http"
    environ["wsgi.input"] = _input(environ, exchange) if exchange.streamed else io.BytesIO(body)
    environ["wsgi.errors"] = sys.stderr
    environ.update(shared)


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
