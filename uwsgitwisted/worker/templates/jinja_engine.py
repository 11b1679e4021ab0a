"""Jinja2's templates. Its sandbox is off: the templates are the operator's own code."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from threading import get_ident
from types import CodeType, GeneratorType
from typing import Any, TextIO

from jinja2 import (
    BaseLoader,
    Environment,
    StrictUndefined,
    Template,
    TemplateNotFound,
    TemplateSyntaxError,
    Undefined,
    meta,
    nodes,
)
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Macro

from uwsgitwisted.worker.templates.engines import extension
from uwsgitwisted.worker.templates.errors import NoTemplate, OutputTooLarge, TemplateMissing, failed, quote
from uwsgitwisted.worker.templates.imports import public_names
from uwsgitwisted.worker.templates.interface import EngineSettings, IFinder, Outline
from uwsgitwisted.worker.templates.lines import compile_lines
from uwsgitwisted.worker.templates.output import too_large
from uwsgitwisted.worker.templates.variables import VariableNames

#: Where the code that Jinja2 generates says which lines of the template became which of its own.
_DEBUG_INFO = re.compile(r"^debug_info = '([\d=&]*)'", re.MULTILINE)


class _Loader(BaseLoader):
    """What Jinja2 asks for the templates that others name. Names are relative to the template directory."""

    def __init__(self, finder: IFinder) -> None:
        self._finder = finder

    def load(
        self,
        environment: Environment,
        name: str,
        globals: MutableMapping[str, Any] | None = None,  # noqa: A002
    ) -> Template:
        try:
            template: Template = self._finder.find(name)
        except TemplateMissing as error:  # 'ignore missing' and lists of names expect Jinja2's own exception
            raise TemplateNotFound(name, error.text) from error
        return template


class _Buffer(list[str]):
    """The text that a macro collects before it returns it, which is bounded.

    :param limit: how many characters it may have.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = self._left = limit

    def measure(self, text: str) -> None:
        """Count a text without keeping it."""
        self._left -= len(text)
        if self._left < 0:
            raise too_large(self._limit)

    def append(self, text: str) -> None:
        """Add a text."""
        self.measure(text)
        super().append(text)

    def extend(self, texts: Iterable[str]) -> None:
        """Add several."""
        for text in texts:
            self.append(text)


class _BufferedCode(CodeGenerator):
    """Generates code whose macros and blocks of ``{% set %}`` ask the environment where to collect text."""

    def buffer(self, frame: Frame) -> None:
        """Begin to collect text."""
        frame.buffer = self.temporary_identifier()
        self.writeline(f"{frame.buffer} = environment.open_buffer() if environment.bounded else []")


class _Environment(Environment):
    """Jinja2's environment, which bounds what a macro collects that was asked for as a part of its template.

    :param limit: how many characters that may be.
    """

    code_generator_class = _BufferedCode

    def __init__(self, limit: int, **options: Any) -> None:
        super().__init__(**options)
        self._limit = limit
        #: The threads that run such a macro; usually none, so that other macros pay next to nothing.
        self.bounded: set[int] = set()

    def open_buffer(self) -> list[str]:
        """Return where to collect text, while a thread runs such a macro."""
        return _Buffer(self._limit) if get_ident() in self.bounded else []


