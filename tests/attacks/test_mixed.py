"""The mixed attack: eight hostile peers do at random all that is in the table, while good callers measure.

It takes about a minute in all. For an hour of it, for the same run again, or for some behaviours only:

    ATTACK_SECONDS=3600 python -m pytest -s tests/attacks/test_mixed.py
    ATTACK_SEED=17 ATTACK_ONLY="ping flood,junk" python -m pytest -s tests/attacks/test_mixed.py -k node

``ATTACK_SECONDS`` is for the four services together. The seed is printed; ``ATTACK_SEED`` repeats a run. Each
peer has an address of its own, 127.0.0.2 to 127.0.0.9, so that a limit for each peer can tell them apart. The
good callers are 127.0.0.1.

No good call may fail, and 99 of 100 may take at most three times as long as without the attack. The processors
are just as busy then: as many loops as there are hostile peers run, with the same low priority. So the two
differ in what the peers do to the service, and not in how much of a small machine is left for it. On two cores,
which the attackers share with the service and the callers, the scheduler alone makes single calls many times as
long, so calls below :data:`FLOOR` are always fast enough: the faults that this looks for took seconds. A short
run has few calls, so that one that the scheduler has held up is among its slowest; its floor is higher.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import pytest_twisted

from tests.attacks.callers import Callers, Seen, Usage, busy_processes, descriptors
from tests.attacks.hostile.behaviours import BEHAVIOURS
from tests.integration.services import Launcher, Service, eventually, free_port
from tests.integration.web_apps import copy_to
from uwsgitwisted.client import Client

pytestmark = pytest.mark.integration

SECONDS = float(os.environ.get("ATTACK_SECONDS", "32"))
SEED = os.environ.get("ATTACK_SEED") or str(random.randrange(1_000_000))
ONLY = [name.strip() for name in os.environ.get("ATTACK_ONLY", "").split(",") if name.strip()]
PEERS = 8
#: Seconds for which the good callers measure without an attack.
QUIET = 5.0
#: How much longer a call may take during the attack, and up to how many seconds that doesn't matter.
TIMES, FLOOR = 3.0, (0.2 if SECONDS >= 300 else 0.5)
#: The same for a spooler, which writes to the disk before it answers.
SPOOLER_FLOOR = 3 * FLOOR
#: What a service may hold for its peers, and how much more it may grow beside that, in bytes.
BUDGET, SLACK = 128 << 20, 64 << 20
LOG_LIMIT = 1 << 20
#: So many descriptors a service gets, which the peers together have more of.
DESCRIPTORS = 512
#: Seconds until nothing is left of the attack.
RECOVERY = 75.0

#: What takes all the time, and all the memory, that a handler may have.
HARM = """
import uwsgi

def loop():
    while True:
        pass

def hungry():
    taken = []
    while True:
        taken.append(bytearray(1 << 24))
"""

HANDLER = (
    HARM
    + """
ACTIONS = {
    "echo": lambda value: value,
    "big": lambda size: b"x" * size,
    "length": len,
    "loop": loop,
    "hungry": hungry,
}

def handle(message, modifier2):
    name, *arguments = message
    return ACTIONS[name](*arguments)

uwsgi.message_manager_marshal = handle
"""
)

TASKS = (
    HARM
    + """
PRIME = (1 << 61) - 1

ACTIONS = {
    "": lambda: uwsgi.SPOOL_OK,
    "nothing": lambda: uwsgi.SPOOL_OK,
    "large": lambda: b"x" * (1 << 20),
    "collide": lambda: {number * PRIME: None for number in range(1, 10_000)},
    "loop": loop,
    "hungry": hungry,
}

def run(task):
    return ACTIONS[task.get(b"do", b"").decode()]()

