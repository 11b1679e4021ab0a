"""A soak: several clients ask without a pause while workers are killed at random.

Each call must end, with its own answer or with an error that says that its worker died; no request may be run
twice; no answer may be another's. It takes about six seconds. To run it for a minute, and see what it did:

    SOAK_SECONDS=60 python -m pytest -s tests/integration/test_soak.py

``SOAK_SEED`` is the number from which the moments and the victims are chosen.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from tests.integration.services import Launcher, Service, eventually
from uwsgitwisted import blocking
from uwsgitwisted.client import Client
from uwsgitwisted.errors import FanOutError, NoAnswer, UwsgiError, WorkerDied

pytestmark = pytest.mark.integration

SECONDS = float(os.environ.get("SOAK_SECONDS", "6"))
SEED = int(os.environ.get("SOAK_SEED", "0"))
WORKERS = 3
#: Seconds between two kills: from the first to the second.
KILLS = (0.1, 0.6)
#: Seconds for a call: far longer than all workers together are ever away.
TIMEOUT = 60.0

#: Notes each begin and end, with one write each, and answers with the id, its process and what was sent.
HANDLER = """
import os, time, uwsgi

notes = os.open("notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def handle(message, modifier2):
    key, pause, payload = message
    pid = os.getpid()
    os.write(notes, f"begin {key} {pid}\\n".encode())
    if pause:
        time.sleep(pause)
    os.write(notes, f"end {key} {pid}\\n".encode())
    return [key, pid, payload]

uwsgi.message_manager_marshal = handle
"""


@dataclass
class Record:
    """The requests and their outcomes."""

    asked: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, UwsgiError] = field(default_factory=dict)
    stopping: bool = False

    def message(self, name: str, number: int, rng: random.Random) -> list[Any]:
        """Return a request that there was not yet: mostly small and fast, some slow, some large."""
        key = f"{name}-{number}"
        pause = 0.02 if rng.random() < 0.02 else 0
        size = 200_000 if rng.random() < 0.005 else rng.randrange(100)
        payload = [key, bytes([number % 256]) * size]
        self.asked[key] = payload
        return [key, pause, payload]

    def note(self, key: str, result: Any) -> None:
        """Note a result of the request *key*."""
        assert key not in self.answers, f"{key} has two results"
        assert key not in self.errors, f"{key} has two results"
        if isinstance(result, UwsgiError):
            result.__traceback__ = result.__context__ = result.__cause__ = None
            self.errors[key] = result
        else:
            self.answers[key] = result


async def _ask(record: Record, node: Service, client: Client, name: str) -> None:
    """Call one after the other, with Deferreds."""
    rng = random.Random(f"{SEED} {name}")
    for number in itertools.count():
        if record.stopping:
            return
        message = record.message(name, number, rng)
        if name.startswith("plain"):
            message[2] = record.asked[message[0]] = message[0]  # small enough for a packet
        try:
            record.note(message[0], await client.send_message(node.address, 33, 0, message, TIMEOUT))
        except UwsgiError as error:
            record.note(message[0], error)


def _call(record: Record, node: Service, name: str) -> None:
    """Call one after the other, with blocking calls; every tenth time as a fan-out of three."""
    rng = random.Random(f"{SEED} {name}")
    for number in itertools.count():
        if record.stopping:
            return
        if number % 10:
            message = record.message(name, number, rng)
            try:
                record.note(message[0], blocking.send_message(node.address, 33, 0, message, TIMEOUT))
            except UwsgiError as error:
                record.note(message[0], error)
            continue
        messages = [record.message(f"{name}-{place}", number, rng) for place in range(3)]
        host, port = node.address
        try:
            results = blocking.send_multi_uwsgi_message(
                [(host, port, message) for message in messages], 33, 0, TIMEOUT
            )
        except FanOutError as error:
            results = error.results
        for message, result in zip(messages, results, strict=True):
            record.note(message[0], result)


async def _kill(record: Record, node: Service) -> list[int]:
    """Kill a worker now and then, whatever it does, and return whom."""
    rng = random.Random(f"{SEED} kills")
    killed: list[int] = []
    while True:
        await deferLater(reactor, rng.uniform(*KILLS))
        if record.stopping:
            return killed
        workers = node.workers()
        if workers:
            killed.append(rng.choice(workers))
            with contextlib.suppress(ProcessLookupError):
                os.kill(killed[-1], signal.SIGKILL)


def _check(record: Record, notes: list[list[str]]) -> None:
    """Compare the clients' results with the workers' notes."""
    assert set(record.answers) | set(record.errors) == set(record.asked), "a call is lost"
    begun = Counter(key for what, key, _ in notes if what == "begin")
    ended = {(key, int(pid)) for what, key, pid in notes if what == "end"}
    assert [key for key, times in begun.items() if times > 1] == [], "a request was run twice"
    assert set(begun) <= set(record.asked)
    for key, (answered, pid, payload) in record.answers.items():
        assert (answered, payload) == (key, record.asked[key]), "an answer is another's"
        assert (key, pid) in ended
    for key, error in record.errors.items():
        expected = NoAnswer if key.startswith("plain") else WorkerDied
        assert type(error) is expected, f"{key}: {error!r}"
    unfinished = set(begun) - {key for key, _ in ended}
    assert unfinished <= set(record.errors)


@pytest_twisted.ensureDeferred
async def test_soak(launch: Launcher, client: Client) -> None:
    """Under kills every call ends, with its own answer or a clear error, and nothing is run twice."""
    node = launch.start("uwsgi-node", "--engine", f"processes:{WORKERS}", handler=HANDLER, tcp=True)
    record = Record()
    plain = Client(reactor, plain=[node.address])
    threads = [threading.Thread(target=_call, args=(record, node, f"thread{number}")) for number in range(2)]
    for thread in threads:
        thread.start()
    killing = Deferred.fromCoroutine(_kill(record, node))
    asking = [Deferred.fromCoroutine(_ask(record, node, client, f"client{number}")) for number in range(20)]
    asking += [Deferred.fromCoroutine(_ask(record, node, plain, f"plain{number}")) for number in range(2)]
    await deferLater(reactor, SECONDS)
    await eventually(lambda: record.errors, "a kill that hits a request", TIMEOUT)
    record.stopping = True
    killed = await killing
    await gatherResults(asking)
    await eventually(lambda: not any(thread.is_alive() for thread in threads), "the threads' end", TIMEOUT)
    await plain.close()
    lines = (Path(node.directory) / "notes").read_text().splitlines()
    _check(record, [line.split() for line in lines])
    assert len(killed) >= SECONDS / KILLS[1] / 2
    assert len(record.errors) <= len(killed), "a worker's death is the error of the request that it ran"
    await eventually(lambda: len(node.workers()) == WORKERS, "as many workers as before")
    print(json.dumps({"answers": len(record.answers), "errors": len(record.errors), "kills": len(killed)}))
