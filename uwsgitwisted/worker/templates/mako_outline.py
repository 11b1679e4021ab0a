"""What a Mako template consists of, read from its syntax tree and from the code that Mako makes of it."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable, Iterator
from typing import Any

from mako import parsetree

from uwsgitwisted.worker.templates.interface import Outline

_RENDER = "render_"


def outline_of(code: str, tree: Any, reserved: Iterable[str]) -> Outline:
    """Return the outline of a template.

    :param code: the Python code that Mako has made of it.
    :param tree: its syntax tree.
    :param reserved: the names that are no variables.
    """
    module = ast.parse(code)
    tags = list(_tags(tree))
    parts = [
        node.name.removeprefix(_RENDER)
        for node in module.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith(_RENDER) and node.name != "render_body"
    ]
    others = {*reserved, *parts, *dir(builtins)}
    return Outline(
        parents=tuple(_files(tags, parsetree.InheritTag)),
        uses=tuple(dict.fromkeys(_files(tags, parsetree.IncludeTag, parsetree.NamespaceTag))),
        parts=tuple(sorted(parts)),
        variables=tuple(sorted(set(_variables(module)) - others)),
    )


def _tags(node: Any) -> Iterator[Any]:
    for child in getattr(node, "nodes", ()):
        if isinstance(child, parsetree.Tag):
            yield child
        yield from _tags(child)


def _files(tags: Iterable[Any], *kinds: Any) -> Iterator[str]:
    return (tag.attributes["file"] for tag in tags if isinstance(tag, kinds) and "file" in tag.attributes)


def _variables(module: ast.Module) -> Iterator[str]:
    """Yield the names that the code of a template takes from its context, or from ``attributes``."""
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef) and node.name == "render_body":
            yield from (argument.arg for argument in node.args.args[1:])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            if node.func.attr == "get":
                yield from _constant(node.func.value, node.args[0])
        elif isinstance(node, ast.Subscript):
            yield from _constant(node.value, node.slice)


def _constant(of: ast.expr, key: ast.expr) -> Iterator[str]:
    """Yield a key of the context or of ``attributes``, if it stands in the code."""
    if isinstance(of, ast.Name) and of.id in ("context", "attributes") and isinstance(key, ast.Constant):
        yield str(key.value)
