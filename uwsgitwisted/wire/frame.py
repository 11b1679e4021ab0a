"""The layout of a session's frames: their kinds, heads and sizes."""

from __future__ import annotations

import struct

from uwsgitwisted.wire.packet import MAX_PAYLOAD

REQUEST, ANSWER, ERROR, MORE, CANCEL, SHUTDOWN, IDEMPOTENT = range(1, 8)
#: Those of streams; see :mod:`uwsgitwisted.wire.streams`.
STREAMED_REQUEST, STREAMED_ANSWER, DATA, END, WINDOW = range(8, 13)

#: The first frame of a message: the packet's header (modifier1 34, size, kind), then the fields of BEGIN.
FRAME = struct.Struct("<BHBIBBII")
#: The request's id, the message's modifiers, its size, and a time: for a request, the milliseconds until its
#: deadline (0 for none); for an answer, the microseconds for which the handler ran.
BEGIN = struct.Struct("<IBBII")
#: Any later frame of a request: the packet's header, then the request's id.
SHORT_FRAME = struct.Struct("<BHBI")
ID = struct.Struct("<I")
#: A frame of a stream's end or window: the packet's header, the request's id and a number.
PAIR_FRAME = struct.Struct("<BHBII")
PAIR = struct.Struct("<II")

#: The most bytes of a message in its first frame, and in each later one.
FIRST_PIECE = MAX_PAYLOAD - BEGIN.size
NEXT_PIECE = MAX_PAYLOAD - ID.size

#: The fewest bytes of a piece that isn't the last one, so that the cost of handling a piece stays small.
MIN_PIECE = 4_096
