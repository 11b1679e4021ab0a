"""Compares tiny tasks in two worker processes with Python's own pools: ``python -m benchmarks.engine``."""

from __future__ import annotations

from benchmarks.harness import Contender, Scale, Table, compare, main
from benchmarks.processes import Servers


def run(scale: Scale) -> list[Table]:
    """Run the comparisons: the engine by itself, and through a node."""
    with Servers() as servers:
        node = servers.node("processes:2")

        def drive(driver: str, port: int = 0) -> float:
            return servers.drive(driver, port, scale.seconds)[0]

        contenders = [
            Contender("ours: `processes:2`, 100 in flight", lambda: drive("engine:ours")),
            Contender("ours through a node, `Client`", lambda: drive("calls:client", node.port)),
            Contender("`multiprocessing.Pool.imap(chunksize=1)`", lambda: drive("engine:imap"), "1 or more"),
            Contender("`Pool.apply_async`, 100 in flight", lambda: drive("engine:apply_async")),
            Contender("`ProcessPoolExecutor`, 100 in flight", lambda: drive("engine:executor"), "5 or more"),
        ]
        return [compare("Tiny tasks through 2 processes", "tasks/s", contenders, scale.rounds)]


if __name__ == "__main__":
    main(__doc__, run)
