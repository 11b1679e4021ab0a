"""The harness of all benchmarks: runs contenders in turn, prints tables of figures, parses the command line."""

from __future__ import annotations

import argparse
import enum
import os
import platform
import signal
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version

#: The commands that install the peers.
HOW_TO_INSTALL = "pip install '.[bench]'"
_PEERS = ("Twisted", "Pyro5", "uWSGI", "huey", "gunicorn", "distributed")


class MissingError(Exception):
    """A peer can't take part; the text says why, and what to do about it."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The scale of a benchmark.

    :param rounds: how often each contender runs.
    :param seconds: how long one run takes.
    :param sessions: how many idle sessions to open.
    :param tasks: how many tasks to enqueue and run.
    :param waiting: how many tasks wait while others are enqueued and claimed.
    """

    rounds: int
    seconds: float
    sessions: int
    tasks: int
    waiting: int

    @property
    def smallest(self) -> bool:
        """Whether to omit the runs that can't be made short."""
        return self.rounds == 1


SCALES = {
    "full": Scale(rounds=5, seconds=0.5, sessions=10_000, tasks=10_000, waiting=1_000_000),
    "quick": Scale(rounds=3, seconds=0.2, sessions=2_000, tasks=2_000, waiting=50_000),
    "tiny": Scale(rounds=1, seconds=0.02, sessions=20, tasks=20, waiting=200),
}


@dataclass(frozen=True, slots=True)
class Contender:
    """A contender in a table.

    :param name: its name in the table.
    :param measure: makes one run and returns its figure; raises :class:`MissingError` if it can't run.
    :param wanted: the target for the ratio in its row, in words.
    """

    name: str
    measure: Callable[[], float]
    wanted: str = ""


class Relation(enum.Enum):
    """The meaning of a table's ratios; the value is the title of their column."""

    OURS_FIRST = "ours / this"
    PEER_FIRST = "this / first"
    NONE = ""


@dataclass(slots=True)
class Row:
    """The figures of one contender, one per round."""

    name: str
    wanted: str = ""
    samples: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Table:
    """The outcome of one comparison.

    :param title: the quantity measured.
    :param unit: the unit of the figures.
    :param relation: whether the first row is ours and the others are peers', or the other way round.
    :param left_out: the reasons why contenders are missing.
    """

    title: str
    unit: str
    relation: Relation = Relation.OURS_FIRST
    rows: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def ratio(self, row: Row) -> float:
        """Return the ratio of our figure to the peer's, from the first row and *row*.

        It is the median of the rounds' ratios. A round's runs follow each other closely, so a machine that
        slows down affects both.
        """
        first = self.rows[0]
        ours, peer = (first, row) if self.relation is Relation.OURS_FIRST else (row, first)
        return statistics.median(a / b for a, b in zip(ours.samples, peer.samples, strict=True))

    def markdown(self) -> str:
        """Format the table, and list the missing contenders."""
        lines = [
            f"| {self.title} | {self.unit}, median | lowest - highest | {self.relation.value} | wanted |",
            "|---|---:|---:|---:|---|",
        ]
        for number, row in enumerate(self.rows):
            ratio = f"{self.ratio(row):.2f}" if number and self.relation is not Relation.NONE else ""
            spread = f"{_figure(min(row.samples))} - {_figure(max(row.samples))}"
            median = _figure(statistics.median(row.samples))
            lines.append(f"| {row.name} | {median} | {spread} | {ratio} | {row.wanted} |")
        lines += [f"\nLeft out: {reason}" for reason in self.left_out]
        return "\n".join(lines)


def _figure(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def compare(
    title: str,
    unit: str,
    contenders: Sequence[Contender],
    rounds: int,
    relation: Relation = Relation.OURS_FIRST,
) -> Table:
    """Run *contenders* in turn, A B C A B C, so that noise on the machine affects all of them.

    Contenders that can't run are omitted, with the reason.
    """
    table = Table(title, unit, relation)
    rows = {contender.name: Row(contender.name, contender.wanted) for contender in contenders}
    for _ in range(rounds):
        for contender in contenders:
            if contender.name not in rows:
                continue
            try:
                rows[contender.name].samples.append(contender.measure())
            except MissingError as error:
                del rows[contender.name]
                table.left_out.append(f"{contender.name}: {error}")
    table.rows = list(rows.values())
    return table


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return a percentile of *samples*."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def machine() -> str:
    """Describe the machine and the versions in one line."""
    cores = len(os.sched_getaffinity(0))
    parts = [f"{platform.system()} {platform.machine()}, {cores} cores", f"Python {platform.python_version()}"]
    for name in _PEERS:
        try:
            parts.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            parts.append(f"no {name}")
    return "; ".join(parts)


def scale_from(description: str | None, arguments: Sequence[str] | None = None) -> Scale:
    """Return the scale from the command line."""
    parser = argparse.ArgumentParser(description=description)
    choice = parser.add_mutually_exclusive_group()
    add = partial(choice.add_argument, dest="scale", action="store_const")
    add("--quick", const="quick", help="fewer and shorter runs, for a first look")
    add("--tiny", const="tiny", help="the least that runs all of the code; its figures say nothing")
    return SCALES[parser.parse_args(arguments).scale or "full"]


def main(description: str | None, benchmark: Callable[[Scale], list[Table]]) -> None:
    """Run one benchmark as a script and print its tables."""
    # SIGTERM must also end the started processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    scale = scale_from(description)
    print(f"{machine()}\n")
    for table in benchmark(scale):
        print(f"{table.markdown()}\n")
