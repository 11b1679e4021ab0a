"""Refuses dict keys and set members that were chosen to collide in CPython's hash tables.

The hashes of str and bytes are keyed at random in each process (unless ``PYTHONHASHSEED`` prevents it), so that
no peer can choose them. Those of numbers, and of tuples and frozensets of numbers, are not. Keys of equal hash
are one way to make a table slow. Another needs no equal hashes: a probe sequence has used up a hash after a
dozen steps, and all keys that reach the same slot then follow the same path. Either way, each insertion passes
all earlier keys, and n keys cost n squared steps.

So this module simulates the insertion, with the hashes and table sizes of the real one. It gives up as soon as
the steps exceed a limit in proportion to the keys. The bytes have already passed the walk in
:mod:`~uwsgitwisted.wire.marshal_check`.
"""

from __future__ import annotations

import marshal
import struct
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from uwsgitwisted.errors import UnsafeObject

#: A container with up to this many keys is not checked: each key is compared with few others.
FEW_KEYS: Final = 16
#: How many keys of equal hash and size a key may be compared with on average. Harmless keys can have equal
#: hashes: hash(-1) is hash(-2), so the 8 points whose 3 coordinates are -1 or -2 have one hash.
COMPARISONS_PER_KEY: Final = 8
#: How many nested sets may be members: as many as ``dumps`` writes, and the one around them.
MAX_KEY_DEPTH: Final = 6
#: How many extra steps the first keys may take.
_SLACK: Final = 2_000
#: Distinct numbers in a range of up to this many times their count have a slot each, or nearly so.
_DENSE: Final = 4
#: How many bytes references to containers may add to the keys of a message, in addition to the message's own
#: size.
MAX_KEY_SHARED: Final = 65_536

_FLAG: Final = 0x80
_REFERENCE: Final = ord("r")
_LIST, _SET, _DICT = range(3)
#: The containers: what kind it is, and the number of bytes in front of its items.
_CONTAINERS: Final = {
    ord("("): (_LIST, 5),
    ord("["): (_LIST, 5),
    ord(")"): (_LIST, 2),
    ord("<"): (_SET, 5),
    ord(">"): (_SET, 5),
    ord("{"): (_DICT, 1),
}
#: The widths of unflagged numbers, by type code; 0 for everything else.
_WIDTHS: Final = tuple(
    {ord("i"): 5, ord("I"): 9, ord("g"): 9, ord("y"): 17}.get(code, 0) for code in range(256)
)
#: The widths of the other values of a fixed size.
_OTHER_WIDTHS: Final = {**dict.fromkeys(b"NTF0", 1), ord("r"): 5}
#: The types of keys that no peer can choose to collide, and None, True and False, of which there are only
#: three.
_SAFE: Final = frozenset(b"sutaAzZNTF")
_unpack_length = struct.Struct("<I").unpack_from
_unpack_count = struct.Struct("<i").unpack_from


def _end_of(data: bytes, position: int) -> int:
    """Return the end of the value at *position*, which is not a container."""
    code = data[position] & ~_FLAG
    width = _WIDTHS[code] or _OTHER_WIDTHS.get(code)
    if width:
        return position + width
    if code in b"zZf":
        return position + 2 + data[position + 1]
    if code == ord("x"):
        imaginary = position + 2 + data[position + 1]
        return imaginary + 1 + data[imaginary]
    if code == ord("l"):
        return position + 5 + 2 * abs(int(_unpack_count(data, position + 1)[0]))
    return position + 5 + int(_unpack_length(data, position + 1)[0])


class _Container:
    """An unfinished container.

    :param start: its position.
    :param left: how many of its items are left; in a dict this counts down from -1.
    :param as_key: whether it is a key itself.
    :param key_depth: how many keys enclose it.
    :param reference: its number among the values that can be referred to; None if it can't.
    """

    __slots__ = ("as_key", "key_depth", "keys", "kind", "left", "reference", "risky", "start")

    def __init__(
        self, kind: int, start: int, left: int, as_key: bool, key_depth: int, reference: int | None
    ) -> None:
        self.kind = kind
        self.start = start
        self.left = left
        self.as_key = as_key
        self.key_depth = key_depth
        self.reference = reference
        #: The start and end of each key, in turn.
        self.keys: list[int] = []
        #: How many of its keys can be chosen to collide.
        self.risky = 0

    @property
    def at_key(self) -> bool:
        """Whether the last counted item is a key."""
        return self.kind == _SET or (self.kind == _DICT and not self.left & 1)

    def add(self, start: int, end: int, safe: bool) -> None:
        """Add a key."""
        self.keys += (start, end)
        self.risky += not safe


