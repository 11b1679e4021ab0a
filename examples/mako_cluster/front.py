"""Computes, and has another node make a page of it. Neither WSGI nor Twisted is needed here.

Start one of the two nodes that my_server.py names, and then, in this directory:

    python front.py 'n=12'

front_node.py serves the same function to other machines.
"""

import os
import sys
import time
from urllib.parse import parse_qs

from uwsgitwisted.blocking import send_uwsgi_message

#: Where pages are rendered, such as "10.0.0.5:3033 10.0.0.6:3033".
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


def page(query: str) -> object:
    """Return the page that a query string asks for.

    :param query: ``n`` says how many numbers, ``renderer`` which of RENDERERS makes the page (0 is the first),
        ``time`` what time it is, if not now.
    """
    fields = {name: values[-1] for name, values in parse_qs(query).items()}
    variables = {
        "fib_sequence": fibonacci(min(int(fields.get("n", 10)), MOST_NUMBERS)),
        "whattimeisit": float(fields.get("time", time.time())),
    }
    host, port = RENDERERS[int(fields.get("renderer", 0))].rsplit(":", 1)
    message = ("mytemplate.txt", variables)
    return send_uwsgi_message(host, port, modifier1=33, modifier2=0, message=message, timeout=30)


if __name__ == "__main__":
    print(page(sys.argv[1] if len(sys.argv) > 1 else "n=10"), end="")
