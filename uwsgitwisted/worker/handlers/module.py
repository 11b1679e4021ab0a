"""Loads the module that ``--handler`` names: old uWSGI code, or new code written like it."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import PurePath
from types import ModuleType, TracebackType

from uwsgitwisted.errors import StartupError
from uwsgitwisted.worker.compat.install import install, serve_strangers
from uwsgitwisted.worker.handlers.source import import_from_source


def load_module(name: str) -> ModuleType:
    """Import the handler module *name*.

    The current directory comes first on ``sys.path``, and ``import uwsgi`` gives our module, except inside a
    real uWSGI, whose own is never replaced. The module, and what it imports from outside of the library
    directories, is compiled from its source.

    :param name: as an import statement has it, such as ``my_server`` or ``package.my_server``.
    :raises StartupError: if there is no such module, or it raises or exits while it is imported.
    """
    _check_name(name)
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


def load_handlers(name: str, function: str) -> ModuleType:
    """Import the handler module *name* and check that it set the function that will be called.

    :param function: the function's name in ``uwsgi``.
    :raises StartupError: if :func:`load_module` does, or ``uwsgi`` holds no such function afterwards.
    """
    module = load_module(name)
    serve_strangers()
    if getattr(install(), function, None) is None:
        raise StartupError(f"the handler module {name!r} set no uwsgi.{function}; {_PURPOSES[function]}")
    return module


_PURPOSES = {
    "message_manager_marshal": "set it to a function (object, modifier2) that returns the answer",
    "spooler": "set it to a function of one dict, the task",
}


def _check_name(name: str) -> None:
    """Refuse a file's name, with the module's name that is meant by it."""
    is_file = "/" in name or name.endswith(".py")
    if is_file:
        path = PurePath(name)
        where = "" if path.parent == PurePath(".") else f" and start it in the directory {path.parent}"
        raise StartupError(
            f"--handler {name}: that is a file; write the module's name as an import statement has it, "
            f"{path.stem!r}{where}"
        )
    if not all(part.isidentifier() for part in name.split(".")):
        raise StartupError(
            f"--handler {name!r}: not a module's name, such as 'my_server' or 'package.my_server'"
        )


def _not_found(name: str, error: ModuleNotFoundError) -> str:
    missing = f"{name!r}" if error.name == name else f"{name!r}, since there is no {error.name!r}"
    places = "".join(f"\n  {place}" for place in sys.path if place)
    return f"there is no handler module {missing} ({error}). It was looked for in{places}"


def _raised(name: str, error: Exception) -> str:
    lines = traceback.format_exception(type(error), error, _inside(error.__traceback__))
    return f"the handler module {name!r} raised while it was imported:\n{''.join(lines).rstrip()}"


def _inside(frames: TracebackType | None) -> TracebackType | None:
    """Return *frames* from the first one that is neither ours nor the import system's."""
    ours = (__file__, importlib.__file__)
    while frames is not None:
        filename = frames.tb_frame.f_code.co_filename
        if filename not in ours and not filename.startswith("<frozen importlib"):
            break
        frames = frames.tb_next
    return frames
