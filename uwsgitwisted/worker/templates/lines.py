"""Code whose lines are the template's: so every traceback of Python names the template and its line."""

from __future__ import annotations

import ast
import io
from bisect import bisect_right
from collections.abc import Callable, Mapping
from types import CodeType, TracebackType

from uwsgitwisted.worker.templates.errors import NoTemplate, TemplateFailed, failed, place

#: What the files of templates' code begin with.
PREFIX = "template:"


def file_of(name: str) -> str:
    """Return the file that the code of the template *name* has, which is shown in tracebacks."""
    return f"{PREFIX}{name}"


def split_lines(source: str) -> list[str]:
    """Return the lines of a template with their ends; unlike ``str.splitlines``, engines end none at U+2028."""
    return io.StringIO(source, newline=None).readlines()


def compile_lines(
    source: str,
    name: str,
    lines: Mapping[int, int],
    improve: Callable[[ast.Module], object] = lambda module: None,
) -> CodeType:
    """Compile the Python code that an engine has made of a template.

    :param source: the Python code.
    :param name: the template's name.
    :param lines: the template's lines by the lines of the code at which they begin.
    :param improve: may change the syntax tree; each node keeps, or gets, a line of the code.
    :raises TemplateFailed: if the code is not valid.
    """
    starts = sorted(lines)

    def line_of(line: int) -> int:
        place = bisect_right(starts, line)
        return lines[starts[place - 1]] if place else 0

    try:
        tree = ast.parse(source, file_of(name))
        improve(tree)
        for node in ast.walk(tree):
            if isinstance(getattr(node, "lineno", None), int):
                line: int = line_of(node.lineno)  # type: ignore[attr-defined]
                # An expression that ends before it begins would be refused.
                vars(node).update(lineno=line, end_lineno=line, col_offset=0, end_col_offset=0)
        code: CodeType = compile(tree, file_of(name), "exec", dont_inherit=True)
    except SyntaxError as error:
        line = error.lineno or 0 if error.filename is None else line_of(error.lineno or 0)
        raise failed(name, line, f"(SyntaxError) {error.msg}") from error
    return code


def failure(name: str, error: Exception) -> Exception:
    """Return the exception to raise for *error*, which rendering or loading the template *name* raised.

    :param name: the template that was asked for; the line may be in one that it includes or inherits.
    """
    if isinstance(error, TemplateFailed):  # an included template failed; the error has its line
        return error
    where, line = innermost_line(error.__traceback__, name)
    if isinstance(error, NoTemplate):
        if not line:
            return error
        return type(error)(f"{error.text}; {place(where, line)} asks for it", name=error.name)
    return failed(where, line, f"{type(error).__name__}: {error}")


def innermost_line(frames: TracebackType | None, name: str) -> tuple[str, int]:
    """Return the template and its line where an error was raised; *name* and 0 if no template was running."""
    found = name, 0
    while frames is not None:
        file = frames.tb_frame.f_code.co_filename
        if file.startswith(PREFIX):
            found = file.removeprefix(PREFIX), frames.tb_lineno
        frames = frames.tb_next
    return found
