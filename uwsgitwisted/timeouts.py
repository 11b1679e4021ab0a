"""Checks the time limits that calls and options are given."""

from __future__ import annotations

import sys

from uwsgitwisted.errors import MisuseError

#: An int may be larger than any float.
_LONGEST = sys.float_info.max


def check_timeout(timeout: float) -> float:
    """Return *timeout* if it is a positive, finite number of seconds.

    :raises MisuseError: if it isn't.
    """
    is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not is_number or not 0 < timeout <= _LONGEST:
        raise MisuseError(f"the timeout is {timeout!r}; it is a number of seconds above 0")
    return timeout


def parse_timeout(text: str) -> float:
    """Parse the value of an option that is a time limit in seconds.

    :raises ValueError: if it isn't one. The text has neither the option nor the value.
    """
    try:
        return check_timeout(float(text))
    except ValueError:
        raise ValueError("not a number of seconds above 0") from None
