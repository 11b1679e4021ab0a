"""The commands of ``uwsgitwisted``: what each says about itself, takes and runs."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from typing import Any, NamedTuple

from uwsgitwisted import __version__
from uwsgitwisted.cli import nodes, queues
from uwsgitwisted.cli.arguments import ARGUMENTS
from uwsgitwisted.cli.convert import run_convert
from uwsgitwisted.cli.map import map_lines
from uwsgitwisted.cli.places import Place, opened
from uwsgitwisted.cli.render import render
from uwsgitwisted.cli.spool import spool

_ABOUT = """Calls nodes, renders templates, enqueues tasks, manages the queue of a
uwsgi-spooler, and converts configurations of uWSGI.

examples:
  uwsgitwisted ping 10.0.0.5:3033 10.0.0.6:3033
  uwsgitwisted map --nodes @nodes.txt 33 17 < items.jsonl > answers.jsonl
  uwsgitwisted render 127.0.0.1:3033 mail/welcome.txt user=Ann
  uwsgitwisted spool 127.0.0.1:3034 to=ann@example.com priority=1
  uwsgitwisted queue stats 127.0.0.1:3034
  uwsgitwisted queue list sqlite:spool.sqlite
  uwsgitwisted convert app.ini

"uwsgitwisted queue --help" lists the commands for queues. The exit status is 0
after success, 1 after a failure, and 2 if the command line is invalid."""

_QUEUE = """Manages a queue: uwsgitwisted queue COMMAND WHERE ...
Each command explains its other arguments with --help.

WHERE is the address of a running spooler, such as 127.0.0.1:3034 or
/run/spooler.sock; or the spool of a stopped one, such as sqlite:spool.sqlite;
or postgresql://user:password@host/database, whether spoolers run or not."""

_QUEUE_EXAMPLES = """examples:
  uwsgitwisted queue stats 127.0.0.1:3034        count the tasks
  uwsgitwisted queue list 127.0.0.1:3034         list them
  uwsgitwisted queue dead 127.0.0.1:3034         list dead letters and errors
  uwsgitwisted queue show 127.0.0.1:3034 17      show a task's details
  uwsgitwisted queue retry 127.0.0.1:3034 17 18  run dead letters again
  uwsgitwisted queue retry 127.0.0.1:3034 --all --queue mail
  uwsgitwisted queue pause 127.0.0.1:3034 mail
  uwsgitwisted queue export sqlite:spool.sqlite tasks.jsonl
  uwsgitwisted queue import 127.0.0.1:3034 dir:/var/spool/uwsgi

Only a spooler's own machine, and the networks in its option --manage, may
manage its queue."""

_RENDER = """Renders a template on a renderer, and prints the page as it comes; or checks or
lists the templates of a directory.

The variables are KEY=VALUE, all texts, or a JSON object on the standard input.

examples:
  uwsgitwisted render 127.0.0.1:3033 mail/welcome.txt user=Ann
  uwsgitwisted render 127.0.0.1:3033 page.html < variables.json
  uwsgitwisted render --check /srv/templates
  uwsgitwisted render --list /srv/templates"""

_SPOOL = """Enqueues a task, and prints its id when it is safely stored.

The keys at=UNIXTIME, priority=N (lower runs first), spooler=QUEUE and
idempotency_key=TEXT also tell the spooler when and how to run the task.

examples:
  uwsgitwisted spool 127.0.0.1:3034 to=ann@example.com
  uwsgitwisted spool /run/spooler.sock job=report at=$(date -d 'next week' +%s)
  tar c photos | uwsgitwisted spool 127.0.0.1:3034 job=shrink --body -
  uwsgitwisted spool 127.0.0.1:3034 job=sum --wait --timeout 60"""

_CONVERT = """Prints what replaces a configuration of uWSGI: the commands, units of systemd, a
server of nginx, and for each option what becomes of it. Nothing is changed.

The exit status is 1 if an option is refused; the text says what to do.

examples:
  uwsgitwisted convert app.ini
  uwsgitwisted convert --directory /srv/app app.ini:production"""

_PING = """Pings nodes, all in parallel, and prints a line for each.

A ping is answered while all workers of a node are busy. The exit status is 0 if
every node is alive, and 1 if one isn't, so that it serves as a health check.

examples:
  uwsgitwisted ping 10.0.0.5:3033 10.0.0.6:3033
  uwsgitwisted ping --timeout 1 --json /run/node.sock"""

_ECHO = """Has nodes send a text back, all in parallel, and prints a line for each.

The exit status is 0 if every node sends the text back, and 1 if one doesn't.

examples:
  uwsgitwisted echo 10.0.0.5:3033
  uwsgitwisted echo --text hello 10.0.0.5:3033 10.0.0.6:3033"""

_CALL = """Sends nodes an object, or calls a function of theirs, all in parallel.

It prints each answer as JSON. An answer that JSON can't represent is shown as
Python writes it.

The exit status is 0 if every node answers, and 1 if one fails.

examples:
  uwsgitwisted call 10.0.0.5:3033 --message '{"key": "value"}'
  uwsgitwisted call 10.0.0.5:3033 --modifier2 17 --message '[0, 3000]' --json
  uwsgitwisted call 10.0.0.5:3033 10.0.0.6:3033 --rpc hello --arg ann --arg bob"""

