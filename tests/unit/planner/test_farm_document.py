"""What docs/farm.md says about errors and numbers is what the code does."""

from __future__ import annotations

import re

from tests.documents import ROOT
from uwsgitwisted import errors
from uwsgitwisted.balancer import FIRST_PAUSE, MAX_PAUSE
from uwsgitwisted.blocking.bar import LINE_INTERVAL
from uwsgitwisted.blocking.executor import DEFAULT_IN_FLIGHT
from uwsgitwisted.planner.lane import _BUNDLE_TIME, _LEAST_BUNDLE
from uwsgitwisted.planner.progress import REPORT_INTERVAL
from uwsgitwisted.planner.retry import MAX_FAILURES, RULES, Retry, rule_of
from uwsgitwisted.planner.settings import TARGET
from uwsgitwisted.planner.work import MAX_COPIES
from uwsgitwisted.sources.sources import FILE_INTERVAL, NAME_INTERVAL
from uwsgitwisted.wire.bundle import MAX_BUNDLE, MAX_BUNDLE_SIZE
from uwsgitwisted.worker.handlers.bundle import MAX_TIME

TEXT = (ROOT / "docs" / "farm.md").read_text()
_ROW = re.compile(r"^\| `(\w+)` \| (always|only if idempotent|never) \|$", re.MULTILINE)


def test_table_of_errors() -> None:
    """The table has each error of the code's table, with what follows from it."""
    said = {getattr(errors, name): answer for name, answer in _ROW.findall(TEXT)}
    assert said == {error: rule.retry.value for error, rule in RULES.items() if error is not BaseException}
    assert rule_of(errors.RemoteError("x")).retry is Retry.NEVER
    assert "| any other, such as `RemoteError` | never |" in TEXT


def test_numbers() -> None:
    """The numbers are those of the code."""
    words = " ".join(TEXT.split())
    assert (TARGET, MAX_COPIES, MAX_FAILURES) == (0.2, 0.05, 3)
    assert (FILE_INTERVAL, NAME_INTERVAL) == (1.0, 10.0)
    assert (FIRST_PAUSE, MAX_PAUSE, LINE_INTERVAL, REPORT_INTERVAL) == (0.5, 8.0, 5.0, 0.1)
    assert f"`in_flight={DEFAULT_IN_FLIGHT}`" in words
    assert (_BUNDLE_TIME, _BUNDLE_TIME / _LEAST_BUNDLE, MAX_TIME) == (0.002, 0.0005, 0.1)
    assert (MAX_BUNDLE, MAX_BUNDLE_SIZE) == (256, 32 * 1024)
    for text in ("less than half a millisecond", "about 2 ms", "at most 256", "32 KiB", "after 0.1 seconds"):
        assert text in words
    for text in ("about 0.2 seconds", "at most 5% more work", "that three nodes have failed", "half a second"):
        assert text in words
