"""Keys that were chosen to collide are refused in linear time; good ones of all kinds pass."""

from __future__ import annotations

import itertools
import marshal
import random
import struct
import sys
from collections.abc import Callable, Hashable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwsgitwisted.errors import UnsafeObject
from uwsgitwisted.wire.key_check import DICT_TABLE, FEW_KEYS, MAX_KEY_SHARED, SET_TABLE, Table, fits
from uwsgitwisted.wire.objects import dumps, loads

#: The modulus of the hashes of numbers, in 64-bit builds.
PRIME = (1 << 61) - 1
NUMBER = 3_000

COLLIDING: dict[str, Callable[[int], Hashable]] = {
    "ints": lambda n: n * PRIME + 7,
    "negative ints": lambda n: -n * PRIME - 7,
    "complex numbers": lambda n: complex(-1_000_003 * n, n),
    "tuples of ints": lambda n: (n * PRIME, 1),
    "tuples of tuples": lambda n: ((n * PRIME,), "text"),
    "frozensets": lambda n: frozenset([n * PRIME]),
    "ints and floats": lambda n: n * PRIME if n % 2 else float(n * PRIME),
}

_random = random.Random(1)
GOOD: dict[str, Iterable[Hashable]] = {
    "dense ids": range(20_000),
    "ids from a database": (_random.randrange(1, 1 << 31) for _ in range(20_000)),
    "64-bit ids": (_random.getrandbits(64) for _ in range(20_000)),
    "negative ints": range(-20_000, 0),
    "multiples of 2**16": range(0, 1 << 30, 1 << 16),
    "multiples of 2**32": range(0, 1 << 45, 1 << 32),
    "multiples of 2**20 plus 2**50": range(1 << 50, (1 << 50) + (1 << 34), 1 << 20),
    "powers of two": (1 << n for n in range(2_000)),
    "factorials": itertools.accumulate(range(1, 500), int.__mul__),
    "floats": (_random.random() for _ in range(10_000)),
    "whole floats": map(float, range(10_000)),
    "halves": (n / 2 for n in range(10_000)),
    "complex numbers": (complex(a, b) for a in range(100) for b in range(100)),
    "points": itertools.product(range(-10, 10), repeat=3),
    "points of -1 and -2": itertools.product((-1, -2), repeat=3),
    "intervals": ((n, n + 1) for n in range(10_000)),
    "pairs of texts": ((f"host{n}", "GET") for n in range(10_000)),
    "frozensets": (frozenset((n, n + 1)) for n in range(5_000)),
    "bits": (frozenset(bits) for bits in itertools.combinations(range(20), 3)),
    "stamps to a millisecond": (1_700_000_000 + n / 1_000 for n in range(50_000)),
    "multiples of 2**44": range(0, 50_000 << 44, 1 << 44),
    "mixed": (x for n in range(3_000) for x in (n, str(n), (n,), n + 0.5, b"%d" % n, None)),
}


def _as_dict(keys: Iterable[Hashable]) -> bytes:
    """Return the bytes of a dict with *keys*, put together without making that dict."""
    return b"{" + b"".join(marshal.dumps(key, 2) + b"N" for key in keys) + b"0"


def _as_set(keys: Iterable[Hashable]) -> bytes:
    members = [marshal.dumps(key, 2) for key in keys]
    return b"<" + struct.pack("<I", len(members)) + b"".join(members)


CONTAINERS = pytest.mark.parametrize("container", [_as_dict, _as_set])


class _CountedHashes(list[int]):
    """So many equal hashes, which know how far they were looked at."""

    def __init__(self, number: int) -> None:
        super().__init__([7] * number)
        self.highest = 0

    def __getitem__(self, index: int) -> int:  # type: ignore[override]
        self.highest = max(self.highest, index)
        return super().__getitem__(index)


@CONTAINERS
@pytest.mark.parametrize("key", COLLIDING.values(), ids=COLLIDING)
def test_equal_hashes(container: Callable[[Iterable[Hashable]], bytes], key: Callable[[int], Hashable]) -> None:
    """Thousands of keys of equal hash are refused, wherever in the value they are."""
    data = container(map(key, range(NUMBER)))
    for place in (data, b"[\x01\x00\x00\x00" + data, b"{i\x01\x00\x00\x00" + data + b"0"):
        with pytest.raises(UnsafeObject, match=f"its {NUMBER} keys were chosen to collide"):
            loads(place)