class _References:
    """The values that can be referred to, in the order of their positions, and the references to them."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._spans: list[tuple[int, int]] = []
        #: How many bytes each value would gain if its references were written out; -1 for an atom.
        self._added: list[int] = []
        self._tokens: list[int] = []
        self._in_keys = 0

    def begin(self, start: int, end: int = 0) -> int:
        """Add a value; return its number.

        :param end: its end; 0 for a container, whose end follows later.
        """
        self._spans.append((start, end))
        self._added.append(-1)
        return len(self._spans) - 1

    def end(self, number: int, end: int) -> None:
        """Record the end of a container."""
        start = self._spans[number][0]
        self._spans[number] = start, end
        self._added[number] = sum(self._size_of(token) - 5 for token in self._within(start, end))

    def refer(self, position: int, *, in_key: bool) -> None:
        """Add a reference.

        :raises UnsafeObject: if references to containers add too much to keys. A comparison of keys visits each
            of their values as often as it occurs.
        """
        self._tokens.append(position)
        if in_key and self._added[self._number_of(position)] >= 0:
            self._in_keys += self._size_of(position)
            if self._in_keys > MAX_KEY_SHARED + len(self._data):
                raise UnsafeObject(
                    f"marshalled bytes refused at offset {position}: references add more than "
                    f"{MAX_KEY_SHARED + len(self._data)} bytes to keys"
                )

    def written_out(self, start: int, end: int) -> bytes:
        """Return the bytes from *start* to *end* with each reference replaced by its value."""
        pieces = []
        for token in self._within(start, end):
            pieces.append(self._data[start:token])
            pieces.append(self.written_out(*self._spans[self._number_of(token)]))
            start = token + 5
        pieces.append(self._data[start:end])
        return b"".join(pieces)

    def _within(self, start: int, end: int) -> Iterator[int]:
        tokens = self._tokens
        for index in range(bisect_left(tokens, start), bisect_left(tokens, end)):
            yield tokens[index]

    def _number_of(self, token: int) -> int:
        return int(_unpack_length(self._data, token + 1)[0])

    def _size_of(self, token: int) -> int:
        number = self._number_of(token)
        start, end = self._spans[number]
        return end - start + max(self._added[number], 0)


def check_keys(data: bytes) -> None:  # noqa: C901 - one loop, as the walk
    """Check that inserting the keys of each dict and set in *data* takes time linear in their number and bytes.

    :param data: one marshalled value that has passed the walk.
    :raises UnsafeObject: if it doesn't, or if keys are nested too deeply within keys.
    """
    references = _References(data)
    outer: list[_Container] = []
    inner = _Container(_LIST, 0, 1, False, 0, None)
    position = 0
    while True:
        while inner.left:
            code = data[position]
            width = _WIDTHS[code]
            if width:  # most numbers; most of the time for a large dict is spent here
                inner.left -= 1
                if inner.kind == _SET or (inner.kind == _DICT and not inner.left & 1):
                    inner.keys += (position, position + width)
                    inner.risky += 1
                position += width
                continue
            inner.left -= 1
            if code & ~_FLAG in _CONTAINERS:
                outer.append(inner)
                inner, position = _open(data, position, inner, references)
                continue
            start = position
            position = _end_of(data, start)
            if code == ord("0"):
                break
            _take_atom(data, start, position, inner, references)
        if inner.risky > FEW_KEYS:
            _check_container(inner, references)
        if not outer:
            return
        if inner.reference is not None:
            references.end(inner.reference, position)
        ended, inner = inner, outer.pop()
        if ended.as_key:
            inner.add(ended.start, position, False)


def _take_atom(data: bytes, start: int, end: int, container: _Container, references: _References) -> None:
    """Record a value that is not a container, if it is a key, a reference, or can be referred to."""
    code = data[start] & ~_FLAG
    if data[start] & _FLAG:
        references.begin(start, end)
    elif code == _REFERENCE:
        references.refer(start, in_key=container.at_key or container.key_depth > 0)
    if container.at_key:
        container.add(start, end, code in _SAFE)


def _open(data: bytes, start: int, outer: _Container, references: _References) -> tuple[_Container, int]:
    """Return the container at *start*, and the position of its first item."""
    kind, head = _CONTAINERS[data[start] & ~_FLAG]
    left = -1 if kind == _DICT else int.from_bytes(data[start + 1 : start + head], "little")
    number = references.begin(start) if data[start] & _FLAG else None
    key_depth = outer.key_depth + outer.at_key
    if key_depth >= MAX_KEY_DEPTH:
        raise UnsafeObject(f"marshalled bytes refused at offset {start}: a key within {MAX_KEY_DEPTH} keys")
    return _Container(kind, start, left, outer.at_key, key_depth, number), start + head


def _check_container(container: _Container, references: _References) -> None:
    positions = iter(container.keys)
    keys = [references.written_out(start, end) for start, end in zip(positions, positions, strict=True)]
    joined = b"".join((b"(", struct.pack("<I", len(keys)), *keys))
    try:
        hashes = list(map(hash, marshal.loads(joined)))  # noqa: S302 - they have passed the walk
    except (TypeError, ValueError) as error:  # invalid text, or a list or dict among the keys
        raise UnsafeObject(f"marshalled bytes refused by Python: {error}") from error
    if max(hashes) - min(hashes) < _DENSE * len(hashes) and len(set(hashes)) == len(hashes):
        return
    table = SET_TABLE if container.kind == _SET else DICT_TABLE
    if not fits(table, hashes, list(map(len, keys))):
        raise UnsafeObject(
            f"marshalled bytes refused at offset {container.start}: its {len(keys)} keys were chosen to collide"
        )


#: Puts a key into a slot: ``(used, hashes, sizes, index, budget)`` returns the rest of *budget*, which is
#: negative if it gave up. Each slot of *used* has the index of its key, or -1. The first slot of the key's
#: probe sequence is not free. *sizes* is empty if the key is known to differ from the others.
_Place = Callable[[list[int], Sequence[int], Sequence[int], int, int], int]


class Table(NamedTuple):
    """How one of CPython's hash tables grows and probes.

    :param place: puts a key into a slot.
    :param capacity: how many keys fit into a number of slots before the table grows.
    :param grown: the least number of slots that it then has, for a number of keys.
    :param steps: how many used slots a key may probe on average. Random keys take one or two; numbers with
        dozens of low bits in common, such as multiples of 2**44 or times with millisecond precision, take half
        as many as this.
    """

    place: _Place
    capacity: Callable[[int], int]
    grown: Callable[[int], int]
    steps: int


def _place_in_dict(
    used: list[int], hashes: Sequence[int], sizes: Sequence[int], index: int, budget: int
) -> int:
    mask, key_hash = len(used) - 1, hashes[index]
    perturb = key_hash & _UNSIGNED
    slot = perturb & mask
    while (other := used[slot]) >= 0 and budget >= 0:
        budget -= 1
        if sizes and hashes[other] == key_hash:
            budget -= min(sizes[index], sizes[other]) // _COMPARED
        perturb >>= 5
        slot = (slot * 5 + perturb + 1) & mask
    used[slot] = index
    return budget


def _place_in_set(used: list[int], hashes: Sequence[int], sizes: Sequence[int], index: int, budget: int) -> int:
    """Put a key into a slot of a set, which probes some neighbours before each jump."""
    mask, key_hash = len(used) - 1, hashes[index]
    perturb = key_hash & _UNSIGNED
    slot = perturb & mask
    while budget >= 0:
        for near in range(slot, slot + (_NEIGHBOURS + 1 if slot + _NEIGHBOURS <= mask else 1)):
            if (other := used[near]) < 0:
                used[near] = index
                return budget
            budget -= 1
            if sizes and hashes[other] == key_hash:
                budget -= min(sizes[index], sizes[other]) // _COMPARED
        perturb >>= 5
        slot = (slot * 5 + perturb + 1) & mask
    return budget


#: How many bytes of a key can be compared in roughly the time of one probe.
_COMPARED: Final = 4
_UNSIGNED: Final = 0xFFFF_FFFF_FFFF_FFFF
_NEIGHBOURS: Final = 9
# ``Objects/dictobject.c`` and ``Objects/setobject.c``, which are the same in CPython 3.10 to 3.13.
DICT_TABLE: Final = Table(_place_in_dict, lambda slots: slots * 2 // 3, lambda keys: keys * 3, 96)
SET_TABLE: Final = Table(
    _place_in_set,
    lambda slots: -(-(slots - 1) * 3 // 5),
    lambda keys: keys * (2 if keys > 50_000 else 4) + 1,
    384,
)


def fits(table: Table, hashes: Sequence[int], sizes: Sequence[int]) -> bool:
    """Return whether the insertion of keys into a new *table* stays within its budget of steps at every key.

    A step is a probe of a used slot. A comparison of two keys of equal hash takes one more step for every
    ``_COMPARED`` bytes of the shorter key.

    :param hashes: of the keys, in the order in which they are inserted.
    :param sizes: how many bytes each key has.
    """
    start, slots, budget = 0, 8, _SLACK
    while start < len(hashes):
        used = [-1] * slots
        end = min(table.capacity(slots), len(hashes))
        for index in range(end):
            slot = hashes[index] & (slots - 1)
            if index >= start:
                budget += table.steps + COMPARISONS_PER_KEY * sizes[index]
            if used[slot] < 0:
                used[slot] = index
                continue
            # Keys that a smaller table had are known to differ.
            budget = table.place(used, hashes, sizes if index >= start else (), index, budget)
            if budget < 0:
                return False
        start = end
        while slots < table.grown(start):
            slots *= 2
    return True
