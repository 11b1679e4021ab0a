"""One worker process, seen from the front: started, asked, watched, killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.tcp import Connection
from twisted.logger import Logger
from twisted.python.failure import Failure

from uwsgitwisted.engines.job import Job
from uwsgitwisted.engines.pipe import Pipe, Tokens
from uwsgitwisted.interfaces import IProcessReactor
from uwsgitwisted.transport.client.negotiation import NegotiationProtocol
from uwsgitwisted.transport.timer import Timer
from uwsgitwisted.transport.writer import read_more_at_once
from uwsgitwisted.wire.terms import Terms
from uwsgitwisted.worker.spec import SOCKET_FD, TOKENS_FD, WorkerSpec

#: A longer line of a worker's output is logged in pieces of this size.
_MAX_LINE = 8_000
#: Seconds that a worker gets to end by itself once it has nothing more to do.
_SHUTDOWN_TIME = 2.0


class WorkerOwner(Protocol):
    """Who uses a worker process."""

    def progressed(self) -> None:
        """Note that requests were answered, or that the worker may be given some again."""

    def retiring(self, worker: WorkerProcess) -> None:
        """Note that *worker* asks to be replaced."""


class WorkerProcess(ProcessProtocol):
    """A worker process.

    :param reactor: starts it and keeps the time.
    :param worker_id: which of the engine's workers this is, from 1.
    :param owner: learns what becomes of its requests.
    """

    _log = Logger()

    def __init__(self, reactor: IProcessReactor, worker_id: int, owner: WorkerOwner) -> None:
        self.worker_id = worker_id
        #: Fires with this worker when it takes requests. Doesn't fire if it ends before that.
        self.ready: Deferred[WorkerProcess] = Deferred()
        #: Fires with how the process ended, in words.
        self.ended: Deferred[str] = Deferred()
        #: Whether it gets no further request.
        self.retired = False
        self._reactor = reactor
        self._owner = owner
        self._tokens = Tokens()
        self._pipe: Pipe | None = None
        self._output: dict[int, bytes] = {}
        self._kill_later = Timer(reactor, self.kill)

    def spawn(self, spec: WorkerSpec, node: str) -> None:
        """Start the process.

        :param spec: what it runs.
        :param node: the node's name, for error texts.
        :raises OSError: if there is no process or file descriptor to be had.
        """
        with contextlib.ExitStack() as opened:
            opened.callback(self._tokens.close)
            ours, theirs = map(opened.enter_context, socket.socketpair())
            nothing = opened.enter_context(open(os.devnull, "rb"))
            command = [sys.executable, "-m", "uwsgitwisted.worker.main"]
            self._reactor.spawnProcess(
                self,
                command[0],
                [*command, spec.encode(), node, str(self.worker_id)],
                env=None,
                childFDs={
                    0: nothing.fileno(),
                    1: "r",
                    2: "r",
                    SOCKET_FD: theirs.fileno(),
                    TOKENS_FD: self._tokens.reader,
                },
            )
            opened.pop_all()
        theirs.close()
        nothing.close()
        terms = Terms(max_message=spec.max_message, node=node)
        protocol = NegotiationProtocol(
            terms,
            lambda transport, worker: Pipe(transport, self._reactor, terms, worker, self._tokens, self),
        )
        protocol.negotiated.addCallback(self._negotiated)
        protocol.lost.addCallback(lambda _: self._lost())
        # Twisted's own transport for UNIX sockets would look for file descriptors in each read.
        self._connection = Connection(ours, protocol, self._reactor)
        self._connection.connected = 1
        read_more_at_once(self._connection, True)
        self._connection.startReading()
        protocol.makeConnection(self._connection)  # type: ignore[no-untyped-call]

    def _negotiated(self, pipe: Pipe | None) -> None:
        if pipe is not None:
            self._pipe = pipe
            self.ready.callback(self)

    def _lost(self) -> None:
        """See to it that a process whose pipe is gone ends; one that was let go does so by itself, and soon."""
        if self.retired:
            self._kill_later.set(_SHUTDOWN_TIME)
        else:
            self.kill()

    @property
    def pipe(self) -> Pipe:
        """Where its requests go, once it is ready."""
        assert self._pipe is not None, "not ready"
        return self._pipe

    @property
    def room(self) -> int:
        """How many requests it may be given."""
        return 0 if self.retired or self._pipe is None else self._pipe.room

    def retire(self) -> None:
        """Let it finish what it has and end."""
        self.retired = True
        if self._pipe is None:
            self.kill()
        elif not self._pipe.given:
            self._pipe.close()

    def progressed(self) -> None:
        """Pass on that requests were answered."""
        if self.retired and not self.pipe.given:
            self.pipe.close()
        self._owner.progressed()

    def retiring(self) -> None:
        """Pass on that the worker asks to be replaced."""
        self._owner.retiring(self)

    @property
    def pid(self) -> int:
        """The process's id; 0 when it has ended."""
        return 0 if self.ended.called else self.transport.pid  # type: ignore[union-attr]

    def kill(self) -> None:
        """End it now, and with it what its handler started; see :mod:`uwsgitwisted.worker.reaper`."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def abandon(self) -> tuple[list[Job], list[Job]]:
        """Take the last answers of a process that has ended.

        :return: the requests that it had begun and not answered, and those that it had not begun.
        """
        while self._has_data() and self._connection.doRead() is None:
            pass
        begun: list[Job] = []
        unbegun: list[Job] = []
        if self._pipe is not None:
            begun, unbegun = self._pipe.abandon()
        else:
            self._connection.abortConnection()
        self._tokens.close()
        return begun, unbegun

    def _has_data(self) -> bool:
        try:
            return bool(self._connection.connected and self._connection.socket.recv(1, socket.MSG_PEEK))
        except OSError:  # nothing there; or the connection is broken, and nothing will be
            return False

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
        self._kill_later.clear()
        self.ended.callback(_how(reason))


def _how(reason: Failure) -> str:
    ended = reason.value
    if isinstance(ended, ProcessTerminated) and ended.signal is not None:
        return f"it was killed by {signal.Signals(ended.signal).name}"
    return f"it ended with status {getattr(ended, 'exitCode', 0)}"
