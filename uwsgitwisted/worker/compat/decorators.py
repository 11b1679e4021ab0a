"""The decorators of the ``uwsgidecorators`` module.

A call of a decorated function becomes a task, which runs it in the spooler's worker; so does, by itself, each
time of a timer or a cron job. It keeps the contract of uWSGI's own module, with one difference: the arguments
of ``pass_arguments=True`` travel as marshalled objects. uWSGI pickles them, and so runs whatever anybody sends
to its spooler.

The front schedules periodic tasks; this module only records them.
"""

from __future__ import annotations

import functools
import threading
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from uwsgitwisted.errors import MisuseError, SpoolError, UnsafeObject
from uwsgitwisted.wire.objects import dumps, loads
from uwsgitwisted.wire.tasks import AGAIN, DONE
from uwsgitwisted.worker.compat import calls, signals, uwsgi
from uwsgitwisted.worker.compat.functions import register_rpc
from uwsgitwisted.worker.compat.requests import set_user_harakiri

_Function = TypeVar("_Function", bound=Callable[..., object])

#: What a task says of how it ends, for a real uWSGI that runs it.
_RETURN_CODES = {DONE: str(uwsgi.SPOOL_OK), AGAIN: str(uwsgi.SPOOL_RETRY)}
#: Which keywords of a call are the spooler's, where all others are the function's.
_SPOOLER_KEYS = frozenset({"spooler", "priority", "at", "body", "idempotency_key"})


@dataclass(frozen=True, slots=True)
class Returned:
    """The outcome of a decorated function's run.

    :param verdict: what becomes of the task, a number of :mod:`uwsgitwisted.spool.task`.
    :param value: what the function returned.
    """

    verdict: int
    value: object = None


