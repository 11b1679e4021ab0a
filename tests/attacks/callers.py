"""Good callers of each kind, beside which a service is attacked, and what they notice of it."""

from __future__ import annotations

import contextlib
import http.client
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from tests.attacks.witness import Witness, pinging, watching
from tests.integration.services import Service, read_to_end, until
from tests.integration.web_apps import GREETING
from tests.integration.web_servers import parse_response, request_packet, request_variables
from uwsgitwisted import blocking
from uwsgitwisted.client import Client
from uwsgitwisted.errors import ConnectionFailed, UwsgiError
from uwsgitwisted.wire.objects import dumps, loads
from uwsgitwisted.wire.packet import HEADER_SIZE, MARSHAL, Packet, encode_packet

#: Seconds that a good call may take before it counts as failed.
PATIENCE = 20.0
#: Where every second good caller comes from. The others are 127.0.0.1: an address always gets four connections,
#: and one that was closed may still count.
OTHER = "127.0.0.100"
#: Seconds between two calls of the client.
_PAUSE = 0.01
#: How many calls without an attack are measured, how many processes are busy meanwhile, and how much longer a
#: call may take beside the attack.
_QUIET, _HOSTILE, _TIMES = 50, 2, 3.0
#: What is asked of a node and of a renderer, and the answer.
_QUESTIONS: dict[str, tuple[object, object]] = {
    "node": (("echo", "good"), "good"),
    "renderer": (("page.txt", {"name": "good"}), "Dear good"),
}
_TASK = {"spooler": "good", "do": "nothing"}


@dataclass
class Seen:
    """What one caller has noticed.

    :param durations: of its calls that succeeded, in seconds.
    :param errors: of the others.
    """

    durations: list[float] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    def percentile(self, part: float) -> float:
        """Return what *part* of the calls, from 0 to 1, took at most; infinite if there is none."""
        ordered = sorted(self.durations)
        return ordered[min(int(part * len(ordered)), len(ordered) - 1)] if ordered else math.inf

    def __str__(self) -> str:
        milliseconds = [1_000 * self.percentile(part) for part in (0.5, 0.99, 1)]
        shown = " ".join(f"{value:7.1f}" for value in milliseconds)
        return f"{len(self.durations):5} calls {len(self.errors):3} failed {shown} ms"


def get_page(service: Service) -> None:
    """Get a page of a node that runs :mod:`tests.integration.web_apps`.

    :raises ConnectionFailed: if it isn't there.
    """
    try:
        with socket.create_connection(service.address, PATIENCE, (OTHER, 0)) as connection:
            connection.sendall(request_packet(request_variables("GET", "/")))
            answer = parse_response(read_to_end(connection))
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionFailed(f"{error!r}") from error
    if (answer.status, answer.body) != (200, GREETING):
        raise ConnectionFailed(f"{answer.status} {answer.body[:100]!r}")


