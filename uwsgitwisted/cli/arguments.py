"""The arguments that the commands of ``uwsgitwisted`` take; :mod:`uwsgitwisted.cli.parser` has the commands."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Iterable
from typing import Any, NamedTuple

from uwsgitwisted.cli.places import FORMS
from uwsgitwisted.spool.management.changes import CHANGES
from uwsgitwisted.spool.task import State
from uwsgitwisted.timeouts import parse_timeout


def _number(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 18 or not int(text):
        raise ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def _byte(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 3 or int(text) > 255:
        raise ArgumentTypeError(f"{text!r} is not a number from 0 to 255")
    return int(text)


def _seconds(text: str) -> float:
    try:
        return parse_timeout(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is {error}") from error


class Argument(NamedTuple):
    """An argument of argparse's ``add_argument``."""

    flag: str
    help: str
    options: dict[str, Any]


def _argument(flag: str, help: str, **options: Any) -> Argument:  # noqa: A002 - argparse's name
    return Argument(flag, help, options)


def _states(states: Iterable[State], help: str = "", **options: Any) -> Argument:  # noqa: A002 - argparse's name
    names = [state.name.lower() for state in states]
    text = f"only tasks in this state: {', '.join(names)}{help}"
    return _argument("--state", text, choices=names, metavar="STATE", **options)


def _flag(flag: str, help: str) -> Argument:  # noqa: A002 - argparse's name
    return Argument(flag, help, {"action": "store_true"})


def _timeout(default: float, help: str) -> Argument:  # noqa: A002 - argparse's name
    text = f"{help} (default: {default:g})"
    return _argument("--timeout", text, metavar="SECONDS", type=_seconds, default=default)


