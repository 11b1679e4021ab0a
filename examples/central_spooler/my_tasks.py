"""Runs the tasks of the spooler.

In this directory:

    twistd -n uwsgi-spooler --listen tcp:3034 --spool sqlite:spool.sqlite --handler my_tasks

Then enqueue tasks with enqueue.py. The handler appends each one to tasks.log.
"""

import os
from typing import Any

import uwsgi

LOG = os.environ.get("TASKS_LOG", "tasks.log")


def run(task: dict[Any, Any]) -> object:
    """Log a task. Keys and values are bytes, as in uWSGI on Python 3; only the key of the name is a str."""
    number = task.pop("spooler_task_name").decode()
    line = " ".join(f"{name.decode()}={value.decode()}" for name, value in sorted(task.items()))
    with open(LOG, "a") as log:
        log.write(f"{line}\n")
    # Printed text goes to the spooler's log.
    print(f"worker {uwsgi.worker_id()} ran task {number}: {line}", flush=True)
    return uwsgi.SPOOL_OK


uwsgi.spooler = run
