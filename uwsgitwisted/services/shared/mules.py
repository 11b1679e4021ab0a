"""The mules of a service: processes beside its workers, which are started again when they end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from uwsgitwisted.engines.supervisor import Supervisor
from uwsgitwisted.engines.worker_process import WorkerProcess
from uwsgitwisted.interfaces import IProcessReactor
from uwsgitwisted.worker.spec import SHARED_FD, WorkerSpec


class Mules:
    """The mules.

    :param reactor: starts them and keeps the time.
    :param spec: what they load.
    :param programs: what each runs; empty for one that only gets messages and signals.
    :param node: the node's name, for error texts.
    """

    _log = Logger()

    def __init__(self, reactor: IProcessReactor, spec: WorkerSpec, programs: Sequence[str], node: str) -> None:
        self._reactor = reactor
        self._spec = spec
        self._programs = programs
        self._node = node
        self._descriptor = -1
        self._alive: set[WorkerProcess] = set()
        self._supervisor = Supervisor(
            reactor, len(programs), self._start_mule, self._on_ready, self._on_exit, kind="mule"
        )

    def start(self, descriptor: int) -> None:
        """Start them.

        :param descriptor: the socket over which their calls go here.
        """
        self._descriptor = descriptor
        self._supervisor.start()

    def reload(self) -> Deferred[bool]:
        """Replace them by processes that load the code afresh; see :meth:`Supervisor.replace_all`."""
        return Deferred.fromCoroutine(self._supervisor.replace_all())

    def stop(self) -> Deferred[None]:
        """End them: SIGTERM first, and SIGKILL for one that goes on.

        :return: fires when all have ended.
        """
        return self._supervisor.stop() if self._descriptor != -1 else succeed(None)

    def kill(self) -> None:
        """Kill them."""
        for mule in self._alive:
            mule.kill()

    def _start_mule(self, number: int) -> WorkerProcess:
        mule = WorkerProcess(self._reactor, number, self, kind="mule")
        spec = replace(
            self._spec,
            masterpid=os.getpid(),
            shares=True,
            mule=self._programs[number - 1],
            max_requests=None,
            threads=1,
        )
        mule.spawn(spec, self._node, {SHARED_FD: self._descriptor})
        self._alive.add(mule)
        return mule

    def _on_ready(self, mule: WorkerProcess) -> None:
        self._log.info("[mule {number}] it runs", number=mule.worker_id)

    def _on_exit(self, mule: WorkerProcess, how: str) -> None:
        self._alive.discard(mule)
        mule.take_unfinished()

    # A mule has no requests

    def on_progress(self) -> None:
        """Do nothing."""

    def on_retiring(self, worker: WorkerProcess) -> None:
        """Do nothing."""

    def on_report(self, error: Exception, peer: str) -> None:
        """Do nothing."""

    def on_transfer(self, worker: WorkerProcess, size: int) -> None:
        """Do nothing."""
