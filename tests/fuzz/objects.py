"""Targets of the checks of objects: bytes that may be marshalled, and keys that may collide."""

from __future__ import annotations

import contextlib
import marshal
import math
import struct

from tests.fuzz.source import Source
from tests.fuzz.timing import assert_linear
from uwsgitwisted.errors import UnencodableMessage, UnsafeObject
from uwsgitwisted.wire.objects import dumps, loads, loads_plain

_ALLOWED = (type(None), bool, int, float, complex, str, bytes, tuple, list, dict, set, frozenset)
#: How long C may take to load what the check has let pass: a base, and for each byte, in seconds. It takes a
#: tenth of this for most, and three times this for :data:`_MOST_KEYS` that collide.
_BASE, _PER_BYTE = 0.000_5, 0.000_000_1
_MOST_KEYS = 800
#: So many members of a value are looked at; references can make more of few bytes.
_LOOKED_AT = 10_000
#: What a byte of keys counts for: their insertion is simulated.
_KEY_WORK = 50
_PRIME = (1 << 61) - 1


def _check(data: bytes) -> None:
    """See that *data* is refused, or loads as plain data in linear time."""
    try:
        value = loads(data)
    except UnsafeObject:
        return
    _check_types(value)
    if _is_small(data):
        _check_round_trip(value)
    assert_linear(lambda: _load_in_c(data), _BASE + _PER_BYTE * len(data), "loading what the check let pass")


def _check_round_trip(value: object) -> None:
    """See that what was loaded comes back the same when it is written and loaded again."""
    try:
        again = loads(dumps(value))
    except UnencodableMessage:  # sets within sets are loaded, but not written
        return
    except UnsafeObject as error:
        # Keys that collide may pass where the same keys stand many times: each time adds to what they may cost.
        if "chosen to collide" in str(error):
            return
        raise
    assert repr(again) == repr(value) or _has_nan_or_set(value), "another value comes back"


def _is_small(data: bytes) -> bool:
    """Whether the value has hardly more in it than its bytes, so that it can be written out and compared."""
    try:
        loads(data, shared_limit=1_000)
    except UnsafeObject:
        return False
    return True


def _load_in_c(data: bytes) -> None:
    with contextlib.suppress(ValueError, EOFError, TypeError):  # what Python 2 interned is rewritten for C
        marshal.loads(data)


def _check_types(value: object) -> None:
    pending, looked_at = [value], 0
    while pending and looked_at < _LOOKED_AT:
        looked_at += 1
        member = pending.pop()
        assert type(member) in _ALLOWED, f"a {type(member).__name__} came through"
        if isinstance(member, dict):
            pending += [*member, *member.values()]
        elif isinstance(member, (list, tuple, set, frozenset)):
            pending += member


def _has_nan_or_set(value: object) -> bool:
    """Whether *value* has something whose repr may differ from its equal's: the order of a set, a NaN."""
    pending, looked_at = [value], 0
    while pending and looked_at < _LOOKED_AT:
        looked_at += 1
        member = pending.pop()
        if isinstance(member, (set, frozenset)):
            return True
        if isinstance(member, dict):
            pending += [*member, *member.values()]
        elif isinstance(member, (list, tuple)):
            pending += member
        elif isinstance(member, (float, complex)) and any(
            math.isnan(part) for part in (complex(member).real, complex(member).imag)
        ):
            return True
    return bool(pending)


def objects(data: bytes) -> int:
    """Load any bytes as an object."""
    _check(data)
    try:
        value = loads_plain(data)
    except UnsafeObject:
        return len(data)
    assert repr(loads(data)) == repr(value) or _has_nan_or_set(value), "plain loading gives another value"
    return 5 * len(data)


def stretched_objects(data: bytes) -> int:
    """Load a list, a set or a dict of many times the same bytes."""
    source = Source(data)
    code = source.choose(b"[(<>{")
    count, unit = 1 << source.byte() % 14, source.rest()
    count = min(count, 65_536 // max(1, len(unit)))
    members = unit * count
    data = b"{" + members + b"0" if code == ord("{") else bytes([code]) + struct.pack("<I", count) + members
    _check(data)
    return _KEY_WORK * len(data)


def _key(source: Source, number: int) -> bytes:
    """Return the marshalled key *number* of a family that the source chooses."""
    kind, step, start = source.choose("iflnsxt"), source.take(9), source.take(3)
    value = int.from_bytes(start, "little") + number * int.from_bytes(step, "little", signed=True)
    made: dict[str, object] = {
        "i": value,
        "f": float(value) * 2.0 ** (source.byte() - 128),
        "l": value * _PRIME,
        "n": (value % 3 - 1, value % 5 - 2, value),
        "s": frozenset([value, -value]),
        "x": complex(value % (1 << 53), number),
        "t": ((value * _PRIME,), number * _PRIME),
    }
    return marshal.dumps(made[kind], 2)


def keys(data: bytes) -> int:
    """Load a dict or set of many keys in arithmetic progressions, as an attacker would choose them."""
    source = Source(data)
    code = source.choose(b"{<>")
    families: list[bytes] = []
    count = 0
    while source and count < _MOST_KEYS:
        number = min(1 << source.byte() % 13, _MOST_KEYS - count)
        family = source.take(16)
        families += [_key(Source(family), index) for index in range(number)]
        count += number
    members = b"N".join([*families, b""]) if code == ord("{") else b"".join(families)
    data = b"{" + members + b"0" if code == ord("{") else bytes([code]) + struct.pack("<I", count) + members
    _check(data)
    return _KEY_WORK * len(data)
