"""Replaces what uWSGI replaces in values: magic variables, and what is in ``$()``, ``@()`` and ``%()``."""

from __future__ import annotations

import grp
import os
import pwd
import re
import socket
import sys
import time
from collections.abc import Callable

from uwsgitwisted.convert.setting import Place

#: How often a value is expanded, and how long it may become; a placeholder that names itself would never end.
MAX_EXPANSIONS, MAX_VALUE = 100, 65_536


def file_variables(path: str, section: str, directory: str) -> dict[str, str]:
    """Return the magic variables that describe a file, such as ``%n``.

    :param path: the file's name, as it was written.
    :param directory: the directory from which it is reached.
    """
    full = os.path.join(directory, path)
    if not os.path.islink(full):
        full = os.path.realpath(full)
    name = os.path.basename(full)
    parent = os.path.dirname(full).rstrip("/")
    parts = parent.strip("/").split("/")
    stem, dot, extension = name.rpartition(".")
    return {
        **{str(number): part for number, part in enumerate(parts[:10])},
        "o": path,
        "p": full,
        "s": name,
        "d": f"{parent}/",
        "c": parts[-1],
        "e": extension if dot else "",
        "n": stem if dot else name,
        "x": section,
        "i": str(os.lstat(full).st_ino) if os.path.lexists(full) else "",
        "j": _hash(full),
    }


def _hash(text: str) -> str:
    """Return the hash that ``%j`` means, DJB33X."""
    value = 5381
    for byte in text.encode():
        value = (value * 33 ^ byte) & 0xFFFFFFFF
    return value.to_bytes(4, "little").hex().upper()


def machine_variables(directory: str) -> dict[str, str]:
    """Return the magic variables that don't depend on a file, such as ``%h``."""
    user, group = os.getuid(), os.getgid()
    return {
        "%": "%",
        "(": "%(",
        "b": os.path.join(sys.prefix, "bin", "uwsgi"),
        "v": directory,
        "h": socket.gethostname(),
        "t": str(int(time.time())),
        "T": str(int(time.time() * 1e6)),
        "V": "2.0.31",
        "k": str(os.cpu_count() or 1),
        "[": "\x1b",
        "u": str(user),
        "U": _name(lambda: pwd.getpwuid(user).pw_name, user),
        "g": str(group),
        "G": _name(lambda: grp.getgrgid(group).gr_name, group),
    }


def _name(find: Callable[[], str], number: int) -> str:
    try:
        return find()
    except KeyError:
        return str(number)


def replace_magic(text: str, variables: dict[str, str], path: str) -> str:
    """Replace the magic variables in the text of a file; unknown ones are empty, as in uWSGI.

    :raises ConfigurationError: if a line ends with a single percent sign.
    """
    end = re.search(r"(?<!%)(%%)*%(\r?\n|$(?!\n))", text)
    if end is not None:
        line = text.count("\n", 0, end.start()) + 1
        raise Place(path, line).error("uWSGI joins a line that ends with % with the next one; write %% instead")
    return re.sub("%(.)", lambda match: variables.get(match[1], ""), text)


def expand(value: str, symbol: str, find: Callable[[str], str | None], place: Place) -> str:
    """Replace each ``SYMBOL(NAME)`` in *value*, as uWSGI does.

    :param find: returns what stands for a name; None leaves it as it is.
    :raises ConfigurationError: if there is no end of it.
    """
    position = 0
    for _ in range(MAX_EXPANSIONS):
        replaced = _replace_next(value, symbol, find, position)
        if replaced is None:
            return value
        if len(replaced) > MAX_VALUE:
            break
        value, position = replaced, 1  # uWSGI doesn't look at the first character again
    raise place.error(f"{symbol}(...) leads to itself, or to more than {MAX_VALUE} characters")


def _replace_next(value: str, symbol: str, find: Callable[[str], str | None], position: int) -> str | None:
    """Replace the next ``SYMBOL(NAME)`` for which there is something; return None if there is none."""
    while (found := _find(value, symbol, position)) is not None:
        start, end = found
        text = find(value[start + 2 : end])
        if text is not None:
            return value[:start] + text + value[end + 1 :]
        position = end
    return None


def _find(value: str, symbol: str, position: int) -> tuple[int, int] | None:
    """Return where the next ``SYMBOL(NAME)`` begins, and where its last parenthesis is."""
    while (start := value.find(f"{symbol}(", position)) >= 0:
        depth = 0
        position = start + 2
        while position < len(value) and value[position] != symbol:
            if value[position] == ")" and not depth:
                if position > start + 2:
                    return start, position
                break
            depth += {"(": 1, ")": -1}.get(value[position], 0)
            position += 1
    return None


def calculate(expression: str, find: Callable[[str], str | None]) -> str | None:
    """Return what ``%(EXPRESSION)`` stands for: an option, or several, joined or calculated with.

    :param find: returns the value of an option, or None.
    """
    words = [word for word in expression.split(" ") if word]
    if " " not in expression:
        return find(expression)
    result: str | None = None
    operator = ""
    for word in words:
        if word in ("++", "--"):
            result = None if result is None else str(_integer(result) + (1 if word == "++" else -1))
            operator = ""
        elif word in _OPERATORS:
            operator = word
        else:
            text = (word if word.isascii() and word.isdecimal() else find(word)) or ""
            if operator:
                result = str(_OPERATORS[operator](_integer(result or ""), _integer(text)))
            else:
                result = (result or "") + text
            operator = ""
    return result


_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": lambda left, right: int(left / right) if right else 0,
}


def _integer(text: str) -> int:
    """Return the number that *text* begins with, or 0."""
    match = re.match(r"\s*([+-]?\d{1,18})", text, re.ASCII)
    return int(match[1]) if match else 0
