"""The RPC functions of this process, and uWSGI's calls of functions here and elsewhere.

``uwsgi.register_rpc`` fills the table. The node's RPC handler calls what is in it, and so do ``uwsgi.rpc`` and
``uwsgi.call`` without a node.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable

from uwsgitwisted import blocking
from uwsgitwisted.errors import MisuseError, UnknownFunction, UwsgiError
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.wire.rpc import check_name, decode_call, to_result
from uwsgitwisted.wire.vars import VarsValue, to_bytes
from uwsgitwisted.worker.compat.calls import DEFAULT_TIMEOUT, log_failure

#: A function that others call: it gets bytes, and returns bytes, text or None.
Function = Callable[..., object]

_functions: dict[bytes, Function] = {}
#: How many names of functions an error has.
_SHOWN = 20


def register_rpc(name: str | bytes, function: Function, argc: int = 0) -> bool:
    """Let others call *function* by its *name*, and return True; it replaces another one of that name.

    :param argc: is ignored, as in uWSGI: a call with other arguments fails when the function gets them.
    :raises MisuseError: if the name is one that uWSGI doesn't take, or the function can't be called.
    """
    if not callable(function):
        raise MisuseError(f"register_rpc({name!r}): {type(function).__name__} can't be called")
    _functions[check_name(name)] = function
    return True


def rpc_list() -> tuple[bytes, ...]:
    """Return the names of the functions that are registered in this process."""
    return tuple(_functions)


def find_function(name: bytes) -> Function:
    """Return the function of a *name*.

    :raises UnknownFunction: if there is none.
    """
    function = _functions.get(name)
    if function is None:
        names = [_text(known) for known in sorted(_functions)]
        shown = ", ".join(names[:_SHOWN]) or "none"
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise UnknownFunction(f"no RPC function is called {_text(name)[:100]!r}; registered are: {shown}{more}")
    return function


def rpc(node: str | bytes | None, name: str | bytes, *args: VarsValue) -> bytes | None:
    """Call a function and return its result; None if that is empty, or anything fails.

    :param node: the address of a node, such as ``b"10.0.0.5:3031"``; None or empty for this process.
    :param name: the function's name.
    :param args: its arguments: bytes, text or numbers. On their way to a node, none may be empty or over 65535
        bytes.
    :raises MisuseError: if the call can't be sent. It is a ``ValueError``, which uWSGI raises.
    """
    place = _text(node) if isinstance(node, bytes) else node
    try:
        if not place:
            return _call_here(name, args)
        return blocking.rpc(place, name, *args, timeout=DEFAULT_TIMEOUT) or None
    except MisuseError:
        raise
    except UwsgiError as error:
        log_failure("rpc", error)
        return None


def call(name: str | bytes, *args: VarsValue) -> bytes | None:
    """Do as :func:`rpc` does, with a *name* that may have the node behind it: ``function@10.0.0.5:3031``."""
    function, _, node = (_text(name) if isinstance(name, bytes) else name).partition("@")
    return rpc(node, function, *args)


def _call_here(name: str | bytes, args: tuple[VarsValue, ...]) -> bytes | None:
    """Call a function of this process, and log its exceptions. Here, as in uWSGI, arguments may be empty."""
    function = find_function(check_name(name))
    arguments = [to_bytes(argument) for argument in args]
    try:
        return to_result(function(*arguments)) or None
    except Exception:
        traceback.print_exc()
        return None


def read_call(request: Packet) -> tuple[Function, tuple[bytes, ...]]:
    """Return the function that *request* calls, and the arguments.

    :raises MalformedPacket: if it is no call.
    :raises UnknownFunction: if there is no such function.
    """
    name, arguments = decode_call(request)
    return find_function(name), arguments


def _text(name: bytes) -> str:
    return name.decode(errors="surrogateescape")
