"""One worker process, seen from the front: started, asked, watched, killed."""

from __future__ import annotations

import os
import signal
import socket
import sys

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.tcp import Connection
from twisted.logger import Logger
from twisted.python.failure import Failure

from uwsgitwisted.engines.worker import SOCKET_FD, WorkerSpec
from uwsgitwisted.interfaces import IProcessReactor
from uwsgitwisted.transport.asking import AskingProtocol, AskingSession
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.wire.session import Terms

#: A longer line of a worker's output is logged in pieces of this size.
_MAX_LINE = 8_000


class Child(ProcessProtocol):
    """A worker process; make one with :meth:`spawn`."""

    _log = Logger()

    def __init__(self, worker_id: int) -> None:
        #: Which of the engine's workers this is, from 1.
        self.worker_id = worker_id
        #: Fires with this child when it takes requests. Doesn't fire if it ends before that.
        self.ready: Deferred[Child] = Deferred()
        #: Fires with how the process ended, in words.
        self.ended: Deferred[str] = Deferred()
        self._session: AskingSession | None = None
        self._output: dict[int, bytes] = {}

    @classmethod
    def spawn(cls, reactor: IProcessReactor, spec: WorkerSpec, node: str, worker_id: int, count: int) -> Child:
        """Start a worker process.

        :param spec: what it runs.
        :param node: the node's name, for error texts.
        :param worker_id: which worker this is, from 1.
        :param count: how many there are.
        """
        child = cls(worker_id)
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "uwsgitwisted.engines.worker"]
        with theirs, open(os.devnull, "rb") as nothing:
            reactor.spawnProcess(
                child,
                command[0],
                [*command, spec.encode(), node, str(worker_id), str(count)],
                env=None,
                childFDs={0: nothing.fileno(), 1: "r", 2: "r", SOCKET_FD: theirs.fileno()},
            )
        pipe = AskingProtocol(reactor, Terms(max_message=spec.max_message, node=node))
        pipe.negotiated.addCallback(child._negotiated)
        pipe.lost.addCallback(lambda _: child.kill())
        # Twisted's own transport for UNIX sockets would look for file descriptors in each read.
        transport = Connection(ours, pipe, reactor)
        transport.connected = 1
        transport.startReading()
        pipe.makeConnection(transport)  # type: ignore[no-untyped-call]
        return child

    def _negotiated(self, session: AskingSession | None) -> None:
        if session is not None:
            self._session = session
            self.ready.callback(self)

    def request(self, packet: Packet) -> Deferred[Packet]:
        """Have it handle a packet.

        :return: as :meth:`AskingSession.request`: fails with ``NoAnswer`` if the process ends first.
        """
        assert self._session is not None, "not ready"
        return self._session.request(packet)

    def finish(self) -> None:
        """Let it end by itself: there will be no further request."""
        if self._session is not None:
            self._session.close()
        else:
            self.kill()

    @property
    def pid(self) -> int:
        """The process's id; 0 when it has ended."""
        return 0 if self.ended.called else self.transport.pid  # type: ignore[union-attr]

    def kill(self) -> None:
        """End it now, and with it what its handler started."""
        if not self.pid:
            return
        for kill in (os.killpg, os.kill):  # it has no process group of its own until it is up
            try:
                kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            return

    def childDataReceived(self, childFD: int, data: bytes) -> None:  # noqa: N803
        """Log what a handler printed, line by line."""
        *lines, rest = (self._output.get(childFD, b"") + data).split(b"\n")
        while len(rest) > _MAX_LINE:
            lines.append(rest[:_MAX_LINE])
            rest = rest[_MAX_LINE:]
        self._output[childFD] = rest
        for line in lines:
            self._log_line(line)

    def childConnectionLost(self, childFD: int) -> None:  # noqa: N803
        """Log an unfinished last line."""
        if rest := self._output.pop(childFD, b""):
            self._log_line(rest)

    def _log_line(self, line: bytes) -> None:
        self._log.info("[worker {id}] {line}", id=self.worker_id, line=line.decode("utf-8", "replace"))

    def processExited(self, reason: Failure) -> None:
        """Say how it ended."""
        self.ended.callback(_how(reason))


def _how(reason: Failure) -> str:
    ended = reason.value
    if isinstance(ended, ProcessTerminated) and ended.signal is not None:
        return f"it was killed by {signal.Signals(ended.signal).name}"
    return f"it ended with status {getattr(ended, 'exitCode', 0)}"
