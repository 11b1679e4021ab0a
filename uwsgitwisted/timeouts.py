"""Time limits: which values are accepted, wherever one is given."""

from __future__ import annotations

import sys

from uwsgitwisted.errors import MisuseError


def check_timeout(timeout: float) -> float:
    """Return *timeout* if it is a number of seconds that can be waited for.

    :raises MisuseError: if it isn't.
    """
    is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not is_number or not 0 < timeout <= sys.float_info.max:
        raise MisuseError(f"the timeout is {timeout!r}; it is a number of seconds above 0")
    return timeout


def parse_timeout(text: str) -> float:
    """Return the time limit that an option's value names, in seconds.

    :raises ValueError: if it names none. The text has neither the option nor the value.
    """
    try:
        return check_timeout(float(text))
    except ValueError:
        raise ValueError("not a number of seconds above 0") from None
