"""Computes numbers, and lets another node render a page from them. It needs neither WSGI nor Twisted.

Start one of the two nodes as my_server.py says, and then, in this directory:

    python front.py 'n=12'

front_node.py serves the same function to other machines, and web_front.py to browsers.
"""

import os
import sys
import time
from urllib.parse import parse_qs

from uwsgitwisted.blocking import send_uwsgi_message

#: The nodes that render pages, such as "10.0.0.5:3033 10.0.0.6:3033".
RENDERERS = os.environ.get("RENDERERS", "127.0.0.1:3033").split()

MOST_NUMBERS = 1_000


def fibonacci(count: int) -> list[int]:
    """Return the first *count* Fibonacci numbers."""
    numbers: list[int] = []
    current, following = 0, 1
    for _ in range(count):
        numbers.append(current)
        current, following = following, current + following
    return numbers


def page(query: str, template: str = "mytemplate.txt") -> object:
    """Return the page for a query string.

    :param query: ``n`` is the number of Fibonacci numbers, ``renderer`` the index in RENDERERS of the node that
        renders the page, ``time`` the time to show instead of the current one.
    :raises ValueError: if one of them is not a number.
    """
    fields = {name: values[-1] for name, values in parse_qs(query).items()}
    variables = {
        "fib_sequence": fibonacci(min(int(fields.get("n", 10)), MOST_NUMBERS)),
        "whattimeisit": float(fields.get("time", time.time())),
    }
    host, port = RENDERERS[int(fields.get("renderer", 0))].rsplit(":", 1)
    message = (template, variables)
    return send_uwsgi_message(host, port, modifier1=33, modifier2=0, message=message, timeout=30)


if __name__ == "__main__":
    print(page(sys.argv[1] if len(sys.argv) > 1 else "n=10"), end="")
