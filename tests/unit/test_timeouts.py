"""Which values are time limits, wherever one is given."""

from __future__ import annotations

import pytest

from uwsgitwisted import blocking
from uwsgitwisted.errors import MisuseError
from uwsgitwisted.timeouts import check_timeout, parse_timeout

REFUSED = [0, -1, float("nan"), float("inf"), "30", None, True, [], 10**400]


@pytest.mark.parametrize("timeout", [1, 0.25, 1e300])
def test_accepted(timeout: float) -> None:
    """Any number of seconds above 0 is a time limit."""
    assert check_timeout(timeout) == timeout


@pytest.mark.parametrize("timeout", REFUSED, ids=lambda value: repr(value)[:9])
def test_refused(timeout: float) -> None:
    """Nothing else is one, nor is a number that the clock can't be compared with."""
    with pytest.raises(MisuseError, match="it is a number of seconds above 0"):
        check_timeout(timeout)


@pytest.mark.parametrize("timeout", ["30", None])
def test_waiting_for_a_task(timeout: float) -> None:
    """It is checked before anything is computed with it."""
    with pytest.raises(MisuseError, match="a number of seconds above 0"):
        blocking.wait("127.0.0.1:1", 7, timeout)


@pytest.mark.parametrize(("text", "seconds"), [("1", 1), ("0.25", 0.25), ("1e3", 1_000)])
def test_parsed(text: str, seconds: float) -> None:
    """Written as text, it may have a fraction."""
    assert parse_timeout(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "nan", "inf", "1e999"])
def test_no_number(text: str) -> None:
    """Other texts are refused in the same words."""
    with pytest.raises(ValueError, match=r"^not a number of seconds above 0$"):
        parse_timeout(text)
