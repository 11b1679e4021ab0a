"""Handler code is imported from its source, whatever bytecode lies beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

#: Loads the handler module of the current directory and says what its code, and a library module's, came from.
_LOAD = """
import sys
from uwsgitwisted.worker.handlers.module import load_module
module = load_module("my_handler")
import graphlib
print(module.VERSION, module.helper.VERSION, bool(graphlib.__cached__))
"""


@pytest.fixture
def application(tmp_path: Path) -> Path:
    """A handler module with a package beside it, both in version 1, whose bytecode was written by Python."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    _write(tmp_path, 1)
    _run(tmp_path, "import my_handler")
    assert (tmp_path / "__pycache__").is_dir()
    assert (tmp_path / "package" / "__pycache__").is_dir()
    return tmp_path


def _write(directory: Path, version: int) -> None:
    """Write both modules in sources of one size and one time, so that only their content differs."""
    sources = {
        directory / "my_handler.py": f"VERSION = {version}\nfrom package import helper\n",
        directory / "package" / "helper.py": f"VERSION = {version}\n",
    }
    for path, source in sources.items():
        path.write_text(source)
        os.utime(path, (1_700_000_000, 1_700_000_000))


def _run(directory: Path, code: str) -> str:
    """Run *code* in a Python of its own, which reads and writes bytecode."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
    }
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=directory, env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_source_wins_over_bytecode_of_the_same_size_and_time(application: Path) -> None:
    """A handler module and the package that it imports run as they are on the disk."""
    _write(application, 2)
    assert _run(application, "import my_handler; print(my_handler.VERSION)") == "1"  # Python's own rule
    assert _run(application, _LOAD) == "2 2 True"


def test_no_bytecode_is_written(application: Path) -> None:
    """Loading a handler leaves the bytecode on the disk as it is."""
    cached = sorted(application.rglob("*.pyc"))
    before = [path.read_bytes() for path in cached]
    _write(application, 2)
    _run(application, _LOAD)
    assert sorted(application.rglob("*.pyc")) == cached
    assert [path.read_bytes() for path in cached] == before


def test_twisted_finds_its_plugins_afterwards(application: Path) -> None:
    """A front that has loaded handlers still knows where its modules are, which Twisted warns of otherwise."""
    before = "import warnings, twisted.plugins\nfrom twisted.python.modules import getModule\n"
    after = "warnings.simplefilter('error')\ngetModule('twisted.plugins')\n"
    assert _run(application, f"{before}{_LOAD}{after}") == "1 1 True"
