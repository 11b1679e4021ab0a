"""The errors of templates, and their texts. None of them reveals where the template directories are."""

from __future__ import annotations

from uwsgitwisted.errors import MisuseError, UwsgiError

_NAME_IN_ERRORS = 200


class NoTemplate(MisuseError):
    """No template has this name.

    :param name: the name.
    """

    def __init__(self, text: str = "", *, name: str = "", address: object = None) -> None:
        super().__init__(text, address=address)
        self.name = name


class TemplateRefused(NoTemplate):
    """The name can't belong to a regular file below the template directories."""


class TemplateMissing(NoTemplate):
    """The file doesn't exist or can't be opened, or the template has no such part."""


class TemplateFailed(UwsgiError):
    """Compiling or rendering a template failed.

    :param name: the template that contains the line; a page may consist of several templates.
    :param line: the line, from 1; 0 if it isn't known.
    """

    def __init__(self, text: str = "", *, name: str = "", line: int = 0, address: object = None) -> None:
        super().__init__(text, address=address)
        self.name = name
        self.line = line


class OutputTooLarge(UwsgiError):
    """A page is larger than ``--max-output`` allows."""


def quote(name: str) -> str:
    """Quote *name* for an error's text, and shorten it if it is long."""
    return repr(name if len(name) <= _NAME_IN_ERRORS else f"{name[:_NAME_IN_ERRORS]}...")


def place(name: str, line: int) -> str:
    """Return the words for a line of the template *name*; 0 stands for one that isn't known."""
    return f"template {quote(name)}, line {line}" if line else f"template {quote(name)}"


def refusal(name: str, reason: str) -> TemplateRefused:
    """Return the error for a name that is not allowed."""
    return TemplateRefused(f"the template name {quote(name)} is refused: {reason}", name=name)


def failed(name: str, line: int, message: str) -> TemplateFailed:
    """Return the error for a template that failed in one of its lines."""
    return TemplateFailed(f"{place(name, line)}: {message}", name=name, line=line)
