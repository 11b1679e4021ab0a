"""The parent process of a worker: whatever the worker's handlers have started ends with the worker.

Killing a process group misses a process with a session of its own, and a daemon, which is made an orphan. So
this process is a *subreaper* (see prctl(2)): each orphan below it becomes its child, as in a container all
become children of the first process. When its worker has ended, or the front, it kills its children until none
is left.

It does as little as possible, and shares its memory pages with the worker, since the fork comes before handlers
are loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

#: From <linux/prctl.h>: the signal to get when the parent dies; no core dump; to adopt orphans.
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 1, 4, 36
#: Seconds to wait for processes that were killed: one that hangs in the kernel must not hold up a new worker.
_PATIENCE = 5.0
#: Seconds for a worker to log where it is.
_TRACE_TIME = 1.0
_CHILDREN = Path("/proc/thread-self/children")


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process, where the system has them."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


def die_with_parent(parent: int, number: int) -> None:
    """Have this process get signal *number* when its parent dies.

    :param parent: the parent's id; it may have died already.
    """
    prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def fork_below_reaper(*descriptors: int) -> int:
    """Fork; the child returns from here, and this process ends as the child does, with all that it leaves.

    SIGTERM ends them at once, and so does the death of the front, this process's parent. SIGUSR1 passes through
    to the worker before it does the same.

    :param descriptors: those that are the child's own, if they are open.
    :return: the front's process id.
    """
    front = os.getppid()
    os.setsid()  # so that nothing that is meant for the front's process group comes here
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    reaper = os.getpid()
    worker = os.fork()
    if worker:
        _be_reaper(front, worker, descriptors)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    os.setsid()  # a handler that signals its process group doesn't mean the reaper
    die_with_parent(reaper, signal.SIGKILL)
    return front


def _be_reaper(front: int, worker: int, descriptors: Iterable[int]) -> NoReturn:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    die_with_parent(front, signal.SIGTERM)
    _end_like(_reap(worker))


def _reap(worker: int) -> int:
    """Wait until the *worker* has ended, or everything is to end; end all, and return the worker's status."""
    status = None
    while status is None:
        event = signal.sigwait({signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1})
        if event == signal.SIGUSR1:
            status = _trace(worker)
        if event != signal.SIGCHLD:
            break
        status = _collect(worker)
    return _kill_all(worker, status)


def _trace(worker: int) -> int | None:
    """Have the worker log where it is, which ends it; return its status if it ends in time."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(worker, signal.SIGUSR1)
    if signal.sigtimedwait({signal.SIGCHLD, signal.SIGTERM}, _TRACE_TIME) is None:
        return None
    return _collect(worker)


def _collect(worker: int) -> int | None:
    """Take the statuses of the children that have ended, and return the worker's, if it is one of them."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == worker:
                status = os.waitstatus_to_exitcode(ended[1])
    return status


def _kill_all(worker: int, status: int | None) -> int:
    """Kill what lives below this process: the children of one that is killed become children of this one."""
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE)
    while pids := _children(worker, status):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it may be another user's by now
                os.kill(pid, signal.SIGKILL)
        if signal.sigwait({signal.SIGCHLD, signal.SIGALRM}) == signal.SIGALRM:
            break
        ended = _collect(worker)
        status = ended if status is None else status
    return -signal.SIGKILL if status is None else status


def _children(worker: int, status: int | None) -> list[int]:
    """Return this process's children; where the system doesn't tell, at least kill the worker's group."""
    try:
        return [int(pid) for pid in _CHILDREN.read_text().split()]
    except OSError:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(worker, signal.SIGKILL)
        return [worker] if status is None else []


def _end_like(status: int) -> NoReturn:
    """End this process with the status of another, negative for the number of a signal."""
    if status < 0:
        prctl(_PR_SET_DUMPABLE, 0)  # there is a core dump of the worker already
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [-status])
        with contextlib.suppress(OSError):  # SIGKILL's can't be set
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)
