"""Divides the same work in two ways, and shows which node computes when.

The original call gives each node an equal part, so it lasts as long as the slowest node. A cluster gives each
node a further piece when it has done one, so that all end at the same time.

Start the nodes as my_cpu.py says, one of them with SLOWDOWN=4, then run:

    python compare.py 127.0.0.1:3051 127.0.0.1:3052
"""

import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from uwsgitwisted import blocking

#: The numbers that are raised to the 4096th power.
NUMBERS = range(4_000)
#: How many characters a line of the picture has for the time.
WIDTH = 48


class Span(NamedTuple):
    """A time in which a node computes, in seconds since the beginning."""

    node: str
    start: float
    end: float


class Run(NamedTuple):
    """What came of one way.

    :param raised: how many numbers were raised.
    :param seconds: until all answers had arrived.
    """

    spans: list[Span]
    raised: int
    seconds: float


def equal_parts(nodes: Sequence[str], numbers: range = NUMBERS) -> Run:
    """Give each node an equal part, as the original call does."""
    size = -(-len(numbers) // len(nodes))
    parts = [numbers[place * size : (place + 1) * size] for place in range(len(nodes))]
    messages = [(node, [part.start, part.stop]) for node, part in zip(nodes, parts, strict=True)]
    began = time.perf_counter()
    answers: Any = blocking.send_multi_uwsgi_message(messages, 33, 1, timeout=60)
    seconds = time.perf_counter() - began
    spans = [Span(node, 0.0, taken) for node, (_, taken) in zip(nodes, answers, strict=True)]
    return Run(spans, sum(count for count, _ in answers), seconds)


def pieces(nodes: Sequence[str], numbers: range = NUMBERS) -> Run:
    """Give each node piece by piece, as a cluster does."""
    spans, count = [], 0
    began = time.perf_counter()
    cluster = blocking.Cluster(nodes)
    # Computing may be done twice, so at the end idle nodes help the slow ones.
    for result in cluster.as_completed(33, 1, numbers, chunked=True, target=0.03, idempotent=True):
        if result.error is not None:
            raise result.error
        value: Any = result.value
        end = time.perf_counter() - began
        spans.append(Span(str(result.node), max(0.0, end - value[1]), end))
        count += value[0]
    return Run(spans, count, time.perf_counter() - began)


def picture(nodes: Sequence[str], run: Run, longest: float) -> list[str]:
    """Draw a line for each node: # where it computes, and . where it doesn't.

    :param longest: the seconds that fill a line.
    """
    lines = []
    for node in nodes:
        own = [span for span in run.spans if span.node == node]
        cells = ["."] * max(1, round(WIDTH * run.seconds / longest))
        for span in own:
            for cell in range(int(WIDTH * span.start / longest), int(WIDTH * span.end / longest) + 1):
                cells[min(cell, len(cells) - 1)] = "#"
        lines.append(f"{node:<22} {''.join(cells)} {len(own)}")
    return lines


def compare(nodes: Sequence[str], numbers: range = NUMBERS) -> list[str]:
    """Do the work both ways, and return what to show."""
    runs = {"equal parts": equal_parts(nodes, numbers), "cluster.map": pieces(nodes, numbers)}
    longest = max(run.seconds for run in runs.values())
    lines = []
    for name, run in runs.items():
        if run.raised != len(numbers):
            raise RuntimeError(f"{name}: {run.raised} numbers were raised, not {len(numbers)}")
        lines += [f"{name}: waited for {run.seconds:.2f} s", *picture(nodes, run, longest), ""]
    return lines[:-1]


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python compare.py HOST:PORT...")
    print("\n".join(compare(sys.argv[1:])))
