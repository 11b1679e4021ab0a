"""The options that the ``twistd`` commands of all services share."""

from __future__ import annotations

import getopt
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, cast

from twisted import copyright as twisted_copyright
from twisted.python import usage

from uwsgitwisted import __version__
from uwsgitwisted.access import Network, parse_network
from uwsgitwisted.address import split_description
from uwsgitwisted.engines.descriptions import parse_engine
from uwsgitwisted.interfaces import IProcessReactor
from uwsgitwisted.services.listening import check_endpoint, on_loopback
from uwsgitwisted.services.log_file import find_log_file
from uwsgitwisted.services.settings import ServerSettings
from uwsgitwisted.timeouts import parse_timeout
from uwsgitwisted.transport.server.limits import Limits

_DEFAULTS = ServerSettings(listen=())

T = TypeVar("T")


def convert(option: str, converter: Callable[[str], T], text: str) -> T:
    """Convert the value of an option.

    :raises UsageError: if *converter* raises ValueError; the text has the option and its value.
    """
    try:
        return converter(text)
    except ValueError as error:
        raise usage.UsageError(f"--{option} {text}: {error}") from error


def converted(*rows: list[Any]) -> list[list[Any]]:
    """Make the converters in *rows* of ``optParameters`` name their options in errors.

    Twisted itself would only say that a type could not be enforced.
    """
    return [[*row[:4], *(partial(convert, row[0], converter) for converter in row[4:])] for row in rows]