class Spooled:
    """A function whose calls become tasks.

    :param f: the function.
    :param pass_arguments: whether it gets the arguments of the call; otherwise it gets the task's dict.
    :param verdict: what becomes of the task after a run; None if what the function returns says it.
    """

    def __init__(self, f: Callable[..., object], pass_arguments: bool, verdict: int | None) -> None:
        functools.update_wrapper(self, f)
        self.f = f
        self.pass_arguments = pass_arguments
        self.verdict = verdict
        self._base = {"ud_spool_func": f.__name__}
        if verdict is not None:
            self._base["ud_spool_ret"] = _RETURN_CODES[verdict]
        spooler_functions[f.__name__] = self
        _set_spooler()

    def __call__(self, *args: Any, **kwargs: Any) -> bool | None:
        """Hand a call to the spooler; return what ``uwsgi.spool`` returns.

        :raises UnencodableMessage: if an argument can't be marshalled.
        """
        task: dict[Any, Any] = dict(self._base)
        if self.pass_arguments:
            task |= {key: kwargs.pop(key) for key in _SPOOLER_KEYS & kwargs.keys()}
            task |= {"args": dumps(args), "kwargs": dumps(kwargs)}
        else:
            for variables in (*args[:1], kwargs):
                task.update(variables)
        return calls.spool(task)

    def spool(self, *args: Any, **kwargs: Any) -> bool | None:
        """Do the same, as it was spelled before uWSGI 1.9.13."""
        return self(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class PeriodicFunction:
    """A function that runs again and again.

    :param name: tells it from the others, also after a restart; its tasks have it as ``ud_spool_func``.
    :param function: is called with *signum*.
    :param signum: the number that it knows itself by, if it asked for one.
    :param cron: when it runs, as the five fields of a cron expression in local time; empty if *seconds* say it.
    :param seconds: how often it runs; 0 if *cron* says it.
    """

    name: str
    function: Callable[[int], object]
    signum: int
    cron: str = ""
    seconds: float = 0.0


#: The functions whose calls are tasks, by their names.
spooler_functions: dict[str, Spooled] = {}
#: The periodic functions by their names.
periodic: dict[str, PeriodicFunction] = {}
#: What runs in each worker before its first task.
postfork_chain: list[Callable[[], object]] = []


def spool(f: Callable[..., object] | None = None, pass_arguments: bool = False) -> Any:
    """Make a function's calls tasks that are done when it returns, whatever it returns."""
    return _spooled(f, pass_arguments, DONE)


def spoolforever(f: Callable[..., object] | None = None, pass_arguments: bool = False) -> Any:
    """Make a function's calls tasks that run again after each run."""
    return _spooled(f, pass_arguments, AGAIN)


def spoolraw(f: Callable[..., object] | None = None, pass_arguments: bool = False) -> Any:
    """Make a function's calls tasks; it returns ``uwsgi.SPOOL_OK``, ``SPOOL_RETRY`` or ``SPOOL_IGNORE``."""
    return _spooled(f, pass_arguments, None)


def _spooled(f: Callable[..., object] | None, pass_arguments: bool, verdict: int | None) -> Any:
    if f is None:
        return functools.partial(Spooled, pass_arguments=pass_arguments, verdict=verdict)
    return Spooled(f, pass_arguments, verdict)


def manage_spool_request(task: Mapping[str | bytes, str | bytes]) -> object:
    """Run a task of a decorated function; this is what ``uwsgi.spooler`` is.

    :return: a :class:`Returned`, an awaitable of one, or what a function of ``spoolraw`` returned.
    :raises SpoolError: if no such function is there.
    :raises UnsafeObject: if its arguments are no marshalled objects.
    """
    values = {_to_text(key): value for key, value in task.items()}
    name = _to_text(values.get("ud_spool_func", ""))
    if name in periodic:
        return _returned(DONE, periodic[name].function(periodic[name].signum))
    spooled = spooler_functions.get(name)
    if spooled is None:
        known = ", ".join(spooler_functions) or "none"
        raise SpoolError(
            f"the task's ud_spool_func is {name[:100]!r}, and the handler module decorates no function of that "
            f"name; there are: {known}"
        )
    if spooled.pass_arguments and "args" in values:
        result = spooled.f(*_arguments(values, "args", tuple), **_arguments(values, "kwargs", dict))
    else:
        result = spooled.f({key: _to_text(value) for key, value in values.items()})
    return result if spooled.verdict is None else _returned(spooled.verdict, result)


def _returned(verdict: int, value: object) -> object:
    return _awaited(verdict, value) if isinstance(value, Awaitable) else Returned(verdict, value)


async def _awaited(verdict: int, value: Awaitable[object]) -> Returned:
    return Returned(verdict, await value)


def _arguments(values: Mapping[str, str | bytes], key: str, kind: type) -> Any:
    """Return the function's arguments that the task has under *key*."""
    try:
        arguments = loads(_to_bytes(values.get(key, b"")))
    except UnsafeObject as error:
        raise UnsafeObject(
            f"the task's {key!r} are no marshalled objects ({error}). What uWSGI's own uwsgidecorators "
            "pickles is never loaded here, since it could run anything; let that uWSGI run the task, or "
            "enqueue it again"
        ) from error
    if not isinstance(arguments, kind):
        raise UnsafeObject(f"the task's {key!r} are of type {type(arguments).__name__}, not {kind.__name__}")
    return arguments


def _to_text(value: str | bytes) -> str:
    """Return text, as the original gives it to functions; bytes that are no UTF-8 become lone surrogates."""
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value


def _to_bytes(value: str | bytes) -> bytes:
    return value.encode(errors="surrogateescape") if isinstance(value, str) else value


def _set_spooler() -> None:
    """Have tasks run here, unless the handler module has a spooler function of its own."""
    if uwsgi.spooler is None:
        uwsgi.spooler = manage_spool_request


def timer(secs: float, **kwargs: Any) -> Callable[[_Function], _Function]:
    """Run a function every *secs* seconds.

    :param kwargs: ``signum`` is what the function is called with, and the signal that runs it in a node;
        ``target`` says which processes do.
    :raises MisuseError: if *secs* is not above 0.
    """
    return repeat("timer", secs, secs, kwargs)


def repeat(
    name: str, value: object, secs: float, kwargs: Mapping[str, Any]
) -> Callable[[_Function], _Function]:
    """Return the decorator of a function that runs every *secs* seconds.

    :param name: the decorator that says it, with *value*.
    :raises MisuseError: if *secs* is not above 0.
    """
    signals.to_milliseconds(secs, f"@{name}({value!r})")
    return lambda f: _repeated(f, kwargs, partial(signals.add_timer, seconds=secs), seconds=float(secs))


#: uWSGI has two kinds of timers, which do the same.
rbtimer = timer


def cron(
    minute: int, hour: int, day: int, month: int, dayweek: int, **kwargs: Any
) -> Callable[[_Function], _Function]:
    """Run a function at the local times that match.

    As in uWSGI, -1 stands for every value, and -n for every one that n divides.

    :param dayweek: from 0, Sunday, to 6; 7 is Sunday too.
    :param kwargs: as for :func:`timer`.
    :raises MisuseError: if there is no such time, or a cron expression can't say it.
    """
    values = (minute, hour, day, month, 0 if dayweek == 7 else dayweek)
    if not all(isinstance(value, int) for value in values):
        raise MisuseError(f"@cron{values}: it takes five integers")
    if min(day, dayweek) < -1 and -1 not in (day, dayweek):
        # core/master_utils.c of uWSGI 2.0.31: here both must match; where both are single days, one is enough.
        raise MisuseError(
            f"@cron{values}: the days that are day {day} and also weekday {dayweek} can't be said in a cron "
            "expression; give -1 for one of them and look at the other in the function"
        )
    expression = " ".join(map(_cron_field, _CRON_FIELDS, values))

    def add(number: int) -> None:
        signals.add_cron(number, minute, hour, day, month, dayweek)

    return lambda f: _repeated(f, kwargs, add, cron=expression)


#: The fields of a cron expression, and from where to where they go.
_CRON_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("dayweek", 0, 6))


