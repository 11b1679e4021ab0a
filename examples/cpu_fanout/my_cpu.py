"""A node that computes.

Start one on each of your machines, or a few on this one; in this directory:

    twistd -n --pidfile= uwsgi-node --listen tcp:3051 --handler my_cpu
    twistd -n --pidfile= uwsgi-node --listen tcp:3052 --handler my_cpu

Then send them work with fan_out.py.
"""

import time

import uwsgi


def compute(numbers: list[int], modifier2: int) -> float:
    """Raise every number from start up to stop to the 4096th power.

    :return: the processor time in seconds.
    """
    start, stop = numbers
    began = time.process_time()
    for number in range(start, stop):
        number**4096
    return time.process_time() - began


uwsgi.message_manager_marshal = compute
