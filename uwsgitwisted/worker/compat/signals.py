"""uWSGI's signals, what raises them, and mules: their functions here, and the calls for the front."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from uwsgitwisted import blocking
from uwsgitwisted.errors import ConnectionFailed, MisuseError, SignalRefused, UnknownFunction, UwsgiError
from uwsgitwisted.shared.inboxes import MESSAGE, SIGNAL
from uwsgitwisted.shared.signals import SIGNALS
from uwsgitwisted.wire.calls import decode_number
from uwsgitwisted.wire.objects import dumps, loads
from uwsgitwisted.wire.packet import SIGNAL as SIGNAL_MODIFIER
from uwsgitwisted.worker.compat import uwsgi
from uwsgitwisted.worker.compat.calls import DEFAULT_TIMEOUT
from uwsgitwisted.worker.compat.shared import call, has_front

#: A function that handles a signal: it gets the signal's number.
SignalFunction = Callable[[int], object]

#: Says that a message is the call of a function.
_SERVICE = "uwsgi_mulefunc"

_functions: dict[int, SignalFunction] = {}
_received = threading.local()
_mule_id = 0
#: The functions that get mules' messages.
mule_msg_extra_hooks: list[Callable[[bytes], object]] = []
#: The functions that a mule calls for others, by their names.
mule_functions: dict[str, Callable[..., object]] = {}


def become_mule(number: int) -> None:
    """Note that this process is a mule; 0 if it is none."""
    global _mule_id
    _mule_id = number


def forget_all() -> None:
    """Forget what was registered, as handlers are about to be loaded."""
    _functions.clear()
    mule_functions.clear()
    mule_msg_extra_hooks.clear()


def is_used() -> bool:
    """Whether this process has something that signals or mules run."""
    return bool(_functions or mule_functions or mule_msg_extra_hooks or uwsgi.mule_msg_hook)


def _check(signum: int) -> int:
    if isinstance(signum, bool) or not isinstance(signum, int) or not 0 <= signum < SIGNALS:
        raise MisuseError(f"there is no signal {signum!r}: they are 0 to {SIGNALS - 1}")
    return signum


def register_signal(signum: int, target: str | bytes, function: SignalFunction) -> None:
    """Have *function* handle a signal.

    :param target: who gets it: ``worker`` or an empty text for any worker, ``workers`` for all, ``worker2``,
        ``mule`` for any mule, ``mules``, ``mule2``.
    :raises MisuseError: if there is no such signal or target.
    """
    if not callable(function):
        raise MisuseError(f"register_signal({signum}): {type(function).__name__} can't be called")
    if has_front():
        call("signal_register", _check(signum), target if isinstance(target, bytes) else target.encode())
    _functions[_check(signum)] = function


def signal_registered(signum: int) -> bool | None:
    """Return True if this process has a function for a signal, else None."""
    return signum in _functions or None


def get_free_signal() -> int:
    """Return a signal that nothing in this process handles yet.

    All workers load the same modules, so that each gets the same numbers for the same functions.

    :raises MisuseError: if there is none.
    """
    for signum in range(SIGNALS):
        if signum not in _functions:
            return signum
    raise MisuseError(f"all {SIGNALS} signals are registered")


def signal(signum: int, remote: str | bytes | None = None) -> None:
    """Raise a signal: whoever is registered for it handles it soon.

    :param remote: the address of a node that is to raise it, such as ``10.0.0.5:3031``; None for this service.
    :raises MisuseError: if there is no such signal, or the address is none.
    :raises SignalRefused: if the node says no. It is a ``ValueError``, which uWSGI raises.
    :raises OSError: if the node can't be asked, or doesn't answer.
    """
    if remote is None:
        call("signal", _check(signum))
        return
    node = remote.decode(errors="surrogateescape") if isinstance(remote, bytes) else remote
    try:
        taken = blocking.send_message(node, SIGNAL_MODIFIER, _check(signum), b"", DEFAULT_TIMEOUT)
    except (MisuseError, OSError):
        raise
    except UwsgiError as error:
        raise ConnectionFailed(f"signal {signum} can't be delivered: {error.text}", address=node) from error
    if taken is not True:
        raise SignalRefused(f"the node has refused signal {signum}; its log says why", address=node)


def signal_wait(signum: int | None = None) -> None:
    """Wait until this worker or mule gets a signal, and handle it.

    :param signum: wait for this one, and handle the others meanwhile.
    """
    wanted = None if signum is None or signum < 0 else _check(signum)
    while True:
        items = call("wait", -1, SIGNAL)
        number = decode_number(items[1])
        run_signal(number)
        if wanted in (None, number):
            return


def signal_received() -> int:
    """Return the last signal that this thread has waited for; 0 if there was none."""
    number: int = getattr(_received, "number", 0)
    return number


def run_signal(signum: int) -> None:
    """Handle a signal in a process that has waited for it; an exception is logged."""
    _received.number = signum
    _logged(lambda number: find_function(number)(number), signum)


def find_function(signum: int) -> SignalFunction:
    """Return the function that handles a signal.

    :raises UnknownFunction: if there is none.
    """
    function = _functions.get(signum)
    if function is None:
        raise UnknownFunction(f"this process has registered no function for signal {signum}")
    return function


def _add(name: str, signum: int, *arguments: bytes | int) -> None:
    """Have the front raise a signal at times; in a process without one, nothing does."""
    _check(signum)
    if has_front():
        call(name, signum, *arguments)


def to_milliseconds(seconds: float, call: str) -> int:
    """Return the interval of a timer.

    :param call: names the call in the error.
    :raises MisuseError: if it is no number above 0.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < sys.maxsize:
        raise MisuseError(f"{call}: it takes a time above 0")
    return max(1, round(seconds * 1_000))