def _cron_field(field: tuple[str, int, int], value: int) -> str:
    name, first, last = field
    if value == -1:
        return "*"
    allowed = range(first, last + 1)
    # Not "*/n", which counts from the first day and month instead of from 0.
    chosen = [value] if value in allowed else [n for n in allowed if value < 0 and n % value == 0]
    if not chosen:
        raise MisuseError(f"@cron: there is no {name} {value}; it goes from {first} to {last}")
    return ",".join(map(str, chosen))


def _repeated(
    f: _Function,
    kwargs: Mapping[str, Any],
    add: Callable[[int], None],
    *,
    cron: str = "",
    seconds: float = 0.0,
) -> _Function:
    """Record *f* as a periodic function, and return it.

    A spooler does that with tasks, which outlive it. Any other service raises a signal.

    :param add: has the front raise a signal.
    """
    first = name = f"{f.__module__}.{f.__qualname__}"
    number = 1
    while name in periodic:
        number += 1
        name = f"{first}#{number}"
    if "signum" in kwargs:
        signum = kwargs["signum"]
    else:
        signum = len(periodic) if calls.process.is_spooler else signals.get_free_signal()
    periodic[name] = PeriodicFunction(name, f, signum, cron, seconds)
    _set_spooler()
    if not calls.process.is_spooler:
        signals.register_signal(signum, kwargs.get("target", ""), f)
        add(signum)
    return f


def rpc(name: str | bytes) -> Callable[[_Function], _Function]:
    """Let others call a function by *name*: ``uwsgi.register_rpc`` as a decorator."""

    def register(f: _Function) -> _Function:
        register_rpc(name, f)
        return f

    return register


class postfork:  # noqa: N801 - uWSGI's name for it
    """Run a function in each worker before its first task, or with ``@postfork(2)`` in the second one."""

    def __init__(self, f: Callable[[], object] | int) -> None:
        self.wid = 0 if callable(f) else f
        self.f = f if callable(f) else None
        postfork_chain.append(self)

    def __call__(self, *args: Any) -> object:
        """Take the function, if it isn't known yet; else call it, if this is its worker."""
        if self.f is None:
            (self.f,) = args
            return self
        return self.f() if self.wid in (0, calls.worker_id()) else None


def postfork_chain_hook() -> None:
    """Run what is to run in each worker. As in uWSGI, one that raises is logged, and the worker works."""
    for function in postfork_chain:
        try:
            function()
        except Exception:
            traceback.print_exc()


def thread(f: Callable[..., object]) -> Callable[..., Callable[..., object]]:
    """Run each call of a function in a thread of its own, which doesn't keep the process from ending."""

    @functools.wraps(f)
    def start(*args: object) -> Callable[..., object]:
        threading.Thread(target=f, args=args, daemon=True).start()
        return f

    return start


def harakiri(seconds: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Have the worker killed if a call of the function takes more than *seconds*."""

    def limit(f: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(f)
        def call(*args: Any, **kwargs: Any) -> Any:
            set_user_harakiri(seconds)
            try:
                return f(*args, **kwargs)
            finally:
                set_user_harakiri(0)

        return call

    return limit
