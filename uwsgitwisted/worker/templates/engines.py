"""Which engine a template is for, by its extension, and what the rest of its name says."""

from __future__ import annotations

import importlib
import mimetypes
from collections.abc import Mapping

from uwsgitwisted.errors import StartupError
from uwsgitwisted.files import content_type as content_type_of
from uwsgitwisted.worker.templates.interface import EngineSettings, IFinder, ITemplates

#: The engines: the class of each, and what installs what it needs.
ENGINES: Mapping[str, tuple[str, str]] = {
    "mako": ("uwsgitwisted.worker.templates.mako_engine:MakoTemplates", "pip install mako"),
    "jinja2": (
        "uwsgitwisted.worker.templates.jinja_engine:JinjaTemplates",
        "pip install 'uwsgitwisted[jinja]'",
    ),
}
#: The extension that stands for all files with no other one of the table.
ANY = "*"
#: The engines by extensions, unless something else is said.
DEFAULTS: Mapping[str, str] = {ANY: "mako", ".j2": "jinja2", ".jinja": "jinja2", ".jinja2": "jinja2"}


def parse_engine_for(text: str) -> tuple[str, str]:
    """Parse ``.extension=engine``; ``*`` stands for every other extension.

    :raises ValueError: if it is something else, or there is no such engine.
    """
    extension, _, engine = text.partition("=")
    if extension != ANY and (not extension.startswith(".") or len(extension) < 2 or "/" in extension):
        raise ValueError("write .extension=engine, such as .j2=jinja2, or *=engine")
    if engine not in ENGINES:
        raise ValueError(f"no template engine is called {engine!r}; there are {', '.join(ENGINES)}")
    return extension, engine


def engine_of(name: str, engines: Mapping[str, str]) -> str:
    """Return the engine of the template *name*.

    :param engines: the engines by extensions, the longest of which wins.
    """
    found = [extension for extension in engines if extension != ANY and name.endswith(extension)]
    return engines[max(found, key=len)] if found else engines[ANY]


def make_engine(engine: str, settings: EngineSettings, finder: IFinder) -> ITemplates:
    """Import and make an engine.

    :raises StartupError: if what it needs isn't installed.
    """
    path, command = ENGINES[engine]
    module, _, name = path.partition(":")
    try:
        make = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise StartupError(f"templates for {engine} need {error.name}: {command}") from error
    made: ITemplates = make(settings, finder)
    return made


def content_name(name: str) -> str:
    """Return a template's name without an extension that only names the engine, as in ``page.html.j2``."""
    for extension in DEFAULTS:
        if extension != ANY:
            name = name.removesuffix(extension)
    return name.removesuffix(".mako")


def extension(name: str) -> str:
    """Return the extension of what a template renders, without the dot: ``html`` for ``page.html.j2``."""
    return content_name(name).rpartition("/")[2].rpartition(".")[2]


def content_type(name: str) -> str:
    """Return the Content-Type of what a template renders; it is text, if its name doesn't say otherwise."""
    kept = content_name(name)
    if mimetypes.guess_type(f"./{kept}")[0] is None:
        return "text/plain; charset=utf-8"
    return content_type_of(kept)