class JinjaTemplates:
    """Jinja2, as :class:`~.interface.ITemplates` has it. The parts of a template are its blocks and macros.

    :param settings: the options; Jinja2 has no filters that are applied to everything.
    :param finder: finds the templates that others name.
    :raises StartupError: if a module of ``--imports`` can't be imported.
    """

    def __init__(self, settings: EngineSettings, finder: IFinder) -> None:
        self._encoding = settings.encoding
        self._autoescape = settings.autoescape
        self._max_output = settings.max_output
        self._environment = _Environment(
            settings.max_output,
            loader=_Loader(finder),
            undefined=StrictUndefined if settings.strict else Undefined,
            autoescape=self._is_escaped,
            cache_size=0,
            auto_reload=False,
        )
        for module in settings.imports:
            names = public_names(module)
            self._environment.globals.update(names)
            self._environment.filters.update({name: value for name, value in names.items() if callable(value)})
        self._names = VariableNames({*self._environment.globals, "attributes"})

    def _is_escaped(self, name: str | None) -> bool:
        return name is not None and extension(name) in self._autoescape

    def translate(self, name: str, source: bytes) -> CodeType:
        """Compile a template."""
        try:
            code = self._environment.compile(self._decode(name, source), name, raw=True)
        except TemplateSyntaxError as error:
            raise failed(name, error.lineno, error.message or "invalid syntax") from error
        found = _DEBUG_INFO.search(code)
        pairs = [pair.split("=") for pair in found[1].split("&")] if found and found[1] else []
        return compile_lines(code, name, {int(line): int(of_template) for of_template, line in pairs})

    def _decode(self, name: str, source: bytes) -> str:
        try:
            return source.decode(self._encoding).removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            raise failed(name, 0, f"UnicodeDecodeError: {error}") from error

    def load(self, name: str, code: CodeType) -> Template:
        """Return the template that has this code."""
        template = Template.from_code(self._environment, code, self._environment.make_globals(None))
        template.name = name  # from_code has set the name that is in the code
        return template

    def render(self, template: Any, variables: Mapping[Any, object], output: TextIO, part: str = "") -> None:
        """Render a template, or a block or a macro of it."""
        context = template.new_context(self._names.select(variables))
        try:
            if not part:
                _write(template.root_render_func(context), output.write)
            elif part in template.blocks:
                _write(template.blocks[part](context), output.write)
            else:
                output.write(self._call_macro(template, context.get_all(), part))
        except TemplateNotFound as error:
            if isinstance(error.__cause__, NoTemplate):
                raise error.__cause__.with_traceback(error.__traceback__) from None
            raise

    def _call_macro(self, template: Any, known: Mapping[str, object], part: str) -> str:
        """Run a template for its macros, and return what one of them returns; each is bounded as a page is."""
        thread, bounded = get_ident(), self._environment.bounded
        is_outermost = thread not in bounded  # a template may have another one rendered
        bounded.add(thread)
        try:
            context = template.new_context(known)
            _write(template.root_render_func(context), _Buffer(self._max_output).measure)
            macro = context.get_exported().get(part)
            if not isinstance(macro, Macro):
                text = f"the template {quote(template.name)} has no block or macro {quote(part)}"
                raise TemplateMissing(text, name=template.name)
            return str(macro(**{name: known[name] for name in macro.arguments if name in known}))
        finally:
            if is_outermost:
                bounded.discard(thread)

    def outline(self, name: str, source: bytes) -> Outline:
        """Return what the template consists of."""
        self.translate(name, source)  # for its errors
        tree = self._environment.parse(self._decode(name, source), name)
        blocks = [node.name for node in tree.find_all(nodes.Block)]
        macros = [node.name for node in tree.find_all(nodes.Macro)]
        used: Any = tree.find_all((nodes.Include, nodes.Import, nodes.FromImport))
        unknown = meta.find_undeclared_variables(tree) - self._names.reserved
        return Outline(
            parents=tuple(name for node in tree.find_all(nodes.Extends) for name in _named(node.template)),
            uses=tuple(dict.fromkeys(name for node in used for name in _named(node.template))),
            parts=tuple(sorted({*blocks, *macros})),
            variables=tuple(sorted(unknown.difference(macros, _imported(tree)))),
        )


def _write(pieces: Iterable[str], write: Callable[[str], object]) -> None:
    """Write the text of a template, and raise what that raises where the template is."""
    for text in pieces:
        try:
            write(text)
        except OutputTooLarge as error:
            if isinstance(pieces, GeneratorType):
                pieces.throw(error)  # so that its traceback has the template's line
            raise


def _imported(tree: nodes.Template) -> Iterator[str]:
    """Yield the names that a template imports from others; its blocks have them too."""
    for whole in tree.find_all(nodes.Import):
        yield whole.target
    for names in tree.find_all(nodes.FromImport):
        yield from (name if isinstance(name, str) else name[1] for name in names.names)


def _named(node: nodes.Expr) -> list[str]:
    """Return the names that stand in a template; the kind of expression, if they are computed."""
    if isinstance(node, (nodes.List, nodes.Tuple)):
        return [name for item in node.items for name in _named(item)]
    return [str(node.value) if isinstance(node, nodes.Const) else f"({type(node).__name__})"]
