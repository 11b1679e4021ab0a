"""Formats tasks and queues for people, as tables that rich draws."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from uwsgitwisted.cli.words import decoded, printable
from uwsgitwisted.spool.management.arguments import STATES
from uwsgitwisted.spool.records import for_json

#: The width of the output where it isn't a terminal.
PIPE_WIDTH = 160
#: How much of an error a list shows, and the longest line that isn't broken, in characters.
ERROR_LIMIT, LINE = 300, 80

_NAMELESS, _OTHERS = "(no name)", "(all others)"

Row = Mapping[str, Any]

_STYLES = {
    "scheduled": "blue",
    "ready": "cyan",
    "running": "green",
    "done": "dim",
    "dead": "red",
    "cancelled": "yellow",
}
#: The units of a time span: the smallest span for which each is used, its size in seconds, and its name.
_UNITS = (
    (63_115_200, 31_557_600, "y"),
    (172_800, 86_400, "d"),
    (7_200, 3_600, "h"),
    (120, 60, "min"),
    (0, 1, "s"),
)
#: The time to show for a task, and its format, by the task's state.
_TIMES = {
    "scheduled": ("at", "in {}"),
    "ready": ("at", "for {}"),
    "running": ("started", "for {}"),
    "done": ("finished", "{} ago"),
    "dead": ("finished", "{} ago"),
    "cancelled": ("finished", "{} ago"),
}


def show(*parts: Table | Text) -> None:
    """Print to the standard output."""
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, Text))


def span(seconds: float) -> str:
    """Format a time span; the larger it is, the coarser the unit."""
    size, unit = next((size, unit) for least, size, unit in _UNITS if abs(seconds) >= least)
    return f"{abs(seconds) / size:.0f} {unit}"


def _style(state: str) -> str:
    return _STYLES.get(state, "")


def _when(task: Row, now: float) -> str:
    name, form = _TIMES.get(task["state"], ("created", "{} ago"))
    moment = task[name]
    if moment is None or (task["state"] == "scheduled" and moment <= now):
        return "now"
    return form.format(span(now - moment))


def _tries(task: Row) -> str:
    crashes = task["crashes"]
    if not crashes:
        return str(task["attempts"] or "")
    return f"{task['attempts']} ({crashes} crash{'es' * (crashes > 1)})"


# Lists of tasks.


class _Column(NamedTuple):
    """A column; it is omitted if it is empty for every task.

    :param cell: makes the cell of a task; its second argument is the current time.
    """

    title: str
    cell: Callable[[Row, float], Text | Group]
    options: Mapping[str, Any] = {}


def _what(task: Row, now: float) -> Group:
    """Return a task's summary in one line, and its error below."""
    about = Text(printable(task["summary"]) or "-", no_wrap=True, overflow="ellipsis")
    if not task["error"]:
        return Group(about)
    error = task["error"] if len(task["error"]) <= ERROR_LIMIT else f"{task['error'][:ERROR_LIMIT]}..."
    return Group(about, Text(printable(error), "red" if task["state"] == "dead" else "dim", overflow="fold"))


_RIGHT = {"justify": "right"}
_COLUMNS = (
    _Column("ID", lambda task, now: Text(str(task["id"]), "bold"), _RIGHT),
    _Column("STATE", lambda task, now: Text(task["state"], _style(task["state"]))),
    _Column("WHEN", lambda task, now: Text(_when(task, now))),
    _Column("QUEUE", lambda task, now: Text(printable(task["queue"]))),
    _Column("PRIO", lambda task, now: Text("" if task["priority"] is None else str(task["priority"])), _RIGHT),
    _Column("TRIES", lambda task, now: Text(_tries(task)), _RIGHT),
    _Column("TASK", _what, {"ratio": 1, "no_wrap": False}),
)


def tasks_table(tasks: Sequence[Row], now: float, *, without: str = "") -> Table:
    """Make a table with a task in each row.

    :param without: the title of a column to omit.
    """
    table = _table(expand=True)
    rows: list[list[Text | Group]] = [[] for _ in tasks]
    for title, cell, options in _COLUMNS:
        cells = [cell(task, now) for task in tasks]
        if title != without and any(cells):
            table.add_column(title, **{"no_wrap": True, **options})
            for row, one in zip(rows, cells, strict=True):
                row.append(one)
    for row in rows:
        table.add_row(*row)
    return table


def _table(**options: Any) -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), **options)


# Queues.


def queues_table(queues: Sequence[Row]) -> Table:
    """Make a table with a queue in each row, and the totals."""
    table = _table(show_footer=len(queues) > 1)
    table.add_column("QUEUE", footer="all")
    for state in STATES:
        total = sum(queue[state] for queue in queues)
        table.add_column(state.upper(), footer=f"{total:,}", justify="right")
    table.add_column("")
    for queue in queues:
        counts = [_count(queue, state) for state in STATES]
        table.add_row(_queue_name(queue["queue"]), *counts, Text("paused" if queue["paused"] else "", "yellow"))
    return table


def _count(queue: Row, state: str) -> Text:
    number = queue[state]
    return Text(f"{number:,}", _style(state)) if number else Text("-", "dim")


def _queue_name(name: str | None) -> Text:
    return Text(printable(name)) if name else Text(_OTHERS if name is None else _NAMELESS, "dim")


# One task.


def task_details(task: Row, now: float) -> Text:
    """Format all details of a task."""
    text = Text.assemble((f"task {task['id']}", "bold"), " ", (task["state"], _style(task["state"])), "\n")
    _add_pairs(text, list(_facts(task, now)))
    _add_part(text, "variables")
    _add_pairs(text, [(decoded(key), decoded(value)) for key, value in task["variables"].items()])
    if task["result"] is not None:
        _add_part(text, "result", _result(task["result"]))
    if task["error"]:
        _add_part(text, "last error", task["error"], "red")
    return text


def _facts(task: Row, now: float) -> Iterable[tuple[str, str]]:
    yield "queue", printable(task["queue"]) or _NAMELESS
    if task["priority"] is not None:
        yield "priority", str(task["priority"])
    for name in ("created", "at", "started", "finished"):
        if task[name] is not None:
            yield name, _moment(task[name], now)
    yield "attempts", _tries(task) or "none"
    if task["idempotency_key"]:
        yield "idempotency key", printable(task["idempotency_key"])
    if task["body_size"]:
        yield "body", f"{task['body_size']:,} bytes"


def _moment(moment: float, now: float) -> str:
    form = "{} ago" if moment <= now else "in {}"
    shown = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
    return f"{shown} ({form.format(span(now - moment))})"


def _result(result: object) -> str:
    shown = for_json({"result": result})
    if "result_repr" in shown:
        return str(shown["result_repr"])
    text = json.dumps(result, ensure_ascii=False)
    return text if len(text) <= LINE else json.dumps(result, ensure_ascii=False, indent=2)


def _add_pairs(text: Text, pairs: Sequence[tuple[str, str]]) -> None:
    """Add a line for each name and value."""
    width = min(max((len(name) for name, _ in pairs), default=0), LINE // 4)
    for name, value in pairs:
        text.append(f"  {name:{width}}  ", "dim").append(f"{value}\n")


def _add_part(text: Text, title: str, content: str = "", style: str = "") -> None:
    """Add a title, and the content below."""
    text.append(f"{title}\n", "bold")
    for line in content.splitlines():
        text.append(f"  {printable(line)}\n", style)
