"""What imports what: down only, and no Twisted where blocking code and workers run."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import uwsgitwisted
from uwsgitwisted import blocking, client
from uwsgitwisted.worker.compat import uwsgi, uwsgidecorators

ROOT = Path(uwsgitwisted.__file__).parent

_ROW = re.compile(r"^\| (\d) \| `(\w+)` \|", re.MULTILINE)
#: The floor of each package and module at the top. An import stays within its package or goes to a lower floor.
FLOORS = {
    part: int(floor)
    for floor, part in _ROW.findall((ROOT.parent / "docs" / "architecture.md").read_text(encoding="utf-8"))
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
    if path == Path("__init__.py"):  # its imports are for type checkers; see test_public_names
        return
    for name in imported(path):
        other = part(name)
        assert own in FLOORS, f"{own} has no floor in the table"
        assert other in FLOORS, f"{other} has no floor in the table"
        assert other == own or FLOORS[other] < FLOORS[own], f"{path} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_private_names_stay_private(path: Path) -> None:
    """A module imports no private name of another one."""
    assert [name for name in imported(path) if name.rpartition(".")[2].startswith("_")] == []


def test_every_part_has_a_floor() -> None:
    """The table of docs/architecture.md has every part of the package, and no other."""
    assert FLOORS.keys() == {path.parts[0].removesuffix(".py") for path in MODULES} - {"__init__"}


def test_the_table_is_used() -> None:
    """An import that points up is found."""
    assert "uwsgitwisted.services.node.make_node" in list(imported(Path("taps/node.py")))
    assert FLOORS["services"] < FLOORS["taps"]


#: The folders and modules that work without Twisted.
WITHOUT_TWISTED = (
    "errors.py",
    "address.py",
    "files.py",
    "memory.py",
    "timeouts.py",
    "sources",
    "wire",
    "balancer.py",
    "planner",
    "shared",
    "blocking",
    "worker",
)
#: The template engines, which need libraries of their own.
_ENGINES = {
    **dict.fromkeys(("mako_engine.py", "mako_outline.py", "mako_runtime.py"), "mako"),
    "jinja_engine.py": "jinja2",
}


def modules(library: str = "") -> list[str]:
    """Return the names of the modules without Twisted: those that need a template *library*, or the others."""
    paths = [
        path for path in MODULES if path.parts[0] in WITHOUT_TWISTED and _ENGINES.get(path.name, "") == library
    ]
    return [f"uwsgitwisted.{'.'.join(path.with_suffix('').parts)}".removesuffix(".__init__") for path in paths]


_IMPORT = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print([root for root in ("twisted", "zope.interface", "mako", "jinja2") if root in sys.modules])
print("asyncio" in sys.modules and "jinja2" not in sys.modules)
"""


def loaded_with(names: list[str]) -> str:
    """Return which slow libraries are loaded after importing the modules *names*."""
    return subprocess.run(
        [sys.executable, "-c", _IMPORT, *names], check=True, capture_output=True, text=True, cwd=ROOT.parent
    ).stdout.strip()


def test_no_twisted() -> None:
    """Neither the wire, nor blocking code, nor a worker imports Twisted, or another slow library."""
    names = modules()
    assert {"uwsgitwisted.blocking", "uwsgitwisted.wire.session", "uwsgitwisted.worker.main"} <= set(names)
    assert loaded_with(names) == "[]\nFalse"


def test_no_twisted_in_a_renderer() -> None:
    """A template engine imports its own library, and no Twisted."""
    assert loaded_with(modules("mako")) == "['mako']\nFalse"
    assert loaded_with(modules("jinja2")) == "['jinja2']\nFalse"


def test_what_the_front_knows_of_a_worker() -> None:
    """Of all that runs in a worker, the front imports only what describes it, finds modules, keeps pages."""
    front = [path for path in MODULES if path.parts[0] in ("engines", "services", "taps", "responders")]
    of_worker = {name for path in front for name in imported(path) if part(name) == "worker"}
    assert {name.rpartition(".")[0] for name in of_worker} == {
        "uwsgitwisted.worker.spec",
        "uwsgitwisted.worker.templates.engines",  # for the names of --engine-for
        "uwsgitwisted.worker.templates.keeping",  # for the pages that the front keeps
        "uwsgitwisted.worker.templates.results",
        "uwsgitwisted.worker.compat.install",  # for the threads that are workers
        "uwsgitwisted.worker.handlers.module",  # for the executor that --engine names
    }


def test_public_names() -> None:
    """The package has its public names, which are imported when they are used, and shows no other."""
    assert set(dir(uwsgitwisted)) == set(uwsgitwisted.__all__)
    assert loaded_with(["uwsgitwisted"]) == "[]\nFalse"
    for name in uwsgitwisted.__all__:
        assert getattr(uwsgitwisted, name) is not None
    assert uwsgitwisted.Client is client.Client
    with pytest.raises(AttributeError, match="has no attribute 'Clinet'; it has Address, "):
        _ = uwsgitwisted.Clinet


@pytest.mark.parametrize("module", [blocking, uwsgi, uwsgidecorators], ids=lambda module: module.__name__)
def test_faces(module: ModuleType) -> None:
    """A public module shows its public names, and its own parts, and nothing else."""
    shown = {name for name in vars(module) if not name.startswith("_")}
    parts = {path.stem for path in Path(str(module.__file__)).parent.glob("*.py")}
    assert shown - parts <= set(module.__all__)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    given: dict[str, object] = {}
    exec(f"from {module.__name__} import *", given)
    assert given.keys() - {"__builtins__"} == set(module.__all__)
