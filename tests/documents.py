"""The documents and examples of this repository, and the code blocks in them, for what checks them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (\w+\.py)\n")


class Block(NamedTuple):
    """A code block of a document.

    :param document: the document's name without its suffix.
    :param number: its place among the document's blocks, counted from 1.
    :param code: what is in it.
    """

    document: str
    number: int
    code: str

    @property
    def file(self) -> str | None:
        """The name of the file that its first line names, if there is one."""
        named = _FILE.match(self.code)
        return named.group(1) if named else None


def blocks(language: str) -> list[Block]:
    """Return the documents' code blocks in *language*."""
    return [
        Block(document.stem, number, found.group(2))
        for document in DOCUMENTS
        for number, found in enumerate(_BLOCK.finditer(document.read_text()), 1)
        if found.group(1) == language
    ]
