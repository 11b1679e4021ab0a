"""The commands ``uwsgitwisted ping``, ``echo`` and ``call``: they ask nodes and report which of them answer."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from uwsgitwisted.blocking.calls import Reply, ping_all, send_to_all
from uwsgitwisted.blocking.lookups import find_addresses
from uwsgitwisted.cli.words import printable
from uwsgitwisted.errors import MisuseError, ProtocolError, UwsgiError
from uwsgitwisted.spool.records import for_json
from uwsgitwisted.wire.packet import ECHO, RPC
from uwsgitwisted.wire.rpc import RPC_FRAMED, read_result


def ping(options: Namespace) -> int:
    """Ping nodes; the status is 0 if all are alive."""
    return _report(ping_all(find_addresses(options.addresses), options.timeout), options)


def echo(options: Namespace) -> int:
    """Have nodes send a text back; the status is 0 if all do."""
    text = options.text.encode()
    replies = send_to_all(find_addresses(options.addresses), ECHO, 0, text, options.timeout)
    return _report([reply._replace(result=_checked_echo(reply, text)) for reply in replies], options)


def _checked_echo(reply: Reply, text: bytes) -> object:
    """Return the error of a node that doesn't send back what it got; else None."""
    if not reply.ok:
        return reply.result
    if reply.result == text:
        return None
    return ProtocolError("the server at this address sent back something else", address=reply.address)


def call(options: Namespace) -> int:
    """Send nodes an object, or call a function of theirs; the status is 0 if all answer."""
    if options.rpc is None:
        if options.arg:
            raise MisuseError("--arg is for --rpc")
        what = (options.modifier1, options.modifier2, read_json(options.message, "--message"))
    else:
        if options.message is not None:
            raise MisuseError("give either --message or --rpc")
        what = (RPC, RPC_FRAMED, (options.rpc, *options.arg))
    replies = send_to_all(find_addresses(options.addresses), *what, options.timeout)
    return _report([reply._replace(result=_readable(reply, what[0])) for reply in replies], options, "result")


def read_json(text: str | None, name: str) -> object:
    """Parse an argument that is JSON.

    :param text: the argument; None stands for null.
    :param name: its name, for the error.
    :raises MisuseError: if it isn't JSON.
    """
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MisuseError(f"{name} is not JSON: {error}") from error


def _readable(reply: Reply, modifier1: int) -> object:
    """Return an answer in a form that people can read: bytes as text, if they are UTF-8."""
    result = reply.result
    if modifier1 == RPC and reply.ok:
        try:
            result = read_result(result, reply.address)
        except UwsgiError as error:
            return error
    if not isinstance(result, bytes):
        return result
    try:
        return result.decode()
    except UnicodeDecodeError:
        return result


def _report(replies: Sequence[Reply], options: Namespace, *shown: str) -> int:
    """Print a line for each node, and return the exit status.

    :param shown: ``result``, if the answers are of interest.
    """
    rows = [_row(reply, *shown) for reply in replies]
    width = max(len(row["address"]) for row in rows)
    for row in rows:
        print(json.dumps(row) if options.json else _line(row, width))
    return 0 if all(row["ok"] for row in rows) else 1


def _row(reply: Reply, *shown: str) -> Mapping[str, Any]:
    row = {"address": str(reply.address), "ok": reply.ok, "seconds": round(reply.seconds, 6)}
    if isinstance(reply.result, UwsgiError):
        return {**row, "error": type(reply.result).__name__, "text": reply.result.text}
    return for_json({**row, "result": reply.result}) if shown else row


def _line(row: Mapping[str, Any], width: int) -> str:
    time = f"{row['seconds'] * 1000:9.1f} ms"
    if not row["ok"]:
        what = f"FAILED {row['error']}: {row['text']}"
    elif "result" in row:
        what = row.get("result_repr") or json.dumps(row["result"])
    else:
        what = "ok"
    return printable(f"{row['address']:<{width}} {time}  {what}")
