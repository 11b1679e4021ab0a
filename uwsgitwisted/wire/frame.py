"""The layout of a session's frames: their kinds, their heads and the sizes of pieces."""

from __future__ import annotations

import struct

from uwsgitwisted.wire.packet import MAX_PAYLOAD

REQUEST, ANSWER, ERROR, MORE, CANCEL, SHUTDOWN, IDEMPOTENT = range(1, 8)

#: A frame that begins a message: the packet's header (modifier1 34, size, kind), then what BEGIN has.
FRAME = struct.Struct("<BHBIBBII")
#: The request's id, the message's modifiers, its whole size, and a time: for a request the milliseconds that
#: its sender goes on waiting (0 = no limit), for an answer the microseconds that its handler took.
BEGIN = struct.Struct("<IBBII")
#: A frame about a message that has begun: the packet's header, then the request's id.
SHORT_FRAME = struct.Struct("<BHBI")
ID = struct.Struct("<I")

#: The most of a message that its first frame, and each later one, takes.
FIRST_PIECE = MAX_PAYLOAD - BEGIN.size
NEXT_PIECE = MAX_PAYLOAD - ID.size

#: The least that a frame brings of a message that it doesn't finish, so that what it costs to take a piece
#: stays small beside the piece.
MIN_PIECE = 4_096
