"""What handler modules get from ``import uwsgi``: the names that :mod:`.table` has.

A module sets :data:`message_manager_marshal` or :data:`spooler`, or registers RPC functions; the engines call
them. New code that wants exceptions uses :mod:`uwsgitwisted.blocking`.
"""

import time as _time
from collections.abc import Callable as _Callable
from typing import Any as _Any

from uwsgitwisted import __version__
from uwsgitwisted.worker.compat.names import find as _find
from uwsgitwisted.worker.compat.table import UWSGI as _UWSGI
from uwsgitwisted.worker.compat.table import flatten as _flatten

_NAMES = _flatten(_UWSGI)

__all__ = [*_NAMES]

#: Called with an object and the modifier2 it came with; its return value is the answer.
message_manager_marshal: _Callable[[object, int], object] | None = None

#: Called with a task's dict; returns one of the three numbers below.
spooler: _Callable[[dict[str | bytes, str | bytes]], object] | None = None

#: Called with each message of a mule that runs no program of its own.
mule_msg_hook: _Callable[[bytes], object] | None = None

SPOOL_OK = -2
SPOOL_RETRY = -1
SPOOL_IGNORE = 0

#: Called in each worker before its first request.
post_fork_hook: _Callable[[], object] | None = None

#: The addresses of the spoolers that are known.
spoolers: tuple[bytes, ...] = ()

#: How many workers the service has, and how many requests each one runs at a time.
numproc = cores = has_threads = 1
#: When the process was started.
started_on = int(_time.time())
#: Workers are always started anew, and never forked by a process that has loaded the code.
is_a_reload = False
#: The largest payload of a packet.
buffer_size = 65_535
#: What uWSGI has of itself, and there is nothing of here.
loop = unbit = applications = None
sockets: list[int] = []
magic_table: dict[bytes, bytes] = {}

#: Ours, as bytes, which is what uWSGI has there on Python 3.
version = __version__.encode()
#: That of uWSGI whose module this is like, for code that asks what there is.
version_info = (2, 0, 31, 0, b"uwsgitwisted")


def __getattr__(name: str) -> _Any:
    return _find(__name__, _NAMES, name)
