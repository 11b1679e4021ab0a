"""What the ``uwsgi`` module knows of the request that runs: its number, its time limit, its web request."""

from __future__ import annotations

import os
import signal
import threading
from itertools import count
from typing import TYPE_CHECKING, Any

from uwsgitwisted.errors import MisuseError
from uwsgitwisted.wire.vars import to_bytes
from uwsgitwisted.worker.compat.calls import process, worker_id

if TYPE_CHECKING:
    from uwsgitwisted.worker.web.response import Response

#: The most variables that a request may add to its line in the access log.
MAX_LOG_VARIABLES = 100


class _Requests:
    """The requests of this process."""

    def __init__(self) -> None:
        self._numbers = count(1)
        #: How many have begun.
        self.begun = 0
        #: Whether an alarm is set, which ends the process.
        self.alarm = False
        #: Which read from the front's pipe has completed the request that runs; 0 if that isn't known.
        self.read = 0

    def begin(self) -> None:
        """Count a request."""
        self.begun = next(self._numbers)

    def end(self) -> None:
        """Forget the time limit of a request that has ended."""
        if self.alarm:
            set_user_harakiri(0)


class _WebRequest(threading.local):
    """The web request that this thread answers."""

    response: Response | None = None


requests = _Requests()
web_request = _WebRequest()


def request_id() -> int:
    """Return how many requests this process has begun, which is this request's number; 0 before the first."""
    return requests.begun


def set_user_harakiri(seconds: int) -> None:
    """Have this worker killed in *seconds*, unless its request ends before; 0 for no limit.

    A worker that runs several requests at a time has one limit for all.

    :raises MisuseError: outside a worker process.
    """
    if seconds and (not worker_id() or process.masterpid == os.getpid()):
        raise MisuseError("uwsgi.set_user_harakiri is for worker processes: --engine processes:N")
    requests.alarm = bool(seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _response(function: str) -> Response:
    response = web_request.response
    if response is None:
        raise MisuseError(f"uwsgi.{function} is for a web request, and none is being answered in this thread")
    return response


def set_logvar(key: str | bytes, val: str | bytes) -> None:
    """Add a variable to the request's line in the access log.

    :raises MisuseError: if no web request is being answered, or it has 100 variables.
    """
    variables = _response("set_logvar").log_variables
    name = to_bytes(key).decode(errors="replace")
    if name not in variables and len(variables) >= MAX_LOG_VARIABLES:
        raise MisuseError(f"a request has at most {MAX_LOG_VARIABLES} variables for the log")
    variables[name] = to_bytes(val).decode(errors="replace")


def get_logvar(key: str | bytes) -> bytes | None:
    """Return a variable that :func:`set_logvar` has set; None if there is none."""
    if web_request.response is None:
        return None
    value = web_request.response.log_variables.get(to_bytes(key).decode(errors="replace"))
    return None if value is None else value.encode()


def add_var(key: str | bytes, val: str | bytes) -> bool:
    """Set a variable of the web request, in the ``environ`` of the application too, and return True.

    :raises MisuseError: if no web request is being answered.
    """
    _response("add_var").environ[to_bytes(key).decode("latin-1")] = to_bytes(val).decode("latin-1")
    return True


def cl() -> int:
    """Return the CONTENT_LENGTH of the web request; 0 if it has none."""
    text = str(_response("cl").environ.get("CONTENT_LENGTH", ""))
    return int(text) if text.isdecimal() else 0


def sendfile(filename_or_fd: Any, chunk: int = 0, pos: int = 0, filesize: int = 0) -> bool:
    """Send a file as the answer's body, and return True; the application returns an empty list then.

    :param filename_or_fd: its path, its descriptor, or an open file.
    :param chunk: is ignored.
    :param pos: where to begin, in bytes.
    :param filesize: how many bytes to send; 0 for all that follow.
    :raises MisuseError: if no web request is being answered.
    :raises OSError: if the file can't be read.
    """
    response = _response("sendfile")
    if not isinstance(filename_or_fd, (str, bytes)):
        descriptor = filename_or_fd if isinstance(filename_or_fd, int) else filename_or_fd.fileno()
        response.send_file(descriptor, pos, filesize)
        return True
    with open(filename_or_fd, "rb") as file:
        response.send_file(file.fileno(), pos, filesize)
    return True
