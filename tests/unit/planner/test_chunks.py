"""How many chunks a node gets ahead."""

from __future__ import annotations

from uwsgitwisted.planner.map import MapPlanner
from uwsgitwisted.planner.settings import Settings


def test_chunks_ahead() -> None:
    """A node that has answered one quick item gets chunks that grow, and few of them ahead."""
    planner = MapPlanner(range(5_000), Settings(chunked=True, target=0.05), 0.0)
    for node in "ab":
        planner.add_node(node, 0.0, workers=1)
    first, second = planner.poll(0.0).send
    planner.answered(first, None, 0.001, 0.0002)
    ahead = [sending.piece.count for sending in planner.poll(0.001).send if sending.node == first.node]
    assert set(ahead) == {8}
    assert len(ahead) <= 5
    planner.answered(second, None, 0.002, 0.0002)
    assert any(sending.node == second.node for sending in planner.poll(0.002).send)