#: The arguments of all commands, by the names under which a command takes them.
ARGUMENTS = {
    "addresses": _argument(
        "addresses",
        "where a node listens, such as 10.0.0.5:3033; @FILE for the nodes in a file; names of several nodes "
        "are such as dns:farm.example.com:3033 or srv:_uwsgi._tcp.example.com",
        metavar="ADDRESS",
        nargs="+",
    ),
    "nodes": _argument(
        "--nodes",
        "a node's address, @FILE for the nodes in a file, or a name of several nodes, such as "
        "dns:farm.example.com:3033; may be given again",
        metavar="NODE",
        action="append",
        required=True,
    ),
    "kind": _argument("modifier1", "the kind of request, such as 33", metavar="MODIFIER1", type=_byte),
    "detail": _argument("modifier2", "a number for the handler", metavar="MODIFIER2", type=_byte),
    "resume": _argument("--resume", "add the answers that it lacks to this file", metavar="FILE"),
    "idempotent": _flag("--idempotent", "items may run twice: on a node that dies, and for speed at the end"),
    "map-timeout": _timeout(30.0, "how long to wait for each answer"),
    "quiet": _flag("--quiet", "show neither the progress nor the table of nodes"),
    "text": _argument("--text", "the text to send (default: uwsgitwisted)", default="uwsgitwisted"),
    "message": _argument("--message", "the object to send (default: null)", metavar="JSON"),
    "modifier1": _argument(
        "--modifier1", "the kind of request (default: 33)", metavar="N", type=_byte, default=33
    ),
    "modifier2": _argument(
        "--modifier2", "a number for the handler (default: 0)", metavar="N", type=_byte, default=0
    ),
    "rpc": _argument("--rpc", "call the function of this name instead", metavar="NAME"),
    "arg": _argument(
        "--arg", "an argument of the function; may be given again", metavar="TEXT", action="append", default=[]
    ),
    "ping-timeout": _timeout(5.0, "how long to wait for all nodes together"),
    "call-timeout": _timeout(30.0, "how long to wait for all nodes together"),
    "address": _argument("address", "where the spooler listens, such as 127.0.0.1:3034", metavar="ADDRESS"),
    "variables": _argument("variables", "the task's variables", metavar="KEY=VALUE", nargs="+"),
    "renderer": _argument(
        "address", "where the renderer listens, such as 127.0.0.1:3033", metavar="ADDRESS", nargs="?"
    ),
    "template": _argument("template", "the template's name", metavar="NAME", nargs="?"),
    "page-variables": _argument("variables", "its variables", metavar="KEY=VALUE", nargs="*"),
    "check": _argument(
        "--check",
        "compile all templates of a directory, print what is broken where, and end with status 1 if anything "
        "is; may be given again",
        metavar="DIRECTORY",
        action="append",
    ),
    "list": _argument(
        "--list",
        "print all templates of a directory with their parents, the templates that they use, their parts, and "
        "the variables that they need; may be given again",
        metavar="DIRECTORY",
        action="append",
    ),
    "imports": _argument(
        "--imports",
        "with --check or --list: a module whose names the templates have; may be given again",
        metavar="MODULE",
        action="append",
        default=[],
    ),
    "encoding": _argument(
        "--encoding",
        "with --check or --list: the templates' encoding (default: utf-8)",
        metavar="NAME",
        default="utf-8",
    ),
    "engine-for": _argument(
        "--engine-for",
        "with --check or --list: the engine of an extension, such as .txt=jinja2; may be given again",
        metavar="EXTENSION=ENGINE",
        action="append",
        default=[],
    ),
    "body": _argument("--body", "a file with the task's body; - for the standard input", metavar="FILE"),
    "file": _argument(
        "file", "the configuration: .ini, .yaml, .xml or .json; FILE:SECTION for one section", metavar="FILE"
    ),
    "directory": _argument(
        "--directory", "where uWSGI starts (default: the current directory)", metavar="DIR", default="."
    ),
    "json-document": _flag("--json", "print one JSON document"),
    "wait": _flag("--wait", "wait until the task has finished, and print its result"),
    "where": _argument("where", FORMS, metavar="WHERE"),
    "some-ids": _argument("ids", "ids of tasks", metavar="ID", nargs="+", type=_number),
    "ids": _argument("ids", "ids of tasks", metavar="ID", nargs="*", type=_number),
    "name": _argument("queue", "the queue's name, as in its tasks' key 'spooler'", metavar="QUEUE"),
    "source": _argument(
        "source",
        "a file of JSON lines; - for the standard input, which is the default; or dir:PATH to move tasks from "
        "the spool directory of a uWSGI",
        metavar="SOURCE",
        nargs="?",
        default="-",
    ),
    "target": _argument(
        "target",
        "a new file; - for the standard output, which is the default; or dir:PATH for the spool "
        "directory of a uWSGI",
        metavar="TARGET",
        nargs="?",
        default="-",
    ),
    "retry-all": _flag("--all", "instead of ids: all dead letters, or all tasks in --state"),
    "drop-all": _flag(
        "--all", "instead of ids: all tasks that are done, dead or cancelled, or those in --state"
    ),
    "cancel-all": _flag("--all", "instead of ids: all waiting or running tasks, or those in --state"),
    "state": _states(State),
    **{f"{name}-state": _states(change.states) for name, change in CHANGES.items()},
    "states": _states(State, "; may be given again (default: those that are not finished)", action="append"),
    "queue": _argument("--queue", "only tasks of this queue; '' for tasks that name none", metavar="NAME"),
    "limit": _argument(
        "--limit", "how many tasks to show (default: 100)", metavar="N", type=_number, default=100
    ),
    "after": _argument("--after", "only tasks with higher ids", metavar="ID", type=_number, default=0),
    "yes": _flag("--yes", "don't ask for confirmation with --all"),
    "unordered": _flag("--unordered", "write for a uWSGI without spooler-ordered, which ignores priorities"),
    "json": _flag("--json", "print lines of JSON"),
    "timeout": _timeout(30.0, "how long to wait for a running spooler"),
    "render-timeout": _timeout(30.0, "how long to wait for the page to begin, and then for each part of it"),
}
