"""Gives the ``uwsgi`` and ``uwsgidecorators`` modules the names that :mod:`.table` has for them."""

from __future__ import annotations

import difflib
import functools
import logging
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import NoReturn

from uwsgitwisted.errors import NotProvided
from uwsgitwisted.worker.compat.table import Name, Support

_logger = logging.getLogger("uwsgitwisted.uwsgi")


def find(module: str, names: Mapping[str, Name], name: str) -> object:
    """Return what a module has under a *name* of *names*, and keep it there.

    :param module: the module's full name; its last part is what handler modules import.
    :raises AttributeError: if uWSGI has no such name.
    """
    face = sys.modules[module]
    short = module.rpartition(".")[2]
    entry = names.get(name)
    if entry is None or entry.home == short:
        near = "".join(f"; did you mean {other}?" for other in difflib.get_close_matches(name, names, 1))
        raise AttributeError(f"there is no {short}.{name}{near}", name=name, obj=face)
    if entry.support is Support.REFUSED:
        found: object = _refusing_decorator(f"{short}.{name}", entry.note) if entry.is_decorator else None
        found = found or _refusing(f"{short}.{name}", entry.note)
    else:
        home = import_module(f"{module.rpartition('.')[0]}.{entry.home}")
        found = getattr(home, entry.attribute or name)
    setattr(face, name, found)
    return found


def _refusing(name: str, instead: str) -> Callable[..., NoReturn]:
    """Return a function that refuses each call."""

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise NotProvided(f"uwsgitwisted has no {name}; {instead}", name=name)

    refuse.__name__ = refuse.__qualname__ = name.rpartition(".")[2]
    return refuse


def _refusing_decorator(name: str, instead: str) -> Callable[..., object]:
    """Return a decorator, with or without arguments, whose decorated functions refuse each call.

    It says so in the log, since nobody may ever call them.
    """

    def decorate(*args: object, **kwargs: object) -> object:
        function = args[0] if args else None
        if not callable(function):
            return decorate
        refuse = _refusing(name, instead)
        _logger.warning(
            "uwsgitwisted has no @%s, so %s is not used; %s",
            name,
            getattr(function, "__qualname__", function),
            instead,
        )
        return functools.wraps(function)(refuse)

    decorate.__name__ = decorate.__qualname__ = name.rpartition(".")[2]
    return decorate
