"""Makes text safe to print: a task's text may contain control characters that attack a terminal."""

from __future__ import annotations


def printable(text: str, keep: str = "") -> str:
    """Escape the unprintable characters in *text*.

    :param keep: characters to leave as they are.
    """
    return "".join(letter if letter.isprintable() or letter in keep else _escape(letter) for letter in text)


def decoded(data: bytes) -> str:
    """Decode bytes to printable text."""
    return printable(data.decode(errors="backslashreplace"))


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
