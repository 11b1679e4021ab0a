"""Loads the module that ``--handler`` names: existing uWSGI code, or new code in that style."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import PurePath
from types import ModuleType, TracebackType
from typing import NamedTuple

from uwsgitwisted.errors import StartupError
from uwsgitwisted.worker.compat import signals
from uwsgitwisted.worker.compat.functions import rpc_list
from uwsgitwisted.worker.compat.install import install, serve_strangers
from uwsgitwisted.worker.handlers.source import import_from_source


def load_module(name: str, option: str = "handler") -> ModuleType:
    """Import the handler module *name*.

    The function puts the current directory first on ``sys.path``, and makes ``import uwsgi`` import our module,
    except inside a real uWSGI, whose own module is never replaced. The handler module, and all that it imports
    from outside the library directories, is compiled from its source.

    :param name: the name as in an import statement, such as ``my_server`` or ``package.my_server``.
    :param option: which option names it, for error texts.
    :raises StartupError: if there is no such module, or importing it raises or exits.
    """
    _check_name(name, option)
    directory = os.getcwd()
    if sys.path[:1] != [directory]:
        sys.path.insert(0, directory)
    install()
    import_from_source()
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise StartupError(_not_found(name, error)) from error
        raise StartupError(_raised(name, error)) from error
    except SystemExit as error:
        raise StartupError(
            f"the handler module {name!r} called exit({error.code!r}) while it was imported; a handler module "
            "only defines functions and sets them in uwsgi"
        ) from error
    except Exception as error:
        raise StartupError(_raised(name, error)) from error


def load_handlers(name: str, *uses: str) -> ModuleType:
    """Import the handler module *name*, and check that it gives the service something to run.

    :param uses: the names in ``uwsgi`` by which it may do so: of functions that it sets, and ``register_rpc``.
    :raises StartupError: if :func:`load_module` raises it, or the module uses none of them.
    """
    module = load_module(name)
    serve_strangers()
    if not any(_USES[use].is_used() for use in uses):
        missing = " and ".join(_USES[use].missing for use in uses)
        advice = ", or ".join(_USES[use].advice for use in uses)
        raise StartupError(f"the handler module {name!r} {missing}; {advice}")
    return module


class _Use(NamedTuple):
    """A way to give a service something to run.

    :param is_used: whether the modules that were loaded have.
    :param missing: says of one that has not.
    :param advice: what to do.
    """

    is_used: Callable[[], bool]
    missing: str
    advice: str


def _function(name: str, purpose: str) -> _Use:
    """Return the use of a function that the module sets in ``uwsgi``."""
    return _Use(lambda: getattr(install(), name, None) is not None, f"set no uwsgi.{name}", purpose)


_USES = {
    "message_manager_marshal": _function(
        "message_manager_marshal", "set it to a function (object, modifier2) that returns the answer"
    ),
    "spooler": _function("spooler", "set it to a function of one dict, the task"),
    "register_signal": _Use(
        signals.is_used,
        "registered no signal or function of a mule",
        "register one with uwsgi.register_signal, or a decorator such as @timer",
    ),
    "register_rpc": _Use(
        lambda: bool(rpc_list()),
        "registered no RPC function",
        "register one with uwsgi.register_rpc(name, function)",
    ),
}


def _check_name(name: str, option: str) -> None:
    """Refuse the name of a file, and suggest the name of its module."""
    is_file = "/" in name or name.endswith(".py")
    if is_file:
        path = PurePath(name)
        where = "" if path.parent == PurePath(".") else f" and start it in the directory {path.parent}"
        raise StartupError(
            f"--{option} {name}: that is a file; write the module's name as an import statement has it, "
            f"{path.stem!r}{where}"
        )
    if not all(part.isidentifier() for part in name.split(".")):
        raise StartupError(
            f"--{option} {name!r}: not a module's name, such as 'my_server' or 'package.my_server'"
        )


def _not_found(name: str, error: ModuleNotFoundError) -> str:
    missing = f"{name!r}" if error.name == name else f"{name!r}, since there is no {error.name!r}"
    places = "".join(f"\n  {place}" for place in sys.path if place)
    return f"there is no handler module {missing} ({error}). It was looked for in{places}"


def _raised(name: str, error: Exception) -> str:
    lines = traceback.format_exception(type(error), error, _inside(error.__traceback__))
    return f"the handler module {name!r} raised while it was imported:\n{''.join(lines).rstrip()}"


def _inside(frames: TracebackType | None) -> TracebackType | None:
    """Drop the leading frames that belong to this module or to the import system."""
    ours = (__file__, importlib.__file__)
    while frames is not None:
        filename = frames.tb_frame.f_code.co_filename
        if filename not in ours and not filename.startswith("<frozen importlib"):
            break
        frames = frames.tb_next
    return frames
