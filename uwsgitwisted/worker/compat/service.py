"""What the ``uwsgi`` module knows of the machine and the service, and what it can have the service do."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import sys
import time
from typing import Any

from uwsgitwisted.memory import memory_of
from uwsgitwisted.wire.calls import decode_number
from uwsgitwisted.worker.compat import uwsgidecorators
from uwsgitwisted.worker.compat.calls import process, worker_id
from uwsgitwisted.worker.compat.requests import requests
from uwsgitwisted.worker.compat.shared import call, has_front

#: The machine's name.
hostname = socket.gethostname().encode()
#: In the stubs of uWSGI, the module has it so.
decorators = uwsgidecorators

#: The command of ``prctl`` that sets the name of a thread, and the most bytes that the name has.
_PR_SET_NAME, _NAME_SIZE = 15, 15


def reload() -> bool | None:
    """Have the service replace its workers by new ones with fresh code, and return True; None in no worker."""
    return _signal_service(signal.SIGHUP)


def stop() -> bool | None:
    """Have the service finish its requests and end, and return True; None in no worker."""
    return _signal_service(signal.SIGTERM)


def _signal_service(number: signal.Signals) -> bool | None:
    # While the handler module is only checked, or in a script, there is no service, or it is not ready.
    if not worker_id():
        return None
    os.kill(process.masterpid, number)
    return True


def suspend() -> bool:
    """Return True. No engine here interrupts a function, as an asynchronous one of uWSGI does."""
    return True


def workers() -> tuple[dict[str, Any], ...]:
    """Return a dict for each worker.

    In a process without a front there is one, of the process itself, which has less.
    """
    if not has_front():
        return (
            _with_memory({"id": worker_id(), "pid": os.getpid(), "requests": requests.begun, "status": "busy"}),
        )
    return tuple(_with_memory(worker) for worker in json.loads(call("workers")[0]))


def _with_memory(worker: dict[str, Any]) -> dict[str, Any]:
    """Complete what the front, or this process, has told of a worker as uWSGI gives it to handlers."""
    worker["status"] = worker["status"].encode()
    worker["rss"], worker["vsz"] = memory_of(worker["pid"])
    worker["apps"] = _applications() if worker["pid"] else ()
    if "respawn_count" in worker:  # uWSGI doesn't count the first process here, other than in its statistics
        worker["respawn_count"] = max(0, worker["respawn_count"] - 1)
    return worker


def _applications() -> tuple[dict[str, Any], ...]:
    return tuple(
        {"id": number, "modifier1": 0, "mountpoint": path.encode(), "chdir": directory.encode()}
        for number, (path, directory) in enumerate(process.applications)
    )


def total_requests() -> int:
    """Return how many requests all workers have answered; without a front, how many this process has begun."""
    return decode_number(call("total_requests")[0]) if has_front() else requests.begun


def mem() -> tuple[int, int]:
    """Return the memory of this process in bytes: resident, and virtual, which is 0 where nothing says it."""
    resident, virtual = memory_of(os.getpid())
    return resident or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, virtual


def logsize() -> int:
    """Return how many bytes the service's log has; 0 if that is no file, or this process has no front."""
    return decode_number(call("log_size")[0]) if has_front() else 0


def micros() -> int:
    """Return the time, in microseconds since the epoch."""
    return time.time_ns() // 1_000


def ready() -> bool:
    """Return True: a worker that runs code is ready."""
    return True


def setprocname(name: str) -> None:
    """Set the name that the system shows of this process, on Linux; 15 bytes of it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:_NAME_SIZE], 0, 0, 0)
