"""What the integration tests share: launchers of services, a client, and handler modules for them to run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_twisted
from twisted.internet import reactor

from tests.integration.services import Launcher, launcher
from uwsgitwisted.client import Client


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
