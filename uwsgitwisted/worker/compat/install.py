"""Puts our ``uwsgi`` and ``uwsgidecorators`` where imports find them, and tells the first about its process."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType

from uwsgitwisted.address import parse_address
from uwsgitwisted.worker.compat import calls
from uwsgitwisted.worker.compat import uwsgi as _ours
from uwsgitwisted.worker.compat import uwsgidecorators as _our_decorators
from uwsgitwisted.worker.compat.decorators import postfork_chain_hook


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


def configure(
    *,
    worker_id: int = 0,
    masterpid: int = 0,
    numproc: int = 1,
    options: Mapping[str, str | Sequence[str] | bool] | None = None,
    spooler: str | None = None,
    threads: int = 1,
) -> None:
    """Tell our ``uwsgi`` module about the process it is in.

    Whatever loads handlers calls this before.

    :param worker_id: what ``uwsgi.worker_id()`` returns: 1 for the first worker, 0 outside one.
    :param masterpid: what ``uwsgi.masterpid()`` returns: the service's own process, 0 in a script.
    :param numproc: how many workers there are.
    :param options: what ``uwsgi.opt`` holds: the service's options by their long names without dashes in
        front. Texts become bytes there, as uWSGI on Python 3 has them; an option that was given several times
        is a list of them, and a flag True.
    :param spooler: in a spooler, its own address, which may be empty; otherwise None.
    :param threads: how many requests a worker runs at a time.
    """
    calls.process.is_spooler = spooler is not None
    calls.process.spooler = spooler or ""
    calls.process.worker_id = worker_id
    calls.process.masterpid = masterpid
    calls.process.applications = ()
    _ours.numproc = numproc
    calls.opt.clear()
    calls.opt.update((name, _to_bytes(value)) for name, value in (options or {}).items())
    _ours.cores, _ours.has_threads = threads, 1
    known = calls.find_spooler()
    _ours.spoolers = (known.encode(),) if known else ()
    if known or spooler is not None:  # uWSGI's own uwsgidecorators asks whether it is there
        calls.opt.setdefault("spooler", known.encode())


def install_in_program(spooler: str | None = None) -> ModuleType:
    """Do as :func:`install`, in a program that no service of ours has started.

    :param spooler: the address of the spooler that gets its tasks; None for that in the environment.
    :raises InvalidAddress: if it is no address.
    """
    module = install()
    if module is _ours:
        if spooler is not None:
            parse_address(spooler)
        configure(masterpid=os.getpid())
        calls.process.spooler = spooler or ""
        if spooler:
            calls.opt["spooler"] = spooler.encode()
            _ours.spoolers = (spooler.encode(),)
    return module


def run_post_fork_hooks() -> None:
    """Run what is to run in each worker before its first request. One that raises is logged."""
    postfork_chain_hook()
    hook = _ours.post_fork_hook
    if hook is not None and hook is not postfork_chain_hook:
        try:
            hook()
        except Exception:
            traceback.print_exc()


def number_thread(numbers: Iterator[int]) -> None:
    """Give this thread, which runs handlers, the next of *numbers* as what ``uwsgi.worker_id()`` returns."""
    calls.thread.worker_id = next(numbers)


def _to_bytes(value: str | Sequence[str] | bool) -> bytes | list[bytes] | bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return value.encode(errors="surrogateescape")
    return [each.encode(errors="surrogateescape") for each in value]
