"""Compares round trips of large objects with marshal on a plain socket: ``python -m benchmarks.large``."""

from __future__ import annotations

from benchmarks.harness import Contender, Relation, Scale, Table, compare, main
from benchmarks.processes import Server, Servers

_MEGABYTE = 1_000_000
#: The smallest scale omits the last one.
_OBJECTS = [
    ("1 MB of bytes", "bytes", _MEGABYTE),
    ("1 MB of rows (int, str, float)", "rows", _MEGABYTE),
    ("50 MB of bytes", "bytes", 50 * _MEGABYTE),
]
#: One round trip of 50 MB already takes long.
_ROUNDS = 3


def _compare(
    title: str, kind: str, size: int, nodes: dict[str, Server], servers: Servers, scale: Scale
) -> Table:
    def contender(name: str, driver: str, server: Server, wanted: str = "") -> Contender:
        def measure() -> float:
            return servers.drive(f"large:{driver}", server.port, scale.seconds, kind, size)[0]

        return Contender(name, measure, wanted)

    contenders = [contender("the floor: marshal and a plain socket", "bare", nodes["bare"])]
    for engine in ("reactor", "processes:2"):
        for name in ("blocking", "Client"):
            title_of_row = f"ours: `{name}`, engine `{engine}`"
            contenders.append(contender(title_of_row, name.lower(), nodes[engine], "0.5 or more"))
    return compare(title, "MB/s", contenders, min(scale.rounds, _ROUNDS), Relation.PEER_FIRST)


def run(scale: Scale) -> list[Table]:
    """Run a comparison for each object."""
    with Servers() as servers:
        nodes = {engine: servers.node(engine) for engine in ("reactor", "processes:2")}
        nodes["bare"] = servers.peer("marshal_socket")
        return [
            _compare(f"{name}, sent and got back", kind, size, nodes, servers, scale)
            for name, kind, size in _OBJECTS[: 2 if scale.smallest else None]
        ]


if __name__ == "__main__":
    main(__doc__, run)
