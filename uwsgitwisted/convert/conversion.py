"""Converts a configuration: what becomes of each option, and the commands, units and the server of nginx."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from uwsgitwisted.convert.commands import Builder, Command
from uwsgitwisted.convert.nginx import make_server
from uwsgitwisted.convert.outcomes import RULES, Outcome, rule_of
from uwsgitwisted.convert.plan import Plan, RefusedValue
from uwsgitwisted.convert.setting import Setting
from uwsgitwisted.convert.systemd import make_unit

#: What is left of a placeholder that stands for nothing.
_LEFT = re.compile(r"[$%]\(([^()]+)\)")


@dataclass(frozen=True)
class Row:
    """What becomes of an option in a configuration."""

    setting: Setting
    outcome: Outcome
    text: str


@dataclass(frozen=True)
class Conversion:
    """What a configuration is converted to.

    :param rows: what becomes of each option, in order.
    :param problems: what the commands lack, and what to do.
    :param notes: where defaults differ.
    :param identity: options of twistd that change the user, if it isn't systemd that does.
    :param units: the texts of units, by the names of their files.
    :param nginx: a block ``server``; empty if there is no node.
    :param cron: lines for crontab.
    """

    rows: list[Row]
    problems: list[str]
    notes: list[str]
    commands: list[Command]
    identity: list[str]
    units: dict[str, str]
    nginx: str
    cron: list[str]

    @property
    def is_complete(self) -> bool:
        """Whether the commands do all that the configuration asks for."""
        return not self.problems and all(row.outcome is not Outcome.REFUSED for row in self.rows)


def convert(settings: Sequence[Setting], name: str, directory: str) -> Conversion:
    """Convert the options of a configuration.

    :param name: the configuration's file, after which the services are named.
    :param directory: the directory in which uWSGI starts.
    """
    stem = os.path.splitext(os.path.basename(name.partition(":")[0]))[0]
    plan = Plan(re.sub(r"[^\w.-]", "-", stem) or "application", os.path.abspath(directory))
    used = {word for each in settings for found in _LEFT.findall(each.written) for word in found.split()}
    rows = [_apply(plan, each, used) for each in settings]
    builder = Builder(plan)
    commands = builder.build()
    identity = [part for key in ("uid", "gid") if key in plan.values for part in (f"--{key}", plan.values[key])]
    server = _server(builder, plan) if any(each.service == "uwsgi-node" for each in commands) else ""
    return Conversion(
        rows,
        builder.problems,
        builder.notes,
        commands,
        identity,
        {f"{each.name}.service": make_unit(each, plan, low_ports=builder.low_ports) for each in commands},
        server,
        plan.list("cron"),
    )


def _server(builder: Builder, plan: Plan) -> str:
    try:
        return make_server(builder, plan)
    except RefusedValue as error:
        builder.problems.append(f"the server of nginx: {error}")
        return ""


def _apply(plan: Plan, setting: Setting, used: set[str]) -> Row:
    """Put an option into the plan, and return what becomes of it."""
    rule = rule_of(setting.key)
    if rule is RULES[-1] and setting.key in used:
        return Row(setting, Outcome.UNNECESSARY, "it is a placeholder")
    left = _LEFT.search(setting.value)
    if left is not None and rule.act is not None and (left[0][0] == "$" or setting.key not in used):
        is_variable = left[0][0] == "$"
        what = "set this environment variable, and convert again" if is_variable else "no option has this name"
        return Row(setting, Outcome.REFUSED, f"{left[0]}: {what}")
    if rule.act is not None:
        try:
            rule.act(plan, setting.value)
        except RefusedValue as error:
            return Row(setting, Outcome.REFUSED, str(error))
    return Row(setting, rule.outcome, rule.text)
