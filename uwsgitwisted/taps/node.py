"""``twistd uwsgi-node``."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from twisted.application.service import IService
from twisted.python import usage

from uwsgitwisted.activity import MAX_THREADS
from uwsgitwisted.services.node import NodeSettings, make_node
from uwsgitwisted.services.settings import ServerSettings
from uwsgitwisted.taps.access_logs import ACCESS_LOG
from uwsgitwisted.taps.options import ServerOptions, convert, converted, count, installed_reactor, size
from uwsgitwisted.taps.static import StaticOptions

_DEFAULTS = ServerSettings(listen=())


def _threads(text: str) -> int:
    number = count(text)
    if number > MAX_THREADS:
        raise ValueError(f"{MAX_THREADS} is the most")
    return number


class Options(StaticOptions, ServerOptions):
    """The options of ``twistd uwsgi-node``."""

    synopsis = (
        "[options] --handler MODULE | --wsgi MODULE:CALLABLE | --static /PATH=DIR | --resource MODULE.NAME"
    )
    longdesc = (
        "Answers marshalled objects (modifier1 33) with the function that the handler module sets as "
        "uwsgi.message_manager_marshal, RPC (modifier1 173) with those that it registers with uwsgi.register_rpc, "
        "and web requests (modifier1 0 and 30) with WSGI applications and static files, or with a resource of "
        "twisted.web."
    )
    default_listen = "tcp:3033"

    optParameters: list[list[Any]] = converted(
        ["handler", None, None, "The module that handles requests, as an import statement names it"],
        ["wsgi", None, None, "The WSGI application that answers web requests: module:callable, module:factory(), or a module with a callable named 'application'"],
        ["resource", None, None, "The twisted.web resource that answers web requests, in the reactor's own process: module.Class, or module.name of a resource, a function that returns one, or a Klein application"],
        ["chdir", None, None, "The directory to run the WSGI applications in", os.path.abspath],
        ["env-file", None, None, "A file of lines NAME=value, set in the environment of the WSGI applications", os.path.abspath],
        ["wsgi-threads", None, 1, "How many requests each worker runs at a time, in threads", _threads],
        *ACCESS_LOG,
        ["max-body", None, _DEFAULTS.max_body, "The largest body of a web request: bytes, or a number with K, M or G", size],
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self["mount"] = {}

    def opt_mount(self, mount: str) -> None:
        """Answer web requests below a path with an application: /path=module:callable; may be given again."""
        path, target = convert("mount", _mount, mount)
        if path in self["mount"]:
            raise usage.UsageError(f"--mount {mount}: another application is mounted at {path or '/'}")
        self["mount"][path] = target

    def postOptions(self) -> None:
        """Check that there is something to run, and an engine that can."""
        super().postOptions()
        if self["wsgi"]:
            if "" in self["mount"]:
                raise usage.UsageError(f"--wsgi {self['wsgi']}: another application is mounted at /")
            self["mount"][""] = self["wsgi"]
        if self["wsgi-threads"] > 1 and not (self["mount"] or self["static"]):
            raise usage.UsageError("--wsgi-threads is for WSGI applications: give --wsgi or --mount too")
        for path in self["mount"].keys() & self["static"].keys():
            raise usage.UsageError(f"--static {path or '/'}=...: an application is mounted at {path or '/'}")
        if self["resource"]:
            self._check_resource()
        elif not self["mount"] and not self["static"]:
            self.require("handler", "my_server")
        elif not self["engine"].startswith("processes"):
            what = "WSGI applications" if self["mount"] else "static files"
            raise usage.UsageError(f"--engine {self['engine']}: {what} need --engine processes:N")

    def _check_resource(self) -> None:
        given = next((option for option in ("wsgi", "mount", "static") if self[option]), None)
        if given is not None:
            raise usage.UsageError(
                f"--resource and --{given} would both answer web requests: leave one out, or start a second node"
            )

    def settings(self) -> ServerSettings:
        """Make the settings from the options."""
        return replace(super().settings(), max_body=self["max-body"])


def _mount(text: str) -> tuple[str, str]:
    path, separator, target = text.partition("=")
    if not separator or not path.startswith("/") or not target:
        raise ValueError("write /path=module:callable")
    return path.rstrip("/"), target


def makeService(options: Options) -> IService:
    """Make the service from its options."""
    node = NodeSettings(
        handler=options["handler"] or "",
        applications=options["mount"],
        static=options["static"],
        chdir=options["chdir"] or "",
        env_file=options["env-file"] or "",
        resource=options["resource"] or "",
        threads=options["wsgi-threads"],
        access_log=options["access-log"] or "",
        access_log_format=options["access-log-format"],
    )
    return make_node(installed_reactor(), options.settings(), node)
