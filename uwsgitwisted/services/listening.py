"""Opens the ports of a service: on loopback, unless its options say otherwise."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import os
import select
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IProtocolFactory,
    IProtocolNegotiationFactory,
    IReactorTime,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from zope.interface import directlyProvides

from uwsgitwisted.address import split_description
from uwsgitwisted.errors import StartupError
from uwsgitwisted.transport.writer import RECEIVE_BUFFER, enable_keepalive

#: The loopback interface, by the kind of an endpoint.
_LOOPBACK = {"tcp": "127.0.0.1", "ssl": "127.0.0.1", "tls": "127.0.0.1", "tcp6": "\\:\\:1"}
#: The kinds of endpoints without TLS.
_WITHOUT_TLS = ("tcp", "tcp6", "unix", "systemd", "fd")
#: How many connections may wait to be accepted; Twisted's default is 50. When the backlog is full, the system
#: drops new connections, and their callers try again only seconds later.
_BACKLOG = "1024"
#: A program of Linux's packet filter, which begins at the TCP header: load the flags; if there is SYN, drop the
#: packet; otherwise keep it. Each line is an instruction, two jumps and an operand.
_FILTER_LINE = struct.Struct("HBBI")
_DROP_SYN = b"".join(
    _FILTER_LINE.pack(*line) for line in ((0x30, 0, 0, 13), (0x45, 0, 1, 2), (6, 0, 0, 0), (6, 0, 0, 0xFFFF))
)
_SO_ATTACH_FILTER = 26
#: The permissions of a UNIX socket; Twisted's default lets everybody connect. Whoever can connect may also
#: manage a spooler's queue.
_UNIX_MODE = "660"


def check_endpoint(description: str) -> None:
    """Check that a service can listen on an endpoint.

    :raises ValueError: if it can't; the text says why.
    """
    if _read(description)[0] == "haproxy":
        raise ValueError(
            "a PROXY header says who calls only after the connection was accepted, so --allow, --manage and "
            "the limits for each peer would see the proxy instead; listen on tcp:, let the proxy connect "
            "without that header, and name the proxy in --allow"
        )


def has_tls(description: str) -> bool:
    """Whether connections to an endpoint have TLS."""
    return _read(description)[0] not in _WITHOUT_TLS


def own_address(descriptions: Sequence[str]) -> str:
    """Return the address of the first endpoint at which this machine can call without TLS; empty for none."""
    for description in descriptions:
        positional, options = split_description(description)
        kind = positional[0].lower()
        if kind == "unix":
            path = positional[1] if len(positional) > 1 else options.get("address", "")
            return f"unix:{os.path.abspath(path)}"
        if kind in _ANY_INTERFACE:
            port = positional[1] if len(positional) > 1 else options.get("port", "0")
            host = options.get("interface", "") or (positional[2] if len(positional) > 2 else "")
            if port.isdecimal() and int(port):
                here = _LOOPBACK[kind].replace("\\", "") if host in _ANY_INTERFACE[kind] else host
                return f"[{here}]:{port}" if ":" in here else f"{here}:{port}"
    return ""


#: How an endpoint says that it listens on every interface, by its kind.
_ANY_INTERFACE = {"tcp": ("", "0.0.0.0"), "tcp6": ("", "::")}  # noqa: S104 - it is compared, not bound


def on_loopback(description: str) -> str:
    """Add the loopback interface to *description* if it names no interface.

    In Twisted, ``tcp:3033`` listens on every interface, and whoever can connect can call a handler.
    """
    kind, arguments = _read(description)
    if kind not in _LOOPBACK or (kind in ("tcp", "tcp6") and len(arguments) > 1):
        return description
    return _with_default(description, "interface", _LOOPBACK[kind])


def is_loopback(description: str) -> bool:
    """Whether only this machine can reach an endpoint, as far as *description* says."""
    kind, arguments = _read(description)
    if kind == "unix":
        return True
    interface = split_description(description)[1].get("interface", "".join(arguments[1:2]))
    try:
        return bool(ipaddress.ip_address(interface).is_loopback)
    except ValueError:
        return False


def _add_defaults(description: str) -> str:
    """Add our defaults, which differ from Twisted's, except for the interface."""
    kind, arguments = _read(description)
    if kind == "unix" and len(arguments) < 2:
        description = _with_default(description, "mode", _UNIX_MODE)
    if kind in ("tcp", "tcp6", "ssl", "unix"):
        description = _with_default(description, "backlog", _BACKLOG)
    return description


