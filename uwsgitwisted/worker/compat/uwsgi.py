"""What handler modules get from ``import uwsgi``.

A module sets :data:`message_manager_marshal` or :data:`spooler`, or registers RPC functions; the engines call
them. The functions are in :mod:`.calls` and :mod:`.functions`. New code that wants exceptions uses
:mod:`uwsgitwisted.blocking`.
"""

import sys as _sys
from collections.abc import Callable as _Callable
from typing import NoReturn as _NoReturn

from uwsgitwisted import __version__
from uwsgitwisted.worker.compat.calls import (
    log,
    masterpid,
    opt,
    send_message,
    send_multi_uwsgi_message,
    send_uwsgi_message,
    set_warning_message,
    spool,
    worker_id,
)
from uwsgitwisted.worker.compat.functions import call, register_rpc, rpc, rpc_list

__all__ = [
    "SPOOL_IGNORE",
    "SPOOL_OK",
    "SPOOL_RETRY",
    "call",
    "log",
    "masterpid",
    "message_manager_marshal",
    "numproc",
    "opt",
    "register_rpc",
    "rpc",
    "rpc_list",
    "send_message",
    "send_multi_uwsgi_message",
    "send_to_spooler",
    "send_uwsgi_message",
    "set_warning_message",
    "spool",
    "spooler",
    "version",
    "worker_id",
]

#: Called with an object and the modifier2 it came with; its return value is the answer.
message_manager_marshal: _Callable[[object, int], object] | None = None

#: Called with a task's dict; returns one of the three numbers below.
spooler: _Callable[[dict[str | bytes, str | bytes]], object] | None = None

SPOOL_OK = -2
SPOOL_RETRY = -1
SPOOL_IGNORE = 0

#: How many workers the service has.
numproc = 1

#: Ours, as bytes, which is what uWSGI has there on Python 3.
version = __version__.encode()

#: Its name in uWSGI before 1.0.
send_to_spooler = spool


def __getattr__(name: str) -> _NoReturn:
    text = f"uwsgitwisted has no uwsgi.{name}; it has: {', '.join(__all__)}"
    raise AttributeError(text, name=name, obj=_sys.modules[__name__])
