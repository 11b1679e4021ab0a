"""Makes the code that Mako generates cheaper to run; what it does stays the same.

It knows the shapes of that code as Mako writes them, and leaves alone whatever has another one:

- A def gets a copy of the context, with the variables that were assigned beside it. Few defs can see the
  difference, and a loop pays for a copy at each call.
- Each body and each def pushes a frame for ``caller``, pops it, and asks for the function that writes. These
  calls cost more than what they do.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator

_CONTEXT, _LOCALS, _RENDER = "context", "__M_locals", "render_"
#: What copies of a context share with it.
_SHARED = frozenset(
    {
        *("caller_stack", "write", "writer"),
        *("_push_writer", "_push_buffer", "_pop_buffer", "_pop_buffer_and_writer"),
    }
)
#: Functions that may see what is not in the code.
_OPAQUE = frozenset({"eval", "exec", "locals", "vars", "dir"})
#: What the code of a body or a def begins and ends with, and what takes their places.
_PUSH, _POP, _WRITER = (
    ast.dump(ast.parse(code).body[0])
    for code in (
        "__M_caller = context.caller_stack._push_frame()",
        "context.caller_stack._pop_frame()",
        "__M_writer = context.writer()",
    )
)
_FAST_PUSH = """\
__M_stack = context.caller_stack
__M_caller = __M_stack.nextcaller or None
__M_stack.append(__M_caller)
__M_stack.nextcaller = None
"""
_FAST_POP = "__M_stack.nextcaller = __M_stack.pop()"
_FAST_WRITER = "__M_writer = context._buffer_stack[-1].write"


def improve(module: ast.Module) -> None:
    """Replace what is dear in the code of a template. Lines are those of what was replaced."""
    _Improver(_indifferent_defs(module)).visit(module)


def _indifferent_defs(module: ast.Module) -> set[str]:
    """Return the functions that do the same with a context as with a copy of it that has more variables."""
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef)]
    defined = Counter(function.name for function in functions)
    assigned = {node.id for node in ast.walk(module) if isinstance(node, ast.Name) and _is_stored(node)}
    added = set(_added_variables(module))
    return {
        function.name
        for function in functions
        if function.name.startswith(_RENDER)
        and defined[function.name] == 1
        and function.name not in assigned
        and not function.decorator_list
        and _is_indifferent(function, added)
    }


def _is_stored(name: ast.Name) -> bool:
    return not isinstance(name.ctx, ast.Load)


def _added_variables(module: ast.Module) -> Iterator[str]:
    """Yield all names that the copies may have in addition, and other texts."""
    for node in ast.walk(module):
        if isinstance(node, ast.Assign) and _is_name(node.targets[0], _LOCALS):
            yield from (str(keyword.arg) for keyword in ast.walk(node) if isinstance(keyword, ast.keyword))
        elif isinstance(node, ast.Call) and _attribute_of(node.func, _LOCALS):
            yield from (str(each.value) for each in ast.walk(node) if isinstance(each, ast.Constant))


def _is_indifferent(function: ast.FunctionDef, added: set[str]) -> bool:
    """Whether a def uses of its context only what a copy shares, and variables that no copy has in addition."""
    allowed = {id(name) for node in ast.walk(function) for name in _harmless_uses(node, added)}
    names = [node for node in ast.walk(function) if isinstance(node, ast.Name)]
    return not any(name.id in _OPAQUE or (name.id == _CONTEXT and id(name) not in allowed) for name in names)


def _harmless_uses(node: ast.AST, added: set[str]) -> Iterator[ast.expr]:
    """Yield the context, if *node* uses it in a way that is the same for each copy."""
    match node:
        case ast.Attribute(value=context, attr=name) if name in _SHARED:
            yield context
        case ast.Subscript(value=context, slice=ast.Constant(value=name)) if name not in added:
            yield context
        case ast.Call(func=ast.Attribute(value=context, attr="get"), args=[ast.Constant(value=name), *_]) if (
            name not in added
        ):
            yield context


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _attribute_of(node: ast.AST, name: str) -> str:
    """Return the attribute, if *node* is one of the variable *name*; or nothing."""
    return node.attr if isinstance(node, ast.Attribute) and _is_name(node.value, name) else ""


class _Improver(ast.NodeTransformer):
    """Replaces nodes.

    :param indifferent: the functions that need no copy of the context.
    """

    def __init__(self, indifferent: set[str]) -> None:
        self._indifferent = indifferent

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Pass the context itself to a function that needs no copy."""
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id in self._indifferent and node.args:
            first = node.args[0]
            if isinstance(first, ast.Call) and _attribute_of(first.func, _CONTEXT) == "_locals":
                node.args[0] = ast.copy_location(ast.Name(_CONTEXT, ast.Load()), first)
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST | list[ast.stmt]:
        """Find the function that writes, without a call."""
        return _statements(_FAST_WRITER, node) if ast.dump(node) == _WRITER else self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Push a frame, and pop it, without calls."""
        self.generic_visit(node)
        push, attempt = [*node.body, None, None][:2]
        if push is None or ast.dump(push) != _PUSH or not isinstance(attempt, ast.Try):
            return node
        for index, last in enumerate(attempt.finalbody):
            if ast.dump(last) == _POP:
                attempt.finalbody[index : index + 1] = _statements(_FAST_POP, last)
                node.body[:1] = _statements(_FAST_PUSH, push)
                break
        return node


def _statements(code: str, place: ast.stmt) -> list[ast.stmt]:
    """Parse code that takes the place of a statement."""
    statements = ast.parse(code).body
    for statement in statements:
        for node in ast.walk(statement):
            ast.copy_location(node, place)
    return statements