def _with_default(description: str, keyword: str, value: str) -> str:
    return description if keyword in split_description(description)[1] else f"{description}:{keyword}={value}"


def _read(description: str) -> tuple[str, list[str]]:
    """Return the kind of an endpoint, in lower case like in Twisted, and its positional arguments."""
    positional, _ = split_description(description)
    return "".join(positional[:1]).lower(), positional[1:]


def _set_options(port: IListeningPort) -> IListeningPort:
    """Set options of a TCP port, which its connections inherit.

    TCP_NODELAY is set because small packets would wait for the peer's delayed acknowledgements. The receive
    buffer has a limit because a small message would wait behind all that the kernel has read ahead. Probes
    detect a peer that has vanished while it waited for its answer.
    """
    listener = getattr(port, "socket", None)
    if isinstance(listener, socket.socket) and listener.family in (socket.AF_INET, socket.AF_INET6):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        enable_keepalive(listener)
    return port


class _Closed(Protocol):
    """A connection that is closed at once."""

    def connectionMade(self) -> None:
        """Close it."""
        assert self.transport is not None
        self.transport.abortConnection()  # type: ignore[attr-defined]


class _ClosingFactory(Factory):
    """Gives refused connections a protocol too: Twisted's TLS fails with a traceback without one.

    :param factory: makes the other ones.
    """

    noisy = False

    def __init__(self, factory: IProtocolFactory) -> None:
        self._factory = factory
        if IProtocolNegotiationFactory.providedBy(factory):
            directlyProvides(self, IProtocolNegotiationFactory)

    def acceptableProtocols(self) -> list[bytes]:
        """Return what the factory speaks, if it says so: browsers ask in the handshake (ALPN)."""
        found: list[bytes] = self._factory.acceptableProtocols()  # type: ignore[attr-defined]
        return found

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Return a connection's protocol."""
        assert addr is not None
        return self._factory.buildProtocol(addr) or _Closed()


class Listener(NamedTuple):
    """An endpoint description and its port."""

    description: str
    port: Deferred[IListeningPort]


def listen(reactor: object, description: str, factory: IProtocolFactory, option: str = "--listen") -> Listener:
    """Start to listen on an endpoint.

    :param option: the option that has named it.
    :raises StartupError: if the port can't be opened; its text says what to do.
    """
    try:
        check_endpoint(description)
        closing = _ClosingFactory(factory) if has_tls(description) else factory
        port = serverFromString(reactor, _add_defaults(description)).listen(closing)
        port.addCallback(_set_options)
    except (ImportError, NameError) as error:  # Twisted raises them where pyOpenSSL isn't installed
        raise StartupError(f"{option} {description}: TLS needs more: install uwsgitwisted[tls]") from error
    except (ValueError, TypeError, OSError) as error:
        raise StartupError(f"{option} {description}: {error}") from error
    failures: list[Failure] = []
    port.addErrback(failures.append)
    if failures:
        raise StartupError(_explain(description, failures[0], option))
    return Listener(description, port)


#: The advice for an internet port that can't be opened, by errno.
_FOR_PORTS = {
    errno.EADDRINUSE: "Stop the service that listens there, or name another port with {option}",
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM),
        "Ports below 1024 are for root: start twistd as root, with --uid, or name a higher port with {option}",
    ),
    errno.EADDRNOTAVAIL: "Name an IP address of this machine in interface=",
    errno.EAFNOSUPPORT: "This machine has no IPv6; listen on tcp: instead of tcp6:",
    errno.ERANGE: "Name a port from 0 to 65535 with {option}",
}
#: The same for a UNIX socket.
_FOR_SOCKETS = {
    errno.EADDRINUSE: "Stop the service that listens there, or remove what is at {path}",
    errno.EBUSY: "Stop the service that listens there, which holds {path}.lock",
    errno.ENOENT: "Create the directory {directory}, or name another path with {option}",
    errno.ENOTDIR: "{directory} is not a directory; name another path with {option}",
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS),
        "This user can't create files in {directory}; change that, or name another path with {option}",
    ),
    errno.ENAMETOOLONG: "Name a shorter path with {option}",
}
#: The errno for errors without one: an invalid interface, an invalid port, and Twisted's lock file.
_NUMBERS: dict[type, int] = {
    socket.gaierror: errno.EADDRNOTAVAIL,
    OverflowError: errno.ERANGE,
    str: errno.EBUSY,
}


