"""What a template engine promises, and what it gets.

A further engine is a module with a class that implements :class:`ITemplates`, and a row in
:data:`uwsgitwisted.worker.templates.engines.ENGINES`. Files, names, caches, limits and the lines of errors
are the same for all engines, and none of an engine's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, Protocol, TextIO

from uwsgitwisted.wire.terms import MAX_MESSAGE


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How an engine compiles templates.

    :param filters: the filters of each expression that names none, in the engine's own words.
    :param autoescape: the extensions, without dots, of the templates whose expressions are escaped for HTML.
    :param strict: whether each use of an unknown name raises, even a test of it.
    :param imports: the modules whose public names every template has.
    :param encoding: the encoding of the files.
    :param max_output: how many bytes a page may have; compiled code is the same for all values.
    """

    filters: Sequence[str] = ()
    autoescape: Sequence[str] = ()
    strict: bool = False
    imports: Sequence[str] = ()
    encoding: str = "utf-8"
    max_output: int = field(default=MAX_MESSAGE, repr=False)


@dataclass(frozen=True, slots=True)
class Outline:
    """What a template consists of, as its source says.

    A name that the template computes when it is rendered appears as the expression for it.

    :param parents: the templates that it inherits from.
    :param uses: the templates that it includes or imports.
    :param parts: the parts that a request may ask for by name: defs, or blocks and macros.
    :param variables: the variables that it takes from the request.
    """

    parents: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()


class IFinder(Protocol):
    """Finds the other templates that a template asks for; it is what an engine gets."""

    def find(self, name: object, relative_to: str | None = None) -> Any:
        """Return another template of the same engine, as :meth:`ITemplates.load` has made it.

        :param name: the name, as the template has it.
        :param relative_to: the name of the template to which it is relative; None for the template directory.
        :raises TemplateRefused: if the name is not allowed.
        :raises TemplateMissing: if the file doesn't exist.
        :raises TemplateFailed: if the template can't be compiled.
        """

    def resolve(self, name: object, relative_to: str | None = None) -> str:
        """Return the name below the template directory for a name in a template.

        :raises TemplateRefused: if it is not allowed.
        """


class ITemplates(Protocol):
    """A template engine. Its constructor takes :class:`EngineSettings` and an :class:`IFinder`."""

    def translate(self, name: str, source: bytes) -> CodeType:
        """Compile a template to code that may be kept on disk.

        Its lines are those of the template, and its file is :func:`~.lines.file_of` the name: see
        :func:`~.lines.compile_lines`.

        :raises TemplateFailed: if that is not possible; the error has the line.
        """

    def load(self, name: str, code: CodeType) -> Any:
        """Return the template that has this code; only this engine knows its type.

        The template's own module-level code runs, and may raise anything.
        """

    def render(self, template: Any, variables: Mapping[Any, object], output: TextIO, part: str = "") -> None:
        """Render a template, or a part of it.

        :param variables: the variables, for ``attributes`` and by their names.
        :param output: where the text goes.
        :param part: the name of a part; empty for all of it.
        :raises TemplateMissing: if it has no such part.
        :raises Exception: whatever the template raises.
        """

    def outline(self, name: str, source: bytes) -> Outline:
        """Return what the template consists of, without running any of it.

        :raises TemplateFailed: if it can't be compiled.
        """
