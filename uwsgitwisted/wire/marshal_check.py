"""Checks marshalled bytes before C's ``marshal.loads`` sees them.

C trusts its input: it builds code objects, allocates memory for any announced count before it reads on, and
follows references into unfinished containers. So this module walks over the type codes first, once, with a
stack of its own. The codes are those of CPython's ``Python/marshal.c``, in the versions 0 to 4 and in that of
Python 2.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from uwsgitwisted.errors import UnsafeObject
from uwsgitwisted.wire.key_check import FEW_KEYS, check_keys

#: How deep containers may be nested, with references followed. C's own limit is 2000 (1000 in some builds),
#: past which it raises or crashes; code that recurses over a value, such as ``repr`` or ``copy``, fails before
#: that.
MAX_DEPTH: Final = 100
#: How many bytes references may add to the value, as if it were written without them. They cost no memory here,
#: but a handler that walks, compares or writes the value faces its full size, and 40 references that each
#: contain the one before twice would make it 2**40. Sixteen MiB is a thousand times the same 16 KiB string.
MAX_SHARED: Final = 16 * 1024 * 1024

#: A sequence of at least this many items is compared as a whole before it is walked.
_MIN_RUN: Final = 4
#: In version 3 and later, this bit in a type code says that later bytes may refer to the value.
_FLAG: Final = 0x80

# The action of the walk at a type code. A number below _BYTES is the full width of a value.
_BYTES: Final = 32  # four bytes of length, then the content
_SHORT: Final = 33  # one byte of length, then the content
_SEQUENCE: Final = 34  # four bytes of count, then the items
_SET: Final = 35  # the same
_SMALL_TUPLE: Final = 36  # one byte of count, then the items
_DICT: Final = 37  # keys and values in turn, then _END
_END: Final = 38
_RARE: Final = 39  # see _Rare
_DONE: Final = 0

_unpack_length = struct.Struct("<I").unpack_from  # unsigned: a negative one is larger than any message
_unpack_count = struct.Struct("<i").unpack_from


def _kinds() -> tuple[int, ...]:
    """Return the action for each of the 256 type codes."""
    kinds = [_RARE] * 256
    for codes, kind in (
        (b"NTF", 1),
        (b"i", 5),
        (b"I", 9),  # written by Python 2 where a C long has 64 bits
        (b"g", 9),
        (b"y", 17),
        (b"su", _BYTES),
        (b"zZ", _SHORT),
        (b"([", _SEQUENCE),
        (b"<>", _SET),
        (b")", _SMALL_TUPLE),
        (b"{", _DICT),
        (b"0", _END),
    ):
        for code in codes:
            kinds[code] = kind
    return tuple(kinds)


_KINDS: Final = _kinds()
_CODES: Final = tuple(bytes((code,)) for code in range(256))
_INTERNED: Final = ord("t")
_INTERNED_REFERENCE: Final = ord("R")
_REFERENCE: Final = ord("r")
_STRINGS: Final = frozenset(b"sutaAzZR")
_FLAGGED_BYTES: Final = ord("s") | _FLAG
_REFUSED: Final = {
    ord("c"): "a code object",
    ord("S"): "StopIteration",
    ord("."): "Ellipsis",
    ord(":"): "a slice",
    ord("0"): "the end of a dict where a value belongs",
}


def _unsafe(position: int, reason: str) -> UnsafeObject:
    return UnsafeObject(f"marshalled bytes refused at offset {position}: {reason}")


def _long_end(data: bytes, position: int) -> int:
    """Return the end of the int at *position*: 15-bit digits, the lowest first; the sign is in the count."""
    count: int = _unpack_count(data, position + 1)[0]
    start = position + 5
    end = start + 2 * abs(count)
    if end > len(data):
        raise _unsafe(position, f"an int announces {abs(count)} digits")
    if not data[start + 1 : end : 2].isascii():
        raise _unsafe(position, "a digit of an int has over 15 bits")
    if count and not (data[end - 1] or data[end - 2]):
        raise _unsafe(position, "the highest digit of an int is 0")
    return end


def _fixed_end(data: bytes, position: int) -> int:
    return position + _KINDS[data[position] & ~_FLAG]


def _bytes_end(data: bytes, position: int) -> int:
    return position + 5 + int(_unpack_length(data, position + 1)[0])


def _short_end(data: bytes, position: int) -> int:
    return position + 2 + data[position + 1]


def _complex_end(data: bytes, position: int) -> int:
    # Two numbers as text; only the first has the type code.
    return _short_end(data, _short_end(data, position) - 1)


#: Return the end of a value without items. None, True and False are missing: a flag has no meaning for them.
_ENDS: Final[dict[int, Callable[[bytes, int], int]]] = {
    **dict.fromkeys(b"iIgy", _fixed_end),
    **dict.fromkeys(b"sutaA", _bytes_end),
    **dict.fromkeys(b"zZf", _short_end),
    ord("x"): _complex_end,
    ord("l"): _long_end,
}


class _Open(NamedTuple):
    """An unfinished container that later bytes may refer to."""

    depth: int
    number: int
    start: int
    deepest: int


class _Rare:
    """The type codes that most streams don't have: rare numbers, references, interned strings of Python 2.

    References of versions 3 and 4 count the flagged values in the order of their first bytes; those of Python 2
    count its interned strings. No stream has both.
    """

    __slots__ = (
        "_data",
        "_deepest",
        "_depth_limit",
        "_heights",
        "_interned",
        "_interned_references",
        "_modern",
        "_open",
        "_shared",
        "_shared_limit",
        "_sizes",
        "refers_to_containers",
    )

    def __init__(self, data: bytes, depth_limit: int, shared_limit: int) -> None:
        self._data = data
        self._depth_limit = depth_limit
        self._shared_limit = shared_limit
        self._shared = 0  # the bytes that references added
        self._sizes: list[int] = []  # of the flagged values; 0 while one is unfinished
        self._heights: dict[int, int] = {}  # of the containers among them: how many deep they are
        self._open: list[_Open] = []
        self._deepest = 0  # the depth reached since the start of the innermost of those
        self._modern = False  # whether there was a code of version 3 or 4
        self._interned: list[int] = []
        self._interned_references: list[int] = []
        #: Whether a reference is to a container.
        self.refers_to_containers = False

    def take(self, code: int, position: int, depth: int) -> tuple[int, int]:
        """Step over the value at *position*, which is inside *depth* containers.

        :return: its end and ``_DONE``; or, for a container, its start and its kind.
        """
        find_end = _ENDS.get(code & ~_FLAG)
        if code & _FLAG:
            self._modern = True
            kind = _KINDS[code ^ _FLAG]
            if _SEQUENCE <= kind <= _DICT:
                self._open.append(_Open(depth + 1, len(self._sizes), position + self._shared, self._deepest))
                self._sizes.append(0)
                self._deepest = depth + 1
                return position, kind
            if find_end is not None:
                end = find_end(self._data, position)
                self._sizes.append(end - position)
                return end, _DONE
        elif code == _REFERENCE:
            return self._take_reference(position, depth), _DONE
        elif code == _INTERNED_REFERENCE:
            return self._take_interned_reference(position), _DONE
        elif code == _INTERNED:
            self._interned.append(position)
        elif code in b"aA":
            self._modern = True
        if find_end is None:
            reason = _REFUSED.get(code & ~_FLAG, "not a value that is accepted")
            raise _unsafe(position, f"{reason} (type code 0x{code:02x})")
        return find_end(self._data, position), _DONE

    def enter(self, depth: int) -> None:
        """Record that the walk is now inside *depth* containers."""
        if depth > self._deepest:
            self._deepest = depth

    def leave(self, depth: int, position: int) -> None:
        """Record that the container at *depth* ended at *position*."""
        if self._open and self._open[-1].depth == depth:
            _, number, start, deepest = self._open.pop()
            self._sizes[number] = position + self._shared - start
            self._heights[number] = self._deepest - depth + 1
            self.enter(deepest)

    def _take_reference(self, position: int, depth: int) -> int:
        self._modern = True
        (index,) = _unpack_length(self._data, position + 1)
        if index >= len(self._sizes):
            raise _unsafe(position, f"a reference to value {index} of {len(self._sizes)}")
        size = self._sizes[index]
        if not size:
            raise _unsafe(position, "a reference to a container from within")
        height = self._heights.get(index, 0)
        if height:
            self.refers_to_containers = True
        depth += height
        if depth > self._depth_limit:
            raise _unsafe(position, f"nested deeper than {self._depth_limit} levels, through a reference")
        self.enter(depth)
        self._share(position, size)
        return position + 5

    def _take_interned_reference(self, position: int) -> int:
        (index,) = _unpack_length(self._data, position + 1)
        if index >= len(self._interned):
            raise _unsafe(position, f"a reference to interned string {index} of {len(self._interned)}")
        self._interned_references.append(position)
        start = self._interned[index]
        self._share(position, _bytes_end(self._data, start) - start)
        return position + 5

    def _share(self, position: int, size: int) -> None:
        self._shared += size
        if self._shared > self._shared_limit:
            raise _unsafe(position, f"references add more than {self._shared_limit} bytes")

    def rewrite(self, modern: bool) -> bytes:
        """Return the bytes with the interned strings of Python 2 in a form that Python 3 reads as bytes.

        Python 3 reads a ``t`` as text and doesn't have ``R``. A flagged ``s`` and an ``r`` have the same
        meaning and size. Up to 3.11, Python 3 could write an unflagged ``t`` for text too, but hardly ever
        without any code that Python 2 doesn't have.

        :param modern: whether the walk itself has found such codes.
        """
        if not self._interned:
            return self._data
        if not (self._modern or modern):
            rewritten = bytearray(self._data)
            for position in self._interned:
                rewritten[position] = _FLAGGED_BYTES
            for position in self._interned_references:
                rewritten[position] = _REFERENCE
            return bytes(rewritten)
        if self._interned_references:
            raise _unsafe(self._interned_references[0], "a reference of Python 2 among codes of Python 3")
        return self._data


def _is_run(data: bytes, position: int, count: int) -> bool:
    """Return whether *count* values of one code and width, such as ints, start at *position*.

    This is one comparison in C. Its cost is bounded by the bytes that *count* announces, which must be present.
    """
    code = data[position]
    width = _KINDS[code]
    return width < _BYTES and data[position : position + count * width : width] == _CODES[code] * count


#: The exceptions of a read past the end.
OVERRUN: Final = (IndexError, struct.error)


def walk(  # noqa: C901 - calls would double its time
    data: bytes, depth_limit: int, shared_limit: int, *, plain: bool = False
) -> bytes:
    """Walk over all of *data*; return it in the form for C's ``loads``.

    The steps don't check for a position past the end: reading there raises one of :data:`OVERRUN`.

    :param plain: whether to refuse sets, and containers as keys.
    """
    size = len(data)
    position = owed = 0  # owed: how many values the containers around the innermost still need
    left = 1  # how many the innermost needs; in a dict it counts down from -1
    outer: list[int] = []  # the same for the containers around it
    risky = 0  # an upper bound of the number of keys and members that are not strings
    modern = False
    rare: _Rare | None = None
    while True:
        while left:
            left -= 1
            code = data[position]
            kind = _KINDS[code]
            if kind < _BYTES:
                position += kind
                if left < 0 and not left & 1:
                    risky += 1
                continue
            if kind == _BYTES:
                position += 5 + _unpack_length(data, position + 1)[0]
                continue
            if kind == _SHORT:
                position += 2 + data[position + 1]
                modern = True
                continue
            if kind == _END and left < 0 and not left & 1:
                position += 1
                break
            if kind >= _END:
                rare = rare or _Rare(data, depth_limit, shared_limit)
                position, kind = rare.take(code, position, len(outer))
                if kind == _DONE:
                    if left < 0 and not left & 1 and code & ~_FLAG not in _STRINGS:
                        risky += 1
                    continue
            if left < 0 and not left & 1:
                risky += 1
                if plain:
                    raise _unsafe(position, "a container as a key")
            outer.append(left)
            if len(outer) > depth_limit:
                raise _unsafe(position, f"nested deeper than {depth_limit} levels")
            if rare:
                rare.enter(len(outer))
            if left > 0:
                owed += left
            if kind == _DICT:
                left = -1
                position += 1
                continue
            if kind != _SMALL_TUPLE:
                left = _unpack_length(data, position + 1)[0]
                position += 5
                if kind == _SET:
                    risky += left
                    if plain:
                        raise _unsafe(position, "a set")
            else:
                left = data[position + 1]
                position += 2
                modern = True
            if left + owed > size - position:
                raise _unsafe(
                    position, f"{left} items announced where {max(size - position - owed, 0)} can follow"
                )
            if left >= _MIN_RUN and _is_run(data, position, left):
                position += left * _KINDS[data[position]]
                break
        if not outer:
            break
        if rare:
            rare.leave(len(outer), position)
        left = outer.pop()
        if left > 0:
            owed -= left
    if position > size:
        raise _unsafe(size, "the bytes end within a value")
    if position < size:
        raise _unsafe(position, f"{size - position} bytes follow the value")
    checked = rare.rewrite(modern) if rare else data
    if risky > FEW_KEYS or (risky and rare and rare.refers_to_containers):
        check_keys(checked)
    return checked


def overrun(data: bytes) -> UnsafeObject:
    """Return the error for one of :data:`OVERRUN`."""
    return _unsafe(len(data), "the bytes end within a value")
