"""What runs in a worker process: a node reached over a socketpair.

It is started with the session's socket as file descriptor 3, loads its handlers, answers the front's offer of
a session when it is ready, and then runs requests until the front closes the socket; see :mod:`.worker`. It
imports no Twisted, so that it starts in tens of milliseconds and a handler may use any library that blocks.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import signal
import socket
import sys
from functools import partial

from uwsgitwisted.activity import NOTICE, open_slots
from uwsgitwisted.errors import StartupError
from uwsgitwisted.memory import keep_large_blocks
from uwsgitwisted.worker.accepting import Acceptor, ListeningSocket, MakeAcceptor
from uwsgitwisted.worker.compat.install import run_post_fork_hooks
from uwsgitwisted.worker.compat.shared import connect_front
from uwsgitwisted.worker.compat.signals import become_mule
from uwsgitwisted.worker.handlers.handler import StreamHandler
from uwsgitwisted.worker.handlers.spool import periodic
from uwsgitwisted.worker.mule import run_mule
from uwsgitwisted.worker.reaper import fork_below_reaper
from uwsgitwisted.worker.spec import (
    ACTIVITY_FD,
    HANDOFF_FD,
    LISTENER_FD,
    MAX_PORTS,
    SHARED_FD,
    SOCKET_FD,
    TOKENS_FD,
    HandlerTable,
    WorkerSpec,
)
from uwsgitwisted.worker.threads import ThreadedWorker
from uwsgitwisted.worker.worker import Worker


def _become_worker(*, accepts: bool) -> None:
    """Take signals and memory as a worker should, and leave the processor to the front.

    :param accepts: whether it also does the front's work for its connections.
    """
    keep_large_blocks()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux" and not accepts:
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            # A worker computes; the front, which only moves packets, interrupts it and not the other way round.
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def main(arguments: list[str]) -> None:
    """Run a worker, or with ``--check`` only find out whether its handlers can be loaded.

    Then the periodic tasks that they register go to the standard output, as JSON.

    :param arguments: ``SPEC NODE NUMBER``, with the number of the worker or the mule, or ``--check SPEC``.
    """
    if arguments[0] == "--check":
        with os.fdopen(os.dup(1), "w") as output:
            os.dup2(2, 1)  # what a handler module prints is not for who reads the JSON
            WorkerSpec.decode(arguments[1]).load()
            json.dump(periodic(), output)
        return
    spec = WorkerSpec.decode(arguments[0])
    _become_worker(accepts=spec.accepting is not None)
    node, number = arguments[1], int(arguments[2])
    worker_id, mule_id = (0, number) if spec.mule is not None else (number, 0)
    become_mule(mule_id)
    if spec.shares:
        connect_front(SHARED_FD, worker_id, mule_id)
    if spec.descriptors is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (spec.descriptors, hard))
    if spec.max_memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (spec.max_memory, spec.max_memory))
    NOTICE.move(ACTIVITY_FD)
    handlers = spec.load(worker_id)
    if spec.traces:  # after the handlers are loaded, which may set a handler of their own
        faulthandler.register(signal.SIGUSR1, all_threads=False, chain=True)  # and then it ends
    with socket.socket(fileno=SOCKET_FD) as connection:
        connection.settimeout(None)  # a handler module may have called socket.setdefaulttimeout
        name = f"{node} {'mule' if mule_id else 'worker'} {number}"
        if spec.mule is not None:
            run_mule(Worker(connection, TOKENS_FD, spec, handlers, name), connection, spec.mule)
            return
        run_post_fork_hooks()
        slots = open_slots(ACTIVITY_FD, spec.threads)
        make_acceptor = _acceptor_maker(spec, handlers, name)
        kind = ThreadedWorker if spec.threads > 1 else Worker
        kind(connection, TOKENS_FD, spec, handlers, name, make_acceptor, slots).serve()


def _acceptor_maker(spec: WorkerSpec, handlers: HandlerTable, node: str) -> MakeAcceptor | None:
    if spec.accepting is None:
        return None
    return partial(
        Acceptor,
        spec.accepting,
        [ListeningSocket(fileno=LISTENER_FD + number) for number in range(spec.accepting.ports)],
        socket.socket(fileno=HANDOFF_FD),
        {modifier1: handler for modifier1, handler in handlers.items() if isinstance(handler, StreamHandler)},
        node,
    )


if __name__ == "__main__":
    try:
        fork_below_reaper(*range(SOCKET_FD, LISTENER_FD + MAX_PORTS))
        main(sys.argv[1:])
    except StartupError as error:
        sys.exit(f"{error}")
