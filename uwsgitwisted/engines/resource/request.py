"""A web request as twisted.web wants it: made of the variables that nginx sends."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress

from uwsgitwisted.access import Peer
from uwsgitwisted.errors import MalformedPacket
from uwsgitwisted.wire.message import WSGI_STRIPPED
from uwsgitwisted.wire.vars import CONTENT_LENGTH, decode_vars

#: What a method, and a header's name, may consist of (RFC 9110, 5.6.2).
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: What a path may consist of as the browser has sent it.
_ENCODED = re.compile(rb"/[!-~]*")
#: The characters besides letters and digits that a path may contain unescaped (RFC 3986, 3.3).
_UNESCAPED = "/:@!$&'()*+,;=~-._"
#: These variables repeat others, or describe how the body came to the web server, which it doesn't any more.
_DROPPED = frozenset({b"HTTP_CONTENT_TYPE", b"HTTP_CONTENT_LENGTH", b"HTTP_TRANSFER_ENCODING"})
_TRUE = frozenset({b"on", b"1", b"https"})
#: The types of bodies whose fields are in ``request.args``; they are parsed in memory.
_FORMS = frozenset({"application/x-www-form-urlencoded", "multipart/form-data"})
_PORT_DIGITS = 5


@dataclass(frozen=True, slots=True)
class WebRequest:
    """A request, without its body.

    :param variables: what the web server has sent.
    :param method: such as ``b"GET"``.
    :param uri: the path and the query, percent-encoded.
    :param mount: how many segments of the path lead to the application.
    :param headers: names and values.
    :param client: the browser's address, as the web server tells it.
    :param host: the address that the browser has asked for.
    :param secure: whether it came over HTTPS.
    :param size: the size of the body, in bytes.
    :param is_form: whether the body is a form, whose fields are arguments.
    """

    variables: Mapping[bytes, bytes]
    method: bytes
    uri: bytes
    mount: int
    headers: tuple[tuple[bytes, bytes], ...]
    client: IAddress
    host: IAddress
    secure: bool
    size: int
    is_form: bool


def read_request(block: bytes, modifier1: int, peer: Peer) -> WebRequest:
    """Read a request.

    :param block: the vars block.
    :param modifier1: of its packet; the paths of 30 include SCRIPT_NAME.
    :param peer: who has sent it, which is the client where the variables name none.
    :raises MalformedPacket: if it isn't a web request.
    """
    given = decode_vars(block)
    method = given.get(b"REQUEST_METHOD", b"")
    if not _TOKEN.fullmatch(method):
        raise MalformedPacket(
            f"REQUEST_METHOD is {method[:40]!r}; a web server sends a method (nginx: include uwsgi_params;)"
        )
    secure = (given.get(b"HTTPS") or given.get(b"REQUEST_SCHEME", b"")).lower() in _TRUE
    uri, mount = _target(given, modifier1)
    content_type = given.get(b"CONTENT_TYPE", b"").decode("latin-1").partition(";")[0].strip().lower()
    return WebRequest(
        given,
        method,
        uri,
        mount,
        tuple(_headers(given)),
        _client(given) or peer.address,
        _host(given, secure),
        secure,
        int(given.get(CONTENT_LENGTH) or 0),  # checked by whoever has taken the body off
        method == b"POST" and content_type in _FORMS,
    )


def _headers(given: Mapping[bytes, bytes]) -> Iterator[tuple[bytes, bytes]]:
    for name in (b"CONTENT_TYPE", CONTENT_LENGTH):
        if given.get(name):
            yield name.replace(b"_", b"-"), given[name]
    for name, value in given.items():
        if name.startswith(b"HTTP_") and name not in _DROPPED:
            header = name[5:].replace(b"_", b"-")
            if not _TOKEN.fullmatch(header):
                raise MalformedPacket(f"{name[:40]!r} is not the name of a header")
            yield header, value


def _target(given: Mapping[bytes, bytes], modifier1: int) -> tuple[bytes, int]:
    """Return the URI, and how many segments of its path lead to the application.

    PATH_INFO is what the web server has made of the path: unescaped, and maybe rewritten. If it is still the
    path of REQUEST_URI, that one is taken, since only there an escaped slash differs from another one.
    """
    script = given.get(b"SCRIPT_NAME", b"").strip(b"/")
    script = b"/" + script if script else b""
    path = b"/" + given.get(b"PATH_INFO", b"").removeprefix(b"/")
    if modifier1 != WSGI_STRIPPED or not (path + b"/").startswith(script + b"/"):
        path = script + path
    sent = given.get(b"REQUEST_URI", b"").partition(b"?")[0]
    if not _ENCODED.fullmatch(sent) or unquote_to_bytes(sent) != path:
        sent = quote(path, safe=_UNESCAPED).encode()
    query = given.get(b"QUERY_STRING", b"")
    return (sent + b"?" + query if query else sent), script.count(b"/")


def _client(given: Mapping[bytes, bytes]) -> IAddress | None:
    host = _text(given, b"REMOTE_ADDR")
    try:
        ipaddress.ip_address(host)
    except ValueError:  # a browser on a UNIX socket of nginx
        return None
    return _address(host, _port(given, b"REMOTE_PORT", 0))


def _host(given: Mapping[bytes, bytes], secure: bool) -> IAddress:
    host = _text(given, b"SERVER_NAME").strip("[]")
    return _address(host, _port(given, b"SERVER_PORT", 443 if secure else 80))


def _address(host: str, port: int) -> IAddress:
    """Return an address; a host's name is in the place of an IPv4 address, as ``Request.setHost`` has it."""
    return (IPv6Address if ":" in host else IPv4Address)("TCP", host, port)


def _port(given: Mapping[bytes, bytes], name: bytes, default: int) -> int:
    text = given.get(name, b"")
    return int(text) if text.isdigit() and len(text) <= _PORT_DIGITS else default


def _text(given: Mapping[bytes, bytes], name: bytes) -> str:
    return given.get(name, b"").decode("ascii", "backslashreplace")
