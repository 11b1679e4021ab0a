"""Fixtures of the integration tests: launchers of services, a client, and the real servers that tests need."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor

from tests.integration.services import Launcher, launcher
from uwsgitwisted.client import Client

_SEARCHED = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
#: The names that a test may need: whether each is installed, and how to install it.
NEEDS = {
    "nginx": (shutil.which("nginx", path=_SEARCHED), "apt install nginx-light"),
    "postgresql": (
        shutil.which("postgres") or any(Path("/usr/lib/postgresql").glob("*/bin/postgres")),
        "apt install postgresql",
    ),
    "faketime": (any(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), "apt install faketime"),
    "chromium": (
        shutil.which("chromium-headless-shell") or shutil.which("chromium"),
        "apt install chromium-headless-shell",
    ),
    "uwsgi": (Path(sys.executable).with_name("uwsgi").exists(), "pip install uwsgi, with a C compiler"),
}


def _missing(item: pytest.Item) -> list[str]:
    needed = [name for mark in item.iter_markers("needs") for name in mark.args]
    return [name for name in needed if not NEEDS[name][0]]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests of real servers that aren't installed, and say so; with CI set, leave out none."""
    if os.environ.get("CI"):
        return
    left_out = {item: missing for item in items if (missing := _missing(item))}
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]
        for name in sorted({name for missing in left_out.values() for name in missing}):
            number = sum(name in missing for missing in left_out.values())
            print(f"{number} tests are left out, since {name} is missing: {NEEDS[name][1]}")


@pytest.fixture
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Start services that end with the test."""
    with launcher(tmp_path_factory.mktemp("t")) as launched:
        yield launched


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Start services that end with the module."""
    with launcher(tmp_path_factory.mktemp("m")) as launched:
        yield launched


@pytest_twisted.async_yield_fixture
async def client() -> AsyncIterator[Client]:
    """Give a client of pytest-twisted's reactor; its connections are closed when the test ends."""
    made = Client(reactor)
    yield made
    await made.close()
