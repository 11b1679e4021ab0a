"""The command line of ``uwsgitwisted``."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from uwsgitwisted import __version__
from uwsgitwisted.cli import queues
from uwsgitwisted.cli.places import FORMS, Place, opened
from uwsgitwisted.cli.spool import spool
from uwsgitwisted.spool.management.changes import CHANGES
from uwsgitwisted.spool.task import State
from uwsgitwisted.timeouts import parse_timeout

_ABOUT = """Manages the queue of a uwsgi-spooler, and enqueues tasks from a shell.

examples:
  uwsgitwisted spool 127.0.0.1:3034 to=ann@example.com priority=1
  uwsgitwisted queue stats 127.0.0.1:3034
  uwsgitwisted queue list sqlite:spool.sqlite

"uwsgitwisted queue --help" shows what can be done with a queue. The exit status
is 0 if it was done, 1 if something failed, 2 if the command makes no sense."""

_QUEUE = """Looks after a queue: uwsgitwisted queue COMMAND WHERE ...
What else a command takes is in its own --help.

WHERE is the address of a running spooler, such as 127.0.0.1:3034 or
/run/spooler.sock; or the spool of a stopped one, such as sqlite:spool.sqlite;
or postgresql://user:password@host/database, whether spoolers run or not."""

_QUEUE_EXAMPLES = """examples:
  uwsgitwisted queue stats 127.0.0.1:3034        how many tasks are there
  uwsgitwisted queue list 127.0.0.1:3034         what they are
  uwsgitwisted queue dead 127.0.0.1:3034         what was given up, and why
  uwsgitwisted queue show 127.0.0.1:3034 17      all about a task
  uwsgitwisted queue retry 127.0.0.1:3034 17 18  run dead letters again
  uwsgitwisted queue retry 127.0.0.1:3034 --all --queue mail
  uwsgitwisted queue pause 127.0.0.1:3034 mail
  uwsgitwisted queue export sqlite:spool.sqlite tasks.jsonl
  uwsgitwisted queue import 127.0.0.1:3034 dir:/var/spool/uwsgi

A spooler lets its own machine manage its queue, and the networks that its
option --manage names."""

_SPOOL = """Enqueues a task, and prints its id when it is safely stored.

Of the keys, at=UNIXTIME, priority=N (lower runs first), spooler=QUEUE and
idempotency_key=TEXT also tell the spooler when and how to run it.

examples:
  uwsgitwisted spool 127.0.0.1:3034 to=ann@example.com
  uwsgitwisted spool /run/spooler.sock job=report at=$(date -d 'next week' +%s)
  tar c photos | uwsgitwisted spool 127.0.0.1:3034 job=shrink --body -
  uwsgitwisted spool 127.0.0.1:3034 job=sum --wait --timeout 60"""


def make_parser() -> ArgumentParser:
    """Return what reads the command line; its result's ``run`` does what that says, and returns the status."""
    parser = _new(_Parser, prog="uwsgitwisted", description=_ABOUT)
    parser.add_argument("--version", action="version", version=f"uwsgitwisted {__version__}")
    kinds = parser.add_subparsers(required=True, metavar="COMMAND")
    single = _new(kinds.add_parser, "spool", help="enqueue a task", description=_SPOOL)
    _add_arguments(single, "address variables body wait json timeout")
    single.set_defaults(run=spool)
    queue = _new(
        kinds.add_parser, "queue", help="look after a queue", description=_QUEUE, epilog=_QUEUE_EXAMPLES
    )
    commands = queue.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, command in _COMMANDS.items():
        description = f"{command.help[0].upper()}{command.help[1:]}."
        each = _new(commands.add_parser, name, help=command.help, description=description)
        _add_arguments(each, f"where {command.takes} timeout")
        each.set_defaults(run=_run, act=command.act, asks="yes" in command.takes)
    return parser


