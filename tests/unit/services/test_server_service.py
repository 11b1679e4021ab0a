"""What a node, a renderer and a spooler have in common."""

from __future__ import annotations

import pytest
from twisted.internet.testing import MemoryReactorClock

from uwsgitwisted.engines.inline import InlineEngine
from uwsgitwisted.services.server import ServerService
from uwsgitwisted.services.settings import ServerSettings
from uwsgitwisted.transport.server.budget import default_limit
from uwsgitwisted.transport.server.limits import Limits
from uwsgitwisted.worker.spec import WorkerSpec

MIB = 1 << 20


@pytest.mark.parametrize(
    ("buffered", "message", "for_peers"),
    [
        (1024 * MIB, 64 * MIB, 896 * MIB),
        (128 * MIB, 64 * MIB, 64 * MIB),
        (None, 64 * MIB, default_limit() - 128 * MIB),
    ],
)
def test_room_for_answers_on_their_way(buffered: int | None, message: int, for_peers: int) -> None:
    """A part of the budget is kept for answers that arrive from workers, which count once they are whole."""
    clock = MemoryReactorClock()
    settings = ServerSettings(listen=(), max_message=message, limits=Limits(max_buffered=buffered))
    engine = InlineEngine(clock, WorkerSpec(()), timeout=1, max_queue=1)  # type: ignore[arg-type]
    service = ServerService(clock, settings, engine, {})
    assert service._factory.budget.limit == for_peers
