"""The streams of a session: bytes of unknown number that follow a request's or an answer's message.

The body of a web request is one, and so is a page that is still being written. Each side grants the other a
*window*: so many bytes may be on their way in one stream before the receiver has used some and grants more. So
a stream of any length takes no more memory than its window.
"""

from __future__ import annotations

from collections.abc import Callable

from uwsgitwisted.errors import MalformedPacket, MisuseError
from uwsgitwisted.wire.events import DataReceived, EndReceived, WindowGranted
from uwsgitwisted.wire.frame import DATA, END, ID, NEXT_PIECE, PAIR, PAIR_FRAME, SHORT_FRAME, WINDOW
from uwsgitwisted.wire.packet import SESSION

#: A window is a u32.
_MAX_WINDOW = 0xFFFFFFFF
#: A window is granted again in so many parts, so that a sender need not wait for the next grant.
_PARTS = 4


class Streams:
    """The streams of one side of a session, by the ids of their requests.

    :param ours: the window that this side grants each stream, in bytes.
    :param theirs: the window that the peer grants; 0 if it accepts no streams.
    :param add_frame: queues a frame.
    """

    def __init__(self, ours: int, theirs: int, add_frame: Callable[[bytes], None]) -> None:
        self._ours = ours
        self._theirs = min(theirs, _MAX_WINDOW)
        self._add_frame = add_frame
        #: How many more bytes the peer may send.
        self._granted: dict[int, int] = {}
        #: How many bytes were used, and not granted again.
        self._used: dict[int, int] = {}
        #: How many more bytes this side may send.
        self._credit: dict[int, int] = {}
        #: What reads the frames of streams, by their kinds: of those that this side receives, and sends.
        self.readers: dict[int, Callable[[bytes, int], DataReceived | EndReceived | WindowGranted | None]] = {}
        if ours:
            self.readers |= {DATA: self._read_data, END: self._read_end}
        if theirs:
            self.readers[WINDOW] = self._read_window

    # Receiving

    def open_incoming(self, request: int) -> None:
        """Expect a stream behind the message with this id.

        :raises MalformedPacket: if one is still coming.
        """
        if request in self._granted:
            raise MalformedPacket(f"the stream of {request} begins twice")
        self._granted[request] = self._ours
        self._used[request] = 0

    def use(self, request: int, size: int) -> bool:
        """Note that *size* received bytes of a stream were used; grant them again, some at a time.

        :return: whether a grant was queued.
        """
        if request not in self._used:  # it has ended
            return False
        used = self._used[request] + size
        due = _PARTS * used >= self._ours
        if due:
            self.grant(request, used)
        self._used[request] = 0 if due else used
        return due

    def grant(self, request: int, size: int) -> None:
        """Let the peer send *size* more bytes of a stream, if it hasn't ended."""
        if request in self._granted:
            self._granted[request] += size
            self._add_pair(WINDOW, request, size)

    def _read_data(self, payload: bytes, _: int) -> DataReceived | None:
        if len(payload) <= ID.size:
            raise MalformedPacket("a stream's piece is empty")
        request: int = ID.unpack_from(payload)[0]
        left = self._granted.get(request)
        if left is None:  # it raced with a cancel, or with the answer
            return None
        size = len(payload) - ID.size
        if size > left:
            raise MalformedPacket(f"a stream has {size - left} bytes beyond its window")
        self._granted[request] = left - size
        return DataReceived(request, payload[ID.size :])

    def _read_end(self, payload: bytes, _: int) -> EndReceived | None:
        request, time = _pair_of(payload)
        self._used.pop(request, None)
        if self._granted.pop(request, None) is None:
            return None
        return EndReceived(request, time / 1_000_000)

    # Sending

    def open_outgoing(self, request: int) -> None:
        """Begin a stream behind the message with this id.

        :raises MisuseError: if the peer accepts no streams.
        """
        if not self._theirs:
            raise MisuseError("the peer accepts no streams")
        self._credit[request] = self._theirs

    def credit(self, request: int) -> int:
        """Return how many bytes of a stream may be sent now; 0 if it has ended."""
        return self._credit.get(request, 0)

    def send(self, request: int, data: bytes) -> None:
        """Queue bytes of a stream, at most as many as its credit. If the stream is forgotten, drop them."""
        if request not in self._credit:
            return
        self.spend(request, len(data))
        view = memoryview(data)
        for start in range(0, len(data), NEXT_PIECE):
            piece = view[start : start + NEXT_PIECE]
            head = SHORT_FRAME.pack(SESSION, ID.size + len(piece), DATA, request)
            self._add_frame(b"".join((head, piece)))

    def spend(self, request: int, size: int) -> None:
        """Count *size* bytes of a stream, which the caller sends by itself."""
        assert size <= self._credit[request], "beyond the window"
        self._credit[request] -= size

    def send_end(self, request: int, took: float = 0.0) -> None:
        """End a stream.

        :param took: how long the handler ran, in seconds, at the end of an answer.
        """
        if self._credit.pop(request, None) is not None:
            self._add_pair(END, request, min(int(took * 1_000_000), _MAX_WINDOW))

    def _read_window(self, payload: bytes, _: int) -> WindowGranted | None:
        request, size = _pair_of(payload)
        credit = self._credit.get(request)
        if credit is None:
            return None
        if credit + size > _MAX_WINDOW:
            raise MalformedPacket(f"a window of {credit + size} bytes")
        self._credit[request] = credit + size
        return WindowGranted(request)

    # Both

    def forget(self, request: int) -> None:
        """Forget the streams of a request that is answered or cancelled."""
        if self._granted or self._credit:
            self._granted.pop(request, None)
            self._used.pop(request, None)
            self._credit.pop(request, None)

    def _add_pair(self, kind: int, request: int, number: int) -> None:
        self._add_frame(PAIR_FRAME.pack(SESSION, PAIR.size, kind, request, number))


def _pair_of(payload: bytes) -> tuple[int, int]:
    if len(payload) < PAIR.size:
        raise MalformedPacket("a stream's frame ends within its head")
    request, number = PAIR.unpack_from(payload)
    return request, number
