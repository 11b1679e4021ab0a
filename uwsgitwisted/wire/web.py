"""A web request as uwsgi carries it: the request line and the headers to a vars block, as nginx writes it.

The names of the variables are those of nginx's ``uwsgi_params``. What a browser could misuse to look like
something else is dropped or replaced: headers whose names CGI can't tell apart, the headers of proxies, and
``Proxy``, which becomes the environment variable HTTP_PROXY in a CGI program.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from uwsgitwisted.errors import MalformedRequest
from uwsgitwisted.wire.packet import WSGI, Packet, encode_packet
from uwsgitwisted.wire.vars import encode_vars

#: A header as it was received: its name, and the value of each of its lines.
Header = tuple[bytes, Sequence[bytes]]

_ABSOLUTE = re.compile(rb"https?://([^/?#]+)", re.IGNORECASE)
_ESCAPE = re.compile(rb"%(..?)?", re.DOTALL)
_HEXADECIMAL = re.compile(rb"[0-9A-Fa-f]{2}")
#: In the names of variables, "-" becomes "_", so nginx drops names that have one, and all other characters.
_NAME = re.compile(rb"[0-9A-Za-z-]+")
_CONTROL = re.compile(rb"[\x00\r\n]")
#: A host, with or without a port, as a URL has it.
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._~!$&'()*+,;=%-]+)(?::\d*)?")

#: The headers that don't become variables, besides those of proxies: what concerns one connection only (RFC
#: 9110, 7.6.1), what has variables of its own, and what would become HTTP_PROXY.
_DROPPED = frozenset(
    (
        *(
            b"connection",
            b"keep-alive",
            b"proxy-connection",
            b"te",
            b"trailer",
            b"transfer-encoding",
            b"upgrade",
        ),
        *(b"content-length", b"content-type", b"host", b"proxy"),
        *(b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"),
    )
)
#: The headers in which proxies tell who the client is; from any other peer, they are lies.
_OF_PROXIES = (b"x-forwarded-", b"forwarded", b"x-real-ip")


class Target(NamedTuple):
    """The target of a request.

    :param path: decoded, without ``.``, ``..`` and empty segments.
    :param query: as it was sent.
    :param uri: the path and the query as they were sent.
    :param authority: the host and port, if the target names them.
    """

    path: bytes
    query: bytes
    uri: bytes
    authority: bytes | None


def parse_target(target: bytes) -> Target:
    """Parse the target of a request line, as nginx does.

    :raises MalformedRequest: if it is no path, or its path leads above the root.
    """
    authority = None
    if (match := _ABSOLUTE.match(target)) is not None:
        authority, target = match[1], target[match.end() :]
        if not target.startswith(b"/"):
            target = b"/" + target
    if not target.startswith(b"/") or b"#" in target:
        raise MalformedRequest("the request's target is not a path")
    path, _, query = target.partition(b"?")
    return Target(_normalize(_ESCAPE.sub(_unescape, path)), query, target, authority)


def _unescape(match: re.Match[bytes]) -> bytes:
    digits = match[1] or b""
    if not _HEXADECIMAL.fullmatch(digits) or digits == b"00":
        raise MalformedRequest("the request's path has an escape that is none")
    return bytes((int(digits, 16),))


def _normalize(path: bytes) -> bytes:
    """Resolve ``.``, ``..`` and empty segments."""
    kept: list[bytes] = []
    segments = path.split(b"/")
    for segment in segments:
        if segment == b"..":
            if not kept:
                raise MalformedRequest("the request's path leads above the root")
            kept.pop()
        elif segment not in (b"", b"."):
            kept.append(segment)
    ends_open = bool(kept) and segments[-1] in (b"", b".", b"..")
    return b"/" + b"/".join(kept) + (b"/" if ends_open else b"")


@dataclass(frozen=True, slots=True)
class WebRequest:
    """The head of a request, and the connection on which it came.

    :param method: such as ``GET``.
    :param target: see :func:`parse_target`.
    :param protocol: ``HTTP/1.0`` or ``HTTP/1.1``.
    :param headers: as they were received.
    :param scheme: ``http`` or ``https``.
    :param remote: the client's address and port.
    :param port: the port on which the request came.
    :param trusted: whether the client is a proxy whose headers about its own clients are true.
    """

    method: bytes
    target: Target
    protocol: bytes
    headers: Sequence[Header]
    scheme: bytes
    remote: tuple[bytes, bytes]
    port: bytes
    trusted: bool = False

    def _values(self, name: bytes) -> list[bytes]:
        return [value for each, values in self.headers if each.lower() == name for value in values]

    def header(self, name: bytes) -> bytes:
        """Return the value of a header by its name in lower case; empty if there is none."""
        return b", ".join(self._values(name))

    @property
    def host(self) -> bytes:
        """The host, and the port if there is one, for which the request is; empty if the client didn't say."""
        return self.header(b"host") if self.target.authority is None else self.target.authority

    def check(self) -> None:
        """Check what every request must have.

        :raises MalformedRequest: if it is missing, there twice, or unreadable.
        """
        hosts = len(self._values(b"host"))
        if hosts > 1 or (not hosts and self.protocol != b"HTTP/1.0"):
            raise MalformedRequest("the request has no Host header, or several")
        if self.host and not _HOST.fullmatch(self.host):
            raise MalformedRequest("the request's host is no name")
        if any(_CONTROL.search(value) for _, values in self.headers for value in values):
            raise MalformedRequest("a header of the request has a control character")
        encodings = self._values(b"transfer-encoding")
        chunked = [encoding.lower() for encoding in encodings] == [b"chunked"]
        if encodings and (not chunked or self.protocol == b"HTTP/1.0" or self._values(b"content-length")):
            raise MalformedRequest("the request's Transfer-Encoding is not understood")

    def encode(self, length: int) -> bytes:
        """Return the bytes of the packet.

        :param length: the size of the body, in bytes.
        :raises MessageTooLarge: if the variables are over 65535 bytes.
        """
        return encode_packet(Packet(WSGI, 0, encode_vars([*self._variables(length), *self._http_variables()])))

    def _variables(self, length: int) -> Iterator[tuple[bytes, bytes]]:
        path, query, uri, _ = self.target
        yield b"QUERY_STRING", query
        yield b"REQUEST_METHOD", self.method
        yield b"CONTENT_TYPE", self.header(b"content-type")
        yield b"CONTENT_LENGTH", b"%d" % length if length else self.header(b"content-length")
        yield b"REQUEST_URI", uri
        yield b"PATH_INFO", path
        yield b"SERVER_PROTOCOL", self.protocol
        yield b"REQUEST_SCHEME", self.scheme
        if self.scheme == b"https":
            yield b"HTTPS", b"on"
        yield b"REMOTE_ADDR", self.remote[0]
        yield b"REMOTE_PORT", self.remote[1]
        yield b"SERVER_PORT", self.port
        host = _HOST.fullmatch(self.host)
        yield b"SERVER_NAME", host[1].lower() if host else b"localhost"

    def _http_variables(self) -> Iterator[tuple[bytes, bytes]]:
        if self.host:
            yield b"HTTP_HOST", self.host
            yield from self._forwarded(b"X-Forwarded-Host", self.host)
        for name, values in self.headers:
            lower = name.lower()
            if _NAME.fullmatch(name) and lower not in _DROPPED and (self.trusted or not _of_proxy(lower)):
                yield _variable(name), (b"; " if lower == b"cookie" else b", ").join(values)
        known = self._values(b"x-forwarded-for") if self.trusted else []
        yield b"HTTP_X_FORWARDED_FOR", b", ".join([*known, self.remote[0]])
        yield from self._forwarded(b"X-Forwarded-Proto", self.scheme)

    def _forwarded(self, name: bytes, ours: bytes) -> Iterable[tuple[bytes, bytes]]:
        """Yield a header that a trusted proxy may set, and that we set otherwise."""
        theirs = self.header(name.lower()) if self.trusted else b""
        yield _variable(name), theirs or ours


def _variable(name: bytes) -> bytes:
    return b"HTTP_" + name.upper().replace(b"-", b"_")


def _of_proxy(name: bytes) -> bool:
    return name.startswith(_OF_PROXIES)
