"""What the spooler does with a task.

In this directory:

    twistd -n uwsgi-spooler --listen tcp:3034 --spool sqlite:spool.sqlite --handler my_tasks

and hand it tasks with enqueue.py. They are in tasks.log when they have run.
"""

import os

import uwsgi

LOG = os.environ.get("TASKS_LOG", "tasks.log")


def run(task):
    """Write a task down. Keys and values are bytes, as uWSGI has them on Python 3, but for this one key."""
    number = task.pop("spooler_task_name").decode()
    line = " ".join(f"{name.decode()}={value.decode()}" for name, value in sorted(task.items()))
    with open(LOG, "a") as log:
        log.write(f"{line}\n")
    # What is printed goes to the spooler's log.
    print(f"worker {uwsgi.worker_id()} ran task {number}: {line}", flush=True)
    return uwsgi.SPOOL_OK


uwsgi.spooler = run
