"""Every exception that this package raises on purpose, in one tree.

Each class says whose fault it is: the caller's (:class:`MisuseError`), the peer's bytes
(:class:`ProtocolError`), the way between (:class:`ConnectionFailed`, :class:`RequestTimeout`), the code at
the other end (:class:`RemoteError`) or the task queue (:class:`SpoolError`). They carry what a program would
ask for as attributes; those are keyword arguments with defaults, so that the exceptions survive pickling.
"""

from __future__ import annotations

from typing import Any


class UwsgiError(Exception):
    """The root: catch this one to catch everything of ours.

    :param text: what happened and what to do about it.
    :param address: the peer's address as the caller wrote it, where there is one.
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
    """Return *address* as ``host:port`` or ``[host]:port`` if it is such a pair, else as it was written."""
    if isinstance(address, (tuple, list)) and list(map(type, address)) in ([str, int], [str, str]):
        host, port = address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return str(address)


class MisuseError(UwsgiError, ValueError):
    """The caller asked for something that can't be sent; nothing was sent."""


class InvalidAddress(MisuseError):
    """An address that is neither ``(host, port)`` nor an endpoint description."""


class UnencodableMessage(MisuseError, TypeError):
    """A value that the wire can't carry, such as an instance of a class of your own."""


class MessageTooLarge(MisuseError):
    """More bytes than the peer or a configured limit takes.

    :param size: what there was to send, in bytes.
    :param limit: what may be sent, in bytes.
    """

    def __init__(self, text: str = "", *, size: int = 0, limit: int = 0, address: object = None) -> None:
        super().__init__(text, address=address)
        self.size = size
        self.limit = limit


class ProtocolError(UwsgiError):
    """The peer's bytes break the protocol."""


class MalformedPacket(ProtocolError):
    """A packet, or the vars or array block in it, whose bytes contradict themselves."""


class PacketTooLarge(ProtocolError):
    """A packet that announces more bytes than the receiver takes.

    :param size: what it announces, in bytes.
    :param limit: what is accepted, in bytes.
    """

    def __init__(self, text: str = "", *, size: int = 0, limit: int = 0, address: object = None) -> None:
        super().__init__(text, address=address)
        self.size = size
        self.limit = limit


class UnsafeObject(ProtocolError):
    """Marshalled bytes that are broken, too large, too deep, or of a type that is not accepted."""


class ConnectionFailed(UwsgiError, ConnectionError):
    """No connection could be made, or it broke."""


class NoAnswer(ConnectionFailed):
    """The peer closed the connection without an answer.

    In plain uwsgi this is how a server reports every failure: an unknown modifier, a handler that raised, a
    full queue. Its log says which.
    """


class RequestTimeout(UwsgiError, TimeoutError):
    """No answer within the time that the caller, or the server, allows.

    :param seconds: that time.
    """

    def __init__(self, text: str = "", *, seconds: float = 0.0, address: object = None) -> None:
        super().__init__(text, address=address)
        self.seconds = seconds


class FanOutError(UwsgiError):
    """At least one node of a fan-out gave no answer; the answers of the others are kept here.

    :param results: one a node, in the order in which they were named: its answer, or the error it failed with.
    """

    def __init__(self, text: str = "", *, results: tuple[object, ...] = (), address: object = None) -> None:
        super().__init__(text, address=address)
        self.results = results

    @property
    def failures(self) -> dict[int, UwsgiError]:
        """The errors, by their place in :attr:`results`."""
        return {place: result for place, result in enumerate(self.results) if isinstance(result, UwsgiError)}


class RequestCancelled(UwsgiError):
    """The caller withdrew the request."""


class Unavailable(UwsgiError):
    """The service can't take the request now, and has not begun it; another node, or a later moment, may."""


class Busy(Unavailable):
    """The bounded queue is full."""


class WorkerDied(UwsgiError):
    """The worker process that ran the request ended: killed, out of memory, or by its own ``exit``."""


class Interrupted(UwsgiError):
    """The node was stopped while it ran the request; how far it came is not known."""


class UnknownModifier(UwsgiError):
    """The server has nothing that answers this modifier1.

    :param modifier1: the one asked for.
    """

    def __init__(self, text: str = "", *, modifier1: int = -1, address: object = None) -> None:
        super().__init__(text, address=address)
        self.modifier1 = modifier1


class NotAllowed(UwsgiError):
    """The peer may not ask for this."""


class RemoteError(UwsgiError):
    """The handler at the other end raised.

    The exception there is described, never rebuilt: nothing is imported or called by a name that a peer sent.

    :param type: the name of the exception's class there, such as ``KeyError``.
    :param message: its text.
    :param traceback: its formatted traceback; empty if the server keeps it to itself.
    :param node: which node and worker ran it.
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
        # A cause isn't pickled, so that the class makes it again.
        facts = {name: getattr(self, name) for name in ("type", "message", "traceback", "node", "address")}
        return _remote_error, (self.text, facts)


class _RemoteTraceback(Exception):
    """The traceback of a remote exception: Python prints it above that of the :class:`RemoteError` itself."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0].rstrip()}\n"


def _remote_error(text: str, facts: dict[str, Any]) -> RemoteError:
    return RemoteError(text, **facts)


class SpoolError(UwsgiError):
    """The task queue could not do what was asked."""


class SpoolRefused(SpoolError):
    """The spooler answered that it did not take the task (``{255, 0, 0}``); its log says why."""


class StoreUnavailable(SpoolError):
    """The spool can't be used now: a disk that is full, failing or read-only, a lock, a database that is away.

    Nothing was written, unless the text says that this isn't known. The same call may succeed later.
    """


class SpoolInUse(SpoolError):
    """Another process has the spool open, which is for one at a time."""


class NoSuchTask(SpoolError):
    """The spool has no task of that id: it never had, or what was known of it is forgotten."""


class SpoolCorrupt(SpoolError):
    """The spool's file is not a database of ours, or is damaged; it was left as it is."""


class StartupError(SystemExit, UwsgiError):
    """A service can't start; the text says why and what to do.

    It is a :class:`SystemExit`, so that ``twistd -n`` ends with that text and status 1 instead of a traceback,
    and an :class:`Exception`, so that a daemonizing ``twistd`` passes it to the terminal that started it.
    """

    def __init__(self, text: str = "") -> None:
        UwsgiError.__init__(self, text)
        self.code = text
