"""How full a PostgreSQL spool is: what each spooler has added to it and finished, and the sum of that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from psycopg import Connection

from uwsgitwisted.spool.stores.bounds import Usage

_SUM = """ON CONFLICT (owner)
    DO UPDATE SET tasks = usage.tasks + excluded.tasks, bytes = usage.bytes + excluded.bytes"""
# ruff: noqa: S608 - the statements are put together from constants
#: A part of the statement that adds tasks, whose sizes are in ``added``.
COUNTED = f"INSERT INTO usage SELECT %b::uuid, count(*), coalesce(sum(size), 0) FROM added {_SUM}"
COUNT = f"INSERT INTO usage VALUES (%s, %s, %s) {_SUM}"
# A spooler that starts takes over what spoolers counted that have ended.
INHERIT = """WITH ended AS MATERIALIZED (
        SELECT owner FROM usage WHERE NOT EXISTS (SELECT FROM spoolers WHERE spoolers.id = usage.owner)
        FOR UPDATE SKIP LOCKED),
    gone AS (DELETE FROM usage USING ended WHERE usage.owner = ended.owner RETURNING usage.tasks, usage.bytes)
    INSERT INTO usage SELECT %s, coalesce(sum(tasks), 0), coalesce(sum(bytes), 0) FROM gone"""
USAGE = "SELECT coalesce(sum(tasks), 0)::bigint, coalesce(sum(bytes), 0)::bigint FROM usage"


def count(connection: Connection[Any], owner: UUID, sizes: Sequence[int], sign: int) -> None:
    """Count tasks of *sizes* that wait again (*sign* 1), or are finished (-1)."""
    if sizes:
        connection.execute(COUNT, (owner, sign * len(sizes), sign * sum(sizes)))


def inherit(connection: Connection[Any], owner: UUID) -> None:
    """Begin to count as *owner*, and take over what spoolers counted that have ended."""
    connection.execute(INHERIT, (owner,))


def read_usage(connection: Connection[Any]) -> Usage:
    """Return how full the spool is."""
    ((tasks, size),) = connection.execute(USAGE)
    return Usage(tasks, size)
