"""What the tests of the PostgreSQL store share: a server for a module, a spool in it for a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.postgresql.postgres import PostgresServer, Spool, postgres_server
from tests.store_contract import Bench


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server that the tests of a module share."""
    with postgres_server() as running:
        yield running


@pytest.fixture
def spool(server: PostgresServer) -> Iterator[Spool]:
    """A spool of its own."""
    spool = Spool(server)
    yield spool
    spool.close()


@pytest.fixture
def bench(spool: Spool) -> Bench:
    """A store that has the spool open."""
    return spool.open()
