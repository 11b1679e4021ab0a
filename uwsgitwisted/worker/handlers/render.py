"""Templates (modifier1 33): renders the Mako template that a request names, with the variables that it sends.

A request is the marshalled pair ``(name, variables)``, its answer the marshalled text. In the template,
``attributes`` is the dict of the variables, as old uWSGI code has it (``${attributes['title']}``); those whose
names Mako leaves free can be had by name as well (``${title}``).

Nothing is escaped unless the operator says so, because Mako doesn't, and a page is to come out as it did from
``Template(filename=...).render(attributes=variables)``. ``default_filters=["h"]`` escapes for HTML, and
``["decode.utf8"]`` shows the byte strings of Python 2 peers as text. Templates are read as UTF-8, unless one
names another encoding in its first line.

It is plain code that an engine loads, in a worker process or in the reactor's own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from keyword import iskeyword
from typing import Any

from mako.codegen import RESERVED_NAMES

from uwsgitwisted.errors import MisuseError, StartupError
from uwsgitwisted.wire.objects import loads
from uwsgitwisted.wire.packet import MARSHAL, Packet
from uwsgitwisted.worker.handlers.handler import Handler
from uwsgitwisted.worker.handlers.marshal import answer
from uwsgitwisted.worker.handlers.templates import (
    CACHE_SIZE,
    TemplateDirectories,
    TemplateFailed,
    check_name,
    failure,
    name_from,
)

#: Names that mean something of their own in a template. A variable of such a name is in ``attributes`` only.
RESERVED = frozenset(RESERVED_NAMES) | {
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
    # What the code that Mako makes of a template calls by these names.
    "filters",
    "hasattr",
    "runtime",
    "str",
}


def load(
    directories: Sequence[str],
    *,
    default_filters: Sequence[str] | None = None,
    strict_undefined: bool = False,
    cache_size: int = CACHE_SIZE,
) -> dict[int, Handler]:
    """Return what renders the templates in *directories*, by modifier1.

    Every argument is of a type that JSON has, since they travel to a worker on its command line.

    :param directories: where templates are looked for, in that order.
    :param default_filters: Mako's filters for each ``${...}`` that doesn't say ``| n``: ``["h"]`` to escape for
        HTML. None leaves the text as it is.
    :param strict_undefined: whether a name that nobody sent raises wherever it stands, also in ``% if name:``.
    :param cache_size: how many templates to keep compiled, from 1.
    :raises StartupError: if there is no directory, one isn't there, or *cache_size* is too small.
    """
    if cache_size < 1:
        raise StartupError(f"a cache of {cache_size} templates; it has to hold one at least")
    if not directories:
        raise StartupError("no template directory; name one with --templates")
    for directory in directories:
        if not os.path.isdir(directory):
            raise StartupError(f"--templates {directory}: there is no such directory")
    renderer = Renderer(
        TemplateDirectories(
            directories,
            default_filters=default_filters,
            strict_undefined=strict_undefined,
            cache_size=cache_size,
        )
    )
    return {MARSHAL: Handler(renderer.run, answer, read)}


class Renderer:
    """Renders templates by name.

    :param templates: where they are.
    """

    def __init__(self, templates: TemplateDirectories) -> None:
        self._templates = templates

    def run(self, asked: tuple[str, Mapping[Any, object]]) -> str:
        """Render a template, given its name and variables.

        :raises TemplateRefused: as :meth:`render`, which also raises TemplateMissing and TemplateFailed.
        """
        return self.render(*asked)

    def render(self, name: str, variables: Mapping[Any, object]) -> str:
        """Return the text of the template *name*.

        :param variables: what the template finds in ``attributes`` and, where the name is free, by name.
        :raises TemplateRefused: if the name, or one that the template includes, can't be one of ours.
        :raises TemplateMissing: if there is no such template, or one that it includes.
        :raises TemplateFailed: if a template can't be compiled, or raises.
        """
        template = self._templates.get_template(check_name(name))
        try:
            text: str = template.render_unicode(**context(variables))
        except TemplateFailed:  # one that it includes; it names its own line
            raise
        except Exception as error:
            raise failure(name, error) from error
        return text


def read(request: Packet) -> tuple[str, dict[object, object]]:
    """Return the name and the variables that *request* asks to be rendered.

    :raises UnsafeObject: if the payload is not a plain marshalled object.
    :raises MisuseError: as :func:`read_request`, which also raises TemplateRefused.
    """
    return read_request(loads(request.payload))


def read_request(message: object) -> tuple[str, dict[object, object]]:
    """Return the name and the variables that a request's object holds.

    Python 2 peers send their text as bytes: a name and keys are decoded, keys that are no UTF-8 left alone.
    Values are the template's business.

    :raises MisuseError: if it is not a pair of a name and a dict, or None for no variables.
    :raises TemplateRefused: if the name is not text.
    """
    if not isinstance(message, (tuple, list)) or len(message) != 2:
        raise MisuseError(
            "a request to render is the pair (name, variables), such as ('mail/welcome.txt', {'user': 'Ann'}), "
            f"not {_describe(message)}"
        )
    name, variables = message
    if variables is None:
        variables = {}
    if not isinstance(variables, dict):
        raise MisuseError(
            f"a template's variables are a dict, or None for none, not {_describe(variables)}; the template "
            "finds the dict in 'attributes'"
        )
    return name_from(name), {_decoded(key): value for key, value in variables.items()}


def context(variables: Mapping[Any, object]) -> dict[str, object]:
    """Return the names that a template knows, with their values."""
    names: dict[str, object] = {
        key: value for key, value in variables.items() if isinstance(key, str) and _is_free(key)
    }
    names["attributes"] = variables
    return names


def _is_free(name: str) -> bool:
    return name.isidentifier() and not iskeyword(name) and name not in RESERVED and not name.startswith("__")


def _decoded(key: object) -> object:
    if not isinstance(key, bytes):
        return key
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key


def _describe(value: object) -> str:
    kind = type(value).__name__
    return f"a {kind} of {len(value)}" if isinstance(value, (tuple, list, dict)) else f"a {kind}"
