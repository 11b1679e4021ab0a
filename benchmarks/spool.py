"""Compares the spooler with Huey, both with a file that is fsynced: ``python -m benchmarks.spool [--quick]``.

Our tasks arrive over the network and run in worker processes; Huey's are written by the program itself.
"""

from __future__ import annotations

from benchmarks.harness import Contender, Relation, Row, Scale, Table, compare, main
from benchmarks.processes import Server, Servers, require


def _enqueue(servers: Servers, spooler: Server, scale: Scale) -> Table:
    def huey() -> float:
        require("huey")
        return servers.drive("spool:huey_enqueue", 0, scale.seconds)[0]

    contenders = [
        Contender(
            "ours: `Client`, 100 in flight",
            lambda: servers.drive("spool:enqueue", spooler.port, scale.seconds)[0],
        ),
        Contender("Huey, SQLite with fsync, one after another", huey, "3 or more"),
    ]
    return compare("Durable enqueues, nothing is run", "tasks/s", contenders, scale.rounds)


def _enqueue_and_run(scale: Scale) -> Table:
    def ours() -> float:
        with Servers() as servers:
            port = servers.spooler("--workers", "2").port
            return servers.drive("spool:enqueue_and_run", port, scale.seconds, scale.tasks)[0]

    def huey() -> float:
        require("huey")
        with Servers() as servers:
            servers.huey()
            return servers.drive("spool:huey_enqueue_and_run", 0, scale.seconds, scale.tasks)[0]

    contenders = [
        Contender("ours: `Client`, 100 in flight, 2 workers", ours),
        Contender("Huey, SQLite with fsync, 2 worker processes", huey, "2 or more"),
    ]
    return compare(f"{scale.tasks:,} tasks enqueued and run", "tasks/s", contenders, scale.rounds)


def _among(servers: Servers, scale: Scale) -> list[Table]:
    figures = [
        servers.drive("spool:among", 0, scale.seconds, scale.waiting) for _ in range(min(scale.rounds, 3))
    ]
    tables = []
    for place, (title, unit, wanted) in enumerate(
        (
            ("Enqueue, 100 in one transaction", "tasks/s", "0.7 or more"),
            ("Claim and finish, 100 in one transaction", "tasks/s", "0.7 or more"),
            ("Memory, at most", "MB", "about 1"),
        )
    ):
        table = Table(title, unit, Relation.PEER_FIRST)
        unit_size = 1e6 if unit == "MB" else 1.0
        table.rows.append(Row("an empty SQLite store", "", [row[place] / unit_size for row in figures]))
        table.rows.append(
            Row(f"{scale.waiting:,} tasks wait", wanted, [row[place + 3] / unit_size for row in figures])
        )
        tables.append(table)
    return tables


def run(scale: Scale) -> list[Table]:
    """Run the comparisons."""
    with Servers() as servers:
        enqueued = _enqueue(servers, servers.spooler(), scale)
        return [enqueued, _enqueue_and_run(scale), *_among(servers, scale)]


if __name__ == "__main__":
    main(__doc__, run)
