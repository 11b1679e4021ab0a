"""The tables of a spool in PostgreSQL, in a schema of their own."""

from __future__ import annotations

from typing import Any

from psycopg import Connection, errors, sql

from uwsgitwisted.errors import SpoolCorrupt

#: To be raised with every change of the tables, together with a way up from the ones before.
SCHEMA_VERSION = 2

#: The server's clock, in unix seconds. All spoolers go by it.
NOW = "extract(epoch FROM clock_timestamp())::double precision"
#: The columns of a task, in the order of its fields; without what it brings with it.
TASK = "variables, at, created, priority, queue, attempts, crashes, id, coalesce(key, ''), body, ahead"
#: How many bytes a task brings with it.
SIZE = "octet_length(variables) + octet_length(body)"
BODILESS = TASK.replace("body", "''::bytea")

# How many tasks that are not over there are, and their bytes: the sum of what each spooler has added and ended.
# A row for each, so that none waits for another.
_USAGE = """
CREATE TABLE usage (owner uuid PRIMARY KEY, tasks bigint NOT NULL, bytes bigint NOT NULL);
"""
# The states in the partial indexes and in the statements are the numbers of spool.task.State; they stand there
# as literals, or PostgreSQL would not use those indexes in a plan that it keeps.
#
# The indexes are those of the SQLite spool, for the same reasons: each covers the tasks of one state in the
# order in which they are taken, so that a claim reads as many entries as it takes tasks, whatever else waits.
# Names are compared byte by byte ("C"): the order is only there to go through them.
#
# Every change of a task leaves a dead row behind. The default is to clear these away when a fifth of the table
# is dead, which is late for one where every row changes three times. Bodies are not compressed: that would take
# longer than to write them.
#
#   owner       the spooler that runs it
#   expires     when a task that is over is forgotten
#   ahead       whether it was claimed while all workers were busy
#   orphaned    whether its owner took it over from one that ended, so that it may have begun
#   cancelling  whether somebody asked to take it back while it ran
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
CREATE INDEX tasks_scheduled ON tasks (at) WHERE state = 0;
CREATE INDEX tasks_ready ON tasks (queue, priority, at, id) WHERE state = 1;
CREATE INDEX tasks_later ON tasks (queue) WHERE state = 0;
CREATE INDEX tasks_running ON tasks (id) WHERE state = 2;
CREATE INDEX tasks_dead ON tasks (id) WHERE state = 4;
CREATE INDEX tasks_cancelling ON tasks (id) WHERE cancelling;
CREATE INDEX tasks_expiring ON tasks (expires) WHERE expires IS NOT NULL;
CREATE UNIQUE INDEX tasks_key ON tasks (queue, key) WHERE key IS NOT NULL;
CREATE TABLE paused (queue text COLLATE "C" PRIMARY KEY);
CREATE TABLE periodic (name text COLLATE "C" PRIMARY KEY, at double precision NOT NULL);
CREATE TABLE spoolers (id uuid PRIMARY KEY, beat double precision NOT NULL);
{_USAGE}"""
#: What brings the tables of an earlier version up to the next. A spooler of the release before that still runs
#: can no longer store tasks, and refuses them.
# ruff: noqa: S608 - the statements are put together from constants
_UPGRADES = {
    1: f"""
DROP INDEX tasks_key;
CREATE UNIQUE INDEX tasks_key ON tasks (queue, key) WHERE key IS NOT NULL;
CREATE INDEX tasks_later ON tasks (queue) WHERE state = 0;
{_USAGE}
INSERT INTO usage SELECT '00000000-0000-0000-0000-000000000000', count(*), coalesce(sum({SIZE}), 0)
    FROM tasks WHERE state <= 2;
""",
}
# Two that come at once must not both create it. The number is one that no other program is likely to lock.
_LOCK = "SELECT pg_advisory_xact_lock(1970754416, hashtext(%s))"
_EXISTS = "SELECT to_regnamespace(%s) IS NOT NULL"
_OCCUPIED = "SELECT EXISTS (SELECT FROM pg_class WHERE relnamespace = to_regnamespace(%s))"


def create_tables(connection: Connection[Any], schema: str) -> None:
    """Create the tables of a spool in *schema*, all or none, unless something is there already."""
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
    """Bring tables of an earlier release up to date; what is none of ours is left to :func:`check_tables`."""
    if _version(connection) not in _UPGRADES:
        return
    with connection.transaction():
        connection.execute("SET LOCAL statement_timeout = 0")  # an index takes its time
        connection.execute("LOCK TABLE spool")  # others that come at the same time wait
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
    """See whether the tables are those of a spool that this program knows.

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
