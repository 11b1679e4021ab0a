"""Puts our ``uwsgi`` and ``uwsgidecorators`` where imports find them, and tells the first about its process."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType

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
    _ours._serves_strangers = True


def configure(
    *,
    worker_id: int = 0,
    masterpid: int = 0,
    numproc: int = 1,
    options: Mapping[str, str | bool] | None = None,
) -> None:
    """Tell our ``uwsgi`` module about the process it is in.

    A worker calls this once, before it loads its handlers.

    :param worker_id: what ``uwsgi.worker_id()`` returns: 1 for the first worker, 0 outside one.
    :param masterpid: what ``uwsgi.masterpid()`` returns: the process that starts the workers, 0 if none does.
    :param numproc: how many workers there are.
    :param options: what ``uwsgi.opt`` holds: the service's options by their long names without dashes in
        front. Texts become bytes there, as uWSGI on Python 3 has them; a flag is True.
    """
    _ours._worker_id = worker_id
    _ours._masterpid = masterpid
    _ours.numproc = numproc
    _ours.opt = {
        name: value.encode(errors="surrogateescape") if isinstance(value, str) else value
        for name, value in (options or {}).items()
    }
