"""What every benchmark shares: contenders that run in turn, tables of their figures, the command line."""

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

#: How to install the peers.
HOW_TO_INSTALL = "pip install '.[bench]'"
_PEERS = ("Twisted", "Pyro5", "uWSGI", "huey")


class MissingError(Exception):
    """A peer can't take part; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured.

    :param rounds: how often each contender runs.
    :param seconds: how long one run takes.
    :param sessions: how many idle sessions are opened.
    :param tasks: how many tasks are enqueued and run.
    :param waiting: among how many tasks others are enqueued and claimed.
    """

    rounds: int
    seconds: float
    sessions: int
    tasks: int
    waiting: int

    @property
    def smallest(self) -> bool:
        """Whether what can't be made short is to be left out."""
        return self.rounds == 1


SCALES = {
    "full": Scale(rounds=5, seconds=0.5, sessions=10_000, tasks=10_000, waiting=1_000_000),
    "quick": Scale(rounds=3, seconds=0.2, sessions=2_000, tasks=2_000, waiting=50_000),
    "tiny": Scale(rounds=1, seconds=0.02, sessions=20, tasks=20, waiting=200),
}


@dataclass(frozen=True, slots=True)
class Contender:
    """One of those that a table compares.

    :param name: what stands in the table.
    :param measure: makes one run and returns its figure; raises :class:`MissingError` if that can't be done.
    :param wanted: what the ratio in its row is to be, in words.
    """

    name: str
    measure: Callable[[], float]
    wanted: str = ""


class Relation(enum.Enum):
    """What a table's ratios are; the value heads their column."""

    OURS_FIRST = "ours / this"
    PEER_FIRST = "this / first"
    NONE = ""


@dataclass(slots=True)
class Row:
    """The figures of one contender, one a round."""

    name: str
    wanted: str = ""
    samples: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Table:
    """What one comparison found.

    :param title: what was measured.
    :param unit: what a figure is.
    :param relation: whether the first row is ours and the others are peers', or the other way round.
    :param left_out: why contenders are missing.
    """

    title: str
    unit: str
    relation: Relation = Relation.OURS_FIRST
    rows: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def ratio(self, row: Row) -> float:
        """Return what our figure is of the peer's, of the first row and *row*.

        It is the median of the rounds' own ratios: a round's runs are next to each other in time, so that a
        machine that gets slower meanwhile does so for both.
        """
        first = self.rows[0]
        ours, peer = (first, row) if self.relation is Relation.OURS_FIRST else (row, first)
        return statistics.median(a / b for a, b in zip(ours.samples, peer.samples, strict=True))

    def markdown(self) -> str:
        """Return the table, and who is missing in it."""
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
    """Let *contenders* run in turn, A B C A B C, so that a noisy machine is noisy for all of them.

    One that can't take part is left out, with the reason.
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
    """Return what so many percent of *samples* are at most."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def machine() -> str:
    """Return what the figures depend on, in one line."""
    cores = len(os.sched_getaffinity(0))
    parts = [f"{platform.system()} {platform.machine()}, {cores} cores", f"Python {platform.python_version()}"]
    for name in _PEERS:
        try:
            parts.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            parts.append(f"no {name}")
    return "; ".join(parts)


def scale_from(description: str | None, arguments: Sequence[str] | None = None) -> Scale:
    """Return the scale that the command line asks for."""
    parser = argparse.ArgumentParser(description=description)
    choice = parser.add_mutually_exclusive_group()
    add = partial(choice.add_argument, dest="scale", action="store_const")
    add("--quick", const="quick", help="fewer and shorter runs, for a first look")
    add("--tiny", const="tiny", help="the least that runs all of the code; its figures say nothing")
    return SCALES[parser.parse_args(arguments).scale or "full"]


def main(description: str | None, benchmark: Callable[[Scale], list[Table]]) -> None:
    """Run one benchmark as a script and print its tables."""
    # So that being terminated ends what was started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    scale = scale_from(description)
    print(f"{machine()}\n")
    for table in benchmark(scale):
        print(f"{table.markdown()}\n")