def _explain(description: str, failure: Failure, option: str) -> str:
    """Explain why a port can't be opened, with the advice for this reason if there is one."""
    error = failure.value
    cause: object = error.socketError if isinstance(error, CannotListenError) else error
    reason = str(getattr(cause, "strerror", None) or cause).rstrip(".")
    number: int = _NUMBERS.get(type(cause)) or getattr(cause, "errno", None) or 0
    if "path too long" in reason:
        number = errno.ENAMETOOLONG
    kind, arguments = _read(description)
    if kind == "unix":
        path = "".join(arguments[:1]) or split_description(description)[1].get("address", "")
        directory = os.path.dirname(os.path.abspath(path))
        advice = _FOR_SOCKETS.get(number, "").format(path=path, directory=directory, option=option)
    else:
        advice = _FOR_PORTS.get(number, "").format(option=option)
    return f"can't listen on {description}: {reason}{'. ' if advice else ''}{advice}"


def opened_port(listener: Listener) -> Any:
    """Return the port of a listener, if it is open; otherwise None."""
    port = getattr(listener.port, "result", None)
    return port if hasattr(port, "socket") else None


#: A host and port, or the path of a UNIX socket.
Place = tuple[str, int] | str


def place_of(port: Any) -> Place:
    """Return where an open port is; an abstract UNIX socket has an ``@`` in front of its name, as in uWSGI."""
    name: tuple[Any, ...] | str | bytes = port.socket.getsockname()
    if isinstance(name, tuple):
        return name[0], name[1]
    path = os.fsdecode(name)
    return f"@{path[1:]}" if path.startswith("\0") else os.path.abspath(path)


def write_place(place: Place) -> str:
    """Write a place as an address."""
    if isinstance(place, str):
        return place
    host, port = place
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def stop_listening(reactor: IReactorTime, listeners: list[Listener]) -> None:
    """Close the ports, and accept the connections that wait there: the system would reset them.

    :param reactor: closes the ports.
    """
    # A port closes itself by a later call of the reactor; this one comes right before that.
    reactor.callLater(0, _accept_waiting, [port for port in map(opened_port, listeners) if port])
    await DeferredList([listener.port.addCallback(_close_port) for listener in listeners])


def refuse_new_connections(listener: socket.socket) -> None:
    """Have Linux drop the packets that begin a connection to a TCP port, so that none begins before its close.

    The other end sends such a packet again, and is refused then.
    """
    if listener.family in (socket.AF_INET, socket.AF_INET6) and sys.platform == "linux":
        filter_ = ctypes.create_string_buffer(_DROP_SYN)
        program = struct.pack("HP", len(_DROP_SYN) // _FILTER_LINE.size, ctypes.addressof(filter_))
        with contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def hold_no_connections(listener: socket.socket) -> bool:
    """Let new connections to a TCP port be accepted at once, before anything has arrived on them.

    Linux holds back connections until something arrives, and resets those that it still holds when the port is
    closed. This changes nothing for those that it holds already.

    :return: whether there may be such connections.
    """
    if listener.family not in (socket.AF_INET, socket.AF_INET6) or sys.platform != "linux":
        return False
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 0)
    return True


def _accept_waiting(ports: list[Any]) -> None:
    for port in ports:
        refuse_new_connections(port.socket)
        waiting = select.poll()
        waiting.register(port.socket, select.POLLIN)
        for _ in range(int(_BACKLOG)):
            if not waiting.poll(0):
                break
            port.doRead()


def _close_port(port: IListeningPort | None) -> object:
    return port.stopListening() if port is not None else None  # None: the port couldn't be opened
