"""The command ``uwsgitwisted spool``: enqueues a task from a shell."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from uwsgitwisted.blocking import TaskStatus, enqueue, wait
from uwsgitwisted.cli.words import printable
from uwsgitwisted.errors import MisuseError, RequestTimeout, SpoolError
from uwsgitwisted.spool.records import for_json


def spool(options: Namespace) -> int:
    """Enqueue a task and print its id; with ``--wait``, wait for the task."""
    deadline = time.monotonic() + options.timeout
    variables = dict(_pair(text) for text in options.variables)
    identifier = enqueue(options.address, variables, _body(options.body), options.timeout)
    if identifier is None:
        print("enqueued; this spooler assigns no ids", file=sys.stderr)
        return 1 if options.wait else 0
    if not options.wait:
        print(json.dumps({"id": identifier}) if options.json else identifier)
        return 0
    if not options.json:
        print(identifier, flush=True)
    try:
        status = wait(options.address, identifier, max(deadline - time.monotonic(), 0.001))
    except RequestTimeout as error:
        raise SpoolError(
            f"task {identifier} has not finished after {options.timeout:g} s; it is not cancelled"
        ) from error
    return _report(status, options)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise MisuseError(f"{text!r} is not key=value")
    return key, value


def _body(source: str | None) -> bytes:
    if source is None:
        return b""
    return sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()


def _report(status: TaskStatus, options: Namespace) -> int:
    """Print how a task ended, and return the exit status."""
    shown = for_json(asdict(status))
    if options.json:
        print(json.dumps(shown))
    elif status.done and status.result is not None:
        print(shown.get("result_repr") or json.dumps(shown["result"]))
    if not status.done:
        reason = f": {status.error}" if status.error else ""
        print(printable(f"task {status.id} is {status.state}{reason}"), file=sys.stderr)
    return 0 if status.done else 1
