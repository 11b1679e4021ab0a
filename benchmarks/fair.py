"""Measures small requests while a large answer arrives on their connection: ``python -m benchmarks.fair``.

The times are measured at the caller, so they include loading the large object, which the ``Client`` can't
interrupt. The same is therefore measured with bytes that nobody loads, in both directions.
"""

from __future__ import annotations

from benchmarks.harness import Relation, Row, Scale, Table, main, percentile
from benchmarks.processes import Servers

_SIZE = 50_000_000
_TINY_SIZE = 1_000_000
_PERCENTS = {"median": 50, "99th percentile": 99, "longest": 100}


def _measure(servers: Servers, engine: str, scale: Scale) -> Table:
    node = servers.node(engine)
    size = _TINY_SIZE if scale.smallest else _SIZE
    title = f"A small request beside {size // 1_000_000} MB answers, `Client`, engine `{engine}`"
    table = Table(title, "ms", Relation.NONE)
    for state, driver, bytes_ in (
        ("nothing else in flight", "fair", 0),
        ("a large answer in flight", "fair", size),
        ("large bytes in flight both ways", "fair_bytes", size),
    ):
        wanted = "a few ms more than alone" if bytes_ else ""
        rows = {name: Row(f"{state}, {name}", wanted) for name in _PERCENTS}
        for _ in range(scale.rounds):
            found = servers.drive(f"latency:{driver}", node.port, scale.seconds, bytes_, 3)
            for name, percent in _PERCENTS.items():
                rows[name].samples.append(percentile(found, percent))
        table.rows += rows.values()
    return table


def run(scale: Scale) -> list[Table]:
    """Measure with two engines: in one, the handler itself blocks the node; in the other, it can't."""
    with Servers() as servers:
        return [_measure(servers, engine, scale) for engine in ("processes:2", "reactor")]


if __name__ == "__main__":
    main(__doc__, run)
