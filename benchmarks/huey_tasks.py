"""The same task for Huey, whose queue is a file in its working directory, fsynced at each commit."""

from __future__ import annotations

import os

from huey import SqliteHuey

from benchmarks.messages import MARKS

huey = SqliteHuey(filename="huey.db", fsync=True)
_marks = os.open(MARKS, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


@huey.task()  # type: ignore[untyped-decorator]
def run(job: str) -> None:
    """Leave a mark."""
    os.write(_marks, b".")
