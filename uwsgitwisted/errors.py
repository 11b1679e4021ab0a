"""Every exception that this package raises on purpose, in one tree.

The class says where the fault is: in the caller (:class:`MisuseError`), the peer's bytes
(:class:`ProtocolError`), the network (:class:`ConnectionFailed`, :class:`RequestTimeout`), the remote code
(:class:`RemoteError`) or the task queue (:class:`SpoolError`). The facts that a program may need are
attributes. They are keyword arguments with defaults, so that the exceptions can be pickled.
"""

from __future__ import annotations

from typing import Any


class UwsgiError(Exception):
    """The root: catch it to catch every error of this package.

    :param text: what happened, and what to do about it.
    :param address: the peer's address as the caller wrote it, if there is one.
    """

    def __init__(self, text: str = "", *, address: object = None) -> None:
        super().__init__(text)
        self.address = address

    @property
    def text(self) -> str:
        """What happened, without the address."""
        return str(self.args[0]) if self.args else ""

    def __str__(self) -> str:
        return self.text if self.address is None else f"{_place(self.address)}: {self.text}"


def _place(address: object) -> str:
    """Format a pair as ``host:port`` or ``[host]:port``, and any other address as the caller wrote it."""
    if isinstance(address, (tuple, list)) and list(map(type, address)) in ([str, int], [str, str]):
        host, port = address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return str(address)


class MisuseError(UwsgiError, ValueError):
    """The caller asked for something that can't be sent; nothing was sent."""


class InvalidAddress(MisuseError):
    """The address is neither ``(host, port)`` nor an endpoint description."""


class ConfigurationError(MisuseError):
    """A configuration file of uWSGI can't be read, or asks for something that makes no sense.

    :param path: the file.
    :param line: the number of the line in it; 0 if it isn't known.
    """

    def __init__(self, text: str = "", *, path: str = "", line: int = 0) -> None:
        super().__init__(text)
        self.path = path
        self.line = line

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}" if self.line else f"{self.path}: {self.text}"


class UnencodableMessage(MisuseError, TypeError):
    """The value can't be encoded; it is, for example, an instance of a class of your own."""


class MessageTooLarge(MisuseError):
    """The message exceeds the peer's limit or a configured one.

    :param size: the size of the message, in bytes.
    :param limit: the limit, in bytes.
    """

    def __init__(self, text: str = "", *, size: int = 0, limit: int = 0, address: object = None) -> None:
        super().__init__(text, address=address)
        self.size = size
        self.limit = limit


class NotProvided(MisuseError, NotImplementedError):
    """A name of uWSGI's own modules that this package doesn't have was used; the text says what to use instead.

    :param name: the name, with that of its module.
    """

    def __init__(self, text: str = "", *, name: str = "", address: object = None) -> None:
        super().__init__(text, address=address)
        self.name = name


class ProtocolError(UwsgiError):
    """The peer's bytes break the protocol."""


class MalformedPacket(ProtocolError):
    """The bytes of a packet, or of the vars or array block in it, are inconsistent."""


class MalformedRequest(ProtocolError):
    """A client's web request can't be understood."""


class MalformedAnswer(ProtocolError):
    """A node's answer to a web request is not HTTP."""


class PacketTooLarge(ProtocolError):
    """A packet announces more bytes than the receiver accepts.

    :param size: the announced size, in bytes.
    :param limit: the limit, in bytes.
    """

    def __init__(self, text: str = "", *, size: int = 0, limit: int = 0, address: object = None) -> None:
        super().__init__(text, address=address)
        self.size = size
        self.limit = limit


class UnsafeObject(ProtocolError):
    """Marshalled bytes are broken, too large, too deep, or contain a type that is not accepted."""


class ConnectionFailed(UwsgiError, ConnectionError):
    """Connecting failed, or the connection broke."""


class ConnectionBroken(ConnectionFailed):
    """The connection broke after the request was sent, so that it may have run, wholly or in part."""


class NoAnswer(ConnectionFailed):
    """The peer closed the connection without an answer.

    In plain uwsgi this is how a server reports every failure: an unknown modifier, a handler that raised, a
    full queue. Its log says which.
    """


class RequestTimeout(UwsgiError, TimeoutError):
    """The request timed out, at the caller or at the server.

    :param seconds: the time limit.
    """

    def __init__(self, text: str = "", *, seconds: float = 0.0, address: object = None) -> None:
        super().__init__(text, address=address)
        self.seconds = seconds


