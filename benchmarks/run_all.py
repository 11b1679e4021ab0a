"""Runs every benchmark, for docs/performance.md: ``python -m benchmarks.run_all [--quick]``."""

from __future__ import annotations

import signal
import sys
import traceback
from types import ModuleType

from benchmarks import calls, engine, fair, farm, idle, large, objects, ping, plain, render, spool, web
from benchmarks.harness import machine, scale_from

BENCHMARKS: tuple[ModuleType, ...] = (
    calls,
    engine,
    farm,
    plain,
    web,
    large,
    idle,
    ping,
    fair,
    objects,
    render,
    spool,
)


def main() -> int:
    """Run all benchmarks one after another, and print each one's tables when it ends.

    :return: how many have failed; the others' tables are printed all the same.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    scale = scale_from(__doc__)
    print(f"{machine()}; {scale.rounds} rounds, runs of {scale.seconds:g} s")
    failed = 0
    for benchmark in BENCHMARKS:
        print(f"\n### {benchmark.__name__.rpartition('.')[2]}\n", flush=True)
        try:
            tables = benchmark.run(scale)
        except Exception:
            traceback.print_exc()
            failed += 1
        else:
            print("\n\n".join(table.markdown() for table in tables), flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
