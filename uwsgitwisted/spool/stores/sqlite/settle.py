"""How outcomes of tasks are written to an SQLite spool."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from uwsgitwisted.spool.retry import Action
from uwsgitwisted.spool.stores.interface import Settlement
from uwsgitwisted.spool.task import State

# ruff: noqa: S608 - the statements are put together from constants
_THIS = f"WHERE id = :id AND state = {State.RUNNING:d}"
_COUNTED = "attempts = :attempts, crashes = :crashes"
_ERROR = "error = coalesce(nullif(:error, ''), error)"
FORGET = f"DELETE FROM tasks {_THIS}"
FINISH = f"""UPDATE tasks SET state = {State.DONE:d}, {_COUNTED}, finished = :now, expires = :now + :keep,
    result = :result, body = x'', cancelling = 0 {_THIS}"""
POSTPONE = f"""UPDATE tasks
    SET state = CASE WHEN :delay IS NULL THEN {State.READY:d} ELSE {State.SCHEDULED:d} END,
    at = coalesce(:now + :delay, at), retrying = :delay IS NOT NULL, {_COUNTED}, {_ERROR}
    {_THIS} AND cancelling = 0"""
DEAD_LETTER = f"""UPDATE tasks SET state = {State.DEAD:d}, {_COUNTED}, {_ERROR}, finished = :now,
    cancelling = 0 {_THIS}"""
CANCEL = f"""UPDATE tasks SET state = {State.CANCELLED:d}, finished = :now, expires = :now + :keep,
    cancelling = 0 {_THIS}"""
#: The statement for each action, where finished tasks are kept for a while, and where they are not.
_STATEMENTS = {
    Action.FINISH: FINISH,
    Action.RETRY: POSTPONE,
    Action.DEAD_LETTER: DEAD_LETTER,
    Action.CANCEL: CANCEL,
}
_UNKEPT_STATEMENTS = _STATEMENTS | {Action.FINISH: FORGET, Action.CANCEL: FORGET}


def settle_tasks(
    connection: sqlite3.Connection, settlements: Sequence[Settlement], now: float, keep: float
) -> int:
    """Write outcomes of tasks that run, and return how many tasks are finished by that.

    :param keep: how long a finished task is kept, in seconds.
    """
    statements = _STATEMENTS if keep else _UNKEPT_STATEMENTS
    finished = 0
    for settlement in settlements:
        decision = settlement.decision
        values = {
            "id": settlement.id,
            "attempts": decision.attempts,
            "crashes": decision.crashes,
            "delay": decision.delay,
            "error": decision.error,
            "result": settlement.result,
            "now": now,
            "keep": keep,
        }
        changed = connection.execute(statements[decision.action], values).rowcount
        if decision.action is not Action.RETRY:
            finished += changed
        elif not changed:  # somebody asked to cancel the task meanwhile
            finished += connection.execute(statements[Action.CANCEL], values).rowcount
    return finished
