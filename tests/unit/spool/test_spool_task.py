"""What a request can say about its task."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uwsgitwisted.errors import MalformedPacket, SpoolError
from uwsgitwisted.spool.task import LATEST, PRIORITY_LIMIT, QUEUE_LIMIT, UNPRIORITIZED, new_task
from uwsgitwisted.wire.vars import encode_vars

NOW = 1_700_000_000.0


def test_plain() -> None:
    """A task that says nothing is due at once, after all numbered ones, in the queue without a name."""
    variables = encode_vars({"action": "mail"})
    task = new_task(variables, NOW)
    assert (task.variables, task.at, task.created) == (variables, NOW, NOW)
    assert (task.priority, task.queue, task.attempts, task.crashes) == (UNPRIORITIZED, "", 0, 0)
    assert task.priority > PRIORITY_LIMIT


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("1800000000", 1_800_000_000.0),
        ("1800000000.25", 1_800_000_000.25),
        ("12.", 12.0),
        ("0", NOW),
        ("", NOW),
        (str(int(LATEST)), LATEST),
    ],
)
def test_at(text: str, at: float) -> None:
    """The time is an int or a float; 0 and nothing mean at once, as in uWSGI."""
    assert new_task(encode_vars({"at": text}), NOW).at == at


@pytest.mark.parametrize(
    "text",
    [
        "nan",
        "inf",
        "-inf",
        "1e9",
        "-5",
        " 5",
        "5 ",
        "1_000",
        "soon",
        "9" * 400,
        "253402300800",
        "\u0665",
        "5\n",
    ],
)
def test_bad_at(text: str) -> None:
    """What is no time is refused and named."""
    with pytest.raises(SpoolError, match="is no time"):
        new_task(encode_vars({"at": text}), NOW)


@pytest.mark.parametrize(
    ("text", "priority"),
    [("0", 0), ("-3", -3), ("007", 7), (str(PRIORITY_LIMIT), PRIORITY_LIMIT), ("", UNPRIORITIZED)],
)
def test_priority(text: str, priority: int) -> None:
    """The priority is an integer; nothing is none, as in uWSGI."""
    assert new_task(encode_vars({"priority": text}), NOW).priority == priority


@pytest.mark.parametrize(
    "text", ["../escaped", "/etc", "1.5", "high", str(PRIORITY_LIMIT + 1), "9" * 5000, "--1"]
)
def test_bad_priority(text: str) -> None:
    """A priority that is no integer is refused; it is never a path."""
    with pytest.raises(SpoolError, match="is no priority"):
        new_task(encode_vars({"priority": text}), NOW)


def test_queue() -> None:
    """The spooler's name is the queue."""
    assert new_task(encode_vars({"spooler": "/var/spöl"}), NOW).queue == "/var/spöl"


@pytest.mark.parametrize("variable", ["spooler", "idempotency_key"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (b"\xff\xfe", "UTF-8"),
        (b"\xed\xa0\x80", "UTF-8"),
        (b"a\0b", "a zero byte"),
        (b"x" * 256, "too long"),
        (b"x" * 65_000, "too long"),
    ],
)
def test_bad_queue(variable: str, name: bytes, reason: str) -> None:
    """The name of a queue, or a key, that a database can't hold is refused, in a short text."""
    with pytest.raises(SpoolError, match=reason) as refused:
        new_task(encode_vars({variable: name}), NOW)
    assert len(str(refused.value)) < 200


_HOSTILE = st.one_of(
    st.binary(max_size=40),
    st.from_regex(r"-?[0-9]{0,13}(\.[0-9]{0,33})?", fullmatch=True).map(str.encode),
    st.sampled_from([b"1e308", b"nan", b"-inf", b"0x7f", b"253402300799.99999999", b"-2147483648", b"00"]),
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(
    st.dictionaries(st.sampled_from([b"at", b"priority", b"spooler", b"idempotency_key", b"x"]), _HOSTILE).map(
        encode_vars
    )
)
def test_whatever_is_asked_can_be_stored(variables: bytes) -> None:
    """A task is refused, or every value of it is one that a store can hold."""
    try:
        task = new_task(variables, NOW)
    except SpoolError:
        return
    assert 0 < task.at <= LATEST
    assert abs(task.priority) <= UNPRIORITIZED
    for name in (task.queue, task.key):
        assert "\0" not in name
        assert len(name.encode()) <= QUEUE_LIMIT


def test_malformed() -> None:
    """What is no vars block is refused as such."""
    with pytest.raises(MalformedPacket):
        new_task(b"\x05\x00abc", NOW)


def test_imports_little() -> None:
    """A worker that imports this module gets neither Twisted, zope nor a database with it."""
    program = (
        "import sys, uwsgitwisted.spool.task\n"
        "print([name for name in ('twisted', 'zope', 'sqlite3') if name in sys.modules])"
    )
    # Without the variables that would have coverage measure the process, and import sqlite3 in it.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert shown.stdout.strip() == "[]"
