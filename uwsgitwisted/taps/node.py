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
from uwsgitwisted.services.shared.service import SharedSettings
from uwsgitwisted.services.subscription import parse_subscription
from uwsgitwisted.shared.cache import CacheLimits
from uwsgitwisted.shared.ring import QueueLimits
from uwsgitwisted.shared.state import SharedLimits
from uwsgitwisted.taps.access_logs import ACCESS_LOG
from uwsgitwisted.taps.options import PYTHON2, convert, converted, count, installed_reactor, size
from uwsgitwisted.taps.signals import SignalOptions
from uwsgitwisted.taps.static import StaticOptions
from uwsgitwisted.wire.python2 import check_encoding

_DEFAULTS = ServerSettings(listen=())


def _threads(text: str) -> int:
    number = count(text)
    if number > MAX_THREADS:
        raise ValueError(f"{MAX_THREADS} is the most")
    return number


#: The most mules, each a process, and the most slots of the queue.
_MAX_MULES, _MAX_SLOTS = 256, 1_000_000


def _mules(text: str) -> int:
    number = count(text)
    if number > _MAX_MULES:
        raise ValueError(f"{_MAX_MULES} is the most")
    return number


def _slots(text: str) -> int:
    number = count(text)
    if number > _MAX_SLOTS:
        raise ValueError(f"{_MAX_SLOTS} is the most")
    return number


def parse_cache(text: str) -> tuple[bytes, CacheLimits]:
    """Return the name and the limits of a cache that an option describes.

    :raises ValueError: if it can't be understood.
    """
    if text.isdecimal():
        text = f"items={text}"
    values = dict(pair.partition("=")[::2] for pair in text.split(","))
    unknown = values.keys() - {"name", "items", "size", "purge_lru"}
    if unknown:
        raise ValueError(f"a cache has no {min(unknown)!r}; write name=NAME,items=N,size=BYTES,purge_lru=1")
    limits = CacheLimits()
    return values.get("name", "default").encode(), CacheLimits(
        count(values["items"]) if "items" in values else limits.items,
        size(values["size"]) if "size" in values else limits.size,
        values.get("purge_lru", "0") not in ("0", ""),
    )


class Options(StaticOptions, SignalOptions):
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
        ["python2", None, "", PYTHON2, check_encoding],
        ["wsgi", None, None, "The WSGI application that answers web requests: module:callable, module:factory(), or a module with a callable named 'application'"],
        ["resource", None, None, "The twisted.web resource that answers web requests, in the reactor's own process: module.Class, or module.name of a resource, a function that returns one, or a Klein application"],
        ["chdir", None, None, "The directory to run the WSGI applications in", os.path.abspath],
        ["env-file", None, None, "A file of lines NAME=value, set in the environment of the WSGI applications", os.path.abspath],
        ["wsgi-threads", None, 1, "How many requests each worker runs at a time, in threads", _threads],
        ["mules", None, 0, "How many mules to start: processes beside the workers that get messages and signals", _mules],
        ["queue", None, QueueLimits().slots, "How many slots the queue of uwsgi.queue_push has", _slots],
        *ACCESS_LOG,
        ["max-body", None, _DEFAULTS.max_body, "The largest body of a web request: bytes, or a number with K, M or G", size],
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self["mount"] = {}
        self["subscribe"] = []
        self["mule"] = []
        self["cache"] = {}

    def opt_mount(self, mount: str) -> None:
        """Answer web requests below a path with an application: /path=module:callable; may be given again."""
        path, target = convert("mount", _mount, mount)
        if path in self["mount"]:
            raise usage.UsageError(f"--mount {mount}: another application is mounted at {path or '/'}")
        self["mount"][path] = target

    def opt_subscribe(self, text: str) -> None:
        """Announce this node to a uWSGI http or fast router: HOST:PORT,KEY; may be given again.

        HOST:PORT, or the path of a UNIX socket, is the router's subscription server, and KEY is the host of the
        requests. HOST:PORT,KEY,ADDRESS says at which address the router finds this node.
        """
        self["subscribe"].append(convert("subscribe", parse_subscription, text))

    def opt_mule(self, program: str) -> None:
        """Start a mule that runs a program: module, module:callable or a file NAME.py; may be given again."""
        self["mule"].append(program)

    def opt_cache(self, cache: str) -> None:
        """Set what a cache may hold, such as name=sessions,items=1000,size=32M,purge_lru=1; may be given again.

        Without a name, it is the cache that is always there, with 10000 items and 64M. A plain number sets how many
        items that one may hold.
        """
        name, limits = convert("cache", parse_cache, cache)
        self["cache"][name] = limits

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
        self._check_mules()
        if self["signals-from"] and self["resource"] and not self["handler"]:
            raise usage.UsageError("--signals-from: the handler module has signals, so give --handler too")
        if self["resource"]:
            self._check_resource()
        elif not self["mount"] and not self["static"]:
            self.require("handler", "my_server")
        elif not self["engine"].startswith("processes"):
            what = "WSGI applications" if self["mount"] else "static files"
            raise usage.UsageError(f"--engine {self['engine']}: {what} need --engine processes:N")

    def _check_mules(self) -> None:
        """Refuse mules where nothing starts them, and more than there may be."""
        if not self["mule"] and not self["mules"]:
            return
        option = "mule" if self["mule"] else "mules"
        if self["resource"] and not self["handler"]:
            raise usage.UsageError(f"--{option}: mules load the handler module, so give --handler too")
        if not self["engine"].startswith("processes"):
            raise usage.UsageError(f"--engine {self['engine']}: mules need --engine processes:N")
        if len(self["mule"]) + self["mules"] > _MAX_MULES:
            raise usage.UsageError(f"--{option}: there may be {_MAX_MULES} mules")

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
        python2=options["python2"],
        subscribe=options["subscribe"],
        shared=SharedSettings(
            SharedLimits(options["cache"], QueueLimits(options["queue"])),
            [""] * options["mules"] + options["mule"],
            signal_networks=options["signals-from"],
        ),
    )
    return make_node(installed_reactor(), options.settings(), node)
