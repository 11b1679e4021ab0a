"""``twistd uwsgi-renderer``."""

from __future__ import annotations

import codecs
from typing import Any

from twisted.application.service import IService
from twisted.python import usage

from uwsgitwisted.services.listening import is_loopback
from uwsgitwisted.services.renderer import MAX_MEMORY, make_renderer
from uwsgitwisted.taps.options import (
    MAX_MEMORY_HELP,
    PYTHON2,
    ServerOptions,
    convert,
    converted,
    installed_reactor,
    size,
)
from uwsgitwisted.timeouts import parse_timeout
from uwsgitwisted.wire.python2 import check_encoding
from uwsgitwisted.wire.terms import MAX_MESSAGE
from uwsgitwisted.worker.templates.engines import parse_engine_for


def encoding(text: str) -> str:
    """Check the name of an encoding, and return it."""
    try:
        codecs.lookup(text)
    except LookupError as error:
        raise ValueError("Python knows no such encoding") from error
    return text


def answer(text: str) -> str:
    """Check what callers get a page as, and return it."""
    if text not in ("text", "bytes"):
        raise ValueError("it is text, or bytes")
    return text


def words(text: str) -> list[str]:
    """Return the words between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


class Options(ServerOptions):
    """The options of ``twistd uwsgi-renderer``."""

    synopsis = "[options] --templates DIRECTORY"
    longdesc = (
        "Renders Mako and Jinja2 templates for callers that send (name, variables) as a marshalled object "
        "(modifier1 33)."
    )
    default_listen = "tcp:3033"

    optParameters: list[list[Any]] = converted(
        ["filters", None, "", "Mako filters for every ${...}, separated by commas, such as h to escape for HTML"],
        ["autoescape", None, "", "Escape for HTML in templates with these extensions, separated by commas, such as html,xml"],
        ["encoding", None, "utf-8", "The encoding of the templates", encoding],
        ["python2", None, "", PYTHON2, check_encoding],
        ["answer", None, "text", "What a page is sent as: text, or bytes, for callers in Python 2", answer],
        ["max-output", None, MAX_MESSAGE, "The largest page: bytes, or a number with K, M or G", size],
        ["module-directory", None, "", "Keep compiled templates in this directory, for workers that start later"],
        ["result-cache", None, 0, "How many bytes of pages are cached, for objects and by each worker for HTTP and RPC: bytes, or a number with K, M or G", size],
        ["result-age", None, 60.0, "Seconds for which a page is cached", parse_timeout],
    )  # fmt: skip

    optFlags: list[list[Any]] = [  # noqa: RUF012 - Twisted's form
        ["strict", None, "Raise an error for a name that the caller didn't send"],
        [
            "debug",
            None,
            "Answer web requests for a template that fails with a page that shows its code; only on loopback",
        ],
        ["preload", None, "Compile all templates before the start, which is refused if one is broken"],
        ["no-reload", None, "Don't look whether templates have changed; SIGHUP loads them again"],
    ]

    def __init__(self) -> None:
        super().__init__()
        self["templates"] = []
        self["imports"] = []
        self["engine-for"] = {}
        self["max-memory"] = self.defaults["max-memory"] = MAX_MEMORY
        self.docs["max-memory"] = MAX_MEMORY_HELP

    def opt_templates(self, directory: str) -> None:
        """Find templates in this directory; may be given again, and the first directory that has a template wins."""
        self["templates"].append(directory)

    def opt_imports(self, module: str) -> None:
        """Give every template the public names of this module, such as filters; may be given again."""
        self["imports"].append(module)

    def opt_engine_for(self, text: str) -> None:
        """Set the engine for an extension, such as .html=jinja2; * is every other one; may be given again."""
        extension, engine = convert("engine-for", parse_engine_for, text)
        self["engine-for"][extension] = engine

    def postOptions(self) -> None:
        """Check that a directory is given, and that --debug has an effect and shows code to nobody else."""
        super().postOptions()
        if not self["templates"]:
            raise usage.UsageError("--templates is missing; for example: --templates /srv/templates")
        if self["debug"] and not self["engine"].startswith("processes"):
            raise usage.UsageError(
                f"--engine {self['engine']} answers no web requests: --debug needs processes:N"
            )
        for description in self.endpoints() if self["debug"] else ():
            if not is_loopback(description):
                raise usage.UsageError(
                    f"--debug shows the code of templates, so it needs loopback only; --listen {description} is more"
                )

    def templates(self) -> dict[str, Any]:
        """Return the arguments of what loads the templates in a worker."""
        return {
            "directories": self["templates"],
            "python2": self["python2"],
            "filters": words(self["filters"]),
            "autoescape": words(self["autoescape"]),
            "strict": bool(self["strict"]),
            "debug": bool(self["debug"]),
            "imports": self["imports"],
            "encoding": self["encoding"],
            "engines": self["engine-for"],
            "preload": bool(self["preload"]),
            "reload": not self["no-reload"],
            "module_directory": self["module-directory"],
            "max_output": self["max-output"],
            "result_cache": self["result-cache"],
            "result_age": self["result-age"],
            "answer": self["answer"],
        }


def makeService(options: Options) -> IService:
    """Make the service from its options."""
    return make_renderer(installed_reactor(), options.settings(), options.templates())
