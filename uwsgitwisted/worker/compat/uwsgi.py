"""What handler modules get from ``import uwsgi``: the names that :mod:`.table` has.

A module sets :data:`message_manager_marshal` or :data:`spooler`, or registers RPC functions; the engines call
them. New code that wants exceptions uses :mod:`uwsgitwisted.blocking`.
"""

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

#: How many workers the service has.
numproc = 1

#: Ours, as bytes, which is what uWSGI has there on Python 3.
version = __version__.encode()


def __getattr__(name: str) -> _Any:
    return _find(__name__, _NAMES, name)
