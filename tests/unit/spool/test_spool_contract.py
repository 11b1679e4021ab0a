"""What every store promises, of the SQLite store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store_contract import Bench, StoreContract, nothing
from uwsgitwisted.spool.stores.sqlite.store import SqliteStore


class TestSqlite(StoreContract):
    """The contract, on a file."""

    @pytest.fixture
    def bench(self, tmp_path: Path) -> Iterator[Bench]:
        """Give an empty store, and a clock that the test turns."""
        store = SqliteStore(str(tmp_path / "spool.sqlite"))
        store.open(nothing)
        time = 1_700_000_000.0

        def pass_time(seconds: float) -> None:
            nonlocal time
            time += seconds

        yield Bench(store, lambda: time, pass_time)
        store.close()
