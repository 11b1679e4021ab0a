"""SQL in the stores: what all of them keep to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import uwsgitwisted.spool.stores

SOURCES = sorted(Path(uwsgitwisted.spool.stores.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_states_come_from_the_enum(path: Path) -> None:
    """No statement has the number of a state: it is put in from State, by name."""
    assert re.findall(r"\bstate\s*(?:[<>=]+|\+ 0 =|IN)\s*\(?\s*\d", path.read_text()) == []
