"""The decorators of ``uwsgidecorators`` for signals, mules and locks; :mod:`.decorators` has the others."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from uwsgitwisted.worker.compat import shared, signals
from uwsgitwisted.worker.compat.decorators import postfork_chain, repeat

_Function = TypeVar("_Function", bound=Callable[..., object])


def signal(num: int, **kwargs: Any) -> Callable[[_Function], _Function]:
    """Have a function handle a signal.

    :param kwargs: ``target`` says which processes handle it, as :func:`~.signals.register_signal` has it.
    """

    def register(f: _Function) -> _Function:
        signals.register_signal(num, kwargs.get("target", ""), f)
        return f

    return register


def mstimer(msecs: float, **kwargs: Any) -> Callable[[_Function], _Function]:
    """Run a function every *msecs* milliseconds.

    :param kwargs: as for :func:`~.decorators.timer`.
    :raises MisuseError: if that is not above 0.
    """
    return repeat("mstimer", msecs, msecs / 1_000, kwargs)


def filemon(fsobj: str, **kwargs: Any) -> Callable[[_Function], _Function]:
    """Run a function when a file or a directory changes.

    :param kwargs: ``signum`` is the signal for that, and ``target`` says which processes handle it.
    """

    def register(f: _Function) -> _Function:
        number = kwargs["signum"] if "signum" in kwargs else signals.get_free_signal()
        signals.register_signal(number, kwargs.get("target", ""), f)
        signals.add_file_monitor(number, fsobj)
        return f

    return register


def lock(f: Callable[..., object]) -> Callable[..., object]:
    """Let only one process, and one thread, run a function at a time. All such functions share one lock."""

    @functools.wraps(f)
    def locked(*args: Any, **kwargs: Any) -> object:
        shared.lock()
        try:
            return f(*args, **kwargs)
        finally:
            shared.unlock()

    return locked


def _in_mule(num: int, run: Callable[[Callable[..., object]], object]) -> Callable[[_Function], _Function]:
    """Have the mule of a number run a decorated function after it has loaded the modules."""

    def register(f: _Function) -> _Function:
        def brain() -> None:
            if signals.mule_id() != num:
                return
            try:
                run(f)
            except Exception:
                traceback.print_exc()
                raise SystemExit(1) from None  # as in uWSGI, the mule is started again

        postfork_chain.append(brain)
        return f

    return register


def mule(num: int) -> Callable[[_Function], _Function]:
    """Run a function in a mule when it starts, for as long as it likes. After that, the mule takes messages."""
    return _in_mule(num, lambda f: f())


def muleloop(num: int) -> Callable[[_Function], _Function]:
    """Run a function in a mule again and again."""

    def run(f: Callable[..., object]) -> NoReturn:
        while True:
            f()

    return _in_mule(num, run)


def mulemsg(num: int) -> Callable[[_Function], _Function]:
    """Call a function with each message that a mule gets."""

    def run(f: Callable[..., object]) -> NoReturn:
        while True:
            message = signals.mule_get_msg()
            if message:
                f(message)

    return _in_mule(num, run)


def mulefunc(f: Callable[..., object] | int) -> Any:
    """Have a mule run a function whenever it is called; with ``@mulefunc(2)`` the second one.

    The arguments are marshalled objects, where uWSGI pickles them. A call returns at once, with whether there
    was room for it.
    """
    return _MuleFunction(f, 0) if callable(f) else functools.partial(_MuleFunction, mule=f)


class _MuleFunction:
    def __init__(self, f: Callable[..., object], mule: int) -> None:
        functools.update_wrapper(self, f)
        self._name = f.__name__
        self._mule = mule
        signals.mule_functions[f.__name__] = f

    def __call__(self, *args: Any, **kwargs: Any) -> bool:
        return signals.call_in_mule(self._name, self._mule, args, kwargs)
