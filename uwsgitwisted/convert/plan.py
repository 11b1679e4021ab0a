"""Collects what the options of a configuration ask for, before commands are made of it.

The functions here make the ``act`` of a rule in ``outcomes``: each takes a :class:`Plan` and an option's value.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field


class RefusedValue(Exception):
    """An option has a value with which it can't be converted; the text says what to do."""


@dataclass
class Plan:
    """What a configuration asks for.

    :param name: what the services are called, such as ``app``.
    :param directory: the directory in which uWSGI starts.
    """

    name: str
    directory: str
    #: Single values, by a name of our own; the last one wins, as in uWSGI.
    values: dict[str, str] = field(default_factory=dict)
    #: Values of options that may be given several times.
    lists: dict[str, list[str]] = field(default_factory=dict)
    #: Options of the commands, by service and option; None for one without a value.
    options: dict[str, dict[str, str | None]] = field(
        default_factory=lambda: {"node": {}, "spooler": {}, "router": {}}
    )
    #: Lines of the section ``[Service]`` of all units.
    unit: dict[str, str] = field(default_factory=dict)
    #: Directives of nginx's server and of its location for the application.
    server: list[str] = field(default_factory=list)
    location: list[str] = field(default_factory=list)

    def list(self, name: str) -> list[str]:
        """Return the values that were given for *name*."""
        return self.lists.get(name, [])

    @property
    def home(self) -> str:
        """The directory in which the code runs."""
        return os.path.normpath(os.path.join(self.directory, self.values.get("chdir", "")))

    def absolute(self, path: str) -> str:
        """Return *path* as it is found from where the code runs."""
        return os.path.normpath(os.path.join(self.home, path))


#: What an option does to a plan.
Act = Callable[[Plan, str], None]


def is_true(value: str) -> bool:
    """Whether an option without a number is on, as uWSGI reads it."""
    return value.lower() not in ("false", "off", "no", "0")


def number(value: str) -> str:
    """Check that a value is a whole number.

    uWSGI reads the digits at the beginning and nothing behind them, so some files have comments there.

    :raises RefusedValue: if it isn't.
    """
    match = re.fullmatch(r"(\d{1,18})(\s*[;#].*)?", value, re.ASCII)
    if match is None:
        raise RefusedValue(f"{value!r} is not a whole number")
    return str(int(match[1]))


def megabytes(value: str) -> str:
    """Return a number of megabytes as our options take it."""
    return f"{number(value)}M"


def keep(name: str, convert: Callable[[str], str] = str) -> Act:
    """Keep the value under *name*; a later one replaces it."""
    return lambda plan, value: plan.values.update({name: convert(value)})


def flag(name: str) -> Act:
    """Keep whether the option is on."""
    return lambda plan, value: plan.values.update({name: "1" if is_true(value) else ""})


def add(name: str) -> Act:
    """Append the value to the list *name*."""
    return lambda plan, value: plan.lists.setdefault(name, []).append(value)


def option(services: str, name: str, convert: Callable[[str], str] = str) -> Act:
    """Give services an option; the value 0, which means no limit, removes it."""

    def act(plan: Plan, value: str) -> None:
        text = convert(value)
        for service in services.split():
            if text in ("0", "0M"):
                plan.options[service].pop(name, None)
            else:
                plan.options[service][name] = text

    return act


def unit(name: str, convert: Callable[[str], str] = str) -> Act:
    """Set a line of the systemd units."""
    return lambda plan, value: plan.unit.update({name: convert(value)})


def together(*acts: Act) -> Act:
    """Do several things."""

    def act(plan: Plan, value: str) -> None:
        for each in acts:
            each(plan, value)

    return act


#: A plugin whose applications run here: Python's, and the parts of uWSGI that are always there.
_PLUGIN = re.compile(
    r"(0:)?(python\d*|http|corerouter|logfile|logsocket|syslog|rsyslog|rpc|spooler|cache|signal|ping|cheaper_\w+)$"
)


