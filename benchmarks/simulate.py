"""Simulates large farms with the real planner, beside simpler ways to divide the work.

    python -m benchmarks.simulate                                # 1,000 nodes, 1,000,000 items: a few minutes
    python -m benchmarks.simulate --nodes 100 --items 100000     # seconds
    python -m benchmarks.simulate --growth                       # the planner's time, 10 to 10,000 nodes

Nodes differ in speed, some die without a word in the middle, and some turn ten times slower. The bound is the
time that the work takes if no node is ever idle and nothing is done twice. Without ``idempotent``, what a node
had when it died has failed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from benchmarks.farms import (
    Farm,
    Outcome,
    Scenario,
    Simulation,
    simulate_round_robin,
    simulate_static,
    simulate_stealing,
)

#: What is wanted of the planner with second copies, as parts of the bound and of the work, and in seconds.
WANTED_AFTER, WANTED_TWICE, WANTED_PLANNING = 0.03, 0.02, 20e-6
#: How many items a chunk of work stealing has.
_CHUNK = 20
_BARS = " ▁▂▃▄▅▆▇█"

CONTENDERS: dict[str, Callable[[Farm], Outcome]] = {
    "the planner, idempotent": lambda farm: Simulation(farm).run(),
    "the planner, not idempotent": lambda farm: Simulation(farm, idempotent=False).run(),
    f"work stealing, chunks of {_CHUNK}": lambda farm: simulate_stealing(farm, _CHUNK),
    "work stealing, chunks of 1": lambda farm: simulate_stealing(farm, 1),
    "round robin": simulate_round_robin,
    "static split": simulate_static,
}


def draw(outcome: Outcome) -> str:
    """Draw which part of the nodes worked, from the beginning to the end."""
    return "".join(_BARS[min(8, max(0, round(8 * share)))] for share in outcome.busy)


def row(name: str, outcome: Outcome) -> str:
    """Format the figures of one way."""
    idle = 1 - sum(outcome.busy) / len(outcome.busy)
    planning = f"{outcome.planning * 1e6:.1f} µs" if outcome.planning else ""
    return (
        f"| {name} | {outcome.end:.2f} s | {outcome.after:+.1%} | {outcome.twice:.2%} | {outcome.lost:,} "
        f"| {idle:.1%} | {planning} |"
    )


def table(scenario: Scenario) -> bool:
    """Print the figures of all ways; return whether the planner's are as wanted."""
    bound = Farm.make(scenario).bound
    print(f"{scenario.nodes:,} nodes, {scenario.items:,} items, bound {bound:.2f} s\n")
    print("| way | end | after the bound | done twice | items without an answer | idle | planning a piece |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    outcomes = {}
    for name, run in CONTENDERS.items():
        outcomes[name] = run(Farm.make(scenario))
        print(row(name, outcomes[name]), flush=True)
    print("\nNodes that work, from the beginning to the end of each:\n")
    for name, outcome in outcomes.items():
        print(f"{name:<28} {draw(outcome)} {outcome.end:.1f} s")
    ours = outcomes["the planner, idempotent"]
    return ours.after <= WANTED_AFTER and ours.twice <= WANTED_TWICE and not ours.lost


def growth(items: int) -> None:
    """Print how the planner's time grows with the number of nodes."""
    print("| nodes | items | planning a piece | after the bound |")
    print("|---:|---:|---:|---:|")
    for nodes in (10, 100, 1_000, 10_000):
        count = max(items, 20 * nodes)
        outcome = Simulation(Farm.make(Scenario(nodes=nodes, items=count))).run()
        figures = f"{outcome.planning * 1e6:.1f} µs | {outcome.after:+.1%}"
        print(f"| {nodes:,} | {count:,} | {figures} |", flush=True)


def main() -> int:
    """Simulate what the command line says.

    :return: 1 if the planner is not as good as is wanted.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1_000, help="how many nodes (default: 1,000)")
    parser.add_argument("--items", type=int, default=1_000_000, help="how many items (default: 1,000,000)")
    parser.add_argument("--seed", type=int, default=1, help="of all that is random (default: 1)")
    parser.add_argument("--growth", action="store_true", help="only show how the planner's own time grows")
    arguments = parser.parse_args()
    if arguments.growth:
        growth(min(arguments.items, 100_000))
        return 0
    return 0 if table(Scenario(nodes=arguments.nodes, items=arguments.items, seed=arguments.seed)) else 1


if __name__ == "__main__":
    sys.exit(main())
