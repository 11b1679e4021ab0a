"""Runs the conditions and loops of a configuration: ``if-env``, ``for`` and the like."""

from __future__ import annotations

import errno
import glob
import itertools
import os
import socket
import stat
from collections.abc import Callable

from uwsgitwisted.convert.setting import Place

#: The options that end a block.
ENDS = frozenset({"end", "endfor", "end-for", "endif", "end-if"})
#: How often a loop may run, and how many characters the file may have whose lines it reads.
MAX_TIMES, MAX_LINES = 1_000, 1 << 20

#: Finds the value of an option; None if it isn't set.
Find = Callable[[str], "str | None"]


def _set(value: str | None, wanted: str | None) -> bool:
    return value is not None and wanted in (None, value)


def _variable(argument: str, find: Find) -> tuple[bool, str]:
    """Compare what *find* finds for ``NAME`` or ``NAME=VALUE``."""
    name, equals, wanted = argument.partition("=")
    value = find(name)
    return _set(value, wanted if equals else None), value or ""


def _matches(pattern: str, directory: str) -> list[str]:
    paths = itertools.islice(glob.iglob(pattern, root_dir=directory), MAX_TIMES + 1)
    return sorted(
        os.path.join(path, "") if os.path.isdir(os.path.join(directory, path)) else path for path in paths
    )


def _times(argument: str) -> list[str]:
    number = int(argument[:_MAX_DIGITS]) if argument.isascii() and argument.isdecimal() else 0
    return [str(each) for each in range(1, min(number, MAX_TIMES + 1) + 1)]


#: So many digits of a number are enough to see that it is too large.
_MAX_DIGITS = 18


def _lines(path: str, directory: str) -> list[str]:
    full = os.path.join(directory, path)
    if not stat.S_ISREG(os.stat(full).st_mode):
        raise OSError(errno.EINVAL, "it is not a file")
    with open(full, encoding="utf-8", errors="surrogateescape") as file:
        text = file.read(MAX_LINES + 1)
    if len(text) > MAX_LINES:
        raise OSError(errno.EFBIG, f"it has more than {MAX_LINES} characters")
    return text.splitlines()


_CONDITIONS: dict[str, Callable[[str, Find], tuple[bool, str]]] = {
    "env": lambda argument, _: _variable(argument, os.environ.get),
    "opt": _variable,
    "hostname": lambda name, _: (socket.gethostname() == name, name),
    "reload": lambda _, __: (False, ""),
}
#: Conditions about files.
_FILES: dict[str, Callable[[str], bool]] = {
    "exists": os.path.exists,
    "file": os.path.isfile,
    "dir": os.path.isdir,
    "directory": os.path.isdir,
}
_LOOPS: dict[str, Callable[[str, str], list[str]]] = {
    "for": lambda words, _: words.split(),
    "for-glob": lambda pattern, directory: _matches(pattern, directory) or [pattern],
    "for-times": lambda number, _: _times(number),
    "for-readline": _lines,
}
#: How much of a loop's value an error shows.
_SHOWN = 100
#: Conditions about uWSGI itself, or in a language of its own.
_UNKNOWN = ("if-plugin", "if-not-plugin", "ifplugin", "if-hostname-match", "if-not-hostname-match")


def is_block(key: str) -> bool:
    """Whether the option *key* begins a block."""
    return key in _LOOPS or key in _UNKNOWN or _condition(key) is not None


def _condition(key: str) -> tuple[str, bool] | None:
    """Return the name of a condition, and whether it has to hold."""
    for prefix, wanted in (("if-not-", False), ("if-", True), ("if", True)):
        if key.startswith(prefix) and (name := key[len(prefix) :]) in _CONDITIONS.keys() | _FILES.keys():
            return name, wanted
    return None


def words_of(key: str, argument: str, find: Find, directory: str, place: Place) -> list[str]:
    """Return what ``%(_)`` stands for in each repetition of an option within a block; an empty list skips it.

    :param key: the option that began the block.
    :param argument: its value.
    :param find: finds the value of another option.
    :param directory: the directory in which uWSGI starts, for the names of files.
    :raises ConfigurationError: if the block asks for something that only uWSGI knows, or for too much.
    """
    if key in _UNKNOWN:
        raise place.error(f"{key} can't be answered here: remove it, and keep what should be read")
    if key in _LOOPS:
        try:
            words = _LOOPS[key](argument, directory)
        except (OSError, ValueError) as error:
            raise place.error(f"{key} = {argument}: {getattr(error, 'strerror', error)}") from error
        if len(words) > MAX_TIMES:
            raise place.error(f"{key} = {argument[:_SHOWN]}: it runs more than {MAX_TIMES} times")
        return words
    name, wanted = _condition(key) or ("", True)
    if name in _FILES:
        holds, word = _FILES[name](os.path.join(directory, argument)), argument
    else:
        holds, word = _CONDITIONS[name](argument, find)
    return [word] if holds == wanted else []
