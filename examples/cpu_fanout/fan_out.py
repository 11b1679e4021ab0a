"""Sends work to all nodes in parallel, and shows how much faster that is.

Start the nodes as my_cpu.py says, then run:

    python fan_out.py 127.0.0.1:3051 127.0.0.1:3052
"""

import sys
import time
from collections.abc import Sequence
from typing import cast

from uwsgitwisted.blocking import send_multi_uwsgi_message

Nodes = Sequence[tuple[str, int | str]]

#: The range of numbers that each node raises to the 4096th power, about half a second of work.
NUMBERS = [0, 3000]


def fan_out(nodes: Nodes) -> tuple[list[float], float]:
    """Make every node compute.

    :param nodes: ``(host, port)`` of each.
    :return: each node's processor time in seconds, in order, and the seconds until all answers had arrived.
    """
    began = time.perf_counter()
    cluster = tuple((host, port, NUMBERS) for host, port in nodes)
    answers = send_multi_uwsgi_message(cluster, modifier1=33, modifier2=0, timeout=40)
    return [cast(float, answer) for answer in answers], time.perf_counter() - began


def table(nodes: Nodes, worked: list[float], waited: float) -> list[str]:
    """Format a table of the nodes' processor times."""
    longest = max(worked)
    lines = []
    for (host, port), seconds in zip(nodes, worked, strict=True):
        bar = "#" * max(1, round(24 * seconds / longest))
        lines.append(f"{f'{host}:{port}':<24} {seconds:7.3f} s  {bar}")
    lines.append(f"{'all nodes together':<24} {sum(worked):7.3f} s  of processor time")
    lines.append(
        f"{'waited for':<24} {waited:7.3f} s  that is {sum(worked) / waited:.1f} times as fast as one core"
    )
    return lines


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python fan_out.py HOST:PORT...")
    named = [(host, port) for host, _, port in (node.rpartition(":") for node in sys.argv[1:])]
    print("\n".join(table(named, *fan_out(named))))
