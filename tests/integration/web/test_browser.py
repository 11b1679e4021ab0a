"""Web pages in a real browser: headless Chromium, nginx, and nodes behind it."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.integration.services import Launcher
from tests.integration.web_cluster import running_cluster
from tests.integration.web_servers import nginx_before, real_server

pytestmark = [pytest.mark.integration, pytest.mark.needs("nginx", "chromium")]

_PROGRAM = shutil.which("chromium-headless-shell") or shutil.which("chromium") or ""
#: Seconds for what takes less than one on a machine that does nothing else.
_PATIENCE = 60


def browse(url: str, directory: Path) -> str:
    """Open a page in Chromium, and return its elements after its scripts have run.

    :param directory: for the browser's files.
    """
    options = [
        "--headless",
        "--no-sandbox",  # it refuses to run as root with one
        "--disable-gpu",
        "--no-proxy-server",
        "--ignore-certificate-errors",  # the certificate is the tests' own
        f"--user-data-dir={directory}",
        "--virtual-time-budget=10000",  # milliseconds; its clock stands still while a request runs
        "--dump-dom",
    ]
    ended = subprocess.run(
        [_PROGRAM, *options, url], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_cluster(launch: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page of a cluster shows the sequence that the query string asks for."""
    with running_cluster(launch, tmp_path, monkeypatch) as cluster:
        shown = browse(f"https://127.0.0.1:{cluster.port}/?n=12", tmp_path / "browser")
    assert "<h1>The Fibonacci sequence</h1>" in shown
    cells = [int(cell) for cell in re.findall(r"<td>(\d+)</td>", shown)]
    assert cells[::2] == list(range(12))
    assert cells[1::2] == [0, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89]


def test_requests_of_a_page(tmp_path: Path) -> None:
    """A page's script posts a large body, and gets server-sent events."""
    for number in range(3):
        (tmp_path / f"event{number}").touch()
    size = 3_000_000
    with real_server(tmp_path) as (_, address), nginx_before(address, tmp_path / "nginx") as front:
        page = f"http://127.0.0.1:{front.port}/page?size={size}&path={tmp_path}/event"
        shown = browse(page, tmp_path / "browser")
    assert f'<p id="posted">{size} {hashlib.sha256(bytes(size)).hexdigest()}</p>' in shown
    assert '<p id="events">0;1;2;</p>' in shown
