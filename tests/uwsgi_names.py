"""The names that uWSGI's modules have, and the part of docs/uwsgi-module.md that lists them.

``python -m tests.uwsgi_names`` writes that part anew from :mod:`uwsgitwisted.worker.compat.table`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.metadata import files
from pathlib import Path

from uwsgitwisted.worker.compat.table import DECORATORS, UWSGI, Name

DOCUMENT = Path(__file__).parent.parent / "docs" / "uwsgi-module.md"
#: The list begins below this heading.
HEADING = "## Every name\n"


def distribution_file(distribution: str, ending: str) -> Path:
    """Return where a file of an installed distribution is."""
    for path in files(distribution) or ():
        if str(path).endswith(ending):
            return Path(str(path.locate()))
    raise LookupError(f"{distribution} has no {ending}")


def stub_names(path: Path) -> set[str]:
    """Return the public names that a stub or a module defines, without what it imports."""
    return {name for name in _defined(ast.parse(path.read_text()).body) if not name.startswith("_")}


def _defined(body: list[ast.stmt]) -> Iterator[str]:
    for statement in body:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            yield statement.name
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield statement.target.id
        elif isinstance(statement, ast.Assign):
            yield from (target.id for target in statement.targets if isinstance(target, ast.Name))


def listing() -> str:
    """Return the list of all names, as the document has it."""
    return "".join(
        _module_listing(module, groups)
        for module, groups in (("uwsgi", UWSGI), ("uwsgidecorators", DECORATORS))
    )


def _module_listing(module: str, groups: object) -> str:
    assert isinstance(groups, dict)
    parts = [f"\n### `{module}`\n"]
    for title, names in groups.items():
        parts.append(f"\n**{title}**\n\n| name | | |\n|---|---|---|\n")
        parts.extend(_row(name, entry) for name, entry in names.items())
    return "".join(parts)


def _row(name: str, entry: Name) -> str:
    return f"| `{name}` | {entry.support.value} | {entry.note} |\n"


def main() -> None:
    """Write the list into the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    head, heading, _ = text.partition(HEADING)
    DOCUMENT.write_text(head + heading + listing(), encoding="utf-8")


if __name__ == "__main__":
    main()
