"""What the ``uwsgi`` module knows of the machine and the service, and what it can have the service do."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys
import time

from uwsgitwisted.worker.compat import uwsgi, uwsgidecorators
from uwsgitwisted.worker.compat.calls import process, worker_id
from uwsgitwisted.worker.compat.requests import requests

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


def workers() -> tuple[dict[bytes | str, object], ...]:
    """Return a dict for each worker; only the caller's own has more than its number."""
    return tuple(
        {"id": number, **(_myself() if number == worker_id() else {})} for number in range(1, uwsgi.numproc + 1)
    )


def _myself() -> dict[bytes | str, object]:
    rss, vsz = mem()
    return {
        "pid": os.getpid(),
        "requests": requests.begun,
        "status": b"busy",
        "rss": rss,
        "vsz": vsz,
        "last_spawn": uwsgi.started_on,
    }


def total_requests() -> int:
    """Return how many requests this worker has begun."""
    return requests.begun


def mem() -> tuple[int, int]:
    """Return the memory of this process in bytes: resident, and virtual, which is 0 where nothing says it."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            virtual, resident = map(int, file.read().split()[:2])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, 0
    return resident * resource.getpagesize(), virtual * resource.getpagesize()


def logsize() -> int:
    """Return 0: twistd writes the log, and rotates it."""
    return 0


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