def plugins(plan: Plan, value: str) -> None:
    """Accept the plugins that are not needed here.

    :raises RefusedValue: if there is another one.
    """
    others = [name for each in value.split(",") if (name := each.strip()) and not _PLUGIN.match(name)]
    if others:
        raise RefusedValue(f"only Python's applications run here, not {', '.join(others)}")


def protocol(plan: Plan, value: str) -> None:
    """Set the protocol of the sockets.

    :raises RefusedValue: if it is neither uwsgi nor HTTP.
    """
    if value not in ("uwsgi", "http"):
        raise RefusedValue("nodes speak uwsgi, and the router HTTP: let nginx speak uwsgi with `uwsgi_pass`")
    plan.values["protocol"] = value


def logfile(plan: Plan, value: str) -> None:
    """Keep where the log goes, unless that is the standard output.

    :raises RefusedValue: if it goes to another machine.
    """
    if re.search(r":\d+$", value):
        raise RefusedValue("the journal has the log; forward it with systemd-journal-remote or syslog")
    plan.values["logfile"] = "" if value.startswith(("/dev/", "/proc/")) else value.removeprefix("file:")


def cron(plan: Plan, value: str) -> None:
    """Keep a line for crontab: five numbers, of which negative ones mean "any" or "every", and a command.

    :raises RefusedValue: if there are fewer parts.
    """
    parts = value.split(None, 5)
    if len(parts) != 6:
        raise RefusedValue("it has five times and a command, such as `0 4 -1 -1 -1 /usr/bin/cleanup`")
    plan.lists.setdefault("cron", []).append(" ".join([*map(_cron_field, parts[:5]), _crontab(parts[5])]))


def cron2(plan: Plan, value: str) -> None:
    """Keep a line for crontab of ``minute=1,hour=2 command``."""
    times, _, command = value.partition(" ")
    given = dict(pair.partition("=")[::2] for pair in times.split(","))
    if not command or "=" not in times:
        given, command = {}, value
    fields = [_cron_field(given.pop(name, "-1")) for name in ("minute", "hour", "day", "month", "week")]
    if given.keys() - {"unique"}:
        raise RefusedValue(f"{', '.join(sorted(given))}: write the line of crontab yourself, with timeout(1)")
    prefix = f"flock -n /run/lock/{plan.name}.cron " if given.get("unique", "0") != "0" else ""
    plan.lists.setdefault("cron", []).append(" ".join([*fields, prefix + _crontab(command.strip())]))


def _cron_field(text: str) -> str:
    if not re.fullmatch(r"-?\d+", text, re.ASCII):
        raise RefusedValue(f"{text!r} is not a number")
    value = int(text)
    return str(value) if value >= 0 else "*" if value == -1 else f"*/{-value}"


def _crontab(command: str) -> str:
    """Escape what crontab takes for the end of a line."""
    return command.replace("%", "\\%")


def static_expires(plan: Plan, value: str) -> None:
    """Give all static files of nginx the time for which they may be kept.

    :raises RefusedValue: if the value isn't a pattern and seconds.
    """
    pattern, _, seconds = value.rpartition(" ")
    if not pattern:
        pattern, _, seconds = value.rpartition("=")
    plan.values["expires"] = number(seconds)


def header(plan: Plan, value: str) -> None:
    """Have nginx add a header to answers."""
    name, _, content = value.partition(":")
    plan.server.append(f"add_header {name.strip()} {quoted(content.strip())} always;")


def error_page(status: int) -> Act:
    """Have nginx answer a status with a page."""

    def act(plan: Plan, value: str) -> None:
        path = f"/error-{status}.html"
        plan.server += [
            f"error_page {status} {path};",
            f"location = {path} {{ internal; alias {quoted(plan.absolute(value))}; }}",
        ]

    return act


def quoted(text: str) -> str:
    """Quote a value for nginx, if it needs quotes.

    :raises RefusedValue: if nginx would replace a part of it.
    """
    if "$" in text:
        raise RefusedValue(f"nginx would take {text!r} for a variable of its own")
    if re.fullmatch(r"[\w./:@%+,=-]+", text, re.ASCII):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
