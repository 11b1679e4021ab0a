"""Enqueues a task in the central spooler, from any machine.

Start the spooler as my_tasks.py says, then run:

    python enqueue.py key1=value1 key2=value2
    python enqueue.py key1=later at=$(( $(date +%s) + 60 ))
    SPOOLER=10.0.0.5:3034 python enqueue.py key1=elsewhere

It prints True once the task is on the spooler's disk.
"""

import os
import sys

from uwsgitwisted.blocking import send_uwsgi_message


def enqueue(host: str, port: int | str, task: dict[str, str]) -> object:
    """Return True once *task*, a dict of text, is on the spooler's disk."""
    return send_uwsgi_message(host, port, modifier1=17, modifier2=0, message=task, timeout=30)


if __name__ == "__main__":
    pairs = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    name, number = os.environ.get("SPOOLER", "127.0.0.1:3034").rsplit(":", 1)
    print(enqueue(name, number, pairs or {"key1": "value1", "key2": "value2"}))
