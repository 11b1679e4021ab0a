"""Measures pings while all workers compute: ``python -m benchmarks.ping``.

Each ping uses a new connection, as a monitor's does. A real uWSGI is not compared, since a ping waits for a
worker there.
"""

from __future__ import annotations

from benchmarks.harness import Relation, Row, Scale, Table, main, percentile
from benchmarks.processes import Servers

_WORKERS = 2


def run(scale: Scale) -> list[Table]:
    """Measure with idle and with busy workers."""
    percents = {"median": 50, "99th percentile": 99}
    table = Table(f"A ping of a node, engine `processes:{_WORKERS}`", "ms", Relation.NONE)
    rows = {
        (state, name): Row(f"{state}, {name}", "under 5 ms" if (state, percent) == ("all busy", 99) else "")
        for state in ("all idle", "all busy")
        for name, percent in percents.items()
    }
    with Servers() as servers:
        node = servers.node(f"processes:{_WORKERS}")
        seconds = 2 * scale.seconds
        for _ in range(scale.rounds):
            found = {
                "all idle": servers.drive("latency:ping_idle", node.port, seconds),
                "all busy": servers.drive("latency:ping_busy", node.port, seconds, _WORKERS),
            }
            for (state, name), row in rows.items():
                row.samples.append(percentile(found[state], percents[name]))
    table.rows = list(rows.values())
    return [table]


if __name__ == "__main__":
    main(__doc__, run)