@CONTAINERS
@pytest.mark.parametrize("keys", [list(keys) for keys in GOOD.values()], ids=GOOD)
def test_good_keys(container: Callable[[Iterable[Hashable]], bytes], keys: list[Hashable]) -> None:
    """Keys that nobody chose to collide pass, in whatever order they come."""
    expected = dict.fromkeys(keys) if container is _as_dict else set(keys)
    assert loads(container(dict.fromkeys(keys))) == expected
    shuffled = sorted(dict.fromkeys(keys), key=lambda key: repr(key)[::-1])
    assert loads(container(shuffled)) == expected


def _funnel() -> list[int]:
    """Return 32-bit ints of different hashes that take long walks through a dict of 8,192 slots.

    The first ones fill a path on which each slot leads to the next once a hash is used up. The others are
    some whose probe sequences stay on the path until then, so that they walk to its end.
    """
    mask = (1 << 13) - 1
    path = [1]
    while len(path) < 2_700:
        path.append((path[-1] * 5 + 1) & mask)
    filled = set(path)

    def stays(value: int, steps: int) -> bool:
        slot = value & mask
        for shift in range(5, 5 * steps + 5, 5):
            if slot not in filled:
                return False
            slot = (slot * 5 + (value >> shift) + 1) & mask
        return True

    # The bits from 23 on have no effect on the first probes: of those of the path's slots, most leave it.
    starts = [slot for slot in path if stays(slot, 3)]
    return path + [
        slot + (high << 23) for slot in starts for high in range(1, 256) if stays(slot + (high << 23), 9)
    ]


def test_funnel() -> None:
    """Ints of different hashes, whose probe sequences all lead along one path, are refused too."""
    keys = _funnel()
    assert len(keys) > 3_300
    assert max(keys) < 1 << 31
    assert len(set(map(hash, keys))) == len(keys)
    with pytest.raises(UnsafeObject, match="chosen to collide"):
        loads(_as_dict(keys))


@pytest.mark.parametrize(
    ("table", "make"), [(DICT_TABLE, dict.fromkeys), (SET_TABLE, set)], ids=["dict", "set"]
)
def test_sizes_of_tables(table: Table, make: Callable[[Iterable[int]], object]) -> None:
    """The tables that are simulated grow where Python's own do."""
    real: dict[int, None] | set[int] = {} if table is DICT_TABLE else set()
    add = real.setdefault if isinstance(real, dict) else real.add
    slots, capacity = 8, table.capacity(8)
    add(-1)
    size = sys.getsizeof(real)
    for number in range(1, 100_000):
        add(number)
        grew = sys.getsizeof(real) != size
        size = sys.getsizeof(real)
        # A set grows when it has become full, a dict when it would become fuller.
        full = number + 1 == capacity if table is SET_TABLE else number == capacity
        assert grew == full
        if full:
            while slots < table.grown(capacity):
                slots *= 2
            capacity = table.capacity(slots)


def test_few_keys_are_not_looked_at() -> None:
    """Up to a few keys may collide: they are compared with few others."""
    keys = [n * PRIME for n in range(FEW_KEYS)]
    assert loads(_as_set(keys)) == set(keys)
    assert loads(_as_dict(keys)) == dict.fromkeys(keys)


def test_texts_among_risky_keys_count() -> None:
    """The size of the table is that of all keys, so that texts can't hide what collides."""
    keys: list[Hashable] = [f"text{n}" for n in range(20_000)]
    keys += [n * PRIME for n in range(NUMBER)]
    with pytest.raises(UnsafeObject, match="its 23000 keys were chosen to collide"):
        loads(_as_dict(keys))


def test_a_key_many_times() -> None:
    """The same key again and again, as no Python writes it, is treated like colliding keys."""
    with pytest.raises(UnsafeObject, match="collide"):
        loads(_as_set([10**30] * 10_000))


