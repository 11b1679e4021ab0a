"""Templates (modifier1 33): renders the Mako template that a request names, with the variables that it sends.

A request is the marshalled pair ``(name, variables)``; its answer is the marshalled text. In the template,
``attributes`` is the dict of the variables, as in existing uWSGI code (``${attributes['title']}``). A variable
whose name Mako doesn't reserve is also available by its name (``${title}``).

Nothing is escaped unless the operator configures it: Mako doesn't escape by default, and a page must be the
same as from ``Template(filename=...).render(attributes=variables)``. ``default_filters=["h"]`` escapes for
HTML, and ``["decode.utf8"]`` decodes the byte strings of Python 2 peers. Templates are read as UTF-8, unless
one names another encoding in its first line.

An engine loads this module, in a worker process or in the reactor's own process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from keyword import iskeyword
from typing import Any

from mako.codegen import RESERVED_NAMES

from uwsgitwisted.errors import MisuseError, StartupError
from uwsgitwisted.wire.objects import loads
from uwsgitwisted.wire.packet import MARSHAL, Packet
from uwsgitwisted.wire.python2 import explain, to_text
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

#: Names with a meaning of their own in a template. A variable with such a name is in ``attributes`` only.
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
    # Names that the code which Mako generates from a template uses.
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
    python2: str = "",
) -> dict[int, Handler]:
    """Return the handler that renders the templates in *directories*, by modifier1.

    Every argument has a JSON type, since a worker gets them on its command line.

    :param directories: the directories to search, in order.
    :param default_filters: Mako's filters for each ``${...}`` that doesn't say ``| n``, such as ``["h"]`` to
        escape for HTML. None applies no filter.
    :param strict_undefined: whether each use of a name that the caller didn't send raises, even ``% if name:``.
    :param cache_size: how many compiled templates to cache, at least 1.
    :param python2: the encoding of the text of Python 2 callers; empty to leave values bytes.
    :raises StartupError: if no directory is given, one doesn't exist, or *cache_size* is too small.
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
    return {MARSHAL: Handler(renderer.run, answer, partial(read_text, encoding=python2) if python2 else read)}


class Renderer:
    """Renders templates by name.

    :param templates: finds and compiles the templates.
    """

    def __init__(self, templates: TemplateDirectories) -> None:
        self._templates = templates

    def run(self, asked: tuple[str, Mapping[Any, object]]) -> str:
        """Render a template, given its name and variables.

        :raises TemplateRefused: as :meth:`render`, which also raises TemplateMissing and TemplateFailed.
        """
        return self.render(*asked)

    def render(self, name: str, variables: Mapping[Any, object]) -> str:
        """Render the template *name* and return its text.

        :param variables: the variables for ``attributes``, and by name where the name isn't reserved.
        :raises TemplateRefused: if the name, or the name of an included template, is not allowed.
        :raises TemplateMissing: if the template, or one that it includes, doesn't exist.
        :raises TemplateFailed: if a template can't be compiled, or raises.
        """
        template = self._templates.get_template(check_name(name))
        try:
            text: str = template.render_unicode(**context(variables))
        except TemplateFailed:  # an included template failed; the error has its line
            raise
        except Exception as error:
            explain(error, variables)
            raise failure(name, error) from error
        return text


def read(request: Packet) -> tuple[str, dict[object, object]]:
    """Decode *request*; return the template's name and the variables.

    :raises UnsafeObject: if the payload is not a plain marshalled object.
    :raises MisuseError: as :func:`read_request`, which also raises TemplateRefused.
    """
    return read_request(loads(request.payload))


def read_text(request: Packet, encoding: str) -> tuple[str, dict[object, object]]:
    """Do as :func:`read`, and make text of the bytes in the variables.

    :raises UnsafeObject: as :func:`read`, which also raises MisuseError and TemplateRefused.
    """
    return read_request(to_text(loads(request.payload), encoding))


def read_request(message: object) -> tuple[str, dict[object, object]]:
    """Return the template's name and the variables in a request's object.

    Python 2 peers send text as bytes, so the name and the keys are decoded. Keys that are not UTF-8 stay bytes.
    Values are left to the template.

    :raises MisuseError: if *message* is not a pair of a name and a dict (or None for no variables).
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
    """Return the names that are defined in a template, with their values."""
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
