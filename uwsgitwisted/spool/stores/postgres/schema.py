"""The tables of a spool in PostgreSQL, in a schema of their own."""

from __future__ import annotations

from typing import Any

from psycopg import Connection, errors, sql

from uwsgitwisted.errors import SpoolCorrupt
from uwsgitwisted.spool.task import State

#: Raise it with every change of the tables, and add an upgrade from the version before.
SCHEMA_VERSION = 2

#: The server's clock, in unix seconds. All spoolers go by it.
NOW = "extract(epoch FROM clock_timestamp())::double precision"
#: How many bytes a task has, in a statement.
SIZE = "octet_length(variables) + octet_length(body)"
#: Tells all spoolers, when the transaction is committed, that there may be something for them to do.
NOTIFY = "SELECT pg_notify(current_schema(), '')"

# How many unfinished tasks there are, and their bytes: the sum of what each spooler has added and finished.
# There is a row for each, so that none waits for another.
_USAGE = """
CREATE TABLE usage (owner uuid PRIMARY KEY, tasks bigint NOT NULL, bytes bigint NOT NULL);
"""
# The indexes are those of the SQLite spool, for the same reasons: each covers the tasks of one state in the
# order in which they are claimed, so that a claim reads as many entries as it claims tasks, whatever else
# waits. Names are compared byte by byte ("C"): the order is only there to go through them.
#
# Every change of a task leaves a dead row behind. The default is to clear these away when a fifth of the table
# is dead, which is late for one where every row changes three times. Bodies are not compressed: that would take
# longer than to write them.
#
#   owner       the spooler that runs it
#   expires     when a finished task is deleted
#   ahead       whether it was prefetched
#   orphaned    whether its owner took it over from one that ended, so that it may have begun
#   cancelling  whether somebody asked to cancel it while it ran
_TABLES = f"""
CREATE TABLE spool (version integer NOT NULL);
CREATE SEQUENCE task_ids;
CREATE TABLE tasks (
    id bigint PRIMARY KEY,
    priority bigint NOT NULL,
    at double precision NOT NULL,
    created double precision NOT NULL,
    started double precision,
    finished double precision,
    expires double precision,
    attempts integer NOT NULL,
    crashes integer NOT NULL,
    state smallint NOT NULL,
    ahead boolean NOT NULL DEFAULT false,
    orphaned boolean NOT NULL DEFAULT false,
    cancelling boolean NOT NULL DEFAULT false,
    owner uuid,
    queue text COLLATE "C" NOT NULL,
    key text COLLATE "C",
    error text NOT NULL DEFAULT '',
    result bytea NOT NULL DEFAULT '',
    variables bytea NOT NULL,
    body bytea NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.02);
ALTER TABLE tasks ALTER body SET STORAGE EXTERNAL;
CREATE INDEX tasks_scheduled ON tasks (at) WHERE state = {State.SCHEDULED:d};
CREATE INDEX tasks_ready ON tasks (queue, priority, at, id) WHERE state = {State.READY:d};
CREATE INDEX tasks_later ON tasks (queue) WHERE state = {State.SCHEDULED:d};
CREATE INDEX tasks_running ON tasks (id) WHERE state = {State.RUNNING:d};
CREATE INDEX tasks_dead ON tasks (id) WHERE state = {State.DEAD:d};
CREATE INDEX tasks_cancelling ON tasks (id) WHERE cancelling;
CREATE INDEX tasks_expiring ON tasks (expires) WHERE expires IS NOT NULL;
CREATE UNIQUE INDEX tasks_key ON tasks (queue, key) WHERE key IS NOT NULL;
CREATE TABLE paused (queue text COLLATE "C" PRIMARY KEY);
CREATE TABLE periodic (name text COLLATE "C" PRIMARY KEY, at double precision NOT NULL);
CREATE TABLE spoolers (id uuid PRIMARY KEY, beat double precision NOT NULL);
{_USAGE}"""
#: The upgrade of the tables from each version to the next. A spooler of the release before that still runs can
#: no longer store tasks, and refuses them.
# ruff: noqa: S608 - the statements are put together from constants
_UPGRADES = {
    1: f"""
DROP INDEX tasks_key;
CREATE UNIQUE INDEX tasks_key ON tasks (queue, key) WHERE key IS NOT NULL;
CREATE INDEX tasks_later ON tasks (queue) WHERE state = {State.SCHEDULED:d};
{_USAGE}
INSERT INTO usage SELECT '00000000-0000-0000-0000-000000000000', count(*), coalesce(sum({SIZE}), 0)
    FROM tasks WHERE state <= {State.RUNNING:d};
""",
}
# Two spoolers that start at once must not both create it. No other program is likely to lock this number.
_LOCK = "SELECT pg_advisory_xact_lock(1970754416, hashtext(%s))"
_EXISTS = "SELECT to_regnamespace(%s) IS NOT NULL"
_OCCUPIED = "SELECT EXISTS (SELECT FROM pg_class WHERE relnamespace = to_regnamespace(%s))"


def mark_values(statement: str) -> str:
    """Return a statement in which ``?`` stands for a value, as psycopg takes it."""
    return statement.replace("?", "%s")


def create_tables(connection: Connection[Any], schema: str) -> None:
    """Create the tables of a spool in *schema*, all or none, unless the schema holds something already."""
    if _value(connection, _OCCUPIED, schema):
        return
    with connection.transaction():
        connection.execute(_LOCK, (schema,))
        if not _value(connection, _OCCUPIED, schema):
            if not _value(connection, _EXISTS, schema):  # an administrator may have made it
                connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
            connection.execute(_TABLES)
            connection.execute("INSERT INTO spool VALUES (%s)", (SCHEMA_VERSION,))


def upgrade_tables(connection: Connection[Any]) -> None:
    """Upgrade tables of an earlier release; :func:`check_tables` refuses what is not ours."""
    if _version(connection) not in _UPGRADES:
        return
    with connection.transaction():
        connection.execute("SET LOCAL statement_timeout = 0")  # an index takes its time
        connection.execute("LOCK TABLE spool")  # other spoolers that start wait
        while (version := _version(connection)) in _UPGRADES:
            connection.execute(_UPGRADES[version])
            connection.execute("UPDATE spool SET version = %s", (version + 1,))


def _version(connection: Connection[Any]) -> Any:
    """Return the version of the tables; None if there is none."""
    try:
        row = connection.execute("SELECT version FROM spool").fetchone()
    except (errors.UndefinedTable, errors.UndefinedColumn):
        return None
    return row[0] if row else None


def _value(connection: Connection[Any], statement: str, schema: str) -> bool:
    row = connection.execute(statement, (schema,)).fetchone()
    return row is not None and bool(row[0])


def check_tables(connection: Connection[Any], description: str) -> None:
    """Check that the tables are those of a spool that this program knows.

    :raises SpoolCorrupt: if they are not; nothing was changed.
    """
    version = _version(connection)
    if version is None:
        raise SpoolCorrupt(
            f"in the schema of the spool {description} is something else, or nothing any more; nothing was "
            "changed. Restore it, or name another with schema=..."
        )
    if version != SCHEMA_VERSION:
        raise SpoolCorrupt(
            f"the spool {description} has version {version}, this program knows {SCHEMA_VERSION}; nothing was "
            "changed. Use the release that wrote it"
        )