def count(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.isascii() or not text.isdecimal() or not int(text):
        raise ValueError("not a whole number from 1")
    return int(text)


def installed_reactor() -> IProcessReactor:
    """Return the reactor that twistd has installed."""
    from twisted.internet import reactor  # imported late: the import would install a reactor before twistd does

    return cast(IProcessReactor, reactor)


_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def size(text: str) -> int:
    """Parse a number of bytes, which may end with K, M or G."""
    unit = _UNITS.get(text[-1:].upper(), 0)
    try:
        return count(text[:-1]) * unit if unit else count(text)
    except ValueError as error:
        raise ValueError(f"{error}, with or without K, M or G behind it") from error


def engine(text: str) -> str:
    """Check an engine's description, and return it."""
    parse_engine(text)
    return text


#: The help of --max-memory, but for the default.
MAX_MEMORY_HELP = "How much memory a worker process may allocate: bytes, or a number with K, M or G"

#: The help of --python2.
PYTHON2 = (
    "The encoding of the text that Python 2 callers send, such as utf-8; without this, handlers get it as bytes"
)


class ServiceOptions(usage.Options):
    """The options that every service has, and the way in which all are parsed.

    A subclass sets :attr:`default_listen`, and has an option that appends endpoints to ``self["listen"]``.
    """

    #: The default endpoint.
    default_listen = ""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # The help would show the line breaks of docstrings, and "[default: ]".
        self.docs = {option: " ".join((text or "").split()) for option, text in self.docs.items()}
        self.defaults = {option: default for option, default in self.defaults.items() if default != ""}
        self["listen"] = []
        self["allow"] = []
        #: What was given, as ``uwsgi.opt`` shows it to handlers.
        self.given: dict[str, str | list[str] | bool] = {}

    def networks(self) -> tuple[Network, ...] | None:
        """Return the networks that may connect; None for all."""
        return tuple(self["allow"]) or None

    def endpoints(self) -> tuple[str, ...]:
        """Return where to listen: on loopback, unless something else is said, or who may connect."""
        return tuple(self["listen"] if self["allow"] else map(on_loopback, self["listen"]))

    def limits(self) -> Limits:
        """Make the limits of connections that every service has."""
        return Limits(
            header_timeout=self["header-timeout"],
            body_timeout=self["body-timeout"],
            write_timeout=self["write-timeout"],
            idle_timeout=self["idle-timeout"],
            max_connections=self["max-connections"],
            max_peer_connections=self["max-connections-per-peer"],
        )

    def opt_allow(self, network: str) -> None:
        """Accept connections from this network only, such as 10.0.0.0/8; may be given again.

        An endpoint tcp:PORT then listens on every interface.
        """
        self["allow"].append(convert("allow", parse_network, network))

    def opt_version(self) -> None:
        """Display the versions of uwsgitwisted and of Twisted, and exit."""
        print(f"uwsgitwisted {__version__}, Twisted {twisted_copyright.version}")
        raise SystemExit(0)

    def parseArgs(self, *surplus: str) -> None:
        """Refuse arguments that belong to no option."""
        if surplus:
            raise usage.UsageError(f"{surplus[0]!r} belongs to no option")

    def parseOptions(self, options: Any = None) -> None:
        """Parse the command line.

        :raises UsageError: if the command line is invalid.
        :raises SystemExit: instead of UsageError under twistd, which would print its whole help before the reason.
        """
        line = sys.argv[1:] if options is None else options
        try:
            super().parseOptions(line)  # type: ignore[no-untyped-call]
        except usage.UsageError as error:
            if self.parent is None:
                raise
            command = self.parent.subCommand
            raise SystemExit(f"{command}: {error}\nSee 'twistd {command} --help'.") from error
        self._note(getopt.getopt(line, self.shortOpt, self.longOpt)[0])

    def _note(self, options: list[tuple[str, str]]) -> None:
        """Keep which options were given."""
        values: dict[str, list[str]] = {}
        for option, text in options:
            name = self.synonyms[option.lstrip("-")]
            values.setdefault(name, []).append(self.without_secrets(name, text))
        for name, texts in values.items():
            is_flag = f"{name}=" not in self.longOpt
            self.given[name] = is_flag or (texts if len(texts) > 1 else texts[0])

    def without_secrets(self, option: str, text: str) -> str:
        """Return what handlers, and who looks at the workers' command lines, may see of an option's value."""
        return text

    def postOptions(self) -> None:
        """Set the defaults of the endpoint and of the pid file."""
        self["listen"] = self["listen"] or [self.default_listen]
        if self.parent is not None and "pidfile" in self.parent:
            self._settle_pid_file(self.parent)

    def _settle_pid_file(self, twistd: usage.Options) -> None:
        """Replace twistd's default pid file.

        All services in a directory would share it, so only the first one would start. In the foreground no pid file
        is needed: whoever started the service knows its process.
        """
        if twistd["pidfile"] == twistd.defaults["pidfile"]:
            in_foreground = twistd["nodaemon"] or twistd["debug"]
            twistd["pidfile"] = "" if in_foreground else f"{twistd.subCommand}-{self._place()}.pid"

    def _place(self) -> str:
        """Return the service's first port, or the file name of its UNIX socket."""
        positional, keywords = split_description(self["listen"][0])
        kind, *arguments = *positional, *keywords.values()
        return os.path.basename(arguments[0] if arguments else kind)

    def require(self, option: str, example: str) -> str:
        """Return the value of an option that has no default.

        :raises UsageError: if it isn't given.
        """
        value: str | None = self[option]
        if not value:
            raise usage.UsageError(f"--{option} is missing; for example: --{option} {example}")
        return value


class ServerOptions(ServiceOptions):
    """The common options of a node, a renderer and a spooler.

    A subclass may set :attr:`default_timeout`, adds its own options, and makes its service from :meth:`settings`.
    """

    #: The default of ``--timeout``, in seconds.
    default_timeout = _DEFAULTS.timeout

    optParameters: list[list[Any]] = converted(
        ["engine", "e", _DEFAULTS.engine, "Where handlers run: processes:N (one per core if N is left out), threads:N, reactor, executor:module:callable", engine],
        ["timeout", "t", _DEFAULTS.timeout, "Seconds that a request may run before its worker is killed and replaced", parse_timeout],
        ["drain-timeout", None, _DEFAULTS.drain_timeout, "Seconds that running requests get to finish when the service is stopped", parse_timeout],
        ["max-queue", None, _DEFAULTS.max_queue, "How many requests may wait for a worker; more are refused. One peer may have three times as many as are free", count],
        ["max-requests", None, None, "The number of requests after which a worker process is replaced (default: never)", count],
        ["max-memory", None, None, f"{MAX_MEMORY_HELP} (default: no limit)", size],
        ["reload-on-rss", None, None, "The resident memory above which a worker process is replaced after its request: bytes, or a number with K, M or G (default: no limit)", size],
        ["max-worker-lifetime", None, None, "Seconds after which a worker process is replaced after its request (default: never)", parse_timeout],
        ["max-message", None, _DEFAULTS.max_message, "The largest message in a session: bytes, or a number with K, M or G", size],
        ["max-buffered", None, None, "How many bytes of requests and answers are held for all peers together: bytes, or a number with K, M or G (default: a quarter of the memory, at least 256M)", size],
        ["max-connections", None, _DEFAULTS.limits.max_connections, "How many connections may be open at once; a new one beyond them evicts the longest idle one", count],
        ["max-connections-per-peer", None, None, "How many of them may come from one address, or one IPv6 /64 (default: three quarters)", count],
        ["header-timeout", None, _DEFAULTS.limits.header_timeout, "Seconds that a new connection gets to send its first header", parse_timeout],
        ["body-timeout", None, _DEFAULTS.limits.body_timeout, "Seconds that a connection gets to send the rest of its packet, and in a session each further piece of a message", parse_timeout],
        ["write-timeout", None, _DEFAULTS.limits.write_timeout, "Seconds for which a peer may read nothing of its answer", parse_timeout],
        ["idle-timeout", None, _DEFAULTS.limits.idle_timeout, "Seconds that a session may be silent", parse_timeout],
        ["node", None, _DEFAULTS.node, "This node's name in logs and error texts, by default the host's"],
    )  # fmt: skip

    optFlags: list[list[Any]] = [  # noqa: RUF012 - Twisted's form
        ["no-tracebacks", None, "Don't send callers the tracebacks of handlers' exceptions"],
    ]

    def __init__(self) -> None:
        super().__init__()
        self["stats"] = []
        self["timeout"] = self.defaults["timeout"] = self.default_timeout
        self["touch-reload"] = []

    def opt_listen(self, description: str) -> None:
        """Listen on this Twisted endpoint, such as tcp:3033 or unix:/run/node.sock; may be given again.

        Without interface=, it listens on loopback only, unless --allow names who may connect. A UNIX socket without
        mode= is for its owner and group.
        """
        convert("listen", check_endpoint, description)
        self["listen"].append(description)

    opt_l = opt_listen

    def opt_stats(self, description: str) -> None:
        """Give statistics as uWSGI does, for uwsgitop, on this Twisted endpoint, such as tcp:1717; may be given again.

        Without interface=, it listens on loopback only.
        """
        convert("stats", check_endpoint, description)
        self["stats"].append(on_loopback(description))

    def opt_touch_reload(self, path: str) -> None:
        """Reload the service, as SIGHUP does, when this file is touched; may be given again."""
        self["touch-reload"].append(os.path.abspath(path))

    def settings(self) -> ServerSettings:
        """Make the settings from the options."""
        return ServerSettings(
            listen=self.endpoints(),
            engine=self["engine"],
            timeout=self["timeout"],
            drain_timeout=self["drain-timeout"],
            max_queue=self["max-queue"],
            max_message=self["max-message"],
            max_requests=self["max-requests"],
            max_memory=self["max-memory"],
            reload_on_rss=self["reload-on-rss"],
            max_worker_lifetime=self["max-worker-lifetime"],
            touch_reload=tuple(self["touch-reload"]),
            networks=self.networks(),
            tracebacks=not self["no-tracebacks"],
            stats=tuple(self["stats"]),
            node=self["node"],
            log_file=find_log_file(self.parent),
            options=self.given,
            limits=replace(self.limits(), max_buffered=self["max-buffered"]),
        )
