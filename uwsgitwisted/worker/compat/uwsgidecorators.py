"""What handler modules get from ``import uwsgidecorators``; the decorators are in :mod:`.decorators`."""

import sys as _sys
from collections.abc import Callable as _Callable
from typing import NoReturn as _NoReturn

from uwsgitwisted.errors import MisuseError as _MisuseError
from uwsgitwisted.worker.compat import uwsgi
from uwsgitwisted.worker.compat.decorators import (
    cron,
    manage_spool_request,
    postfork,
    postfork_chain,
    postfork_chain_hook,
    rbtimer,
    rpc,
    spool,
    spooler_functions,
    spoolforever,
    spoolraw,
    timer,
)

__all__ = [
    "cron",
    "manage_spool_request",
    "postfork",
    "postfork_chain",
    "postfork_chain_hook",
    "rbtimer",
    "rpc",
    "spool",
    "spooler_functions",
    "spoolforever",
    "spoolraw",
    "timer",
    "uwsgi",
]

#: What uWSGI's module has besides, for a module that imports such a name and doesn't use it.
_ABSENT = [
    "erlang",
    "farm",
    "filemon",
    "get_free_signal",
    "harakiri",
    "lock",
    "mule",
    "mulefunc",
    "muleloop",
    "mulemsg",
    "signal",
    "thread",
]
__all__ += _ABSENT

_DECORATORS = "spool, spoolraw, spoolforever, timer, rbtimer, cron, rpc, postfork"


def __getattr__(name: str) -> _Callable[..., _NoReturn]:
    text = f"uwsgitwisted has no uwsgidecorators.{name}; it has: {_DECORATORS}"
    if name not in _ABSENT:
        raise AttributeError(text, name=name, obj=_sys.modules[__name__])

    def refuse(*args: object, **kwargs: object) -> _NoReturn:
        raise _MisuseError(text)

    return refuse