def add_timer(signum: int, seconds: float) -> None:
    """Raise a signal every so many seconds."""
    _add("timer", signum, to_milliseconds(seconds, f"add_timer({seconds!r})"), 0)


def add_rb_timer(signum: int, seconds: float, iterations: int = 0) -> None:
    """Raise a signal every so many seconds, and only so often, if *iterations* is not 0."""
    _add("timer", signum, to_milliseconds(seconds, f"add_rb_timer({seconds!r})"), iterations)


def add_ms_timer(signum: int, milliseconds: float) -> None:
    """Raise a signal every so many milliseconds."""
    _add("timer", signum, to_milliseconds(milliseconds / 1_000, f"add_ms_timer({milliseconds!r})"), 0)


def add_cron(signum: int, minute: int, hour: int, day: int, month: int, weekday: int) -> bool:
    """Raise a signal at the local times that match, and return True.

    -1 stands for every value, and -n for every one that n divides. One of *day* and *weekday* is enough, if
    both are single ones.

    :param weekday: from 0, Sunday, to 6; 7 is Sunday too.
    """
    _add("cron", signum, minute, hour, day, month, weekday)
    return True


def add_file_monitor(signum: int, path: str | bytes) -> None:
    """Raise a signal when a file or a directory changes."""
    _add("file", signum, os.path.abspath(os.fsencode(path)))


def mule_id() -> int:
    """Return the number of this mule; 0 in a worker."""
    return _mule_id


def mule_msg(message: str | bytes, mule: int = 0) -> bool:
    """Send a mule a message, and return whether there was room for it.

    :param mule: its number; 0 for the first that takes it.
    :raises MisuseError: if there is no such mule.
    """
    if not isinstance(mule, int):
        raise MisuseError(f"mule_msg to {mule!r}: there are no farms; name a mule by its number, or none")
    data = message.encode() if isinstance(message, str) else bytes(memoryview(message))
    return bool(call("mule_msg", mule, data))


def mule_msg_recv_size() -> int:
    """Return the most bytes that a message should have."""
    return _BUFFER


_BUFFER = 65_536


def mule_get_msg(
    signals: bool = True, farms: bool = True, buffer_size: int = _BUFFER, timeout: int = -1
) -> bytes | None:
    """Wait for a message, and return it. After a signal, which is handled, or the timeout, return None.

    :param signals: whether to handle signals meanwhile.
    :param farms: is ignored: there are none.
    :param buffer_size: a longer message is cut to this size, as in uWSGI.
    :param timeout: after so many seconds return None; negative for never.
    :raises MisuseError: if this process is no mule.
    """
    if not _mule_id:
        raise MisuseError("you can receive mule messages only in a mule")
    kinds = (SIGNAL, MESSAGE) if signals else (MESSAGE,)
    items = call("wait", timeout * 1_000 if timeout >= 0 else -1, *kinds)
    if not items:
        return None
    if items[0] == SIGNAL:
        run_signal(decode_number(items[1]))
        return None
    return items[1][:buffer_size]


def install_mule_msg_hook(function: Callable[[bytes], object]) -> None:
    """Have a mule without a program of its own call *function* with each message."""
    mule_msg_extra_hooks.append(function)


def call_in_mule(name: str, mule: int, args: tuple[object, ...], kwargs: dict[str, object]) -> bool:
    """Have a mule call a function of :data:`mule_functions`.

    :raises UnencodableMessage: if the arguments can't be marshalled.
    """
    call_ = {"service": _SERVICE, "func": name, "args": args, "kwargs": kwargs}
    return mule_msg(dumps(call_), mule)


def dispatch(message: bytes) -> None:
    """Give a message to the function that it calls, else to the hooks. Exceptions are logged."""
    try:
        values = loads(message)
    except UwsgiError:
        values = None
    if isinstance(values, dict) and values.get("service") == _SERVICE:
        _logged(_call_function, values)
        return
    for hook in (*filter(None, [uwsgi.mule_msg_hook]), *mule_msg_extra_hooks):
        _logged(hook, message)


def _call_function(values: dict[object, Any]) -> None:
    name = values["func"]
    function = mule_functions.get(name)
    if function is None:
        raise UnknownFunction(f"this mule has no function {name!r} (@mulefunc)")
    function(*values["args"], **values["kwargs"])


def _logged(function: Callable[[Any], object], argument: object) -> None:
    """Call a function; log its exception."""
    try:
        function(argument)
    except Exception:
        traceback.print_exc()


def serve_mule() -> None:
    """Handle messages and signals for ever, in a mule without a program of its own."""
    while True:
        kind, data = call("wait", -1, SIGNAL, MESSAGE)
        if kind == SIGNAL:
            run_signal(decode_number(data))
        else:
            dispatch(data)
