"""What a list of nodes may contain, and what a name's records stand for."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwsgitwisted.address import parse_address
from uwsgitwisted.errors import InvalidAddress, MisuseError
from uwsgitwisted.sources.names import (
    HostName,
    ServiceName,
    ServiceRecord,
    best_records,
    one_family,
    parse_node,
    read_lines,
)


@pytest.mark.parametrize(
    ("text", "node"),
    [
        ("10.0.0.5:3033", parse_address("10.0.0.5:3033")),
        (("dns", 3033), parse_address("tcp:dns:3033")),
        ("dns:farm.example.com:3033", HostName("farm.example.com", 3033)),
        ("DNS:farm:3033", HostName("farm", 3033)),
        ("srv:_uwsgi._tcp.example.com", ServiceName("_uwsgi._tcp.example.com")),
        ("srv:_uwsgi._tcp.example.com.", ServiceName("_uwsgi._tcp.example.com")),
    ],
)
def test_nodes(text: str, node: object) -> None:
    """A node is an address or a name."""
    assert parse_node(text) == node


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nowhere", "'dns:host:port' or 'srv:_service._tcp.domain'"),
        ("dns:farm", "write 'dns:host:port'"),
        ("dns:farm:0", "a port from 1 to 65535"),
        ("dns:farm:1:2", "write 'dns:host:port'"),
        ("dns:farm:1:timeout=3", "write 'dns:host:port'"),
        ("dns:farm:1\\", "write 'dns:host:port'"),
        ("srv:example.com", "write 'srv:_service._tcp.domain'"),
        ("srv:_uwsgi._udp.example.com", "write 'srv:_service._tcp.domain'"),
        ("srv:_uwsgi._tcp." + "a." * 130 + "com", "write 'srv:_service._tcp.domain'"),
        (5, "'dns:host:port'"),
    ],
)
def test_no_nodes(text: str, reason: str) -> None:
    """Anything else is refused with the accepted forms."""
    with pytest.raises(InvalidAddress) as caught:
        parse_node(text)
    assert reason in str(caught.value)
    assert caught.value.address == text


def test_lines() -> None:
    """A file has one node a line, comments and blank lines."""
    text = "# our nodes\n\n10.0.0.5:3033\n  [::1]:3033 # the new one\r\n/run/a#b.sock\ndns:farm:3033\n"
    assert read_lines(text) == [
        parse_address("10.0.0.5:3033"),
        parse_address("[::1]:3033"),
        parse_address("/run/a#b.sock"),
        HostName("farm", 3033),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it names no node"),
        ("# 10.0.0.5:3033\n", "it names no node"),
        ("10.0.0.5:3033\n10.0.0.6\n", "line 2: 10.0.0.6: not an address"),
        ("@others.txt", "line 1: @others.txt: not an address"),
    ],
)
def test_broken_lines(text: str, reason: str) -> None:
    """A file that names no node, or something else, is refused with the line."""
    with pytest.raises(MisuseError, match=f"^{reason}"):
        read_lines(text)


@given(st.text())
def test_any_text(text: str) -> None:
    """Whatever a file has, it gives nodes, or our error."""
    with contextlib.suppress(MisuseError):
        assert read_lines(text)


def test_one_family() -> None:
    """A machine that has addresses of both families is one node."""
    assert one_family([(10, "::1"), (2, "127.0.0.1"), (10, "::2"), (10, "::1")]) == ["::1", "::2"]
    assert one_family([]) == []


def test_best_records() -> None:
    """The records of the best priority are nodes; a service that isn't there has none."""
    records = [ServiceRecord(10, "a.example.com.", 1), ServiceRecord(20, "b", 2), ServiceRecord(10, "c", 3)]
    assert best_records(records) == [parse_address("a.example.com:1"), parse_address("c:3")]
    assert best_records([ServiceRecord(0, ".", 0)]) == []
    assert best_records([]) == []
