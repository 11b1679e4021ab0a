"""Where twistd writes its log, and how large that is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from twisted.scripts.twistd import ServerOptions

from uwsgitwisted.services.log_file import find_log_file, log_size


@pytest.mark.parametrize(
    ("options", "path"),
    [
        (None, ""),
        ({"nodaemon": 1, "logfile": None}, ""),
        ({"debug": 1, "logfile": None}, ""),
        ({"nodaemon": 1, "logfile": "-"}, ""),
        ({"nodaemon": 1, "logfile": "/var/log/x"}, "/var/log/x"),
        ({"nodaemon": 0, "logfile": "x"}, os.path.abspath("x")),
        ({"nodaemon": 0, "logfile": None}, os.path.abspath("twistd.log")),
        ({"nodaemon": 0, "logfile": "x", "syslog": 1}, None),
        ({"nodaemon": 1, "logfile": "x", "logger": "module.observer"}, None),
    ],
)
def test_places(options: Any, path: str | None) -> None:
    """The log is in a file, in the standard output, or elsewhere, as twistd decides it."""
    assert find_log_file(options) == path


def test_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file has its size; a pipe, a directory, and what isn't there have none."""
    log = tmp_path / "log"
    log.write_bytes(b"12345")
    assert [log_size(path) for path in (str(log), str(tmp_path), str(tmp_path / "none"), None)] == [5, 0, 0, 0]
    fstat = os.fstat
    reader, writer = os.pipe()
    with log.open("rb") as file:
        for descriptor, size in ((file.fileno(), 5), (writer, 0)):
            with monkeypatch.context() as patch:
                patch.setattr(os, "fstat", lambda number, to=descriptor: {1: lambda: fstat(to)}[number]())
                assert log_size("") == size
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize(
    ("line", "path"),
    [
        (("-n", "uwsgi-node"), ""),
        (("-n", "--logfile", "/var/log/node", "uwsgi-node"), "/var/log/node"),
        (("uwsgi-node",), os.path.abspath("twistd.log")),
        (("--syslog", "uwsgi-node"), None),
    ],
)
def test_options_of_twistd(line: tuple[str, ...], path: str | None) -> None:
    """A service knows from twistd's own options where the log is."""
    twistd: Any = ServerOptions()
    twistd.parseOptions([*line, "--handler", "my_server"])
    assert twistd.subOptions.settings().log_file == path
