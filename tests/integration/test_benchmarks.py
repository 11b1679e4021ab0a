"""The benchmarks run, whatever they find: their figures are nobody's business here."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Seconds after which a benchmark is taken to hang.
PATIENCE = 240

#: By benchmark, what its output has to name, as a row of a table or as left out.
RUNS = {
    "calls": ["ours: `blocking`", "`uwsgi.rpc`", "Pyro5", "the floor", "ours: `Client`", "AMP"],
    "engine": [
        "ours: `processes:2`",
        "ours through a node",
        "`multiprocessing.Pool.imap",
        "`ProcessPoolExecutor`",
    ],
    "farm": [
        "`cluster.map`, a node killed",
        "one call to each node",
        "`send_multi_uwsgi_message`",
        "ours through a node",
        "ours: `cluster.map`",
        "`ProcessPoolExecutor.map",
        "Dask",
    ],
    "plain": ["ours: an object (33)", "uWSGI: RPC (173)", "the floor", "ours: ping (100)", "ours: echo (101)"],
    "web": [
        "Hello world behind nginx",
        "10 KB behind nginx",
        "ours: `--wsgi`",
        "uWSGI, 2 processes",
        "gunicorn",
    ],
    "large": ["1 MB of bytes", "ours: `blocking`, engine `processes:2`", "ours: `Client`, engine `reactor`"],
    "idle": ["each of 20 idle sessions", "20 idle sessions", "after they were closed"],
    "ping": ["all idle, 99th percentile", "all busy, 99th percentile"],
    "fair": ["engine `processes:2`", "engine `reactor`", "a large answer in flight, longest"],
    "render": ["Mako's cached `TemplateLookup`", "`--no-reload`", "100 pages", "`Template(filename=...)`"],
    "spool": ["ours: `Client`, 100 in flight", "Huey", "tasks enqueued and run", "200 tasks wait"],
    "objects": ["loads, marshal version 2", "loads, marshal version 4", "dumps", "the small message"],
}


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Give the module that all benchmarks share."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.harness")


@pytest.fixture
def processes(harness: ModuleType) -> ModuleType:
    """Give the module that starts servers and drivers."""
    return importlib.import_module("benchmarks.processes")


@pytest.mark.integration
@pytest.mark.parametrize("name", RUNS)
def test_runs(name: str) -> None:
    """Each benchmark runs to its end and says something of each that it compares."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}
    ended = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--tiny"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert [text for text in RUNS[name] if text not in ended.stdout] == []


def test_all_are_run(harness: ModuleType) -> None:
    """What runs all benchmarks knows the same as these tests, and there is no other."""
    run_all = importlib.import_module("benchmarks.run_all")
    assert {module.__name__.rpartition(".")[2] for module in run_all.BENCHMARKS} == set(RUNS)
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "main(__doc__" in path.read_text()}
    assert scripts == set(RUNS)


def test_contenders_run_in_turn(harness: ModuleType) -> None:
    """The contenders run A B A B, and one's figures stay together."""
    figures = iter([10.0, 20.0, 30.0, 40.0])
    order: list[str] = []

    def contender(name: str) -> object:
        def measure() -> float:
            order.append(name)
            return next(figures)

        return harness.Contender(name, measure)

    table = harness.compare("title", "unit", [contender("a"), contender("b")], 2)
    assert order == ["a", "b", "a", "b"]
    assert [row.samples for row in table.rows] == [[10.0, 30.0], [20.0, 40.0]]


@pytest.mark.parametrize(("relation", "expected"), [("OURS_FIRST", "4.00"), ("PEER_FIRST", "0.25")])
def test_ratio(harness: ModuleType, relation: str, expected: str) -> None:
    """The ratio is the median of the rounds' ratios, ours to the peer's, whichever stands first."""
    first, second = harness.Row("first"), harness.Row("second", "1 or more")
    first.samples, second.samples = [40.0, 4_000.0, 9.0], [10.0, 500.0, 9.0]
    table = harness.Table("title", "unit", harness.Relation[relation], [first, second])
    assert f"| second | 10 | 9 - 500 | {expected} | 1 or more |" in table.markdown()


def test_missing_peer_is_left_out(harness: ModuleType) -> None:
    """A peer that can't take part is asked once, has no row, and the reason stands below the table."""
    asked = []

    def missing() -> float:
        asked.append(1)
        raise harness.MissingError("it is not installed: do this")

    contenders = [harness.Contender("ours", lambda: 1.0), harness.Contender("peer", missing)]
    text = harness.compare("title", "unit", contenders, 3).markdown()
    assert asked == [1]
    assert "| peer" not in text
    assert "\nLeft out: peer: it is not installed: do this" in text


def test_percentile(harness: ModuleType) -> None:
    """So many percent of the samples are at most what comes out."""
    samples = list(range(100, 0, -1))
    assert [harness.percentile(samples, percent) for percent in (0, 50, 99, 100)] == [1, 51, 100, 100]


def test_scales(harness: ModuleType) -> None:
    """The command line chooses how much is measured."""
    assert harness.scale_from("", []) == harness.SCALES["full"]
    assert harness.scale_from("", ["--quick"]) == harness.SCALES["quick"]
    assert harness.scale_from("", ["--tiny"]) == harness.SCALES["tiny"]


@pytest.mark.integration
def test_servers_end_with_their_block(processes: ModuleType) -> None:
    """A benchmark that fails leaves no server behind."""
    pids = []

    def fail() -> None:
        with processes.Servers() as servers:
            pids.append(servers.peer("bare").pid)
            os.kill(pids[0], 0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


@pytest.mark.integration
def test_failures_are_told(processes: ModuleType) -> None:
    """A server that doesn't start and a driver that fails are told with what they said."""
    with processes.Servers() as servers:
        with pytest.raises(RuntimeError, match="no_such_server"):
            servers.peer("no_such_server")
        with pytest.raises(RuntimeError, match="no_such_driver"):
            servers.drive("calls:no_such_driver", 1, 0.01)
