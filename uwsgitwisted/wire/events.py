"""The events of a session: what :meth:`uwsgitwisted.wire.session.Session.receive` returns."""

from __future__ import annotations

from typing import NamedTuple

from uwsgitwisted.errors import UwsgiError
from uwsgitwisted.wire.packet import Packet


class RequestReceived(NamedTuple):
    """A complete request has arrived.

    ``seconds`` is the time until its deadline, None for no limit. ``idempotent`` says whether it may run again
    if its worker dies.
    """

    id: int
    packet: Packet
    seconds: float | None
    idempotent: bool = False


class AnswerReceived(NamedTuple):
    """A complete answer has arrived. ``took`` is how long its handler ran, in seconds; 0 if not known."""

    id: int
    packet: Packet
    took: float


class ErrorReceived(NamedTuple):
    """The request has failed. ``took`` is as for an answer.

    ``peer`` is for an error of no request: a worker sends it for a request that it has accepted itself.
    """

    id: int
    error: UwsgiError
    took: float
    peer: str = ""


class CancelReceived(NamedTuple):
    """The peer has cancelled the request."""

    id: int


class RequestRefused(NamedTuple):
    """A request has begun to arrive, and there is no room for it. Its pieces are dropped."""

    id: int
    size: int


class ShutdownReceived(NamedTuple):
    """The peer drains: it accepts, or sends, no further requests. Those in flight will still be answered."""


class PingReceived(NamedTuple):
    """The peer checks whether this side is alive; the session has queued the answer."""


class PongReceived(NamedTuple):
    """The peer is alive."""


class StreamedRequestReceived(NamedTuple):
    """A request has arrived, and a stream follows it. ``seconds`` is the time until its deadline, or None."""

    id: int
    packet: Packet
    seconds: float | None


class StreamedAnswerReceived(NamedTuple):
    """An answer has begun: its payload is followed by a stream."""

    id: int
    packet: Packet


class DataReceived(NamedTuple):
    """Bytes of a stream. Grant the peer as many, when they are used."""

    id: int
    data: bytes


class EndReceived(NamedTuple):
    """A stream has ended. ``took`` is how long the handler ran, in seconds, at the end of an answer."""

    id: int
    took: float


class WindowGranted(NamedTuple):
    """The peer accepts further bytes of a stream."""

    id: int


Event = (
    RequestReceived
    | AnswerReceived
    | ErrorReceived
    | CancelReceived
    | RequestRefused
    | ShutdownReceived
    | PingReceived
    | PongReceived
    | StreamedRequestReceived
    | StreamedAnswerReceived
    | DataReceived
    | EndReceived
    | WindowGranted
)
