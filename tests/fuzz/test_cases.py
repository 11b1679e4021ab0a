"""What the fuzzer has found, replayed, and a little of each target anew."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.seeds import seeds
from tests.fuzz.targets import TARGETS, check

CASES = Path(__file__).with_name("cases")


@pytest.mark.parametrize("target", TARGETS)
def test_kept(target: str) -> None:
    """What once made a target fail, and what it is seeded with, passes."""
    for data in seeds(target):
        check(target, data)
    for case in sorted(CASES.glob(f"{target}/*")):
        try:
            check(target, case.read_bytes())
        except BaseException as error:
            raise AssertionError(f"the case {target}/{case.name} fails: {error!r}") from error


@pytest.mark.parametrize("target", TARGETS)
def test_anew(target: str) -> None:
    """Bytes at random, and some that Hypothesis likes, pass."""

    @settings(max_examples=60, deadline=None, database=None)
    @given(st.binary(max_size=200))
    def run(data: bytes) -> None:
        check(target, data)

    run()


def test_cases_belong_to_targets() -> None:
    """No kept case is out of use."""
    assert {directory.name for directory in CASES.iterdir()} <= TARGETS.keys()
