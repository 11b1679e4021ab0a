"""Where a service listens: on loopback, unless it is told otherwise."""

from __future__ import annotations

import errno
import os
import socket
from typing import NamedTuple

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.python.failure import Failure

from uwsgitwisted.address import split_description
from uwsgitwisted.errors import StartupError
from uwsgitwisted.transport.writer import RECEIVE_BUFFER, enable_keepalive

#: By the kind of an endpoint, which interface is loopback.
_LOOPBACK = {"tcp": "127.0.0.1", "ssl": "127.0.0.1", "tls": "127.0.0.1", "tcp6": "\\:\\:1"}
#: How many connections may wait to be accepted, where Twisted has 50: when that room is full, the system drops
#: what comes, and its sender tries again seconds later.
_BACKLOG = "1024"
#: Who may use a UNIX socket, where Twisted lets everybody: whoever uses it may also manage a spooler's queue.
_UNIX_MODE = "660"


def check_endpoint(description: str) -> None:
    """See that a service can listen on what *description* names.

    :raises ValueError: if it can't; the text says why.
    """
    if _read(description)[0] == "haproxy":
        raise ValueError(
            "a PROXY header says who calls only after the connection was accepted, so --allow, --manage and "
            "the limits for each peer would see the proxy instead; listen on tcp:, let the proxy connect "
            "without that header, and name the proxy in --allow"
        )


def on_loopback(description: str) -> str:
    """Return an endpoint description that listens on loopback if *description* names no interface.

    Twisted's own ``tcp:3033`` listens on every interface, and a handler is called by whoever connects.
    """
    kind, arguments = _read(description)
    if kind not in _LOOPBACK or (kind in ("tcp", "tcp6") and len(arguments) > 1):
        return description
    return _with_default(description, "interface", _LOOPBACK[kind])


def _completed(description: str) -> str:
    """Return *description* with our defaults in place of Twisted's, but for the interface."""
    kind, arguments = _read(description)
    if kind == "unix" and len(arguments) < 2:
        description = _with_default(description, "mode", _UNIX_MODE)
    if kind in ("tcp", "tcp6", "ssl", "unix"):
        description = _with_default(description, "backlog", _BACKLOG)
    return description


def _with_default(description: str, keyword: str, value: str) -> str:
    return description if keyword in split_description(description)[1] else f"{description}:{keyword}={value}"


def _read(description: str) -> tuple[str, list[str]]:
    """Return the kind of an endpoint, in which Twisted may ignore case, and its positional arguments."""
    positional, _ = split_description(description)
    return "".join(positional[:1]).lower(), positional[1:]


def _set_options(port: IListeningPort) -> IListeningPort:
    """Set the options of the connections of a TCP port: they inherit what is set on it.

    TCP_NODELAY, since small packets would wait for the peer's delayed acknowledgements; a bound for what the
    kernel takes ahead of us, behind which a small message would wait; and probes, so that a peer that vanished
    while it waited for its answer is noticed.
    """
    listener = getattr(port, "socket", None)
    if isinstance(listener, socket.socket) and listener.family in (socket.AF_INET, socket.AF_INET6):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        enable_keepalive(listener)
    return port


class Listener(NamedTuple):
    """An endpoint description and the port that it has opened."""

    description: str
    port: Deferred[IListeningPort]


def listen(reactor: object, description: str, factory: IProtocolFactory) -> Listener:
    """Open what *description* names.

    :raises StartupError: if it can't be opened; its text says what to do.
    """
    try:
        check_endpoint(description)
        port = serverFromString(reactor, _completed(description)).listen(factory)
        port.addCallback(_set_options)
    except (ImportError, NameError) as error:  # Twisted's own, where pyOpenSSL isn't there
        raise StartupError(f"--listen {description}: TLS needs more: install uwsgitwisted[tls]") from error
    except (ValueError, TypeError, OSError) as error:
        raise StartupError(f"--listen {description}: {error}") from error
    failures: list[Failure] = []
    port.addErrback(failures.append)
    if failures:
        raise StartupError(_explain(description, failures[0]))
    return Listener(description, port)


#: What to do where an internet port can't be opened, by the system's number for the reason.
_FOR_PORTS = {
    errno.EADDRINUSE: "Stop the service that listens there, or name another port with --listen",
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM),
        "Ports below 1024 are for root: start twistd as root, with --uid, or name a higher port with --listen",
    ),
    errno.EADDRNOTAVAIL: "Name an IP address of this machine in interface=",
    errno.EAFNOSUPPORT: "This machine has no IPv6; listen on tcp: instead of tcp6:",
    errno.ERANGE: "Name a port from 0 to 65535 with --listen",
}
#: The same for a UNIX socket.
_FOR_SOCKETS = {
    errno.EADDRINUSE: "Stop the service that listens there, or remove what is at {path}",
    errno.EBUSY: "Stop the service that listens there, which holds {path}.lock",
    errno.ENOENT: "Create the directory {directory}, or name another path with --listen",
    errno.ENOTDIR: "{directory} is not a directory; name another path with --listen",
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS),
        "This user can't create files in {directory}; change that, or name another path with --listen",
    ),
    errno.ENAMETOOLONG: "Name a shorter path with --listen",
}
#: Such a number for what comes without one: a name that is no address, a port that is none, and Twisted's lock.
_NUMBERS: dict[type, int] = {
    socket.gaierror: errno.EADDRNOTAVAIL,
    OverflowError: errno.ERANGE,
    str: errno.EBUSY,
}


def _explain(description: str, failure: Failure) -> str:
    """Return why a port can't be opened, and what to do about it where that is known."""
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
        advice = _FOR_SOCKETS.get(number, "").format(path=path, directory=directory)
    else:
        advice = _FOR_PORTS.get(number, "")
    return f"can't listen on {description}: {reason}{'. ' if advice else ''}{advice}"


async def stop_listening(listeners: list[Listener]) -> None:
    """Close what was opened."""
    await DeferredList([listener.port.addCallback(_close) for listener in listeners])


def _close(port: IListeningPort | None) -> object:
    return port.stopListening() if port is not None else None  # None: it could never be opened
