"""A node that computes.

Start one on each of your machines, or a few on this one; in this directory:

    twistd -n --pidfile= uwsgi-node --listen tcp:3051 --handler my_cpu
    twistd -n --pidfile= uwsgi-node --listen tcp:3052 --handler my_cpu

Then send them work with fan_out.py, or compare.py. With SLOWDOWN=4 in its environment, a node is four times
slower than the others.
"""

import os
import time

import uwsgi

#: How many times slower the node is made. It waits, since nodes on one machine share its processors: a machine
#: that is really slower takes no time from the others either.
SLOWDOWN = float(os.environ.get("SLOWDOWN", "1"))


def compute(numbers: list[int], modifier2: int) -> object:
    """Raise every number from start up to stop to the 4096th power.

    :return: the processor time in seconds; with modifier2 1, the count of the numbers, and the seconds.
    """
    start, stop = numbers
    began, began_here = time.process_time(), time.perf_counter()
    for number in range(start, stop):
        number**4096
    time.sleep((SLOWDOWN - 1) * (time.perf_counter() - began_here))
    if modifier2 == 1:
        return [stop - start, time.perf_counter() - began_here]
    return time.process_time() - began


uwsgi.message_manager_marshal = compute