class _Parser(ArgumentParser):
    """An ``ArgumentParser`` for which options may stand between the positional arguments.

    argparse can do that, but doesn't where one command is within another.
    """

    _mixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the namespace, and what was not understood."""
        if self._mixing or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        self._mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False


def _new(make: Callable[..., ArgumentParser], *arguments: str, **options: Any) -> ArgumentParser:
    return make(*arguments, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False, **options)


def _add_arguments(parser: ArgumentParser, names: str) -> None:
    for name in names.split():
        argument = _ARGUMENTS[name]
        parser.add_argument(argument.flag, help=argument.help, **argument.options)


def _run(options: Namespace) -> int:
    with opened(options.where, options.timeout, create=options.command == "import") as place:
        status: int = options.act(place, options)
        return status


class _Command(NamedTuple):
    """A command about a queue.

    :param act: does it, and returns the exit status.
    :param takes: the names in :data:`_ARGUMENTS` of what it takes.
    """

    help: str
    act: Callable[[Place, Namespace], int]
    takes: str


_COMMANDS = {
    "list": _Command("show tasks, one in a line", queues.list_tasks, "state queue limit after json"),
    "show": _Command("show all about some tasks", queues.show_tasks, "some-ids json"),
    "stats": _Command("show how many tasks each queue has, by state", queues.show_queues, "json"),
    "dead": _Command("show what was given up, and why", queues.dead_tasks, "queue limit after json"),
    "retry": _Command(
        "run dead letters again, or cancelled tasks",
        queues.change_tasks,
        "ids retry-all retry-state queue json",
    ),
    "drop": _Command(
        "forget tasks that are over", queues.change_tasks, "ids drop-all drop-state queue yes json"
    ),
    "cancel": _Command(
        "take back tasks that wait or run", queues.change_tasks, "ids cancel-all cancel-state queue yes json"
    ),
    "pause": _Command("give out no task of a queue; what runs goes on", queues.pause_queue, "name json"),
    "resume": _Command("give out the tasks of a paused queue again", queues.pause_queue, "name json"),
    "import": _Command(
        "enqueue tasks from a file, or out of a uWSGI's spool directory", queues.import_into, "source"
    ),
    "export": _Command(
        "write tasks to a file, or into a uWSGI's spool directory",
        queues.export_from,
        "target states queue unordered",
    ),
}


def _number(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 18 or not int(text):
        raise ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def _seconds(text: str) -> float:
    try:
        return parse_timeout(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is {error}") from error


class _Argument(NamedTuple):
    """An argument as argparse takes it."""

    flag: str
    help: str
    options: dict[str, Any]


def _argument(flag: str, help: str, **options: Any) -> _Argument:  # noqa: A002 - argparse's name
    return _Argument(flag, help, options)


def _states(states: Iterable[State], help: str = "", **options: Any) -> _Argument:  # noqa: A002 - argparse's name
    names = [state.name.lower() for state in states]
    text = f"only tasks in this state: {', '.join(names)}{help}"
    return _argument("--state", text, choices=names, metavar="STATE", **options)


def _flag(flag: str, help: str) -> _Argument:  # noqa: A002 - argparse's name
    return _Argument(flag, help, {"action": "store_true"})


_ARGUMENTS = {
    "address": _argument("address", "where the spooler listens, such as 127.0.0.1:3034", metavar="ADDRESS"),
    "variables": _argument("variables", "what the task's handler gets", metavar="KEY=VALUE", nargs="+"),
    "body": _argument("--body", "a file that it gets besides; - for the standard input", metavar="FILE"),
    "wait": _flag("--wait", "wait until the task is over, and print its result"),
    "where": _argument("where", FORMS, metavar="WHERE"),
    "some-ids": _argument("ids", "ids of tasks", metavar="ID", nargs="+", type=_number),
    "ids": _argument("ids", "ids of tasks", metavar="ID", nargs="*", type=_number),
    "name": _argument("queue", "the name that tasks have under the key 'spooler'", metavar="QUEUE"),
    "source": _argument(
        "source",
        "a file of JSON lines; - for the standard input, which is the default; or dir:PATH for the spool "
        "directory of a uWSGI, whose tasks are moved",
        metavar="SOURCE",
        nargs="?",
        default="-",
    ),
    "target": _argument(
        "target",
        "a file that is made; - for the standard output, which is the default; or dir:PATH for the spool "
        "directory of a uWSGI",
        metavar="TARGET",
        nargs="?",
        default="-",
    ),
    "retry-all": _flag("--all", "instead of ids: all dead letters, or all in --state"),
    "drop-all": _flag("--all", "instead of ids: all that are over, or all in --state"),
    "cancel-all": _flag("--all", "instead of ids: all that wait or run, or all in --state"),
    "state": _states(State),
    **{f"{name}-state": _states(change.states) for name, change in CHANGES.items()},
    "states": _states(State, "; may be given again (default: those that are not over)", action="append"),
    "queue": _argument("--queue", "only tasks of this queue; '' for those that name none", metavar="NAME"),
    "limit": _argument(
        "--limit", "how many tasks to show (default: 100)", metavar="N", type=_number, default=100
    ),
    "after": _argument("--after", "only tasks whose ids are higher", metavar="ID", type=_number, default=0),
    "yes": _flag("--yes", "don't ask before it is done to all"),
    "unordered": _flag("--unordered", "the uWSGI runs without spooler-ordered; priorities are lost there"),
    "json": _flag("--json", "print lines of JSON"),
    "timeout": _argument(
        "--timeout",
        "how long to wait for a running spooler (default: 30)",
        metavar="SECONDS",
        type=_seconds,
        default=30.0,
    ),
}
