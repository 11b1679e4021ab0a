"""What docs/security.md and docs/moving.md say: their tests are there, and options have the defaults told."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from uwsgitwisted.taps import node, spooler

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text()
MOVING = (ROOT / "docs" / "moving.md").read_text()
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT + MOVING)))
OPTIONS = re.findall(r"^\| `--([\w-]+)` \| (.*?) \|", TEXT, re.MULTILINE)
#: What the document says where an option has no fixed default.
WORDS = {
    "max-buffered": "a quarter of the memory, at least `256M`",
    "max-connections-per-peer": "three quarters of them",
}


def _said(option: str, default: object) -> str:
    return WORDS.get(option, "no limit") if default is None else f"`{default}`"


@pytest.mark.parametrize(("file", "name"), TESTS)
def test_tests(file: str, name: str) -> None:
    """A test that shows a promise exists."""
    parsed = ast.parse((ROOT / file).read_text())
    assert name in {found.name for found in ast.walk(parsed) if hasattr(found, "name")}


@pytest.mark.parametrize(("option", "said"), OPTIONS)
def test_defaults(option: str, said: str) -> None:
    """An option's default is the one that the code has."""
    options = [kind.Options() for kind in (node, spooler)]
    defaults = {_said(option, each[option]) for each in options if option in each}
    assert defaults
    assert all(default in said for default in defaults)
