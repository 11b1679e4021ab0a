"""Frames of a session, as docs/protocol.md has them, whether they make sense or not."""

from __future__ import annotations

import struct

from uwsgitwisted.wire.packet import PING, SESSION, Packet, encode_packet

REQUEST, ANSWER, ERROR, MORE, CANCEL, SHUTDOWN, IDEMPOTENT = range(1, 8)
#: The most of a message that its first frame takes, and each later one.
FIRST_PIECE, NEXT_PIECE = 65_521, 65_531


def frame(kind: int, payload: bytes = b"") -> bytes:
    """Return any frame."""
    return encode_packet(Packet(SESSION, kind, payload))


def begin(
    identifier: int,
    piece: bytes = b"",
    *,
    size: int | None = None,
    kind: int = REQUEST,
    modifiers: tuple[int, int] = (33, 17),
    time: int = 0,
) -> bytes:
    """Return the frame that begins a message.

    :param size: of the whole message; None for that of its piece.
    """
    size = len(piece) if size is None else size
    return frame(kind, struct.pack("<IBBII", identifier, *modifiers, size, time) + piece)


def more(identifier: int, piece: bytes) -> bytes:
    """Return the frame of a further piece."""
    return frame(MORE, struct.pack("<I", identifier) + piece)


def cancel(identifier: int) -> bytes:
    """Return the frame that cancels a request."""
    return frame(CANCEL, struct.pack("<I", identifier))


def message(identifier: int, payload: bytes, modifiers: tuple[int, int] = (33, 17)) -> bytes:
    """Return all frames of a request."""
    frames = [begin(identifier, payload[:FIRST_PIECE], size=len(payload), modifiers=modifiers)]
    starts = range(FIRST_PIECE, len(payload), NEXT_PIECE)
    frames += [more(identifier, payload[start : start + NEXT_PIECE]) for start in starts]
    return b"".join(frames)


def ping(modifier2: int = 0) -> bytes:
    """Return a ping, or with modifier2 1 its answer."""
    return encode_packet(Packet(PING, modifier2))
