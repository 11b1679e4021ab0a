"""How outcomes of tasks are written to a PostgreSQL spool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from psycopg import Connection

from uwsgitwisted.spool.retry import Action
from uwsgitwisted.spool.stores.interface import Settlement
from uwsgitwisted.spool.stores.postgres.add import chunks
from uwsgitwisted.spool.stores.postgres.schema import SIZE
from uwsgitwisted.spool.stores.postgres.usage import count
from uwsgitwisted.spool.task import State

# ruff: noqa: S608 - the statements are put together from constants
MINE = f"""SELECT id, cancelling, {SIZE} FROM tasks
    WHERE id = ANY(%(ids)s) AND state = {State.RUNNING:d} AND owner = %(owner)s ORDER BY id FOR UPDATE"""
_THESE = """unnest(%(ids)s::bigint[], %(attempts)s::integer[], %(crashes)s::integer[],
        %(delays)s::float8[], %(errors)s::text[], %(results)b::bytea[])
        AS ended (id, attempts, crashes, delay, error, result)
    WHERE tasks.id = ended.id"""
_COUNTED = "owner = NULL, cancelling = false, attempts = ended.attempts, crashes = ended.crashes"
_ERROR = "error = coalesce(nullif(ended.error, ''), tasks.error)"
FORGET = f"DELETE FROM tasks USING {_THESE}"
FINISH = f"""UPDATE tasks SET state = {State.DONE:d}, {_COUNTED}, finished = %(now)s,
    expires = %(now)s + %(keep)s, body = '', result = ended.result FROM {_THESE}"""
POSTPONE = f"""UPDATE tasks
    SET state = CASE WHEN ended.delay IS NULL THEN {State.READY:d} ELSE {State.SCHEDULED:d} END,
    at = coalesce(%(now)s + ended.delay, tasks.at), {_COUNTED}, {_ERROR} FROM {_THESE}"""
DEAD_LETTER = f"""UPDATE tasks SET state = {State.DEAD:d}, {_COUNTED}, {_ERROR}, finished = %(now)s
    FROM {_THESE}"""
CANCEL = f"""UPDATE tasks SET state = {State.CANCELLED:d}, owner = NULL, cancelling = false,
    finished = %(now)s, expires = %(now)s + %(keep)s FROM {_THESE}"""
#: The statement for each action, where finished tasks are kept for a while, and where they are not.
_STATEMENTS = {
    Action.FINISH: FINISH,
    Action.RETRY: POSTPONE,
    Action.DEAD_LETTER: DEAD_LETTER,
    Action.CANCEL: CANCEL,
}
_UNKEPT_STATEMENTS = _STATEMENTS | {Action.FINISH: FORGET, Action.CANCEL: FORGET}


def settle_tasks(
    connection: Connection[Any], owner: UUID, settlements: Sequence[Settlement], now: float, keep: float
) -> bool:
    """Write outcomes of tasks that *owner* still runs, and return whether there were any.

    :param keep: how long a finished task is kept, in seconds.
    """
    if not settlements:
        return False
    by_id = {settlement.id: settlement for settlement in settlements}
    by_action: dict[Action, list[Settlement]] = {}
    finished: list[int] = []  # their sizes
    for identifier, cancelling, size in connection.execute(MINE, {"ids": list(by_id), "owner": owner}):
        action = by_id[identifier].decision.action
        if action is Action.RETRY and cancelling:
            action = Action.CANCEL
        if action is not Action.RETRY:
            finished.append(size)
        by_action.setdefault(action, []).append(by_id[identifier])
    statements = _STATEMENTS if keep else _UNKEPT_STATEMENTS
    for action, alike in by_action.items():
        for some in chunks(alike, _size_of):
            connection.execute(statements[action], _columns_of(some) | {"now": now, "keep": keep})
    count(connection, owner, finished, -1)
    return bool(by_action)


def _size_of(settlement: Settlement) -> int:
    return len(settlement.result) + len(settlement.decision.error)


def _columns_of(settlements: Sequence[Settlement]) -> dict[str, Any]:
    decisions = [settlement.decision for settlement in settlements]
    return {
        "ids": [settlement.id for settlement in settlements],
        "attempts": [decision.attempts for decision in decisions],
        "crashes": [decision.crashes for decision in decisions],
        "delays": [decision.delay for decision in decisions],
        "errors": [decision.error for decision in decisions],
        "results": [settlement.result for settlement in settlements],
    }
