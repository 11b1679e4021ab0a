"""``twistd uwsgi-spooler``."""

from __future__ import annotations

from typing import Any

from twisted.application.service import IService
from twisted.python import usage

from uwsgitwisted.access import parse_network
from uwsgitwisted.engines.descriptions import DEFAULT, available_cores
from uwsgitwisted.errors import StartupError
from uwsgitwisted.responders.manage import LOOPBACK
from uwsgitwisted.responders.spool import HTTP_VARS
from uwsgitwisted.services.spooler import SpoolSettings, make_spooler
from uwsgitwisted.spool.periodic import parse_cron
from uwsgitwisted.spool.retry import RetryPolicy
from uwsgitwisted.spool.stores.bounds import MAX_QUEUES, Bounds
from uwsgitwisted.spool.stores.interface import KEEP_RESULTS
from uwsgitwisted.taps.options import convert, converted, count, installed_reactor, size
from uwsgitwisted.taps.signals import SignalOptions
from uwsgitwisted.timeouts import parse_timeout
from uwsgitwisted.wire.tasks import RETURN_CODES

_POLICY = RetryPolicy()


def _return_codes(text: str) -> str:
    if text not in RETURN_CODES:
        raise ValueError(f"write {' or '.join(sorted(RETURN_CODES))}")
    return text


def _keep(text: str) -> float:
    return 0.0 if text.strip() == "0" else parse_timeout(text)


