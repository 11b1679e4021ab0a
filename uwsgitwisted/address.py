"""Parses the address of a peer, in each form that users write, into one value.

The forms are ``(host, port)``, Twisted's client endpoint descriptions, and uWSGI's own ``host:port`` and
``/path/to/socket``. The clients connect: the Deferred client passes :attr:`Address.description` to Twisted, the
blocking client uses the fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Literal, NamedTuple

from uwsgitwisted.errors import InvalidAddress, MisuseError

Kind = Literal["tcp", "unix", "tls"]

ACCEPTED_FORMS = (
    "('host', port), 'host:port', '[IPv6]:port', '/path/to/socket', 'tcp:host:port', 'unix:/path/to/socket' "
    "or 'tls:host:port'"
)

#: The keywords of Twisted's client endpoints that we accept besides host, port and path
#: (`clientFromString` and, for tls, `_parseClientTLS` in twisted.internet.endpoints).
OPTIONS: dict[Kind, frozenset[str]] = {
    "tcp": frozenset({"timeout", "bindAddress"}),
    "unix": frozenset({"timeout", "lockfile"}),
    "tls": frozenset({"timeout", "bindAddress", "trustRoots", "certificate", "privateKey", "endpoint"}),
}

_SPECIAL = str.maketrans({"\\": "\\\\", ":": "\\:", "=": "\\="})


class Address(NamedTuple):
    """The address at which a peer listens.

    It is a tuple because every call uses one as a dictionary key, and tuples hash quickly.

    :param kind: the transport.
    :param host: a name or an IP address without brackets; empty for a unix socket.
    :param port: 1 to 65535; 0 for a unix socket.
    :param path: the unix socket's path; empty otherwise.
    :param options: the keywords of the endpoint description, such as ``("trustRoots", "/etc/ssl/certs")``,
        sorted.
    """

    kind: Kind
    host: str = ""
    port: int = 0
    path: str = ""
    options: tuple[tuple[str, str], ...] = ()

    def option(self, name: str) -> str | None:
        """Return the value of the endpoint description's keyword *name*, or None if it isn't given."""
        return dict(self.options).get(name)

    @property
    def description(self) -> str:
        """The canonical description, for :func:`twisted.internet.endpoints.clientFromString`."""
        place = (self.path,) if self.kind == "unix" else (self.host, str(self.port))
        parts = [part.translate(_SPECIAL) for part in (self.kind, *place)]
        parts += [f"{name}={value.translate(_SPECIAL)}" for name, value in self.options]
        return ":".join(parts)

    def __str__(self) -> str:
        if self.kind == "unix":
            return self.path
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'tls:' if self.kind == 'tls' else ''}{host}:{self.port}"


#: The forms of an address that the clients accept. A list is as good as a tuple, since JSON has no tuples.
AddressLike = Address | str | tuple[str, int | str] | list[str | int]
#: One node of a fan-out and its message: ``(host, port, message)`` or ``(address, message)``.
FanOutNode = tuple[str, int | str, object] | tuple[AddressLike, object]


def parse_address(address: AddressLike) -> Address:
    """Parse an address. Results are cached.

    :param address: ``(host, port)``, an endpoint description, or an address as uWSGI's options have it.
    :raises InvalidAddress: if it has another form; the text shows the accepted ones.
    """
    if isinstance(address, Address):
        return address
    try:
        if isinstance(address, str):
            return _parse_text(address)
        if isinstance(address, (tuple, list)) and len(address) == 2:
            return _parse_pair(*address)
    except _Unacceptable as error:
        raise InvalidAddress(f"not an address, {error}; write {ACCEPTED_FORMS}", address=address) from None
    except TypeError:  # the host or the port is not hashable, so the cache can't look it up
        pass
    raise InvalidAddress(f"not an address; write {ACCEPTED_FORMS}", address=address)


def split_nodes(nodes: Iterable[FanOutNode]) -> list[tuple[AddressLike, object]]:
    """Split each node of a fan-out into its address and its message.

    :param nodes: tuples, or lists, which JSON has instead.
    :raises MisuseError: if a node has neither of the two forms.
    """
    return [_split_node(index, node) for index, node in enumerate(nodes)]


def _split_node(index: int, node: FanOutNode) -> tuple[AddressLike, object]:
    if isinstance(node, (tuple, list)):
        if len(node) == 3:
            return (node[0], node[1]), node[2]
        if len(node) == 2:
            return node
    raise MisuseError(f"node {index} is {node!r}; each is (host, port, message) or (address, message)")


class _Unacceptable(ValueError):
    """Says what is wrong with an address; the caller adds the address itself."""


@lru_cache(maxsize=1_000, typed=True)
def _parse_pair(host: object, port: object) -> Address:
    return _internet("tcp", host, port, {})


@lru_cache(maxsize=1_000)
def _parse_text(text: str) -> Address:
    kind, colon, _ = text.partition(":")
    parser = _DESCRIPTIONS.get(kind.lower()) if colon else None
    if parser is not None:
        positional, options = split_description(text)
        return parser(positional[1:], options)
    if text.startswith(("/", "./", "../")):
        return _unix(text, {})
    host, colon, port = text.rpartition(":")
    if not colon:
        raise _Unacceptable("it has no port and doesn't begin with a slash as a path would")
    if host.startswith("[") and host.endswith("]"):
        return _internet("tcp", host[1:-1], port, {})
    if ":" in host:
        raise _Unacceptable(f"an IPv6 address stands in brackets, and no endpoint is called {kind!r} here")
    return _internet("tcp", host, port, {})


def split_description(text: str) -> tuple[list[str], dict[str, str]]:
    """Split the endpoint description of a client or a server into positional and keyword arguments.

    It follows Twisted's rules: a colon ends an argument, the first ``=`` makes the argument a keyword, and a
    backslash escapes the next character.

    :return: both; the first positional argument is the kind of the endpoint.
    :raises ValueError: if the description can't be split; the text says why.
    """
    positional: list[str] = []
    options: dict[str, str] = {}
    name: str | None = None
    current = ""
    characters = iter(text)
    for character in characters:
        if character == ":":
            _add_argument(positional, options, name, current)
            name, current = None, ""
        elif character == "=" and name is None:
            name, current = current, ""
        elif character == "\\":
            current += _escaped(next(characters, None))
        else:
            current += character
    _add_argument(positional, options, name, current)
    return positional, options


def _escaped(character: str | None) -> str:
    if character is None:
        raise _Unacceptable("it ends with a backslash that escapes nothing")
    return character


def _add_argument(positional: list[str], options: dict[str, str], name: str | None, value: str) -> None:
    if name is None:
        positional.append(value)
    else:
        options[name] = value


def _parse_tcp(positional: list[str], options: dict[str, str]) -> Address:
    return _internet("tcp", *_host_and_port(positional, options), options)


def _parse_tls(positional: list[str], options: dict[str, str]) -> Address:
    return _internet("tls", *_host_and_port(positional, options), options)


def _parse_unix(positional: list[str], options: dict[str, str]) -> Address:
    (path,) = _place(("path",), positional, options)
    return _unix(path, options)


_DESCRIPTIONS: dict[str, Callable[[list[str], dict[str, str]], Address]] = {
    "tcp": _parse_tcp,
    "tls": _parse_tls,
    "unix": _parse_unix,
}


def _host_and_port(positional: list[str], options: dict[str, str]) -> tuple[str, str]:
    host, port = _place(("host", "port"), positional, options)
    return host, port


def _place(names: tuple[str, ...], positional: list[str], options: dict[str, str]) -> list[str]:
    """Bind the parameters *names* to positional and keyword arguments, as a Python call does."""
    waiting = list(positional)
    values: list[str] = []
    for name in names:
        if name in options:
            values.append(options.pop(name))
        elif waiting:
            values.append(waiting.pop(0))
        else:
            raise _Unacceptable(f"it has no {name}")
    if waiting:
        raise _Unacceptable(f"{waiting[0]!r} is one argument too many")
    return values


def _internet(kind: Kind, host: object, port: object, options: dict[str, str]) -> Address:
    if not isinstance(host, str) or not host:
        raise _Unacceptable("the host is not a name")
    if any(character <= " " or character in "/[]" for character in host):
        raise _Unacceptable(f"{host!r} can't be a host")
    return Address(kind, host=host, port=_port(port), options=_options(kind, options))


def _port(port: object) -> int:
    if isinstance(port, str) and port.isascii() and port.isdecimal() and len(port) <= 5:
        port = int(port)
    if type(port) is not int or not 1 <= port <= 0xFFFF:
        raise _Unacceptable(f"{port!r} is not a port from 1 to 65535")
    return port


def _unix(path: str, options: dict[str, str]) -> Address:
    if not path or "\0" in path:
        raise _Unacceptable(f"{path!r} can't be a path")
    return Address("unix", path=path, options=_options("unix", options))


def _options(kind: Kind, options: dict[str, str]) -> tuple[tuple[str, str], ...]:
    for name in options:
        if name not in OPTIONS[kind]:
            raise _Unacceptable(f"{kind} takes no {name!r}, only {', '.join(sorted(OPTIONS[kind]))}")
    timeout = options.get("timeout", "1")
    if not timeout.isascii() or not timeout.isdecimal():
        raise _Unacceptable(f"the timeout {timeout!r} is not a whole number of seconds")
    return tuple(sorted(options.items()))