@pytest.mark.parametrize(
    ("key", "reason"),
    [(b"[\x00\x00\x00\x00", "unhashable"), (b"{0", "unhashable"), (b"f\x031_0", "could not convert")],
)
def test_keys_that_are_none(key: bytes, reason: str) -> None:
    """What can't be a key, or can't be read, is refused with Python's own reason."""
    data = b"<\x15\x00\x00\x00" + _as_set(range(20))[5:] + key
    with pytest.raises(UnsafeObject, match=f"refused by Python: .*{reason}"):
        loads(data)


def test_large_keys_are_weighed() -> None:
    """Large keys of equal hash are refused even if they are few: comparing them takes longer."""
    keys = [(n * PRIME, *range(1_000)) for n in range(100)]
    with pytest.raises(UnsafeObject, match="its 100 keys were chosen to collide"):
        loads(_as_set(keys))


def test_nested_sets() -> None:
    """Sets within sets are read as deeply as they are written, and not much deeper."""
    value: frozenset[Hashable] = frozenset(range(20))
    for _ in range(4):
        value = frozenset([value, *range(20)])
    assert loads(dumps([value])) == [value]
    nested = b">\x14\x00\x00\x00" + _as_set(range(20))[5:]
    for _ in range(8):
        nested = b">\x15\x00\x00\x00" + nested + _as_set(range(20))[5:]
    with pytest.raises(UnsafeObject, match="a key within 6 keys"):
        loads(nested)


class TestReferences:
    """Values of versions 3 and 4, whose keys are, or hold, references."""

    @given(
        st.lists(
            st.one_of(
                st.integers(), st.text(), st.tuples(st.integers(), st.text()), st.floats(allow_nan=False)
            ),
            min_size=20,
        ),
        st.sampled_from([3, 4]),
    )
    def test_as_python_writes_them(self, keys: list[Hashable], version: int) -> None:
        """What Python writes of values that hold the same objects several times is read."""
        shared = tuple(keys[:3])
        value = [
            dict.fromkeys(keys, 1),
            dict.fromkeys(keys, 2),
            set(keys),
            {(shared, n, key): shared for n, key in enumerate(keys)},
            {(n, shared): None for n in range(30)},
        ]
        assert loads(marshal.dumps(value, version)) == value

    def test_trees(self) -> None:
        """Keys that hold a tree of references, whose comparison takes 2**12 steps, are refused.

        312 of them kept a process busy for seconds.
        """
        members = [b")\x02" + marshal.dumps(n * PRIME, 2) + b"r\x00\x00\x00\x00" for n in range(20)]
        value = b"[\x02\x00\x00\x00" + _tree(12) + b"<" + struct.pack("<I", len(members)) + b"".join(members)
        with pytest.raises(UnsafeObject, match=r"references add more than \d+ bytes to keys"):
            loads(value)

    def test_few_large_references(self) -> None:
        """Also a small container may not hold keys that references have made large."""
        large = b"\xa8" + struct.pack("<I", 1_000) + b"i\x01\x00\x00\x00" * 1_000
        members = [b")\x02" + marshal.dumps(n * PRIME, 2) + b"r\x00\x00\x00\x00" * 1 for n in range(15)]
        small = b"<\x0f\x00\x00\x00" + b"".join(members)
        times = MAX_KEY_SHARED // (15 * 5_005)
        data = b"[" + struct.pack("<I", 1 + times) + large + small * times
        assert len(loads(data)) == 1 + times  # type: ignore[arg-type]
        times = 40
        with pytest.raises(UnsafeObject, match="bytes to keys"):
            loads(b"[" + struct.pack("<I", 1 + times) + large + small * times)


def _tree(levels: int) -> bytes:
    """Return a tuple, number 0 of those that can be referred to, which holds 2**levels ints in few bytes."""
    data = b"\xa9\x02" * (levels - 1)
    data += b"\xa9\x02i\x00\x00\x00\x00i\x00\x00\x00\x00"
    for level in range(levels - 1, 0, -1):
        data += b"r" + struct.pack("<I", level)
    return data


@pytest.mark.parametrize("table", [DICT_TABLE, SET_TABLE], ids=["dict", "set"])
def test_the_first_keys_decide(table: Table) -> None:
    """An attack is given up after its first few hundred keys, however many follow."""
    assert not fits(table, hashes := _CountedHashes(100_000), [9] * 100_000)
    assert hashes.highest < 1_000
