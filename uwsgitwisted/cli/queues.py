"""The commands ``uwsgitwisted queue ...``: they run operations on a queue and print the results."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from uwsgitwisted.cli.places import Place
from uwsgitwisted.cli.progress import progress
from uwsgitwisted.cli.transfer import export_tasks, import_tasks
from uwsgitwisted.cli.words import printable
from uwsgitwisted.errors import MisuseError, UwsgiError
from uwsgitwisted.spool.management.arguments import STATES
from uwsgitwisted.spool.management.changes import CHANGES, UNFINISHED
from uwsgitwisted.spool.management.operations import MAX_DETAILS, MAX_IDS, MAX_LIST
from uwsgitwisted.spool.records import for_json
from uwsgitwisted.wire.tasks import load_result

#: How many unchanged tasks to name.
NAMED = 10

Row = Mapping[str, Any]


def _display() -> ModuleType:
    try:
        from uwsgitwisted.cli import display
    except ImportError as error:
        raise UwsgiError("tables need rich: pip install 'uwsgitwisted[cli]'; --json works without") from error
    return display


def note(text: str) -> None:
    """Print a message that is not part of the output, on the standard error."""
    print(printable(text), file=sys.stderr)


# Looking.


def list_tasks(place: Place, options: Namespace) -> int:
    """List tasks, one per line."""
    tasks, more = _limited(place, "list", options, state=options.state)
    return _show_tasks(tasks, more, options)


def dead_tasks(place: Place, options: Namespace) -> int:
    """List dead letters, one per line."""
    tasks, more = _limited(place, "dead", options)
    return _show_tasks(tasks, more, options)


def _limited(place: Place, operation: str, options: Namespace, **wanted: object) -> tuple[list[Row], bool]:
    """Return up to ``--limit`` tasks, and whether there are more."""
    tasks: list[Row] = []
    after = options.after
    while len(tasks) <= options.limit:
        limit = min(options.limit + 1 - len(tasks), MAX_LIST)
        page = place.call(operation, queue=options.queue, after=after, limit=limit, **wanted)
        tasks += page
        if len(page) < limit:
            return tasks, False
        after = page[-1]["id"]
    return tasks[: options.limit], True


def _show_tasks(tasks: Sequence[Row], more: bool, options: Namespace) -> int:
    if options.json:
        _print_lines(tasks)
    elif tasks:
        display = _display()
        without = "STATE" if options.command == "dead" else ""
        display.show(display.tasks_table(tasks, time.time(), without=without))
    else:
        note("no tasks")
    if more:
        note(f"there are more: --after {tasks[-1]['id']} shows the next ones, --limit more at once")
    return 0


def show_tasks(place: Place, options: Namespace) -> int:
    """Show all details of tasks."""
    found: list[Row] = []
    for ids in _pieces(options.ids, MAX_DETAILS):
        found += _with_results(place, place.call("show", ids=ids))
    if options.json:
        _print_lines(map(_json_details, found))
    else:
        display = _display()
        display.show(*(display.task_details(task, time.time()) for task in found))
    unknown = sorted(set(options.ids) - {task["id"] for task in found})
    for identifier in unknown:
        note(f"there is no task {identifier}, or not any more")
    return 1 if unknown else 0


def _with_results(place: Place, tasks: Sequence[Row]) -> Iterator[Row]:
    """Load the results of tasks; fetch a result for which the answer had no room by a call of its own."""
    for task in tasks:
        (whole,) = place.call("show", ids=[task["id"]]) or [task] if task["result"] is None else [task]
        yield {**whole, "result": load_result(whole["result"])}


def _json_details(task: Row) -> Row:
    """Convert a task's details for JSON; bytes that are not UTF-8 are in base64."""
    variables: dict[str, str] = {}
    coded: dict[str, str] = {}
    for key, value in task["variables"].items():
        try:
            variables[key.decode()] = value.decode()
        except UnicodeDecodeError:
            coded[key.decode(errors="backslashreplace")] = b64encode(value).decode()
    return for_json({**task, "variables": variables, **({"variables_base64": coded} if coded else {})})


def show_queues(place: Place, options: Namespace) -> int:
    """Show how many tasks each queue has."""
    queues = place.call("stats")
    if options.json:
        _print_lines(queues)
    elif queues:
        display = _display()
        display.show(display.queues_table(queues))
    else:
        note("no tasks")
    return 0


def _print_lines(rows: Iterable[Row]) -> None:
    for row in rows:
        print(json.dumps(row))


