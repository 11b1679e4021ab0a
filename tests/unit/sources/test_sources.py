"""The nodes that a list stands for, while its files and names change."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from uwsgitwisted.address import Address, AddressLike, parse_address
from uwsgitwisted.errors import ConnectionFailed, MisuseError
from uwsgitwisted.sources.names import HostName, ServiceName
from uwsgitwisted.sources.sources import FILE_INTERVAL, MAX_FILE, NAME_INTERVAL, Sources

A, B, C = (parse_address(f"10.0.0.{number}:3033") for number in range(1, 4))
FARM = HostName("farm", 3033)


class World:
    """Sources, with a clock and the warnings."""

    def __init__(self, nodes: str | Iterable[AddressLike]) -> None:
        self.now = 0.0
        self.warnings: list[str] = []
        self.sources = Sources(nodes, self.warnings.append, self.now)

    def after(self, seconds: float) -> list[object]:
        self.now += seconds
        return list(self.sources.check(self.now))

    @property
    def hosts(self) -> list[str]:
        return [address.host for address in self.sources.addresses]


def write(path: Path, *nodes: object) -> None:
    """Replace a file as an editor does."""
    new = path.with_name("new")
    new.write_text("".join(f"{node}\n" for node in nodes))
    os.replace(new, path)


def test_addresses() -> None:
    """Addresses count once each, and there is never anything to check."""
    world = World(["10.0.0.1:3033", ("10.0.0.2", 3033), A])
    assert world.sources.addresses == [A, B]
    assert world.sources.next_check is None
    assert world.sources.settled
    assert World("10.0.0.1:3033").sources.addresses == [A]
    assert world.sources.addresses is world.sources.addresses


def test_no_nodes() -> None:
    """Without a node there is no cluster."""
    with pytest.raises(MisuseError, match="there are no nodes"):
        World([])
    with pytest.raises(MisuseError, match="not an address"):
        World(["x"])


def test_file(tmp_path: Path) -> None:
    """A file is read again when it has changed."""
    path = tmp_path / "nodes.txt"
    write(path, A, B)
    world = World(["10.0.0.3:3033", f"@{path}"])
    assert world.sources.addresses == [C, A, B]
    assert world.sources.next_check == FILE_INTERVAL
    write(path, "# all have moved", B)
    world.after(FILE_INTERVAL / 2)
    assert world.sources.addresses == [C, A, B]
    world.after(FILE_INTERVAL)
    assert world.sources.addresses == [C, B]
    assert world.warnings == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"10.0.0.1:3033\nx\n", "line 2: x: not an address"),
        (b"", "it names no node"),
        (b"\xff", "it is not UTF-8"),
        (b"#" * (MAX_FILE + 1), f"it is larger than {MAX_FILE} bytes"),
        (None, "No such file or directory"),
    ],
)
def test_broken_file(tmp_path: Path, content: bytes | None, reason: str) -> None:
    """A file that is broken keeps its last good list, and a warning says so once."""
    path = tmp_path / "nodes.txt"
    write(path, A)
    world = World(f"@{path}")
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    for _ in range(3):
        world.after(FILE_INTERVAL)
        assert world.sources.addresses == [A]
    (warning,) = world.warnings
    assert warning.startswith(f"@{path}: {reason}")
    assert warning.endswith("; what it named before still counts")
    write(path, B)
    world.after(FILE_INTERVAL)
    assert world.sources.addresses == [B]
    assert world.warnings[1:] == [f"@{path}: it is well again"]


def test_broken_file_at_the_start(tmp_path: Path) -> None:
    """A file that is broken from the start is an error."""
    with pytest.raises(MisuseError, match=r"@/.*nodes.txt: No such file or directory"):
        World(f"@{tmp_path}/nodes.txt")


def test_names() -> None:
    """A name is looked up at once, and again and again; its addresses are nodes."""
    world = World(["dns:farm:3033", "srv:_uwsgi._tcp.farm"])
    service = ServiceName("_uwsgi._tcp.farm")
    assert (world.sources.addresses, world.sources.settled, world.sources.next_check) == ([], False, 0.0)
    assert world.after(0) == [FARM, service]
    assert world.after(5) == []  # both are being looked up
    assert world.sources.next_check is None
    world.sources.found(FARM, [A, B], world.now)
    assert not world.sources.settled
    world.sources.found(service, [B, C], world.now)
    assert world.sources.addresses == [A, B, C]
    assert (world.sources.settled, world.sources.next_check) == (True, 5 + NAME_INTERVAL)
    assert world.after(NAME_INTERVAL) == [FARM, service]
    world.sources.found(FARM, [A], world.now)
    world.sources.found(service, [C], world.now)
    assert world.sources.addresses == [A, C]


def test_names_that_fail() -> None:
    """A name that can't be looked up, or has no addresses any more, keeps those that it had."""
    world = World("dns:farm:3033")
    world.after(0)
    world.sources.found(FARM, [A], world.now)
    for answer in ("error", "nothing", "nothing"):
        assert world.after(NAME_INTERVAL) == [FARM]
        if answer == "error":
            world.sources.failed(FARM, ConnectionFailed("no server"), world.now)
        else:
            world.sources.found(FARM, [], world.now)
        assert world.sources.addresses == [A]
    assert world.warnings == [
        "dns:farm:3033: no server; what it named before still counts",
        "dns:farm:3033: it has no addresses; what it named before still counts",
    ]
    assert world.sources.failures == {"dns:farm:3033": "it has no addresses"}
    world.after(NAME_INTERVAL)
    world.sources.found(FARM, [B], world.now)
    assert (world.sources.addresses, world.sources.failures) == ([B], {})


def test_names_in_files(tmp_path: Path) -> None:
    """A file may have names, which come and go with its lines."""
    path = tmp_path / "nodes.txt"
    write(path, A)
    world = World(f"@{path}")
    write(path, A, FARM)
    assert world.after(FILE_INTERVAL) == [FARM]
    write(path, A)
    assert world.after(FILE_INTERVAL) == []
    none: list[Address] = []
    world.sources.found(FARM, [B], world.now)  # it is no longer a node
    world.sources.failed(FARM, ConnectionFailed("x"), world.now)
    world.sources.found(FARM, none, world.now)
    assert (world.sources.addresses, world.warnings) == ([A], [])
