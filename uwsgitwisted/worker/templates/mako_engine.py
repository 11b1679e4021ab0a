"""Mako's templates."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import CodeType, ModuleType
from typing import Any, TextIO

from mako import codegen
from mako.exceptions import CompileException, SyntaxException
from mako.lexer import Lexer
from mako.lookup import TemplateCollection
from mako.template import ModuleInfo, ModuleTemplate, Template

from uwsgitwisted.worker.templates.engines import extension
from uwsgitwisted.worker.templates.errors import NoTemplate, TemplateMissing, failed, quote
from uwsgitwisted.worker.templates.imports import public_names
from uwsgitwisted.worker.templates.interface import EngineSettings, IFinder, Outline
from uwsgitwisted.worker.templates.lines import compile_lines
from uwsgitwisted.worker.templates.mako_code import improve
from uwsgitwisted.worker.templates.mako_outline import outline_of
from uwsgitwisted.worker.templates.mako_runtime import prepare, run
from uwsgitwisted.worker.templates.variables import VariableNames

#: Names with a meaning of their own in a template. A variable with such a name is in ``attributes`` only.
RESERVED = frozenset(codegen.RESERVED_NAMES) | {
    "attributes",
    "caller",
    "capture",
    "local",
    "next",
    "pageargs",
    "parent",
    "self",
    # Parameters of the functions to which Mako passes the variables as keyword arguments.
    "buffer",
    "callable_",
    "tmpl",
    # Names that the code which Mako generates from a template uses.
    "filters",
    "hasattr",
    "runtime",
    "str",
}
_ESCAPE = "h"


class _Lookup(TemplateCollection):  # type: ignore[misc]  # Mako has no types
    """What Mako asks for the templates that others name. It shares no code with Mako's ``TemplateLookup``."""

    def __init__(self, finder: IFinder) -> None:
        self._finder = finder

    def has_template(self, uri: object) -> bool:
        try:
            self.get_template(uri)
        except NoTemplate:
            return False
        return True

    def get_template(self, uri: object, relativeto: str | None = None) -> Template:
        return self._finder.find(uri, relativeto)

    def adjust_uri(self, uri: object, relativeto: str | None) -> str:
        return self._finder.resolve(uri, relativeto)


class MakoTemplates:
    """Mako, as :class:`~.interface.ITemplates` has it.

    Nothing is escaped unless the operator configures it: Mako doesn't escape by default, and a page must be the
    same as from ``Template(filename=...).render(attributes=variables)``.

    :param settings: the options.
    :param finder: finds the templates that others name.
    :raises StartupError: if a module of ``--imports`` can't be imported.
    """

    def __init__(self, settings: EngineSettings, finder: IFinder) -> None:
        self._settings = settings
        self._lookup = _Lookup(finder)
        self._imports = [
            f"from {module} import {name}" for module in settings.imports for name in public_names(module)
        ]
        imported = {line.rpartition(" ")[2] for line in self._imports}
        self._names = VariableNames(RESERVED | imported)

    def translate(self, name: str, source: bytes) -> CodeType:
        """Compile a template."""
        code, _ = self._generate(name, source)
        return compile_lines(code, name, ModuleInfo.get_module_source_metadata(code)["line_map"], improve)

    def _generate(self, name: str, source: bytes) -> tuple[str, Any]:
        """Return the Python code of a template, and its syntax tree."""
        try:
            lexer = Lexer(source, None, input_encoding=self._settings.encoding)
            tree = lexer.parse()
            code: str = codegen.compile(
                tree,
                name,
                None,
                default_filters=self._filters(name),
                buffer_filters=(),
                imports=self._imports,
                source_encoding=lexer.encoding,
                generate_magic_comment=False,
                strict_undefined=self._settings.strict,
                enable_loop=True,
                reserved_names=codegen.RESERVED_NAMES,
            )
        except (SyntaxException, CompileException) as error:
            message = str(error).removesuffix(f" at line: {error.lineno} char: {error.pos}")
            raise failed(name, error.lineno, message) from error
        return code, tree

    def _filters(self, name: str) -> list[str]:
        filters = list(self._settings.filters)
        if extension(name) in self._settings.autoescape and _ESCAPE not in filters:
            filters.append(_ESCAPE)
        return filters or ["str"]

    def load(self, name: str, code: CodeType) -> Template:
        """Run the module that a template is, and return the template."""
        module = ModuleType(re.sub(r"\W", "_", name))
        exec(code, vars(module))  # noqa: S102 - the templates are the operator's own code
        prepare(module)
        return ModuleTemplate(module, module_source="", template_source="", lookup=self._lookup)

    def render(self, template: Any, variables: Mapping[Any, object], output: TextIO, part: str = "") -> None:
        """Render a template, or a def of it."""
        if part:
            if not template.has_def(part):
                whole = quote(template.uri)
                raise TemplateMissing(f"the template {whole} has no def {quote(part)}", name=template.uri)
            template = template.get_def(part)
        run(template, self._names.select(variables), output)

    def outline(self, name: str, source: bytes) -> Outline:
        """Return what the template consists of."""
        code, tree = self._generate(name, source)
        return outline_of(code, tree, self._names.reserved)
