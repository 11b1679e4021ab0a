"""What imports what: down only, and no Twisted where blocking code and workers run."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import uwsgitwisted

ROOT = Path(uwsgitwisted.__file__).parent

#: The floor of each package and module at the top. An import stays within its package or goes to a lower floor.
FLOORS = {
    "errors": 0,
    "memory": 0,
    "wire": 1,
    "address": 1,
    "timeouts": 1,
    "access": 1,
    "interfaces": 2,
    "sockets": 2,
    "sessions": 3,
    "blocking": 4,
    "transport": 3,
    "spool": 4,
    "tasks": 3,
    "queue": 5,
    "client": 4,
    "compat": 6,
    "handlers": 7,
    "engines": 8,
    "responders": 8,
    "services": 9,
    "taps": 10,
    "cli": 10,
    "__main__": 11,
}
MODULES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def part(name: str) -> str:
    """Return which part of the package the module *name* belongs to."""
    return name.split(".")[1]


def imported(path: Path) -> Iterator[str]:
    """Yield the modules of ours that the one at *path* imports, also within functions."""
    for statement in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            assert not statement.level, f"{path}: a relative import"
            names = [f"{statement.module}.{alias.name}" for alias in statement.names]
        else:
            continue
        yield from (name for name in names if name.startswith("uwsgitwisted.") and not name.endswith("__"))


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_down(path: Path) -> None:
    """A module imports from its own package and from lower floors only."""
    own = path.parts[0].removesuffix(".py")
    if own == "__init__":
        assert list(imported(path)) == []
        return
    for name in imported(path):
        other = part(name)
        assert own in FLOORS, f"{own} has no floor in the table"
        assert other in FLOORS, f"{other} has no floor in the table"
        assert other == own or FLOORS[other] < FLOORS[own], f"{path} imports {name}"


def test_the_table_is_used() -> None:
    """An import that points up is found."""
    assert "uwsgitwisted.services.node.make_node" in list(imported(Path("taps/node.py")))
    assert FLOORS["services"] < FLOORS["taps"]


WITHOUT_TWISTED = [
    *(
        f"uwsgitwisted.wire.{path.stem}"
        for path in MODULES
        if path.parts[0] == "wire" and path.stem != "__init__"
    ),
    "uwsgitwisted.errors",
    "uwsgitwisted.address",
    "uwsgitwisted.timeouts",
    "uwsgitwisted.memory",
    "uwsgitwisted.sockets",
    "uwsgitwisted.blocking",
    "uwsgitwisted.tasks",
    "uwsgitwisted.queue",
    "uwsgitwisted.compat.uwsgi",
    "uwsgitwisted.compat.install",
    "uwsgitwisted.compat.uwsgidecorators",
    "uwsgitwisted.handlers.marshal",
    "uwsgitwisted.handlers.spool",
    "uwsgitwisted.engines.worker",
]

_IMPORT = """
import importlib, sys
found = {}
for name in sys.argv[1:]:
    importlib.import_module(name)
    for root in ("twisted", "zope.interface", "asyncio", "mako"):
        if root in sys.modules:
            found.setdefault(root, name)
print(found)
"""


@pytest.mark.parametrize("names", [WITHOUT_TWISTED[:-1], WITHOUT_TWISTED[-1:]], ids=["modules", "worker"])
def test_no_twisted(names: list[str]) -> None:
    """Neither the wire, nor blocking code, nor a worker imports Twisted, or another slow library."""
    output = subprocess.run(
        [sys.executable, "-c", _IMPORT, *names], check=True, capture_output=True, text=True, cwd=ROOT.parent
    ).stdout
    assert output.strip() == "{}"