uwsgi.spooler = run
"""
)

#: Coverage isn't measured here: it would make the services several times as slow as they are.
_UNMEASURED = {name: text for name, text in os.environ.items() if not name.startswith("COVERAGE_PROCESS_")}
_LIMITED = (
    *("env", *(f"--unset={name}" for name in os.environ.keys() - _UNMEASURED.keys())),
    *("sh", "-c", f'ulimit -n {DESCRIPTORS}; exec "$@"', "sh"),
    str(Path(sys.executable).with_name("twistd")),
)
#: How long a handler may run, what memory it gets, and what the service may hold for its peers.
_BOUNDS = ("--timeout", "2", "--max-memory", "400M", "--max-buffered", str(BUDGET))


def _start_node(launch: Launcher) -> Service:
    directory = launch.new_directory()
    web = ("--wsgi", f"{copy_to(directory)}:application")
    return launch.start(
        *("uwsgi-node", "--engine", "processes:4", *_BOUNDS, *web),
        handler=HANDLER,
        tcp=True,
        directory=directory,
        twistd=_LIMITED,
    )


def _start_renderer(launch: Launcher, templates: Path) -> Service:
    (templates / "page.txt").write_text("Dear ${name}")
    options = ("--engine", "processes:3", *_BOUNDS, "--templates", str(templates))
    return launch.start("uwsgi-renderer", *options, tcp=True, twistd=_LIMITED)


def _start_spooler(launch: Launcher) -> Service:
    options = (
        "--engine",
        "processes:3",
        "--queue",
        "good=1",
        "--spool",
        "sqlite:spool.db",
        "--max-crashes",
        "1",
    )
    return launch.start("uwsgi-spooler", *options, *_BOUNDS, handler=TASKS, tcp=True, twistd=_LIMITED)


def _start_router(launch: Launcher) -> Service:
    """Start a router in front of a node."""
    node, port = _start_node(launch), free_port()
    host, node_port = node.address
    times = [option for name in ("header", "body", "idle", "write") for option in (f"--{name}-timeout", "4")]
    line = ["uwsgi-router", "--http", f"tcp:{port}", "--nodes", f"{host}:{node_port}", *times]
    return launch.run([*_LIMITED, "-n", "--pidfile=", *line], ("127.0.0.1", port))


def _start_peers(kind: str, service: Service, seconds: float) -> list[subprocess.Popen[str]]:
    line = [sys.executable, "-m", "tests.attacks.hostile", kind, str(service.address[1])]
    return [
        subprocess.Popen(
            [*line, str(number), str(seconds), f"{SEED} {kind}", *ONLY],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_UNMEASURED,
        )
        for number in range(PEERS)
    ]


async def _await_peers(peers: list[subprocess.Popen[str]]) -> tuple[Counter[str], str]:
    """Wait for the peers' processes; return how often they did what, and what went wrong with them."""
    done: Counter[str] = Counter()
    trouble = ""
    await eventually(lambda: all(peer.poll() is not None for peer in peers), "the end of the peers", 60)
    for peer in peers:
        output, errors = peer.communicate()
        trouble += errors
        if not peer.returncode:
            done.update(json.loads(output))
    return done, trouble


def _slower(kind: str, before: dict[str, Seen], during: dict[str, Seen]) -> list[str]:
    """Return the failures and delays of the good callers."""
    complaints = []
    floor = SPOOLER_FLOOR if kind == "spooler" else FLOOR
    for name, seen in during.items():
        if seen.errors:
            complaints.append(f"{name}: {len(seen.errors)} calls failed, such as {seen.errors[0]!r}")
        limit = max(floor, TIMES * before[name].percentile(0.99))
        if seen.percentile(0.99) > limit:
            complaints.append(
                f"{name}: 99 of 100 within {seen.percentile(0.99):.3f} s; {limit:.3f} s is the most"
            )
    return complaints


def _frequent(log: str) -> list[tuple[str, int]]:
    """Return the kinds of lines that a log has most of, and how many."""
    kinds = Counter(re.sub(r"[0-9]+", "N", line[25:]) for line in log.splitlines())
    return [(line[:120], number) for line, number in kinds.most_common(4)]


@pytest.mark.parametrize("kind", ["node", "renderer", "spooler", "router"])
@pytest_twisted.ensureDeferred
async def test_mixed(kind: str, launch: Launcher, client: Client, tmp_path: Path) -> None:
    """Whatever eight peers do, the others are served as if they weren't there, and nothing leaks."""
    seconds = SECONDS / 4
    print(f"\nATTACK_SEED={SEED} ATTACK_SECONDS={SECONDS:g}, {seconds:g} of them against the {kind}")
    starts = {
        "node": lambda: _start_node(launch),
        "renderer": lambda: _start_renderer(launch, tmp_path),
        "spooler": lambda: _start_spooler(launch),
        "router": lambda: _start_router(launch),
    }
    service = starts[kind]()
    callers = Callers(kind, service, client)
    await callers.measure(0.5)
    with busy_processes(PEERS):
        before = await callers.measure(QUIET)
    opened, memory, workers = descriptors(service), service.memory(), len(service.workers())
    with Usage(service) as usage:
        peers = _start_peers(kind, service, seconds)
        try:
            during = await callers.measure(seconds)
            done, trouble = await _await_peers(peers)
        finally:
            for peer in peers:
                peer.kill()
    complaints = _slower(kind, before, during)
    for name, seen in during.items():
        print(f"{name:>18}: before {before[name]}\n{'':>18}  during {seen}")
    grown, logged = usage.peak - memory, len(service.log)
    print(f"memory +{grown >> 20} MiB, log {logged:,} bytes, descriptors {opened} -> {descriptors(service)}")
    print(f"{sum(done.values())} attacks: {dict(sorted(done.items()))}")
    print(f"its log has most of {_frequent(service.log)}")
    if grown > BUDGET + SLACK:
        complaints.append(f"the front has grown by {grown >> 20} MiB")
    if logged > LOG_LIMIT:
        complaints.append(f"it has logged {logged:,} bytes")
    try:
        await eventually(lambda: descriptors(service) <= opened, "as few descriptors as before", RECOVERY)
    except AssertionError:
        complaints.append(f"{descriptors(service)} descriptors are open; {opened} were")
    await eventually(lambda: len(service.workers()) == workers, "as many workers as before")
    assert service.process.poll() is None
    assert not complaints, "\n".join(complaints)
    assert not trouble, trouble
    assert done


def test_only_known_behaviours() -> None:
    """ATTACK_ONLY names behaviours that there are."""
    assert set(ONLY) <= BEHAVIOURS.keys()
