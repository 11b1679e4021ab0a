"""Signals to a real service under load: SIGHUP fails no request, a second SIGTERM ends it at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from tests.integration.services import (
    PATIENCE,
    TERMINATED,
    Launcher,
    Service,
    eventually,
    is_alive,
    script,
    until,
)
from uwsgitwisted import blocking
from uwsgitwisted.client import Client
from uwsgitwisted.errors import UwsgiError

pytestmark = pytest.mark.integration

HANDLER = """
import os, time, uwsgi

def handle(message, modifier2):
    if message == "sleep":
        open("started", "w").close()
        time.sleep(60)
    if message[0] in (0, 1):  # so that every worker is nearly always in the middle of a request
        time.sleep(0.02)
    return [VERSION, os.getpid(), message]

uwsgi.message_manager_marshal = handle
"""


def _write(service_directory: Path, version: int) -> None:
    (service_directory / "my_handler.py").write_text(f"VERSION = {version}\n{HANDLER}")


class Load:
    """Continuous requests, from a thread with blocking calls and from a client with several in flight."""

    def __init__(self, node: Service, client: Client, in_flight: int = 5) -> None:
        self.answers: list[Any] = []
        self.failures: list[Exception] = []
        self._node = node
        self._stopping = False
        self._thread = threading.Thread(target=self._call)
        self._thread.start()
        self._asking = [Deferred.fromCoroutine(self._ask(client, number)) for number in range(in_flight)]

    def _call(self) -> None:
        number = 0
        while not self._stopping:
            number += 1
            self._note(lambda: blocking.send_message(self._node.address, 33, 17, ["thread", number]))  # noqa: B023

    def _note(self, ask: Callable[[], Any]) -> None:
        try:
            self.answers.append(ask())
        except UwsgiError as error:
            self.failures.append(error)

    async def _ask(self, client: Client, name: int) -> None:
        number = 0
        while not self._stopping:
            number += 1
            try:
                self.answers.append(await client.send_message(self._node.address, 33, 17, [name, number]))
            except UwsgiError as error:
                self.failures.append(error)

    async def more(self) -> None:
        """Wait until some more requests have been answered."""
        seen = len(self.answers)
        await eventually(lambda: len(self.answers) > seen + 50 or self.failures, "answers")

    async def stop(self) -> None:
        """Stop the requests."""
        self._stopping = True
        for asking in self._asking:
            await asking
        await eventually(lambda: not self._thread.is_alive(), "the thread's end")
        self._thread.join()


@pytest_twisted.ensureDeferred
async def test_sighup_under_load(launch: Launcher, client: Client) -> None:
    """Every worker is replaced, with the new code, and no request of either client fails or is mixed up."""
    node = launch.start("uwsgi-node", "--engine", "processes:2", handler=f"VERSION = 1\n{HANDLER}")
    before = node.workers()
    load = Load(node, client)
    try:
        await eventually(lambda: {answer[1] for answer in load.answers} == set(before), "answers of both")
        for version in (2, 3):
            _write(node.directory, version)
            node.process.send_signal(signal.SIGHUP)
            await eventually(lambda: node.log.count("every worker was replaced") == version - 1, "the reload")  # noqa: B023
            await load.more()
    finally:
        await load.stop()
    assert load.failures == []
    versions = [answer[0] for answer in load.answers]
    assert set(versions) == {1, 2, 3}
    asked = [tuple(answer[2]) for answer in load.answers]
    assert len(asked) == len(set(asked))
    await eventually(lambda: len(node.workers()) == 2, "the end of the old workers")
    assert not any(map(is_alive, before))


def test_signals_at_once(launch: Launcher, tmp_path: Path) -> None:
    """Several SIGHUPs at once are handled one after the other, and the last change is loaded."""
    _write(tmp_path, 1)
    node = launch.start(
        *("uwsgi-node", "--engine", "processes:2", "--handler", "my_handler"), directory=tmp_path, tcp=True
    )
    begin, end = "replacing the workers one by one", "every worker was replaced"
    for version in range(2, 6):
        _write(tmp_path, version)
        node.process.send_signal(signal.SIGHUP)
        node.wait_for(begin)  # the system makes one of signals that a process has not taken yet
    until(lambda: {node.ask(["x"])[0] for _ in range(10)} == {5}, "the last change")
    until(lambda: node.log.count(begin) == node.log.count(end), "the end of the last reload")
    said = [line.rpartition("] ")[2] for line in node.log.splitlines() if "replac" in line]
    assert said == [begin, end] * said.count(begin)
    assert said.count(begin) >= 2


@pytest_twisted.ensureDeferred
async def test_sighup_with_broken_code(launch: Launcher, client: Client) -> None:
    """The old workers stay, the log says why, no request fails; the next SIGHUP loads the fixed code."""
    node = launch.start("uwsgi-node", "--engine", "processes:2", handler=f"VERSION = 1\n{HANDLER}")
    before = node.workers()
    load = Load(node, client)
    try:
        await eventually(lambda: {answer[1] for answer in load.answers} == set(before), "answers of both")
        (node.directory / "my_handler.py").write_text("import no_such_module")
        node.process.send_signal(signal.SIGHUP)
        await eventually(lambda: "the old ones stay; fix the handler" in node.log, "the refusal")
        assert "no_such_module" in node.log
        assert node.workers() == before
        await load.more()
        _write(node.directory, 2)
        node.process.send_signal(signal.SIGHUP)
        await eventually(lambda: "every worker was replaced" in node.log, "the reload")
        await load.more()
    finally:
        await load.stop()
    assert load.failures == []
    assert (await client.send_message(node.address, 33, 17, ["x"]))[0] == 2
    await eventually(lambda: not any(map(is_alive, before)), "the end of the old workers")


def test_sighup_of_an_engine_that_can_not(launch: Launcher) -> None:
    """An engine without processes keeps running, and logs that the service has to be restarted."""
    node = launch.start("uwsgi-node", "--engine", "reactor", handler=f"VERSION = 1\n{HANDLER}")
    node.process.send_signal(signal.SIGHUP)
    node.wait_for("engine reactor can't reload; restart the service")
    assert node.ask("x") == [1, node.pid, "x"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal(launch: Launcher, number: signal.Signals) -> None:
    """The first signal waits for running requests; the second ends the service at once, with its workers."""
    node = launch.start("uwsgi-node", "--engine", "processes:2", handler=f"VERSION = 1\n{HANDLER}")
    workers = node.workers()
    errors: list[Exception] = []

    def ask() -> None:
        try:
            script(blocking.send_message, node.address, 33, 17, "sleep", 60)
        except UwsgiError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    until((node.directory / "started").exists, "the start of the request")
    node.process.send_signal(signal.SIGTERM)
    node.wait_for("Received SIGTERM")
    # It takes the second signal for one only when it has begun to stop; until then Twisted ignores it.
    until(lambda: not (node.directory / "socket").exists(), "the end of the listening")
    assert node.process.poll() is None
    begun = time.monotonic()
    node.process.send_signal(number)
    status = node.process.wait(PATIENCE)
    assert time.monotonic() - begun < PATIENCE / 2
    assert status == TERMINATED
    assert "stopping without waiting for running requests" in node.log
    thread.join(PATIENCE)
    assert len(errors) == 1
    until(lambda: not any(map(is_alive, workers)), "the end of every worker")
