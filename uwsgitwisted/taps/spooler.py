"""``twistd uwsgi-spooler``."""

from __future__ import annotations

from typing import Any

from twisted.application.service import IService
from twisted.python import usage

from uwsgitwisted.engines.descriptions import available_cores
from uwsgitwisted.handlers.spool import RETURN_CODES
from uwsgitwisted.services.spooler import make_spooler
from uwsgitwisted.spool.retry import RetryPolicy
from uwsgitwisted.taps.options import ServerOptions, count, installed_reactor, seconds

_POLICY = RetryPolicy()


def _return_codes(text: str) -> str:
    if text not in RETURN_CODES:
        raise ValueError(f"{text!r} is none of {', '.join(sorted(RETURN_CODES))}")
    return text


class Options(ServerOptions):
    """The options of ``twistd uwsgi-spooler``."""

    synopsis = "[options] --spool sqlite:PATH --handler MODULE"
    longdesc = (
        "Stores tasks (modifier1 17) on disk before it accepts them, and runs each with the function that the "
        "handler module puts in uwsgi.spooler, until it succeeds or is set aside as a dead letter."
    )
    default_listen = "tcp:3034"

    optParameters: list[list[Any]] = [  # noqa: RUF012 - Twisted's form
        ["handler", None, None, "The module that runs tasks, as an import statement names it"],
        ["spool", "s", None, "Where tasks are kept: sqlite:PATH"],
        ["max-attempts", None, _POLICY.max_attempts, "How often a task is run before it becomes a dead letter", count],
        ["max-crashes", None, _POLICY.max_crashes, "How many workers a task may crash before it becomes one", count],
        ["first-delay", None, _POLICY.first_delay, "Seconds until the first retry; doubled for each later one", seconds],
        ["max-delay", None, _POLICY.max_delay, "The longest time between two tries, in seconds", seconds],
        ["workers", "w", None, "How many tasks run at once (default: as many as the engine has processes)", count],
        ["return-codes", None, "2.0", "Which uWSGI's return codes the handler uses: 2.0 or 0.9", _return_codes],
    ]  # fmt: skip

    optFlags: list[list[Any]] = [  # noqa: RUF012 - Twisted's form
        ["text", None, "Give the handler keys and values as text instead of bytes"],
    ]

    def postOptions(self) -> None:
        """Check that there is a handler and a spool."""
        super().postOptions()
        self.require("handler", "my_tasks")
        self.require("spool", "sqlite:spool.sqlite")
        if self["first-delay"] > self["max-delay"]:
            raise usage.UsageError("--first-delay is longer than --max-delay")
        number = self["engine"].partition(":")[2]
        self["workers"] = self["workers"] or (int(number) if number else available_cores())


def makeService(options: Options) -> IService:
    """Return the service that the options describe."""
    return make_spooler(
        installed_reactor(),
        options.settings(),
        options["handler"],
        options["spool"],
        policy=RetryPolicy(
            max_attempts=options["max-attempts"],
            max_crashes=options["max-crashes"],
            first_delay=options["first-delay"],
            max_delay=options["max-delay"],
        ),
        workers=options["workers"],
        text=bool(options["text"]),
        return_codes=options["return-codes"],
    )