# Changing.

#: What a command has done to tasks, for its report.
_DONE = {"cancel": "cancelled", "retry": "will run again", "drop": "deleted"}


def change_tasks(place: Place, options: Namespace) -> int:
    """Cancel, retry or drop tasks."""
    if bool(options.ids) is options.all:
        raise MisuseError(f"{options.command} takes either ids or --all")
    if options.all:
        return _change_all(place, options)
    if options.state or options.queue is not None:
        raise MisuseError("--state and --queue need --all")
    changed: set[int] = set()
    with progress(options.command, len(options.ids)) as advance:
        for ids in _pieces(options.ids, MAX_IDS):
            changed.update(place.call(options.command, ids=ids)["changed"])
            advance(len(ids))
    _report(options, len(changed))
    return _explain(place, sorted(set(options.ids) - changed), options.command)


def _change_all(place: Place, options: Namespace) -> int:
    change = CHANGES[options.command]
    states = [options.state] if options.state else [state.name.lower() for state in change.default]
    queues = [row for row in place.call("stats") if options.queue in (None, row["queue"])]
    counts = {state: sum(row[state] for row in queues) for state in states}
    total = sum(counts.values())
    if total and options.asks and not options.yes and not _confirmed(options, counts):
        return 1
    number = 0
    with progress(options.command, total) as advance:
        for changed in _batches(place, options):
            number += changed
            advance(changed)
    _report(options, number)
    return 0


def _batches(place: Place, options: Namespace) -> Iterator[int]:
    """Change all selected tasks in batches, and yield the number of changed tasks of each batch."""
    after, more = 0, True
    while more:
        answer = place.call(options.command, all=True, state=options.state, queue=options.queue, after=after)
        yield len(answer["changed"])
        after, more = answer["after"], answer["more"]


def _confirmed(options: Namespace, counts: Mapping[str, int]) -> bool:
    if not sys.stdin.isatty():
        raise MisuseError(f"{options.command} --all asks for confirmation, but there is no terminal; add --yes")
    what = ", ".join(f"{number:,} {state}" for state, number in counts.items() if number)
    place = options.where if options.queue is None else f"the queue {options.queue!r} of {options.where}"
    print(f"{options.command} all tasks of {place} ({what})? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    note("nothing was changed")
    return False


def _report(options: Namespace, number: int) -> None:
    if options.json:
        _print_lines([{"changed": number}])
    else:
        print(f"{_tasks(number)} {_DONE[options.command]}")


def _explain(place: Place, unchanged: Sequence[int], command: str) -> int:
    """Print why tasks were not changed, and return the exit status."""
    known: dict[int, str] = {}
    for ids in _pieces(unchanged[:NAMED], MAX_IDS):
        known |= {task["id"]: task["state"] for task in place.call("status", ids=ids)}
    for identifier in unchanged[:NAMED]:
        state = known.get(identifier)
        note(f"not changed: task {identifier}, which is {state or 'unknown'}")
    if len(unchanged) > NAMED:
        note(f"not changed: {len(unchanged) - NAMED:,} more")
    return 1 if unchanged else 0


def pause_queue(place: Place, options: Namespace) -> int:
    """Pause or resume a queue."""
    place.call(options.command, queue=options.queue)
    if options.json:
        _print_lines([{"queue": options.queue, "paused": options.command == "pause"}])
        return 0
    print(f"the queue {options.queue!r} {_PAUSED[options.command]}")
    rows = [row for row in place.call("stats") if row["queue"] == options.queue]
    if not any(row[state] for row in rows for state in STATES):
        note("the queue has no tasks")
    return 0


_PAUSED = {"pause": "is paused: its tasks wait; running tasks finish", "resume": "is resumed"}


# Moving.


def import_into(place: Place, options: Namespace) -> int:
    """Enqueue tasks from a file or a directory."""
    skipped: list[str] = []

    def warn(text: str) -> None:
        skipped.append(text)
        note(text)

    number = import_tasks(place, options.source, warn)
    note(f"{_tasks(number)} imported")
    return 1 if skipped else 0


def export_from(place: Place, options: Namespace) -> int:
    """Write tasks to a file or a directory."""
    states = options.state or [state.name.lower() for state in UNFINISHED]
    number = export_tasks(place, options.target, states, options.queue, ordered=not options.unordered)
    note(f"{_tasks(number)} exported; they stay in the queue")
    return 0


def _tasks(number: int) -> str:
    return f"{number:,} task" + "s" * (number != 1)


def _pieces(ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))
