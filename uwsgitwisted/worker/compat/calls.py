"""The functions of the ``uwsgi`` module, and what they know of their process.

They keep the contract of uWSGI's own: whatever goes wrong in a message is logged and the call returns None; a
task that is not taken is a ``ValueError``.
:mod:`uwsgitwisted.blocking` does the work.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from uwsgitwisted import blocking
from uwsgitwisted.activity import MAX_WARNING, NOTICE
from uwsgitwisted.address import AddressLike, FanOutNode, parse_address
from uwsgitwisted.errors import InvalidAddress, MisuseError, TaskNotTaken, UnencodableMessage, UwsgiError
from uwsgitwisted.wire.vars import VarsValue, to_bytes

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: Where :func:`spool` sends tasks, if neither the task nor the service's options say.
SPOOLER_VARIABLE = "UWSGITWISTED_SPOOLER"
#: To which other spoolers a service's handlers may send tasks: addresses with commas between them.
SPOOLERS_VARIABLE = "UWSGITWISTED_SPOOLERS"

#: ``uwsgi.opt``: the options that the running service was given, by their long names. They are bytes, a list of
#: bytes where one was given several times, or True for a flag. Empty in a script. It is always the same dict.
opt: dict[str, bytes | list[bytes] | bool] = {}


@dataclass(slots=True)
class Process:
    """The process that the module is in.

    :param masterpid: the service's own process, which starts the workers or is one; 0 in a script.
    :param worker_id: which worker this is, from 1; 0 outside one.
    :param spooler: the address of the spooler that gets its tasks, if nothing else says; empty for none.
    :param serves_strangers: whether what its handlers put in a task may be a stranger's.
    :param is_spooler: whether it runs tasks, periodic ones too.
    :param applications: the paths at which it answers web requests with applications, and their directories.
    """

    masterpid: int = 0
    worker_id: int = 0
    spooler: str = ""
    serves_strangers: bool = False
    is_spooler: bool = False
    applications: Sequence[tuple[str, str]] = ()


#: This one.
process = Process()
#: Has the number, as ``worker_id``, of each thread that is a worker.
thread = threading.local()

#: For how many seconds a call may take, where the caller doesn't say.
DEFAULT_TIMEOUT = 30.0
_logger = logging.getLogger("uwsgitwisted.uwsgi")


def _logged(function: Callable[_P, _T]) -> Callable[_P, _T | None]:
    """Turn our errors into a line in the log and None."""

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T | None:
        try:
            return function(*args, **kwargs)
        except UwsgiError as error:
            log_failure(function.__name__, error)
            return None

    return call


def log_failure(function: str, error: UwsgiError) -> None:
    """Log that a function of the ``uwsgi`` module has failed."""
    _logger.warning("uwsgi.%s: %s: %s", function, type(error).__name__, error)


@_logged
def send_uwsgi_message(
    host: str,
    port: int | str,
    modifier1: int,
    modifier2: int,
    message: object,
    timeout: float = DEFAULT_TIMEOUT,
) -> object:
    """Send *message* to a node and return its answer; None if anything fails.

    The parameters are those of :func:`uwsgitwisted.blocking.send_uwsgi_message`.
    """
    return blocking.send_uwsgi_message(
        host, port, modifier1, modifier2, message, timeout, python2=_text(opt.get("python2"))
    )


@_logged
def send_multi_uwsgi_message(
    cluster: Iterable[FanOutNode],
    modifier1: int,
    modifier2: int,
    timeout: float = DEFAULT_TIMEOUT,
) -> tuple[object, ...]:
    """Send each node of *cluster* its message, all at once, and return the answers; None if one failed.

    The parameters are those of :func:`uwsgitwisted.blocking.send_multi_uwsgi_message`.
    """
    return blocking.send_multi_uwsgi_message(
        cluster, modifier1, modifier2, timeout, python2=_text(opt.get("python2"))
    )


@_logged
def send_message(
    dest: AddressLike,
    modifier1: int,
    modifier2: int,
    message: object,
    timeout: float = DEFAULT_TIMEOUT,
) -> object:
    """Send *message* to the address *dest* and return its answer; None if anything fails.

    The parameters are those of :func:`uwsgitwisted.blocking.send_message`.
    """
    return blocking.send_message(
        dest, modifier1, modifier2, message, timeout, python2=_text(opt.get("python2"))
    )


def spool(task: Mapping[str | bytes, VarsValue] | None = None, /, **variables: Any) -> bool:
    """Hand a task to the spooler and return True once it is safely stored.

    The spooler is the address under the task's key ``spooler``, else under ``spooler`` in ``uwsgi.opt`` if the
    handler module has put it there, else in the environment variable ``UWSGITWISTED_SPOOLER``, else, in a
    spooler's own handler, that spooler. A key ``spooler`` that is no address stays in the task: the spooler
    takes it as the name of a queue. What is under ``body`` may be larger than a variable.

    In the handlers of a service, the variables may come from whoever sent the request. So an address under the
    key ``spooler`` has to be one that the service's owner allows, in ``UWSGITWISTED_SPOOLERS``.

    :param task: the task's variables: bytes, text or numbers under keys of bytes or text.
    :param variables: more of them, which win; ``message_dict`` is a dict of variables, as *task* is.
    :raises MisuseError: if no spooler is known, or the task can't be sent, such as one that has other types.
    :raises TaskNotTaken: if the spooler can't be reached or refuses the task. Both are ``ValueError``, which
        uWSGI raises.
    """
    given = (task or {}, variables.pop("message_dict", None) or {}, variables)
    whole = {_to_key(name): value for each in given for name, value in each.items()}
    address = _address_in(whole.get(b"spooler"))
    if address is None:
        address = find_spooler()
    else:
        _check_allowed(address)
        del whole[b"spooler"]
    if not address:
        raise MisuseError(
            "no spooler is known; name its address in the task's key 'spooler', or in the environment variable "
            f"{SPOOLER_VARIABLE}, such as {SPOOLER_VARIABLE}=127.0.0.1:3034"
        )
    try:
        return _send_task(address, whole)
    except MisuseError:
        raise
    except UwsgiError as error:
        raise TaskNotTaken(f"the spooler has not taken the task: {error}") from error


def _to_key(name: object) -> bytes:
    """Return a variable's name as bytes.

    :raises UnencodableMessage: if it is neither bytes nor text.
    """
    if not isinstance(name, (bytes, str)):
        raise UnencodableMessage(f"a task's keys are bytes or text, not {type(name).__name__}")
    return to_bytes(name)


def _send_task(address: str, task: Mapping[bytes, VarsValue]) -> bool:
    body = task.get(b"body")
    if body:
        rest = {name: value for name, value in task.items() if name != b"body"}
        with suppress(MisuseError):  # another uWSGI, to which it can only be sent as a variable
            blocking.enqueue(address, rest, to_bytes(body), DEFAULT_TIMEOUT)
            return True
    return blocking.spool(address, task, DEFAULT_TIMEOUT)


def find_spooler() -> str:
    """Return the address of the spooler that gets tasks that name none; empty if none is known."""
    in_options = _address_in(opt.get("spooler"))
    if in_options and in_options != process.spooler:
        return in_options
    return os.environ.get(SPOOLER_VARIABLE) or process.spooler


def _check_allowed(address: str) -> None:
    """See that a task may name the spooler at *address*.

    :raises MisuseError: if this is a service that may not send tasks there.
    """
    allowed = [os.environ.get(SPOOLER_VARIABLE, ""), *os.environ.get(SPOOLERS_VARIABLE, "").split(",")]
    own = _address_in(opt.get("spooler")) or ""
    places = {parse_address(text.strip()) for text in (own, process.spooler, *allowed) if text.strip()}
    if process.serves_strangers and parse_address(address) not in places:
        raise MisuseError(
            f"a task names the spooler {address}, to which this service's handlers may not send tasks; if they "
            f"are to, name it in the service's environment: {SPOOLERS_VARIABLE}={address}"
        )


def _address_in(value: object) -> str | None:
    """Return *value* if it is an address, and not a directory as code for uWSGI has it, or a queue's name."""
    text = _text(value)
    try:
        address = parse_address(text)
    except InvalidAddress:
        return None
    is_place = address.kind != "unix" or text.startswith("unix:") or Path(address.path).is_socket()
    return text if is_place else None


def _text(value: object) -> str:
    """Return the text in an option or a task's variable; empty if there is none."""
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    return value if isinstance(value, str) else ""


def masterpid() -> int:
    """Return the id of the service's own process, which starts the workers or is one; 0 in a script."""
    return process.masterpid


def worker_id() -> int:
    """Return this worker's number, counted from 1; 0 outside a worker, or where an executor has its own."""
    number: int = getattr(thread, "worker_id", process.worker_id)
    return number


def log(text: str) -> bool:
    """Write a line to the log, which is the standard error of the process, and return True."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
    return True


def set_warning_message(message: str | bytes) -> bool:
    """Have the service answer pings with a warning, and return True.

    Load balancers then leave this node out. The warning holds for the whole service, until a handler sets
    another one; an empty one ends it.

    :param message: the warning; more than 80 bytes of it are cut off, as in uWSGI.
    """
    text = to_bytes(message)
    if len(text) > MAX_WARNING:
        _logger.warning("uwsgi.set_warning_message: only %d of %d bytes are kept", MAX_WARNING, len(text))
    NOTICE.write(text)
    return True
