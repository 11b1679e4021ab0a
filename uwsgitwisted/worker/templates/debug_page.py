"""The page that a developer gets in place of one that failed: it shows code, so only loopback may see it."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from uwsgitwisted.errors import UwsgiError
from uwsgitwisted.worker.templates.errors import TemplateFailed, place
from uwsgitwisted.worker.templates.lines import split_lines
from uwsgitwisted.worker.templates.renderer import Renderer

#: How many lines to show before and behind the one that failed, and how much of each.
_AROUND, _WIDTH = 6, 500
_PAGE = """<!DOCTYPE html>
<html><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font-family: sans-serif; margin: 2em }} pre {{ background: #eee; padding: 1em; overflow: auto }}
mark {{ background: #fc9 }}
</style></head><body>
<h1>{title}</h1>
<p>{message}</p>
<pre>{source}</pre>
<p>Variables: {names}</p>
</body></html>
"""


def debug_page(renderer: Renderer, error: TemplateFailed, variables: Iterable[object]) -> bytes:
    """Return the page, as HTML in UTF-8.

    :param error: why the page failed.
    :param variables: the names of the request's variables.
    """
    names = ", ".join(sorted(escape(str(name)) for name in variables)) or "none"
    page = _PAGE.format(
        title=escape(place(error.name, error.line)),
        message=escape(error.text),
        source=_source(renderer, error),
        names=names,
    )
    return page.encode("utf-8", "backslashreplace")


def _source(renderer: Renderer, error: TemplateFailed) -> str:
    """Return the lines around the one that failed, escaped."""
    try:
        lines = split_lines(renderer.source(error.name))
    except UwsgiError:  # it is gone meanwhile
        return ""
    first = max(error.line - 1 - _AROUND, 0)
    shown = []
    for number, line in enumerate(lines[first : error.line + _AROUND], first + 1):
        text = f"{number:5}  {escape(line.rstrip()[:_WIDTH])}"
        shown.append(f"<mark>{text}</mark>" if number == error.line else text)
    return "\n".join(shown)
