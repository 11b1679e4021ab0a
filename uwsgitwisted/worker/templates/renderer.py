"""Renders pages by name: with the limits, the result cache and the errors that all callers get."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from uwsgitwisted.activity import NOTICE, CacheCounts
from uwsgitwisted.errors import StartupError, UwsgiError
from uwsgitwisted.wire.python2 import explain
from uwsgitwisted.wire.terms import MAX_MESSAGE
from uwsgitwisted.worker.templates import engines
from uwsgitwisted.worker.templates.directories import Found
from uwsgitwisted.worker.templates.interface import EngineSettings, Outline
from uwsgitwisted.worker.templates.lines import failure
from uwsgitwisted.worker.templates.output import Output
from uwsgitwisted.worker.templates.results import PER_FILE, Page, Results
from uwsgitwisted.worker.templates.templates import CACHE_SIZE, Templates

#: What parts a template's name from the name of a def in it.
PART = "#"

#: The files that a page was made from, by the names of the templates.
Files = Mapping[str, Found]


@dataclass(frozen=True, slots=True)
class RenderSettings:
    """What a renderer renders, and how; every value has a JSON type, for the worker's command line.

    :param directories: the directories to search for templates, in order.
    :param filters: Mako's filters for each ``${...}`` that doesn't say ``| n``, such as ``["h"]`` to escape for
        HTML.
    :param autoescape: the extensions, without dots, of the templates whose expressions are escaped for HTML.
    :param strict: whether each use of a name that the caller didn't send raises, even ``% if name:``.
    :param imports: the modules whose public names every template has.
    :param encoding: the encoding of the templates.
    :param engines: engines by extensions, such as ``{".j2": "jinja2"}``.
    :param preload: whether to compile all templates at once.
    :param reload: whether to look for changed files.
    :param cache_size: how many compiled templates to cache, at least 1.
    :param module_directory: where compiled templates are kept on disk; empty for nowhere.
    :param max_output: how many bytes a page may have.
    :param result_cache: how many bytes of pages are cached; 0 for none.
    :param result_age: for how many seconds a page is cached.
    """

    directories: Sequence[str]
    filters: Sequence[str] = ()
    autoescape: Sequence[str] = ()
    strict: bool = False
    imports: Sequence[str] = ()
    encoding: str = "utf-8"
    engines: Mapping[str, str] = field(default_factory=dict)
    preload: bool = False
    reload: bool = True
    cache_size: int = CACHE_SIZE
    module_directory: str = ""
    max_output: int = MAX_MESSAGE
    result_cache: int = 0
    result_age: float = 60.0


class Renderer:
    """Renders templates by name. A name such as ``page.html#sidebar`` stands for a def or a block of one.

    It is thread-safe. Each of its methods raises:

    - :class:`~.errors.TemplateRefused`, if the name, or the name of an included template, is not allowed;
    - :class:`~.errors.TemplateMissing`, if the template, its part, or one that it includes, doesn't exist;
    - :class:`~.errors.TemplateFailed`, if a template can't be compiled, or raises; it has the
      template and its line.

    :param settings: what it renders, and how.
    :raises StartupError: if a directory or a library is missing; with *preload*, if a template is broken.
    """

    def __init__(self, settings: RenderSettings) -> None:
        self.templates = Templates(
            settings.directories,
            EngineSettings(
                filters=tuple(settings.filters),
                autoescape=tuple(settings.autoescape),
                strict=settings.strict,
                imports=tuple(settings.imports),
                encoding=settings.encoding,
                max_output=settings.max_output,
            ),
            engines=settings.engines,
            reload=settings.reload,
            cache_size=settings.cache_size,
            module_directory=settings.module_directory,
        )
        #: How many bytes a page may have.
        self.max_output = settings.max_output
        #: Whether it looks for changed files.
        self.reload = settings.reload
        self._outputs: list[Output] = []
        self._results: Results[Files] | None = None
        if settings.result_cache:
            self._results = Results(settings.result_cache, settings.result_age, self._are_current)
        if settings.preload and (broken := self.templates.compile_all()):
            raise StartupError(
                "\n".join([f"--preload: {len(broken)} templates are broken:", *map(str, broken)])
            )

    def begin(self) -> None:
        """Begin a request, which may consist of several pages. It sees every change that was made before."""
        self.templates.begin()

    def render(self, name: str, variables: Mapping[Any, object]) -> bytes:
        """Render a page, and return it in UTF-8.

        :param variables: the variables for ``attributes``, and by name where the name isn't reserved.
        """
        try:
            output = self._outputs.pop()
        except IndexError:  # all of them are in use by other threads, or by templates that render others
            output = Output(self.max_output)
        try:
            self._render(name, variables, output.begin())
            return output.end()
        except BaseException:
            output.abandon()
            raise
        finally:
            self._outputs.append(output)

    def stream(self, name: str, variables: Mapping[Any, object], send: Callable[[bytes], object]) -> None:
        """Render a page, and pass it on in UTF-8 as it comes.

        :param send: takes some tens of kilobytes at a time. What it raises ends the page, and is raised
            unchanged.
        """
        sending = _Sending(send)
        output = Output(self.max_output)
        try:
            self._render(name, variables, output.begin(sending))
            output.end()
        except _Stopped:
            assert sending.error is not None
            raise sending.error from None
        finally:
            output.abandon()

    def cached(self, key: bytes) -> Page | None:
        """Return a page from the result cache, if it is there and its templates are what they were.

        :param key: bytes that are the same for the same name and variables, and for nothing else.
        """
        return None if self._results is None else self._results.get(key)

    def page(self, name: str, variables: Mapping[Any, object], key: bytes) -> Page:
        """Render a page that is not in the result cache, and keep it there.

        :param key: as for :meth:`cached`.
        """
        body, files = self.trace(name, variables)
        page = Page(body)
        if self._results is not None and files is not None:
            self._results.put(key, page, files, PER_FILE * len(files))
        return page

    def kept_page(self, name: str, variables: Mapping[Any, object], key: bytes) -> Page:
        """Return a page from the result cache, or render it and keep it there; show the front the figures.

        :param key: as for :meth:`cached`.
        """
        page = self.cached(key) or self.page(name, variables, key)
        NOTICE.write_cache(self.statistics)
        return page

    def trace(self, name: str, variables: Mapping[Any, object]) -> tuple[bytes, Files | None]:
        """Render a page; return it, and the files that it was made from.

        There are None if the page can't be kept, since one was missing, or has changed meanwhile.
        """
        uses = self.templates.uses
        files: dict[str, Found] = {}
        uses.files, uses.incomplete = files, False
        try:
            return self.render(name, variables), None if uses.incomplete else files
        finally:
            uses.files = None

    @property
    def caches(self) -> bool:
        """Whether it has a result cache."""
        return self._results is not None

    @property
    def statistics(self) -> CacheCounts:
        """The figures of the result cache; all 0 if there is none."""
        return CacheCounts() if self._results is None else self._results.statistics

    def names(self) -> list[str]:
        """Return the names of all templates, sorted."""
        return self.templates.names()

    def outline(self, name: str) -> Outline:
        """Return what a template consists of."""
        return self.templates.outline(name)

    def source(self, name: str) -> str:
        """Return the source of a template."""
        return self.templates.source(name)

    def check(self) -> list[Exception]:
        """Compile all templates; return the errors of those that are broken."""
        return self.templates.compile_all()

    @staticmethod
    def content_type(name: str) -> str:
        """Return the Content-Type of a page by its template's name."""
        return engines.content_type(split(name)[0])

    def _are_current(self, files: Files) -> bool:
        """Whether the templates are still what they were."""
        for name, file in files.items():
            try:
                found = self.templates.find(name).file
            except UwsgiError:
                return False
            if found is not file and found.source != file.source:
                return False
        return True

    def _render(self, name: str, variables: Mapping[Any, object], output: TextIO) -> None:
        whole, part = split(name)
        compiled = self.templates.find(whole)
        try:
            compiled.engine.render(compiled.template, variables, output, part)
        except Exception as error:
            explain(error, variables)
            raised = failure(whole, error)
            if raised is error:
                raise
            raise raised from error


class _Stopped(BaseException):
    """Nobody takes the rest of a page. No template's ``except Exception`` is to catch it."""


class _Sending:
    """Passes on the parts of a page.

    :param send: takes them.
    """

    def __init__(self, send: Callable[[bytes], object]) -> None:
        self._send = send
        #: What it has raised.
        self.error: BaseException | None = None

    def __call__(self, data: bytes) -> None:
        try:
            self._send(data)
        except BaseException as error:
            self.error = error
            raise _Stopped from error


def split(name: str) -> tuple[str, str]:
    """Split a name into that of the template and that of a part of it, which may be empty."""
    if PART not in name:
        return name, ""
    whole, separator, part = name.rpartition(PART)
    return (whole, part) if separator and part.isidentifier() else (name, "")