def _number(text: str) -> int:
    return 0 if text.strip() == "0" else count(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


class Options(SignalOptions):
    """The options of ``twistd uwsgi-spooler``."""

    synopsis = "[options] --spool sqlite:PATH --handler MODULE"
    longdesc = (
        "Stores tasks (modifier1 17) on disk before it accepts them, and runs each with the function that the "
        "handler module sets as uwsgi.spooler, until it succeeds or becomes a dead letter."
    )
    default_listen = "tcp:3034"
    default_timeout = 3_600.0

    optParameters: list[list[Any]] = converted(
        ["handler", None, None, "The module that runs tasks, as an import statement names it"],
        ["spool", "s", None, "Where tasks are kept: sqlite:PATH, or postgresql://user:password@host/database, which several spoolers may share"],
        ["max-attempts", None, _POLICY.max_attempts, "How often a task is run before it becomes a dead letter", count],
        ["max-crashes", None, _POLICY.max_crashes, "How many workers a task may crash before it becomes a dead letter", count],
        ["first-delay", None, _POLICY.first_delay, "Seconds until the first retry; doubled for each later one", parse_timeout],
        ["max-delay", None, _POLICY.max_delay, "The longest delay before a retry, in seconds", parse_timeout],
        ["workers", "w", None, "How many tasks run at once, of all queues without workers of their own (default: one per core)", count],
        ["keep-results", None, KEEP_RESULTS, "Seconds for which the state and the result of a finished task are kept; 0 to keep none", _keep],
        ["max-tasks", None, None, "How many tasks may wait or run; more are refused (default: no limit)", count],
        ["max-spool-size", None, None, "How many bytes the tasks may take: bytes, or a number with K, M or G; more are refused (default: no limit)", size],
        ["max-queues", None, MAX_QUEUES, "In how many queues without workers of their own tasks may wait; tasks for further queues are refused", _number],
        ["http-vars", None, ",".join(HTTP_VARS), "Which variables of a web request (modifier2 1) its task gets"],
        ["return-codes", None, "2.0", "Which uWSGI's return codes the handler uses: 2.0 or 0.9", _return_codes],
    )  # fmt: skip

    optFlags: list[list[Any]] = [  # noqa: RUF012 - Twisted's form
        ["text", None, "Give the handler keys and values as text instead of bytes"],
    ]

    def __init__(self) -> None:
        super().__init__()
        self["queues"] = {}
        self["periodic"] = []
        self["manage"] = []

    def without_secrets(self, option: str, text: str) -> str:
        """Leave the password out of a PostgreSQL spool's address, and all that may be one."""
        if option != "spool" or not text.startswith("postgresql:"):
            return text
        kind, slashes, rest = text.partition("?")[0].partition("//")
        place, slash, database = rest.partition("/")
        user, at, host = place.rpartition("@")
        return f"{kind}{slashes}{user.partition(':')[0]}{at}{host}{slash}{database}"

    def opt_queue(self, text: str) -> None:
        """Give a queue workers of its own, such as mail=2; may be given again.

        A task names its queue under the key 'spooler'. All other queues take turns at the --workers.
        """
        name, _, number = text.rpartition("=")
        try:
            self["queues"][name] = count(number)
        except ValueError as error:
            raise usage.UsageError(f"--queue {text}: {error}; write for example --queue mail=2") from error
        if not name:
            raise usage.UsageError(f"--queue {text}: name the queue, for example --queue mail=2")

    def opt_cron(self, line: str) -> None:
        """Enqueue a task periodically: five cron fields, then its keys and values, such as '*/5 * * * * job=cleanup'.

        May be given again. The times are in the local time zone.
        """
        try:
            self["periodic"].append(parse_cron(line))
        except StartupError as error:
            raise usage.UsageError(f"--cron {error}") from error

    def opt_drain(self, description: str) -> None:
        """Move tasks from a real uWSGI's spool directory into the queue as they arrive: dir:PATH."""
        prefix, _, path = description.partition(":")
        if prefix != "dir" or not path:
            raise usage.UsageError(f"--drain {description}: write for example --drain dir:/var/spool/uwsgi")
        self["drain"] = path

    def opt_manage(self, network: str) -> None:
        """Let this network manage the queue, such as 10.0.0.5/32; may be given again.

        Without it, only this machine may list, retry, cancel or drop tasks and pause queues.
        """
        self["manage"].append(convert("manage", parse_network, network))

    def postOptions(self) -> None:
        """Check that a handler and a spool are given, and set how many tasks run at once."""
        super().postOptions()
        self.require("handler", "my_tasks")
        self.require("spool", "sqlite:spool.sqlite")
        if self["first-delay"] > self["max-delay"]:
            raise usage.UsageError("--first-delay is longer than --max-delay")
        self["http-vars"] = _names(self["http-vars"])
        reserved = sum(self["queues"].values())
        engine, _, number = self["engine"].partition(":")
        if engine == DEFAULT and not number:
            self["workers"] = self["workers"] or available_cores()
            self["engine"] = f"{engine}:{self['workers'] + reserved}"
        elif number.isdecimal():
            self["workers"] = self["workers"] or int(number) - reserved
            if self["workers"] < 1:
                raise usage.UsageError(
                    f"--engine {self['engine']} leaves no worker for queues other than those of --queue, which have "
                    f"{reserved}; give it more"
                )
        else:
            self["workers"] = self["workers"] or available_cores()


def makeService(options: Options) -> IService:
    """Make the service from its options."""
    return make_spooler(
        installed_reactor(),
        options.settings(),
        options["handler"],
        SpoolSettings(
            options["spool"],
            policy=RetryPolicy(
                max_attempts=options["max-attempts"],
                max_crashes=options["max-crashes"],
                first_delay=options["first-delay"],
                max_delay=options["max-delay"],
            ),
            workers=options["workers"],
            queues=options["queues"],
            keep_results=options["keep-results"],
            bounds=Bounds(
                tasks=options["max-tasks"],
                size=options["max-spool-size"],
                queues=options["max-queues"],
                reserved=frozenset(options["queues"]),
            ),
            periodic=options["periodic"],
            drain=options.get("drain"),
            managers=[*LOOPBACK, *options["manage"]],
            http_vars=options["http-vars"],
            text=bool(options["text"]),
            signal_networks=options["signals-from"],
            return_codes=options["return-codes"],
        ),
    )
