"""The terms of a session: each side's limits, and how a session is offered and granted.

The client's first packet is a ping whose payload offers a session; the payload of the server's answer grants
it. Any other server ignores a ping's payload, so the offer costs nothing if the server doesn't understand it.
"""

from __future__ import annotations

from dataclasses import dataclass

from uwsgitwisted.errors import ProtocolError
from uwsgitwisted.wire.bundle import MAX_BUNDLE
from uwsgitwisted.wire.packet import PING, Packet, encode_packet
from uwsgitwisted.wire.vars import decode_vars, encode_vars

#: The default limit of a message, in bytes.
MAX_MESSAGE = 64 * 1024 * 1024
#: How many requests a server works on for one session before it stops reading from it.
MAX_REQUESTS = 1_000

#: How many bytes of a stream ours accepts before they are used.
STREAM_WINDOW = 256 * 1024

#: Seconds until a peer is offered a session again: after a plain uwsgi answer to an offer, and after no answer,
#: which may come from another kind of server, or from ours in a bad moment.
PLAIN_FOR, SILENT_FOR = 300.0, 15.0
#: Seconds to wait for the answer to an offer: a uWSGI whose only worker is busy doesn't answer.
OFFER_TIMEOUT = 2.0

#: Seconds of silence after which a client with requests in flight pings the server; after as many more it
#: treats the server as dead. A busy server answers at once, so this only affects one that hangs or is cut off.
KEEPALIVE = 5.0

#: How much of a peer's name is kept, in bytes, and how many digits a number may have.
_MAX_NODE, _MAX_DIGITS = 255, 20

_VERSION = b"1"
_VERSION_KEY = b"uwsgi-session"
_WINDOW_KEY = b"window"
_WORKERS_KEY = b"workers"
_BUNDLE_KEY = b"bundle"
#: A side that accepts no larger messages gets no bundles: the answer to one may need so much room.
_LEAST_FOR_BUNDLES = 1 << 20


@dataclass(frozen=True, slots=True)
class Terms:
    """What one side of a session accepts from the other.

    :param max_message: the largest message, in bytes; also the most that unfinished messages may announce
        together.
    :param max_requests: how many requests this side runs at once.
    :param node: the name of this side, for error texts and logs.
    :param window: how many bytes of a stream may be on their way to this side; 0 if it accepts no streams. See
        :mod:`uwsgitwisted.wire.streams`.
    :param workers: how many requests really run at the same time, while the others wait; 0 if it doesn't say.
    :param bundle: how many objects it accepts in a bundle; 0 if it accepts none. See
        :mod:`uwsgitwisted.wire.bundle`.
    """

    max_message: int = MAX_MESSAGE
    max_requests: int = MAX_REQUESTS
    node: str = ""
    window: int = 0
    workers: int = 0
    bundle: int = 0

    def encode(self) -> bytes:
        """Return the payload of the ping that offers or grants a session on these terms."""
        numbers = {_WINDOW_KEY: self.window, _WORKERS_KEY: self.workers, _BUNDLE_KEY: self.bundle}
        return encode_vars(
            [
                (_VERSION_KEY, _VERSION),
                (b"max-message", self.max_message),
                (b"max-requests", self.max_requests),
                (b"node", self.node),
                *((key, number) for key, number in numbers.items() if number),
            ]
        )

    @classmethod
    def decode(cls, payload: bytes) -> Terms | None:
        """Return the terms in a ping's payload, or None if it has none.

        A real uWSGI answers with a warning message. Terms with a limit of 0, which would allow no request,
        count as none.
        """
        try:
            variables = decode_vars(payload)
            if variables.get(_VERSION_KEY) != _VERSION:
                return None
            return cls(
                max_message=_number(variables[b"max-message"]),
                max_requests=_number(variables[b"max-requests"]),
                node=variables.get(b"node", b"")[:_MAX_NODE].decode("utf-8", "replace"),
                window=_optional(variables.get(_WINDOW_KEY)),
                workers=_optional(variables.get(_WORKERS_KEY)),
                bundle=_optional(variables.get(_BUNDLE_KEY)),
            )
        except (ProtocolError, KeyError, ValueError):
            return None

    def bundle_from(self, client: Terms) -> int:
        """Return how many objects a bundle from *client* may have; 0 if it sends this side none.

        This side keeps the answer within its own limit, so that of the client must not be lower.
        """
        fits = _LEAST_FOR_BUNDLES <= self.max_message <= client.max_message
        return min(self.bundle, MAX_BUNDLE) if fits else 0


def encode_offer(ours: Terms) -> bytes:
    """Return the bytes that offer a session."""
    return encode_packet(Packet(PING, 0, ours.encode()))


def encode_grant(ours: Terms) -> bytes:
    """Return the bytes that grant a session."""
    return encode_packet(Packet(PING, 1, ours.encode()))


def decode_offer(packet: Packet) -> Terms | None:
    """Return the terms of the peer that offers a session with *packet*, or None if it does not."""
    return Terms.decode(packet.payload) if packet[:2] == (PING, 0) else None


def decode_grant(packet: Packet) -> Terms | None:
    """Return the terms of the peer that grants a session with *packet*, or None if it does not.

    An echo server sends our offer back, which is not a grant.
    """
    return Terms.decode(packet.payload) if packet[:2] == (PING, 1) else None


def _optional(text: bytes | None) -> int:
    return _number(text) if text else 0


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > _MAX_DIGITS or not int(text):
        raise ValueError(f"{text[:_MAX_DIGITS]!r} is not a number from 1")
    return int(text)
