"""Attacks with web requests, on a node without nginx in front: what a good client beside them waits.

It may wait twice as long as without the attack; calls below :data:`FLOOR` are always fast enough, as in
``test_mixed.py``, which has the reasons. The processors are as busy when it measures without the attack.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.attacks.callers import Usage, busy_processes, descriptors, get_page
from tests.attacks.hostile import web
from tests.attacks.hostile.behaviours import BEHAVIOURS
from tests.attacks.test_connections import ELSEWHERE, many
from tests.attacks.witness import assert_within, watching
from tests.integration.services import Launcher, Service, until
from tests.integration.web_servers import ask, parse_response, start_node

pytestmark = pytest.mark.integration

TIMES, FLOOR = 2.0, 0.2
#: Calls of the good client without the attack, and seconds of the attack.
QUIET, ATTACK = 100, 3.0
#: Hostile peers; they come from 127.0.0.2 and so on.
PEERS = 2
#: What the node may hold for its peers, and how much more it may grow, in bytes.
BUDGET, BESIDE = 128 << 20, 64 << 20
#: Connections that are idle at once. The tests' process and the node each need a descriptor for each of them.
IDLE = 5_000

UWSGI_VARIABLES = [name for lie in web.LYING_VARIABLES for name in lie if name.startswith("UWSGI_")]
WEB = [name for name in BEHAVIOURS if " web " in name]


def _start(launch: Launcher) -> Service:
    return start_node(launch, "--max-buffered", str(BUDGET), tcp=True)


def _limit(service: Service) -> float:
    """Return how long a page may take beside an attack: measured without it, with the processors as busy."""
    with busy_processes(PEERS), watching(lambda: get_page(service)) as witness:
        until(lambda: len(witness.durations) >= QUIET, "pages without an attack")
    assert witness.errors == []
    return max(FLOOR, TIMES * witness.percentile(0.99))


@contextlib.contextmanager
def _attacked(service: Service, name: str) -> Iterator[None]:
    """Have hostile peers do one thing again and again, until the block has ended and their time is over."""
    line = [sys.executable, "-m", "tests.attacks.hostile", "node", str(service.address[1])]
    peers = [
        subprocess.Popen(
            [*line, str(number), str(ATTACK), name, name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(PEERS)
    ]
    try:
        yield
        for peer in peers:
            output, _ = peer.communicate(timeout=60)
            assert peer.returncode == 0
            assert name in output
    finally:
        for peer in peers:
            peer.kill()
            peer.communicate()


@pytest.fixture(scope="module")
def attacked(shared: Launcher) -> Service:
    """A node to attack, in which no attack leaves anything behind."""
    return _start(shared)


@pytest.mark.parametrize("name", WEB)
def test_beside(attacked: Service, name: str) -> None:
    """A good client's pages come in time, the front stays small, and nothing of the attack is left."""
    limit = _limit(attacked)
    opened, memory, workers = descriptors(attacked), attacked.memory(), len(attacked.workers())

    def attack() -> float:
        with watching(lambda: get_page(attacked)) as witness, _attacked(attacked, name):
            pass
        assert witness.errors == []
        return witness.percentile(0.99)

    with Usage(attacked) as usage:
        assert_within(limit, attack, f"a page beside {name!r}")
    assert usage.peak - memory < BUDGET + BESIDE
    until(lambda: descriptors(attacked) <= opened, "as few descriptors as before", 75)
    until(lambda: len(attacked.workers()) == workers, "as many workers as before")
    get_page(attacked)


def test_idle_connections(launch: Launcher) -> None:
    """Thousands of connections that send nothing, or half a packet, keep nobody out."""
    node = _start(launch)
    limit = _limit(node)
    half = web.request()[:20]

    def attack() -> float:
        with watching(lambda: get_page(node)) as witness, contextlib.ExitStack() as stack:
            stack.enter_context(many(node, IDLE // 2, b"", ELSEWHERE))
            stack.enter_context(many(node, IDLE // 2, half, "127.0.0.3"))
            seen = len(witness.durations)
            until(lambda: len(witness.durations) >= seen + QUIET, "pages beside idle connections")
        assert witness.errors == []
        return witness.percentile(0.99)

    assert_within(limit, attack, "a page beside idle connections")


@pytest.fixture(scope="module")
def node(shared: Launcher) -> Service:
    """A node for requests that leave nothing behind."""
    return _start(shared)


@pytest.mark.parametrize("length", web.LYING_LENGTHS, ids=lambda length: ascii(length)[:12])
def test_lengths_that_lie(node: Service, length: str) -> None:
    """A length that is none is answered with 400, or 413 if it is too much."""
    request = web.request("/echo", "POST", CONTENT_LENGTH=length) + b"five!"
    answer = parse_response(node.exchange(request, end=True))
    assert answer.status in (400, 413)
    assert b"five!" not in answer.body


@pytest.mark.parametrize("variables", web.LYING_VARIABLES, ids=lambda variables: " ".join(variables)[:40])
def test_variables_that_lie(node: Service, variables: dict[str, str]) -> None:
    """A lie of one peer hurts nobody else, and puts no line into an answer."""
    received = node.exchange(web.request(**{"CONTENT_LENGTH": "5", **variables}) + b"five!", end=True)
    assert b"X-Injected" not in received
    assert parse_response(received).status in (200, 400, 404)
    get_page(node)


@pytest.mark.parametrize("name", UWSGI_VARIABLES)
def test_variables_that_load_code(node: Service, name: str) -> None:
    """A peer's UWSGI_ variables reach no application."""
    answer = ask(node.address, "GET", "/variables", **{name: "here"})
    assert answer.status == 200
    assert name not in json.loads(answer.body)


def test_the_log(node: Service) -> None:
    """What peers can cause at will gets a few lines, with the address of one of them."""
    before = len(node.log)
    for number in range(100):
        ask(node.address, "GET", f"/raises?when=before&{number}")
        ask(node.address, "", f"/{number}")
        node.exchange(web.request("/echo", "POST", CONTENT_LENGTH="-1") + b"x", end=True)
    added = node.log[before:]
    assert len(added) < 40_000
    assert added.count("Traceback") == 1
    assert "127.0.0.1:" in added
    assert "nobody" not in added


def test_harm_is_the_callers_own(launch: Launcher) -> None:
    """An application that hangs or ends its worker fails its own request only; good pages come meanwhile."""
    node = start_node(launch, "--timeout", "1", engine="processes:3", tcp=True)
    workers = len(node.workers())
    with watching(lambda: get_page(node)) as witness:
        for path in ("/hang", "/exits?how=kill"):
            answer = node.exchange(web.request(path))
            assert not answer.startswith(b"HTTP/1.1 200")
        seen = len(witness.durations)
        until(lambda: len(witness.durations) > seen + 10, "pages behind the harm")
    assert witness.errors == []
    until(lambda: len(node.workers()) == workers, "as many workers as before")
    assert re.search(r"127\.0\.0\.1:\d+: modifier1 0: a web request exceeded the node's limit", node.log)
