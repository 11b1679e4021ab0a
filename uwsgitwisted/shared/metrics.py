"""Numbers by names, which workers count with. A metric is there from its first use on, and is 0 before."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from uwsgitwisted.errors import MisuseError
from uwsgitwisted.shared.cache import CALCULATIONS
from uwsgitwisted.shared.client import NOTHING, YES, Client
from uwsgitwisted.wire.calls import decode_number, encode_number

#: How many metrics there may be.
MAX_METRICS = 1_000
#: The longest name of one, in bytes.
MAX_NAME = 255
#: The smallest and the largest number: 64 bits with a sign, as in uWSGI.
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1

_CHANGES: dict[bytes, Callable[[int, int], int]] = {
    **CALCULATIONS,
    b"set": lambda number, by: by,
    b"set_max": max,
    b"set_min": min,
}


class Metrics:
    """The metrics of a service."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}

    def get(self, client: Client, name: bytes) -> Sequence[bytes]:
        """Return a metric's number."""
        return (encode_number(self._numbers.get(name, 0)),)

    def change(self, client: Client, change: bytes, name: bytes, by: bytes) -> Sequence[bytes]:
        """Change a metric."""
        operand = decode_number(by)
        if change not in _CHANGES:
            raise MisuseError(f"metrics have no {change!r}")
        if change == b"div" and not operand:
            return NOTHING
        if name not in self._numbers:
            _check_name(name)
            if len(self._numbers) >= MAX_METRICS:
                raise MisuseError(f"there are {MAX_METRICS} metrics already, which is the most")
        number = _CHANGES[change](self._numbers.get(name, 0), operand)
        self._numbers[name] = min(max(number, _LEAST), _MOST)
        return YES


def _check_name(name: bytes) -> None:
    if not 0 < len(name) <= MAX_NAME:
        raise MisuseError(f"a metric's name has 1 to {MAX_NAME} bytes, not {len(name)}")
