"""Hostile behaviours towards a spooler: floods of tasks, queries and waits."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time

from tests.attacks.hostile import frames
from tests.attacks.hostile.peer import Peer, drain, pour, requests
from uwsgitwisted.wire.objects import dumps
from uwsgitwisted.wire.packet import Packet, encode_packet
from uwsgitwisted.wire.vars import encode_vars

#: A time at which no task of a test runs.
FAR_AHEAD = "4000000000"
_KNOWN = 40


def _enqueue(peer: Peer, **variables: str) -> int:
    """Enqueue a task, and return its id; 0 if it was refused."""
    with peer.session() as session:
        session.sendall(frames.message(1, encode_vars(variables), (17, 2)))
        answer = session.recv(65_536)
    # The frame of an answer, then the id in digits.
    return int(answer[18:]) if len(answer) > 18 and answer[8] == 255 and answer[18:].isdigit() else 0


def _tasks(peer: Peer, number: int = 1) -> list[int]:
    """Return ids of tasks that won't run while the test does."""
    while len(peer.tasks) < number:
        identifier = _enqueue(peer, at=FAR_AHEAD, spooler="hostile")
        if not identifier:
            raise ConnectionRefusedError("the task wasn't taken")
        peer.tasks.append(identifier)
    return peer.tasks[:number]


def plain_waits(peer: Peer, until: float) -> None:
    """Wait for a task on 30 plain connections, half-closed; some are closed, some are left."""
    (task,) = _tasks(peer)
    for number in range(30):
        connection = peer.connect()
        connection.sendall(encode_packet(Packet(33, 17, dumps(("wait", {"id": task})))))
        connection.shutdown(socket.SHUT_WR)
        if number % 2:
            connection.close()
        else:
            peer.keep(connection)


def status_flood(peer: Peer, until: float) -> None:
    """Query the status of 1,000 ids 400 times."""
    known = _tasks(peer, _KNOWN)
    ids = [*known, *range(1_000_000, 1_001_000 - len(known))]
    with peer.session() as session:
        pour(session, [requests([dumps(("status", {"ids": ids}))] * 400)], until)
        drain(session, min(until, time.monotonic() + 1))


def empty_batches(peer: Peer, until: float) -> None:
    """Enqueue 900 batches without a task."""
    with peer.session() as session:
        session.sendall(requests([dumps(b"")] * 900))
        drain(session, min(until, time.monotonic() + 0.5))


def waiters(peer: Peer, until: float) -> None:
    """Wait 1,000 times for tasks that don't run."""
    known = _tasks(peer, 3)
    session = peer.session()
    session.sendall(requests(dumps(("wait", {"id": known[number % 3]})) for number in range(1_000)))
    time.sleep(max(0.0, min(0.5, until - time.monotonic())))
    session.close()


def large_results(peer: Peer, until: float) -> None:
    """Request results of a mebibyte, 60 and 1,000 at a time, and read none."""
    large = [_enqueue(peer, do="large", spooler="hostile") for _ in range(3)]
    time.sleep(0.2)
    session = peer.session(receive_buffer=1_024)
    session.sendall(requests([dumps(("status", {"ids": large * times})) for times in (20, 333)] * 3))
    peer.keep(session)


def colliding_results(peer: Peer, until: float) -> None:
    """Get a result whose keys collide, over HTTP and as an object."""
    task = _enqueue(peer, do="collide", spooler="hostile")
    time.sleep(0.2)
    block = encode_vars({"REQUEST_METHOD": "GET", "DOCUMENT_URI": f"/tasks/{task}"})
    for data in (
        encode_packet(Packet(17, 1, block)),
        encode_packet(Packet(33, 17, dumps(("status", {"ids": [task]})))),
    ):
        with peer.connect() as connection:
            connection.sendall(data)
            drain(connection, min(until, time.monotonic() + 1))


def queue_names(peer: Peer, until: float) -> None:
    """Enqueue 100 tasks, each in a queue of its own."""
    names = [f"queue-{peer.random.randrange(1_000_000)}" for _ in range(100)]
    with peer.session() as session:
        session.sendall(requests((encode_vars({"spooler": name}) for name in names), (17, 2)))
        drain(session, min(until, time.monotonic() + 0.5))


def broken_tasks(peer: Peer, until: float) -> None:
    """Enqueue invalid tasks, 200 in a session, and over HTTP with hostile variables."""
    broken = itertools.cycle([b"\xff\xff", encode_vars({"at": "nan"}), encode_vars({"priority": "9" * 5_000})])
    with peer.session() as session:
        session.sendall(requests(itertools.islice(broken, 200), (17, 2)))
        drain(session, min(until, time.monotonic() + 0.3))
    for path in ("/../../etc", "/" * 3_000, "/a\r\nSet-Cookie: x=y", "/9" * 1_000):
        block = encode_vars({"REQUEST_METHOD": "GET", "REQUEST_URI": path})
        with contextlib.suppress(OSError), peer.connect() as connection:
            connection.sendall(encode_packet(Packet(17, 1, block)))
            drain(connection, min(until, time.monotonic() + 0.3))


def hostile_tasks(peer: Peer, until: float) -> None:
    """Enqueue a task that loops, and one that takes all memory."""
    for what in ("loop", "hungry"):
        _enqueue(peer, do=what, spooler="hostile")
    time.sleep(max(0.0, min(1.0, until - time.monotonic())))
