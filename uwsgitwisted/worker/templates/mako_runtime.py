"""Runs Mako's templates and their includes as Mako's own runtime does, but without inspecting signatures."""

from __future__ import annotations

from collections.abc import Mapping
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any, TextIO

from mako import runtime
from mako.runtime import Context
from mako.template import DefTemplate, Template

_VARIABLE_ARGUMENTS, _VARIABLE_KEYWORDS = 0x04, 0x08  # as in inspect, without the time to import it


def run(template: Template, names: Mapping[str, object], output: TextIO) -> None:
    """Render a template, or a def of one.

    :param names: the variables.
    """
    context = Context(output, **names)
    context._with_template = template  # by a method, Mako would look for names that no variable may have
    is_def = isinstance(template, DefTemplate)
    # A page begins with the body of the template that it inherits from, if there is one.
    body, inner = runtime._populate_self_namespace(context, template.parent if is_def else template)
    arguments = _arguments(template.callable_.__code__, names)
    if is_def:
        template.callable_(context, **arguments)
    else:
        body(inner, **arguments)


def _arguments(code: CodeType, names: Mapping[str, object]) -> Mapping[str, object]:
    """Return the variables that a page or a def takes as arguments: all, if it doesn't say which."""
    if code.co_flags & _VARIABLE_KEYWORDS:
        return names
    wanted = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
    return {name: names[name] for name in wanted if name in names}


def _include(context: Any, uri: object, calling_uri: str, **given: object) -> None:
    """Render another template at the place of ``<%include>``.

    :param given: its arguments. The variables of the context have those that it takes besides.
    """
    lookup = context.lookup
    template = lookup.get_template(lookup.adjust_uri(uri, calling_uri))
    body, inner = runtime._populate_self_namespace(context._clean_inheritance_tokens(), template)
    variables = context._data
    for name in _parameters(body.__code__):
        if name in variables and name not in given:
            given[name] = variables[name]
    body(inner, **given)


def _parameters(code: CodeType) -> tuple[str, ...]:
    """Return the parameters behind the context. Those with stars count too: Mako fills them by their names."""
    positional = code.co_argcount
    end = positional + code.co_kwonlyargcount
    starred = bool(code.co_flags & _VARIABLE_ARGUMENTS) + bool(code.co_flags & _VARIABLE_KEYWORDS)
    return code.co_varnames[1:positional] + code.co_varnames[end : end + starred]


def _inherits_nothing(template: Template, context: Context) -> None:
    """Do what the code of a template without parents would do, if it had this function."""


#: What the code of templates knows as ``runtime``.
_RUNTIME = SimpleNamespace(**{**vars(runtime), "_include_file": _include})


def prepare(module: ModuleType) -> None:
    """Make the module that a template is use this runtime.

    Mako looks for ``_mako_inherit`` at each page and each include; a module takes long to say that it has none.
    """
    names = vars(module)
    names.setdefault("_mako_inherit", _inherits_nothing)
    if names["runtime"] is runtime:  # the template may have imported something of that name
        names["runtime"] = _RUNTIME
