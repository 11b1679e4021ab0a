"""Writes the templates of tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def write_templates(directory: Path, templates: Mapping[str, str]) -> Path:
    """Write templates, by their names, below *directory*, which is made if it doesn't exist; return it."""
    for name, text in templates.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory
