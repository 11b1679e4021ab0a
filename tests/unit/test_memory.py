"""Whose process keeps the memory of large messages: a service's and a worker's, not a client's."""

from __future__ import annotations

import platform
import subprocess
import sys
import tracemalloc

import pytest

from uwsgitwisted.memory import KEPT_BLOCK, keep_large_blocks
from uwsgitwisted.worker import main as worker
from uwsgitwisted.worker.spec import Loader, WorkerSpec

#: Twisted is imported before, as it takes much memory itself.
_IMPORT = """
import importlib, sys, tracemalloc
import twisted.internet.endpoints
tracemalloc.start()
for name in sys.argv[1:]:
    importlib.import_module(name)
print(tracemalloc.get_traced_memory()[1])
"""

_FAULTS = """
import resource
from uwsgitwisted.memory import keep_large_blocks
from uwsgitwisted.wire.session import Packet, Role, Session, Terms

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

keep_large_blocks()
sender, receiver = Session(Role.CLIENT, Terms(), Terms()), Session(Role.SERVER, Terms(), Terms())
for number in range(40):
    if number == 20:
        before = faults()
    sender.send_request(number, Packet(33, 0, bytes(1_000_000)))
    events = []
    while data := sender.data_to_send():
        events += receiver.receive(data)
    copy = bytearray(events[0].packet.payload)
    assert len(copy) == 1_000_000
    del events, copy
print((faults() - before) / 20)
"""


def test_messages_of_a_megabyte() -> None:
    """Messages of a megabyte, one after another, get the memory that those before had."""
    ended = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    if platform.libc_ver()[0] == "glibc":
        assert float(ended.stdout) < 50  # new memory for one copy alone takes 250


def test_keeping() -> None:
    """A block of that size is taken and freed; glibc keeps what it frees from then on."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        keep_large_blocks()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before >= KEPT_BLOCK
    assert after - before < 10_000


@pytest.mark.parametrize("name", ["client", "blocking", "worker.main", "services.server"])
def test_importing(name: str) -> None:
    """A program that imports a client, or any part of the package, keeps the allocator that it had."""
    command = [sys.executable, "-c", _IMPORT, f"uwsgitwisted.{name}"]
    peak = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    assert int(peak) < KEPT_BLOCK


def test_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker process keeps it, as each of its requests may bring a large message."""

    class Begun(Exception):
        pass

    def begin() -> None:
        raise Begun

    monkeypatch.setattr(worker, "keep_large_blocks", begin)
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    monkeypatch.setattr("os.sched_setscheduler", lambda *arguments: None)
    with pytest.raises(Begun):
        worker.main([WorkerSpec((Loader("no_module:load"),)).encode(), "node", "1"])