class FanOutError(UwsgiError):
    """At least one node of a fan-out failed; the error has the answers of the other nodes.

    :param results: each node's answer, or the error with which it failed, in the order of the nodes.
    """

    def __init__(self, text: str = "", *, results: tuple[object, ...] = (), address: object = None) -> None:
        super().__init__(text, address=address)
        self.results = results

    @property
    def failures(self) -> dict[int, UwsgiError]:
        """The errors, by their index in :attr:`results`."""
        return {place: result for place, result in enumerate(self.results) if isinstance(result, UwsgiError)}


class RequestCancelled(UwsgiError):
    """The caller cancelled the request."""


class Unavailable(UwsgiError):
    """The service can't accept the request now and has not started it. Try another node, or try again later."""


class Busy(Unavailable):
    """The bounded queue is full."""


class WorkerDied(UwsgiError):
    """The worker process that ran the request ended: killed, out of memory, or by its own ``exit``."""


class Interrupted(UwsgiError):
    """The node was stopped while it ran the request, which may have run in part."""


class UnknownModifier(UwsgiError):
    """The server has no responder for this modifier1.

    :param modifier1: the request's.
    """

    def __init__(self, text: str = "", *, modifier1: int = -1, address: object = None) -> None:
        super().__init__(text, address=address)
        self.modifier1 = modifier1


class UnknownFunction(UwsgiError):
    """The node has registered no RPC function of this name; the text has the name, and those that it has."""


class NotAllowed(UwsgiError):
    """The peer may not ask for this."""


class SignalRefused(UwsgiError, ValueError):
    """A node has refused a signal: its caller may raise none, it isn't registered, or too many wait."""


class RemoteError(UwsgiError):
    """The remote handler raised an exception.

    This error describes the remote exception and never rebuilds it: a peer can't make us import or call
    anything by name.

    :param type: the name of the remote exception's class, such as ``KeyError``.
    :param message: its text.
    :param traceback: its formatted traceback; empty if the server doesn't send tracebacks.
    :param node: the node and the worker that ran the handler.
    """

    def __init__(
        self,
        text: str = "",
        *,
        type: str = "",  # noqa: A002 - the name users know from the exception it describes
        message: str = "",
        traceback: str = "",
        node: str = "",
        address: object = None,
    ) -> None:
        super().__init__(text or f"{type}: {message}", address=address)
        self.type = type
        self.message = message
        self.traceback = traceback
        self.node = node
        if traceback:
            self.__cause__ = _RemoteTraceback(traceback)

    def __reduce__(self) -> tuple[object, ...]:
        # Pickle drops the cause, so the constructor makes it again.
        facts = {name: getattr(self, name) for name in ("type", "message", "traceback", "node", "address")}
        return _remote_error, (self.text, facts)


class _RemoteTraceback(Exception):
    """The traceback of a remote exception; Python prints it above the :class:`RemoteError`'s own."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0].rstrip()}\n"


def _remote_error(text: str, facts: dict[str, Any]) -> RemoteError:
    return RemoteError(text, **facts)


class SpoolError(UwsgiError):
    """An operation of the task queue failed."""


class SpoolRefused(SpoolError):
    """The spooler refused the task (it answered ``{255, 0, 0}``); its log says why."""


class StoreUnavailable(SpoolError):
    """The store fails now: the disk is full, failing or read-only, a lock is held, or the database is away.

    Nothing was written, unless the text says that this isn't known. The same call may succeed later.
    """


class SpoolInUse(SpoolError):
    """Another process has the spool open; only one can use it at a time."""


class TaskNotTaken(SpoolError, ValueError):
    """``uwsgi.spool`` could not hand its task to the spooler; its cause says why. It is safe to try again."""


class NoSuchTask(SpoolError):
    """The spool has no task with that id: it never existed, or the spool has deleted it since."""


class SpoolCorrupt(SpoolError):
    """The spool's file is not a spool database, or is damaged; it was not changed."""


class StartupError(SystemExit, UwsgiError):
    """A service can't start; the text says why and what to do.

    It is a :class:`SystemExit`, so that ``twistd -n`` ends with that text and status 1 instead of a traceback,
    and an :class:`Exception`, so that a daemonizing ``twistd`` passes it to the terminal that started it.
    """

    def __init__(self, text: str = "") -> None:
        UwsgiError.__init__(self, text)
        self.code = text
