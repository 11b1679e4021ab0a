"""Lines of the access log: both formats, whatever a browser sends, and a full disk."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from uwsgitwisted.access_log import FORMATS, AccessLog, Entry, combined, open_log

VARIABLES = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "/app",
    "PATH_INFO": "/page",
    "QUERY_STRING": "a=1",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "REMOTE_ADDR": "192.0.2.1",
    "REMOTE_USER": "ann",
    "HTTP_REFERER": "http://example.org/",
    "HTTP_USER_AGENT": "a browser",
}
AT = 1_767_225_600.25


@pytest.fixture(autouse=True)
def _in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the local time be UTC."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def test_combined() -> None:
    """A line has what web servers write, and behind it the seconds and the worker."""
    assert combined(Entry(VARIABLES, "200", 1234, 0.25, 2, AT)) == (
        '192.0.2.1 - ann [01/Jan/2026:00:00:00 +0000] "GET /app/page?a=1 HTTP/1.1" 200 1234 '
        '"http://example.org/" "a browser" 0.250000 2'
    )


def test_json() -> None:
    """A line is an object with the same values."""
    assert json.loads(FORMATS["json"](Entry(VARIABLES, "200", 1234, 0.25, 2, AT))) == {
        "time": "2026-01-01T00:00:00.250Z",
        "remote_addr": "192.0.2.1",
        "remote_user": "ann",
        "method": "GET",
        "uri": "/app/page?a=1",
        "protocol": "HTTP/1.1",
        "status": 200,
        "bytes": 1234,
        "referer": "http://example.org/",
        "user_agent": "a browser",
        "seconds": 0.25,
        "worker": 2,
    }


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("value", ['"', "\n", "\\", "\x1b[2J", "caf\xe9", "\0", "x" * 100_000])
def test_hostile_values(form: str, value: str) -> None:
    """Whatever a value holds, its line is one printable line of bounded size."""
    line = FORMATS[form](Entry(dict.fromkeys(VARIABLES, value), "200", 0, 0.0, 1, AT))
    assert line.isprintable()
    assert line.isascii()
    assert len(line) < 40_000


def test_no_variables() -> None:
    """A malformed request has a line too, and the original URI counts, if there is one."""
    line = combined(Entry({}, "400", 16, 0.0, 0, AT))
    assert line == '- - - [01/Jan/2026:00:00:00 +0000] "  " 400 16 "-" "-" 0.000000 0'
    found = combined(Entry({**VARIABLES, "REQUEST_URI": "/raw%20path"}, "200", 0, 0.0, 0, AT))
    assert "GET /raw%20path HTTP" in found


def test_writing(tmp_path: Path) -> None:
    """Lines are appended to the file, by however many write to it."""
    path = tmp_path / "access.log"
    for worker in (1, 2):
        descriptor = open_log(str(path))
        AccessLog(descriptor, "combined").write(Entry(VARIABLES, "200", 0, 0.0, worker, AT))
        os.close(descriptor)
    assert [line[-1] for line in path.read_text().splitlines()] == ["1", "2"]


def test_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    """The file may be the standard output."""
    descriptor = open_log("-")
    AccessLog(descriptor, "combined").write(Entry(VARIABLES, "200", 0, 0.0, 1, AT))
    os.close(descriptor)
    assert capfd.readouterr().out.endswith(" 1\n")


def test_full_disk() -> None:
    """A line that can't be written is lost, without an error."""
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        AccessLog(descriptor, "json").write(Entry(VARIABLES, "200", 0, 0.0, 1, AT))
    finally:
        os.close(descriptor)
