"""Text that is safe to print: what comes from a task may have been made to harm a terminal."""

from __future__ import annotations


def printable(text: str, keep: str = "") -> str:
    """Return *text* with what can't be printed as escapes.

    :param keep: characters to leave as they are.
    """
    return "".join(letter if letter.isprintable() or letter in keep else _escape(letter) for letter in text)


def decoded(data: bytes) -> str:
    """Return bytes as they can be printed."""
    return printable(data.decode(errors="backslashreplace"))


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
