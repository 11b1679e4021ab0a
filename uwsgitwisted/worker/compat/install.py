"""Puts our ``uwsgi`` and ``uwsgidecorators`` where imports find them, and tells the first about its process."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType

from uwsgitwisted.worker.compat import calls
from uwsgitwisted.worker.compat import uwsgi as _ours
from uwsgitwisted.worker.compat import uwsgidecorators as _our_decorators


def install() -> ModuleType:
    """Make ``import uwsgi`` and ``import uwsgidecorators`` give our modules; return what the first gives.

    Inside a real uWSGI, where ``uwsgi`` is built into the process, its own stay, and its ``uwsgi`` is returned.
    """
    present = sys.modules.get("uwsgi")
    if present is _ours:
        return _ours
    if "uwsgi" in sys.builtin_module_names:
        return present if present is not None else __import__("uwsgi")
    sys.modules["uwsgi"] = _ours
    sys.modules["uwsgidecorators"] = _our_decorators
    return _ours


def serve_strangers() -> None:
    """Tell our ``uwsgi`` module that what this process's code puts in a task may be a stranger's."""
    calls.process.serves_strangers = True


def run_tasks() -> None:
    """Tell our ``uwsgi`` module that this process is a spooler's worker, whose periodic functions are tasks."""
    calls.process.is_spooler = True


def configure(
    *,
    worker_id: int = 0,
    masterpid: int = 0,
    numproc: int = 1,
    options: Mapping[str, str | Sequence[str] | bool] | None = None,
) -> None:
    """Tell our ``uwsgi`` module about the process it is in.

    Whatever loads handlers calls this before.

    :param worker_id: what ``uwsgi.worker_id()`` returns: 1 for the first worker, 0 outside one.
    :param masterpid: what ``uwsgi.masterpid()`` returns: the service's own process, 0 in a script.
    :param numproc: how many workers there are.
    :param options: what ``uwsgi.opt`` holds: the service's options by their long names without dashes in
        front. Texts become bytes there, as uWSGI on Python 3 has them; an option that was given several times
        is a list of them, and a flag True.
    """
    calls.process.worker_id = worker_id
    calls.process.masterpid = masterpid
    calls.process.is_spooler = False
    _ours.numproc = numproc
    calls.opt.clear()
    calls.opt.update((name, _to_bytes(value)) for name, value in (options or {}).items())


def number_thread(numbers: Iterator[int]) -> None:
    """Give this thread, which runs handlers, the next of *numbers* as what ``uwsgi.worker_id()`` returns."""
    calls.thread.worker_id = next(numbers)


def _to_bytes(value: str | Sequence[str] | bool) -> bytes | list[bytes] | bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return value.encode(errors="surrogateescape")
    return [each.encode(errors="surrogateescape") for each in value]
