"""Spreads work over real nodes: ``python -m benchmarks.farm``.

Five nodes with a worker each, one of them four times slower, take a set time for each item. One is killed in
the middle of the cluster's work, and none while the original static split is measured. Tiny items go through
two nodes, our engine alone, Dask, and Python's own pool.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.harness import Contender, Relation, Scale, Table, compare, main
from benchmarks.messages import COST, SLOWNESS
from benchmarks.processes import Server, Servers, require

#: How many nodes are fast; one more is slow.
_FAST = 4
_SPEED = _FAST + 1 / SLOWNESS
#: How many seconds the work takes at best, for each second of a benchmark's runs.
_LENGTH = 10
#: How many tiny items there are, for each second of a benchmark's runs.
_TINY = 20_000
#: How many Dask gets at least.
_WARM = 200


def run(scale: Scale) -> list[Table]:
    """Run the comparisons."""
    with Servers() as servers:
        fast = [servers.node("processes:1") for _ in range(_FAST)]
        slow = servers.node("processes:1", "--handler", "benchmarks.slow_handlers")
        return [
            _compare_split(servers, fast, slow, scale),
            _compare_overhead(servers, [*fast, slow], scale),
            _compare_tiny(servers, fast[:2], scale),
        ]


def _items(scale: Scale) -> int:
    return round(_LENGTH * scale.seconds * _SPEED / COST)


def _ports(nodes: Sequence[Server]) -> str:
    return ",".join(str(node.port) for node in nodes)


def _compare_split(servers: Servers, fast: list[Server], slow: Server, scale: Scale) -> Table:
    """Compare with the static split, and with the bound: all work by all speed that there is."""
    items, seconds = _items(scale), _LENGTH * scale.seconds
    bound = (items * COST - seconds / 2) / (_SPEED - 1)
    equal = ",".join([str(items // (_FAST + 1))] * (_FAST + 1))

    def with_a_kill() -> float:
        victim = servers.node("processes:1")
        try:
            ports = _ports([victim, *fast[1:], slow])
            return servers.drive("farm:cluster", 0, 10 * seconds, ports, items, victim.pid, seconds / 2)[0]
        finally:
            victim.stop()

    contenders = [
        Contender("`cluster.map`, a node killed in the middle", with_a_kill),
        Contender("the bound, if it was killed after half of the time", lambda: bound, "about 1"),
        Contender(
            "`send_multi_uwsgi_message`, static split, none killed",
            lambda: servers.drive("farm:parts", 0, 10 * seconds, _ports([*fast, slow]), equal)[0],
            "1.3 or more",
        ),
    ]
    return compare(f"{items:,} items on 5 nodes", "s", contenders, scale.rounds, Relation.PEER_FIRST)


def _compare_overhead(servers: Servers, nodes: list[Server], scale: Scale) -> Table:
    """Compare with a single call to each node, which has its exact part by its speed."""
    items = _items(scale)
    slow = round(items / (_FAST * SLOWNESS + 1))
    exact = ",".join(map(str, [*[(items - slow) // _FAST] * _FAST, slow]))
    seconds = 10 * _LENGTH * scale.seconds
    contenders = [
        Contender(
            "`cluster.map`, no node killed",
            lambda: servers.drive("farm:cluster", 0, seconds, _ports(nodes), items)[0],
        ),
        Contender(
            "one call to each node, with its exact part",
            lambda: servers.drive("farm:parts", 0, seconds, _ports(nodes), exact)[0],
            "0.98 or more",
        ),
        Contender("the bound", lambda: items * COST / _SPEED, "0.95 or more"),
    ]
    return compare(f"{items:,} items on 5 nodes", "s", contenders, scale.rounds, Relation.PEER_FIRST)


def _compare_tiny(servers: Servers, nodes: list[Server], scale: Scale) -> Table:
    """Compare the rates of tiny items."""
    items = round(_TINY * scale.seconds)

    def dask() -> float:
        require("distributed")
        return servers.drive("farm:dask", 0, 60, max(_WARM, items // 10))[0]  # it is slower by far

    contenders = [
        Contender(
            "ours: `cluster.map` over two nodes of `processes:1`",
            lambda: servers.drive("farm:tiny", 0, 60, _ports(nodes), items)[0],
        ),
        Contender(
            "ours: the engine `processes:2` without a node",
            lambda: servers.drive("engine:ours", 0, scale.seconds)[0],
            "0.7 or more",
        ),
        Contender(
            "ours through a node, `Client`, 100 in flight",
            lambda: servers.drive("calls:client", nodes[0].port, scale.seconds)[0],
        ),
        Contender(
            "`ProcessPoolExecutor.map(chunksize=1)`",
            lambda: servers.drive("farm:pool", 0, 60, items)[0],
            "3 or more",
        ),
        Contender("Dask, `Client.map`", dask, "10 or more"),
    ]
    return compare(f"{items:,} tiny items", "items/s", contenders, scale.rounds)


if __name__ == "__main__":
    main(__doc__, run)
