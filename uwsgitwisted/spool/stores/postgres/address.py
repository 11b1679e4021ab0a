"""The address of a PostgreSQL spool."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from uwsgitwisted.errors import SpoolError

#: The schema that the tables are in, unless the address names another.
SCHEMA = "uwsgitwisted"
#: How long to wait for a connection to each of the hosts that are named, in seconds.
CONNECT_LIMIT = 5

#: What a connection gets unless the address says otherwise. A host that went away is noticed within some 15
#: seconds; tcp_user_timeout is in milliseconds.
_DEFAULTS: dict[str, Any] = {
    "application_name": "uwsgitwisted",
    "connect_timeout": CONNECT_LIMIT,
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    # Of several hosts, the one that can be written.
    "target_session_attrs": "read-write",
}
#: Letters that need no quotes, and no more than a name may have.
_SCHEMA_NAME = re.compile(r"(?!pg_)[a-z_][a-z0-9_]{0,62}")


@dataclass(frozen=True, slots=True)
class DatabaseAddress:
    """Where a spool is.

    :param conninfo: what psycopg connects to; it contains the password.
    :param description: the same for people, without the password.
    :param schema: the schema that the tables are in.
    :param fsync: whether the server must have its ``fsync`` on.
    """

    conninfo: str = field(repr=False)
    description: str
    schema: str = SCHEMA
    fsync: bool = True


def parse_address(url: str) -> DatabaseAddress:
    """Return the address that *url* means.

    :param url: ``postgresql://user:password@host/database``, as libpq takes it, with two options more:
        ``schema=NAME`` for another schema, and ``fsync=off`` to accept a server that has switched that off.
    :raises SpoolError: if it can't be understood.
    """
    start, _, query = url.partition("?")
    options = query.split("&") if query else []
    ours = dict(option.split("=", 1) for option in options if option.startswith(("schema=", "fsync=")))
    theirs = [option for option in options if option.partition("=")[0] not in ours]
    try:
        given = conninfo_to_dict("?".join(filter(None, (start, "&".join(theirs)))))
    except (psycopg.Error, UnicodeEncodeError):
        # What libpq says about it contains the password.
        raise SpoolError(
            "the address of the PostgreSQL spool can't be understood; write for example "
            "postgresql://user:password@host/database, with %-codes for special characters"
        ) from None
    schema = ours.get("schema", SCHEMA)
    if not _SCHEMA_NAME.fullmatch(schema):
        raise SpoolError(
            f"schema={schema!r} names no schema; it takes up to 63 small letters, digits and underscores"
        )
    if ours.get("fsync", "off") != "off":
        raise SpoolError(
            "fsync= takes only 'off', for a spool that may lose tasks when the server's host stops"
        )
    conninfo = make_conninfo(**(_DEFAULTS | given | {"client_encoding": "UTF8"}))
    return DatabaseAddress(conninfo, _describe_address(given, schema), schema, "fsync" not in ours)


def _describe_address(given: dict[str, Any], schema: str) -> str:
    user = f"{quote(given['user'])}@" if given.get("user") else ""
    port = f":{given['port']}" if given.get("port") else ""
    host = quote(given.get("host") or given.get("hostaddr") or "", safe=",:")
    name = quote(given.get("dbname") or "")
    other = "" if schema == SCHEMA else f"?schema={schema}"
    return f"postgresql://{user}{host}{port}/{name}{other}"
