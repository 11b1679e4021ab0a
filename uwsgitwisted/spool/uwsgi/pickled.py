"""Recognizes tasks that only the uWSGI which wrote them can run: uWSGI's own uwsgidecorators pickles arguments.

A pickle is never loaded here, since it could run anything. So such a task stays in its directory.
"""

from __future__ import annotations

from uwsgitwisted.errors import UnsafeObject, UwsgiError
from uwsgitwisted.wire.objects import loads
from uwsgitwisted.wire.vars import decode_vars

#: The variable with the name of the decorated function, and those with its arguments.
_FUNCTION, _ARGUMENTS = b"ud_spool_func", (b"args", b"kwargs")
#: What a pickle begins with: the opcode for the protocol, or in the protocols 0 and 1 of Python 2 the mark
#: before the items of a tuple or dict. It ends with the opcode STOP.
_BEGINNINGS, _STOP = (b"\x80", b"("), b"."


def has_pickle(variables: bytes) -> bool:
    """Whether a task's arguments are pickled.

    :param variables: the task's vars block.
    """
    if _FUNCTION not in variables:
        return False
    try:
        found = decode_vars(variables)
    except UwsgiError:
        return False
    return _FUNCTION in found and any(_is_pickle(found.get(name, b"")) for name in _ARGUMENTS)


def _is_pickle(data: bytes) -> bool:
    if not (data.startswith(_BEGINNINGS) and data.endswith(_STOP)):
        return False
    try:
        loads(data)
    except UnsafeObject:
        return True
    return False  # an object of ours may begin and end in the same way
