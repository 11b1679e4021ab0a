"""The terms of a session: what each side takes, and how a session is offered and granted.

The client's first packet, a ping, offers one in its payload; a ping's answer grants it there. Every other
server ignores the payload of a ping, so that the offer costs nothing where it isn't understood.
"""

from __future__ import annotations

from dataclasses import dataclass

from uwsgitwisted.errors import ProtocolError
from uwsgitwisted.wire.packet import PING, Packet, encode_packet
from uwsgitwisted.wire.vars import decode_vars, encode_vars

#: The largest message that is taken, in bytes, unless the owner sets another limit.
MAX_MESSAGE = 64 * 1024 * 1024
#: How many requests a server works on for one session before it stops reading from it.
MAX_REQUESTS = 1_000

#: Seconds for which a peer that answered an offer as plain uwsgi does is not offered a session again, and one
#: that did not answer it at all: it may be another kind of server, or ours in a bad moment.
PLAIN_FOR, SILENT_FOR = 300.0, 15.0
#: Seconds that an offer waits for its answer: a uWSGI whose only worker is busy gives none.
OFFER_TIMEOUT = 2.0

#: Seconds of silence after which a client that waits for answers pings the server; after as many more it takes
#: the server for dead. A busy one answers at once, so that only one that hangs, or is cut off, is given up.
KEEPALIVE = 5.0

#: How much of a peer's name is kept, in bytes, and how many digits a number may have.
_MAX_NODE, _MAX_DIGITS = 255, 20

_VERSION = b"1"
_VERSION_KEY = b"uwsgi-session"


@dataclass(frozen=True, slots=True)
class Terms:
    """What one side of a session takes from the other.

    :param max_message: the largest message, in bytes; also the most that unfinished messages may announce
        together.
    :param max_requests: how many requests it works on at once.
    :param node: its name, for error texts and logs.
    """

    max_message: int = MAX_MESSAGE
    max_requests: int = MAX_REQUESTS
    node: str = ""

    def encode(self) -> bytes:
        """Return the payload of the ping that offers or grants a session on these terms."""
        return encode_vars(
            [
                (_VERSION_KEY, _VERSION),
                (b"max-message", self.max_message),
                (b"max-requests", self.max_requests),
                (b"node", self.node),
            ]
        )

    @classmethod
    def decode(cls, payload: bytes) -> Terms | None:
        """Return the terms in a ping's payload, or None if it has none, as a real uWSGI's warning message.

        Terms under which nothing could be asked are none.
        """
        try:
            told = decode_vars(payload)
            if told.get(_VERSION_KEY) != _VERSION:
                return None
            return cls(
                max_message=_number(told[b"max-message"]),
                max_requests=_number(told[b"max-requests"]),
                node=told.get(b"node", b"")[:_MAX_NODE].decode("utf-8", "replace"),
            )
        except (ProtocolError, KeyError, ValueError):
            return None


def encode_offer(ours: Terms) -> bytes:
    """Return the bytes that offer a session."""
    return encode_packet(Packet(PING, 0, ours.encode()))


def encode_grant(ours: Terms) -> bytes:
    """Return the bytes that grant one."""
    return encode_packet(Packet(PING, 1, ours.encode()))


def decode_offer(packet: Packet) -> Terms | None:
    """Return the terms of the peer that offers a session with *packet*, or None if it does not."""
    return Terms.decode(packet.payload) if packet[:2] == (PING, 0) else None


def decode_grant(packet: Packet) -> Terms | None:
    """Return the terms of the peer that grants a session with *packet*, or None if it does not.

    One that only echoes what it gets has sent back our offer, which is not the same.
    """
    return Terms.decode(packet.payload) if packet[:2] == (PING, 1) else None


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > _MAX_DIGITS or not int(text):
        raise ValueError(f"{text[:_MAX_DIGITS]!r} is no number from 1")
    return int(text)