_MAP = """Has the nodes of a cluster answer each line of the standard input.

A line is an item in JSON, which a handler gets. Each node gets as much as it
can do. Each answer is a line of JSON with the number of its line, in the order
in which answers come. The exit status is 0 if all lines were answered, and 1 if
one failed.

With --resume FILE, the answers are added to FILE, and lines that are answered
there are skipped. Those that failed are tried again. Keep the input as it was.

examples:
  uwsgitwisted map --nodes @nodes.txt 33 17 < items.jsonl > out.jsonl
  uwsgitwisted map --nodes @nodes.txt 33 17 --resume out.jsonl < items.jsonl"""


def make_parser() -> ArgumentParser:
    """Make the parser of the command line. The parsed ``run`` runs the command and returns the exit status."""
    parser = _new(_Parser, prog="uwsgitwisted", description=_ABOUT)
    parser.add_argument("--version", action="version", version=f"uwsgitwisted {__version__}")
    kinds = parser.add_subparsers(required=True, metavar="COMMAND")
    single = _new(kinds.add_parser, "spool", help="enqueue a task", description=_SPOOL)
    _add_arguments(single, "address variables body wait json timeout")
    single.set_defaults(run=spool)
    for name, asking in _ASKING.items():
        each = _new(kinds.add_parser, name, help=asking.help, description=asking.description)
        _add_arguments(each, f"addresses {asking.takes} json")
        each.set_defaults(run=asking.run)
    mapping = _new(kinds.add_parser, "map", help="have a cluster answer lines of JSON", description=_MAP)
    _add_arguments(mapping, "nodes kind detail resume idempotent map-timeout quiet")
    mapping.set_defaults(run=map_lines)
    convert = _new(kinds.add_parser, "convert", help="convert a configuration of uWSGI", description=_CONVERT)
    _add_arguments(convert, "file directory json-document")
    convert.set_defaults(run=run_convert)
    page = _new(kinds.add_parser, "render", help="render a template", description=_RENDER)
    _add_arguments(
        page, "renderer template page-variables check list imports encoding engine-for json render-timeout"
    )
    page.set_defaults(run=render)
    queue = _new(kinds.add_parser, "queue", help="manage a queue", description=_QUEUE, epilog=_QUEUE_EXAMPLES)
    commands = queue.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, command in _COMMANDS.items():
        description = f"{command.help[0].upper()}{command.help[1:]}."
        each = _new(commands.add_parser, name, help=command.help, description=description)
        _add_arguments(each, f"where {command.takes} timeout")
        each.set_defaults(run=_run, act=command.act, asks="yes" in command.takes)
    return parser


class _Parser(ArgumentParser):
    """An ``ArgumentParser`` that allows options between the positional arguments.

    argparse allows that too, but not with nested commands.
    """

    _mixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the namespace and the unknown arguments."""
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
        argument = ARGUMENTS[name]
        parser.add_argument(argument.flag, help=argument.help, **argument.options)


def _run(options: Namespace) -> int:
    with opened(options.where, options.timeout, create=options.command == "import") as place:
        status: int = options.act(place, options)
        return status


class _Asking(NamedTuple):
    """A command that asks nodes.

    :param run: runs the command and returns the exit status.
    :param takes: the names of its arguments in :data:`ARGUMENTS`.
    """

    help: str
    description: str
    run: Callable[[Namespace], int]
    takes: str


_ASKING = {
    "ping": _Asking("check that nodes are alive", _PING, nodes.ping, "ping-timeout"),
    "echo": _Asking("have nodes send a text back", _ECHO, nodes.echo, "text ping-timeout"),
    "call": _Asking(
        "send nodes an object, or call a function of theirs",
        _CALL,
        nodes.call,
        "message modifier1 modifier2 rpc arg call-timeout",
    ),
}


class _Command(NamedTuple):
    """A command for a queue.

    :param act: runs the command and returns the exit status.
    :param takes: the names of its arguments in :data:`ARGUMENTS`.
    """

    help: str
    act: Callable[[Place, Namespace], int]
    takes: str


_COMMANDS = {
    "list": _Command("list tasks, one per line", queues.list_tasks, "state queue limit after json"),
    "show": _Command("show all details of tasks", queues.show_tasks, "some-ids json"),
    "stats": _Command("show how many tasks each queue has, by state", queues.show_queues, "json"),
    "dead": _Command("list dead letters and their last errors", queues.dead_tasks, "queue limit after json"),
    "retry": _Command(
        "run dead letters or cancelled tasks again",
        queues.change_tasks,
        "ids retry-all retry-state queue json",
    ),
    "drop": _Command(
        "delete tasks that are done, dead or cancelled",
        queues.change_tasks,
        "ids drop-all drop-state queue yes json",
    ),
    "cancel": _Command(
        "cancel waiting or running tasks", queues.change_tasks, "ids cancel-all cancel-state queue yes json"
    ),
    "pause": _Command("start no more tasks of a queue; running tasks finish", queues.pause_queue, "name json"),
    "resume": _Command("start tasks of a paused queue again", queues.pause_queue, "name json"),
    "import": _Command(
        "enqueue tasks from a file, or from a uWSGI's spool directory", queues.import_into, "source"
    ),
    "export": _Command(
        "write tasks to a file, or into a uWSGI's spool directory",
        queues.export_from,
        "target states queue unordered",
    ),
}
