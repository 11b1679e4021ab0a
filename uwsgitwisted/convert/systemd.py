"""Writes units of systemd for commands."""

from __future__ import annotations

import re

from uwsgitwisted.convert.commands import Command
from uwsgitwisted.convert.plan import Plan

#: How much longer systemd waits than a service before it kills what is left, in seconds.
_MARGIN = 15


def make_unit(command: Command, plan: Plan, *, low_ports: bool) -> str:
    """Return the unit of a command.

    :param low_ports: whether a service listens on a port that only root may use.
    """
    drain = int(plan.options["node"].get("--drain-timeout") or 30)
    service = {
        "WorkingDirectory": _value(command.directory),
        "ExecStart": " ".join(map(_argument, command.line)),
        "ExecReload": "/bin/kill -HUP $MAINPID",
        "KillMode": "mixed",
        "TimeoutStopSec": str(drain + _MARGIN),
        "Restart": "always",
        **({"User": plan.values["uid"]} if "uid" in plan.values else {}),
        **({"Group": plan.values["gid"]} if "gid" in plan.values else {}),
        **({"AmbientCapabilities": "CAP_NET_BIND_SERVICE"} if low_ports and "uid" in plan.values else {}),
        **plan.unit,
    }
    lines = [
        "[Unit]",
        f"Description={command.name} ({command.service})",
        "After=network.target",
        "",
        "[Service]",
        *(f"Environment={_quote(_value(f'{name}={value}'))}" for name, value in command.environment.items()),
        *(f"{name}={value}" for name, value in service.items()),
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return "\n".join(lines) + "\n"


def _value(text: str) -> str:
    return text.replace("%", "%%")


def _argument(text: str) -> str:
    text = _value(text).replace("$", "$$")
    return text if re.fullmatch(r"[\w./:@%$+,=-]+", text, re.ASCII) else _quote(text)


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