class Callers:
    """One good caller of each kind, for one service.

    Those that block have a thread each; the one with Deferreds is in the tests' reactor.

    :param kind: of the service.
    """

    def __init__(self, kind: str, service: Service, client: Client) -> None:
        self._service = service
        self._client = client
        self._kind = kind
        self._calls: dict[str, Callable[[], object]]
        if kind == "router":
            self._kept = http.client.HTTPConnection(*service.address, timeout=PATIENCE)
            self._calls = {"page": self._get_page, "page on a kept connection": lambda: self._get(self._kept)}
            return
        self._calls = {"ping": pinging(service.address, PATIENCE)}
        if kind == "spooler":
            self._calls |= {"enqueue and wait": self._enqueue_and_wait, "plain enqueue": self._enqueue_plainly}
        else:
            self._calls |= {"session call": self._call, "plain call": self._call_plainly}
        if kind == "node":
            self._calls["page"] = lambda: get_page(service)

    def _get_page(self) -> None:
        """Get a page from a router, on a connection of its own."""
        address = self._service.address
        with contextlib.closing(
            http.client.HTTPConnection(*address, timeout=PATIENCE, source_address=(OTHER, 0))
        ) as made:
            self._get(made)

    def _get(self, connection: http.client.HTTPConnection) -> None:
        try:
            connection.request("GET", "/")
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise ConnectionFailed(f"{error!r}") from error
        if (answer.status, body) != (200, GREETING):
            raise ConnectionFailed(f"{answer.status} {body[:100]!r}")

    def _call(self) -> None:
        question, expected = _QUESTIONS[self._kind]
        assert blocking.send_message(self._service.address, MARSHAL, 17, question, PATIENCE) == expected

    def _call_plainly(self) -> None:
        question, expected = _QUESTIONS[self._kind]
        answer = self._exchange(encode_packet(Packet(MARSHAL, 17, dumps(question))))
        if not answer:
            raise ConnectionFailed("no answer")
        assert loads(answer[HEADER_SIZE:]) == expected

    def _enqueue_and_wait(self) -> None:
        task = blocking.enqueue(self._service.address, _TASK, timeout=PATIENCE)
        assert task is not None
        assert blocking.wait(self._service.address, task, timeout=PATIENCE).done

    def _enqueue_plainly(self) -> None:
        block = b"".join(len(text).to_bytes(2, "little") + text for text in (b"spooler", b"good", b"do", b""))
        if self._exchange(encode_packet(Packet(17, 0, block))) != b"\xff\0\0\1":
            raise ConnectionFailed("the task was not taken")

    def _exchange(self, data: bytes) -> bytes:
        try:
            with socket.create_connection(self._service.address, PATIENCE, (OTHER, 0)) as connection:
                connection.sendall(data)
                return read_to_end(connection)
        except OSError as error:
            raise ConnectionFailed(f"{error}") from error

    async def _call_with_deferreds(self) -> None:
        address = self._service.address
        if self._kind == "router":
            await deferToThread(self._get_page)
        elif self._kind == "spooler":
            assert await self._client.enqueue(address, _TASK, timeout=PATIENCE)
        else:
            question, expected = _QUESTIONS[self._kind]
            assert await self._client.send_message(address, MARSHAL, 17, question, PATIENCE) == expected

    async def measure(self, seconds: float) -> dict[str, Seen]:
        """Let all callers call for that long, and return their records."""
        from twisted.internet import reactor

        witnesses = {name: Witness(call) for name, call in self._calls.items()}
        for witness in witnesses.values():
            witness.start()
        seen = {"client": Seen()}
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            began = time.monotonic()
            try:
                await self._call_with_deferreds()
            except UwsgiError as error:
                seen["client"].errors.append(error)
            else:
                seen["client"].durations.append(time.monotonic() - began)
            await deferLater(reactor, _PAUSE)
        for name, witness in witnesses.items():
            witness.stop()
            seen[name] = Seen(witness.durations, list(witness.errors))
        if self._kind == "router":
            self._kept.close()  # the next call opens it again
        return seen


_SPIN = "import os; os.nice(10)\nwhile os.getppid() == {parent}: pass"


@contextlib.contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Run as many busy processes as there would be hostile peers, with the same low priority."""
    line = [sys.executable, "-c", _SPIN.format(parent=os.getpid())]
    started = [subprocess.Popen(line, stdin=subprocess.DEVNULL) for _ in range(number)]
    try:
        yield
    finally:
        for process in started:
            process.send_signal(signal.SIGKILL)
            process.wait()


def limit_beside(floor: float, call: Callable[[], object]) -> float:
    """Return how long *call* may take beside an attack, measured without it, but at least *floor* seconds.

    The processors are as busy meanwhile, and what else the machine does makes it longer in the same way.
    """
    with busy_processes(_HOSTILE), watching(call) as witness:
        until(lambda: len(witness.durations) >= _QUIET, "calls without an attack")
    return max(floor, _TIMES * witness.slowest)


class Usage:
    """Watches the memory of a service's front from a thread."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        #: The most that it had, in bytes.
        self.peak = service.memory()

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            with contextlib.suppress(OSError):
                self.peak = max(self.peak, self._service.memory())

    def __enter__(self) -> Usage:
        self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._ended.set()
        self._thread.join()


def descriptors(service: Service) -> int:
    """Return how many descriptors the front has open."""
    return len(list(Path(f"/proc/{service.pid}/fd").iterdir()))
