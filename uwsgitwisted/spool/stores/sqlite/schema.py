"""The tables of a spool in SQLite, and the upgrades from those of earlier releases."""

# ruff: noqa: S608 - the statements are put together from constants

from __future__ import annotations

from uwsgitwisted.spool.task import State

#: "uwSp" in the field of SQLite's header that says whose database it is.
APPLICATION_ID = 0x75775370
#: Raise it with every change of the tables, and add an upgrade from the version before.
SCHEMA_VERSION = 3

# A task is SCHEDULED until its time has come, then READY. One index in the order of running can't serve both:
# with a million tasks of tomorrow ahead of it, every claim would step over them. Each partial index covers the
# tasks of one state, so a claim reads as many entries as it claims tasks, whatever else waits. An id is never
# given twice (AUTOINCREMENT), since people keep ids. The large columns come last: SQLite reads a row from its
# start.
#
#   expires     when a finished task is deleted
#   retrying    whether `at` is the end of a pause, not a time that somebody asked for
#   ahead       whether the task was prefetched
#   cancelling  whether somebody asked to cancel the task while it ran
_TABLES = f"""
CREATE TABLE tasks (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    state INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    at REAL NOT NULL,
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    expires REAL,
    attempts INTEGER NOT NULL,
    crashes INTEGER NOT NULL,
    retrying INTEGER NOT NULL DEFAULT 0,
    ahead INTEGER NOT NULL DEFAULT 0,
    cancelling INTEGER NOT NULL DEFAULT 0,
    queue TEXT NOT NULL,
    key TEXT,
    error TEXT NOT NULL DEFAULT '',
    result BLOB NOT NULL DEFAULT x'',
    variables BLOB NOT NULL,
    body BLOB NOT NULL DEFAULT x''
);
CREATE INDEX tasks_scheduled ON tasks (at) WHERE state = {State.SCHEDULED:d};
CREATE INDEX tasks_ready ON tasks (queue, priority, at, id) WHERE state = {State.READY:d};
CREATE INDEX tasks_later ON tasks (queue) WHERE state = {State.SCHEDULED:d};
CREATE INDEX tasks_running ON tasks (id) WHERE state = {State.RUNNING:d};
CREATE INDEX tasks_dead ON tasks (id) WHERE state = {State.DEAD:d};
CREATE INDEX tasks_cancelling ON tasks (id) WHERE cancelling = 1;
CREATE INDEX tasks_expiring ON tasks (expires) WHERE expires IS NOT NULL;
CREATE UNIQUE INDEX tasks_key ON tasks (queue, key) WHERE key IS NOT NULL;
CREATE TABLE paused (queue TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE periodic (name TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
"""

SCHEMA = f"""
BEGIN;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
{_TABLES}
COMMIT;
"""

#: The upgrade of a spool by its version: in one transaction, to the present version or to one in between.
UPGRADES = {
    1: f"""
BEGIN IMMEDIATE;
ALTER TABLE tasks RENAME TO tasks_1;
DROP INDEX tasks_scheduled;
DROP INDEX tasks_ready;
DROP INDEX tasks_running;
{_TABLES}
INSERT INTO tasks (id, state, priority, at, created, started, attempts, crashes, queue, error, variables)
    SELECT id, state, priority, at, created, started, attempts, crashes, queue, error, variables FROM tasks_1;
INSERT INTO tasks
        (id, state, priority, at, created, started, finished, attempts, crashes, queue, error, variables)
    SELECT id, {State.DEAD:d}, priority, at, created, started, buried, attempts, crashes, queue, error,
        variables
    FROM dead_letters;
UPDATE sqlite_sequence SET seq = max(seq, (SELECT seq FROM sqlite_sequence WHERE name = 'tasks_1'))
    WHERE name = 'tasks';
INSERT INTO sqlite_sequence (name, seq)
    SELECT 'tasks', seq FROM sqlite_sequence WHERE name = 'tasks_1'
    AND NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'tasks');
DROP TABLE tasks_1;
DROP TABLE dead_letters;
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
""",
    2: f"""
BEGIN IMMEDIATE;
DROP INDEX tasks_key;
CREATE UNIQUE INDEX tasks_key ON tasks (queue, key) WHERE key IS NOT NULL;
CREATE INDEX tasks_later ON tasks (queue) WHERE state = {State.SCHEDULED:d};
PRAGMA user_version = 3;
COMMIT;
""",
}
