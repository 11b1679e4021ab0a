"""The parent process of a worker: how it ends, and what ends with it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

import pytest

PATIENCE = 20
#: Makes an orphan, says who is who, then goes on as the test wants.
SCRIPT = """
import os, signal, subprocess, sys, time
from pathlib import Path
from uwsgitwisted.worker import reaper

if sys.argv[2:] == ["--no-proc"]:
    reaper._CHILDREN = Path("/nothing/children")
front = reaper.fork_below_reaper(0)
# The orphan has a session of its own, unless only the worker's process group is to be killed.
started = subprocess.Popen(
    ["sh", "-c", "sleep 600 > /dev/null & echo $!"], stdout=subprocess.PIPE, start_new_session=not sys.argv[2:]
)
print(front, os.getppid(), os.getpid(), int(started.communicate()[0]), flush=True)
exec(sys.argv[1])
"""


def run(ending: str, *options: str) -> tuple[subprocess.Popen[str], list[int]]:
    """Start the script; return it and the ids of its front, its reaper, itself and the orphan."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, ending, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    return process, [int(pid) for pid in process.stdout.readline().split()]


def end(process: subprocess.Popen[str]) -> int:
    """Wait for the end of a script and of everything that has its standard output; return its status."""
    process.communicate(timeout=PATIENCE)
    return process.returncode


def is_gone(pid: int, seconds: float = PATIENCE) -> bool:
    """Return whether a process ends within *seconds*: it closes its output a moment before."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    with os.fdopen(descriptor, "rb", buffering=0) as process:
        return bool(select.select([process], [], [], seconds)[0])


@pytest.mark.parametrize("options", [(), ("--no-proc",)], ids=["children told", "children not told"])
@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("os._exit(7)", 7),
        ("os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("os.kill(os.getppid(), signal.SIGTERM); time.sleep(600)", -signal.SIGKILL),
    ],
)
def test_end(ending: str, status: int, options: tuple[str, ...]) -> None:
    """It ends as its child does, or kills it when it is told to end; an orphan below it ends as well."""
    process, (front, reaper, _, orphan) = run(ending, *options)
    assert (front, reaper) == (os.getpid(), process.pid)
    assert end(process) == status
    assert is_gone(orphan)


def test_signals() -> None:
    """Signals other than SIGTERM and SIGUSR1 don't reach it; its child has the usual signals."""
    ending = "print(len(signal.pthread_sigmask(signal.SIG_BLOCK, [])), flush=True); time.sleep(600)"
    process, (_, reaper, _, orphan) = run(ending)
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR2, signal.SIGPIPE):
        os.kill(reaper, number)
    assert not is_gone(orphan, 0.0)
    os.kill(reaper, signal.SIGTERM)
    assert end(process) == -signal.SIGKILL
    assert is_gone(orphan)


@pytest.mark.parametrize(
    ("handling", "said", "status"),
    [
        (
            "faulthandler.register(signal.SIGUSR1, sys.stdout, chain=True)",
            "most recent call first",
            signal.SIGUSR1,
        ),
        ("signal.signal(signal.SIGUSR1, signal.SIG_IGN)", "", signal.SIGKILL),
    ],
)
def test_trace(handling: str, said: str, status: int) -> None:
    """SIGUSR1 has its child say where it is, before all end; one that doesn't end by itself is killed."""
    ending = f"import faulthandler; {handling}; print('ready', flush=True); time.sleep(600)"
    process, (_, reaper, _, orphan) = run(ending)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(reaper, signal.SIGUSR1)
    assert said in process.stdout.readline()
    assert end(process) == -status
    assert is_gone(orphan)


def test_without_a_reaper() -> None:
    """Should the reaper itself be killed, its child ends all the same."""
    process, (_, reaper, child, orphan) = run("time.sleep(600)")
    os.kill(reaper, signal.SIGKILL)
    process.wait(PATIENCE)
    os.kill(orphan, signal.SIGKILL)
    end(process)
    assert is_gone(child)
