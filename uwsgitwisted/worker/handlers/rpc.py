"""RPC (modifier1 173): calls the functions that the handler module registers with ``uwsgi.register_rpc``.

The function is looked up at each call, so that a handler may register more at any time.
"""

from __future__ import annotations

from collections.abc import Callable

from uwsgitwisted.wire.packet import RPC
from uwsgitwisted.wire.rpc import encode_result
from uwsgitwisted.worker.compat.functions import read_call
from uwsgitwisted.worker.handlers import marshal
from uwsgitwisted.worker.handlers.handler import Handler
from uwsgitwisted.worker.handlers.module import load_handlers


def load(module: str) -> dict[int, Handler]:
    """Import the handler *module* and return the handler of its RPC functions, by modifier1.

    :raises StartupError: if it can't be imported, or registers no function.
    """
    load_handlers(module, "register_rpc")
    return _table()


def load_with_objects(module: str) -> dict[int, Handler]:
    """Do the same for a module that may also answer objects (modifier1 33), or handle signals, or only those.

    :raises StartupError: if it can't be imported, or does none of it.
    """
    load_handlers(module, "message_manager_marshal", "register_rpc", "register_signal")
    return marshal.table() | _table()


def run(call: tuple[Callable[..., object], tuple[bytes, ...]]) -> object:
    """Call a function with its arguments, and return its result."""
    function, arguments = call
    return function(*arguments)


def _table() -> dict[int, Handler]:
    return {RPC: Handler(run, encode_result, read_call)}
