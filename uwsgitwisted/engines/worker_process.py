"""One worker process, seen from the front: starts it, connects to it, logs its output and ends it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.tcp import Connection
from twisted.logger import Logger
from twisted.python.failure import Failure

from uwsgitwisted.activity import Activity, CacheCounts, Counts
from uwsgitwisted.engines.job import Job
from uwsgitwisted.engines.pipe import Pipe, Tokens
from uwsgitwisted.interfaces import IProcessReactor
from uwsgitwisted.transport.client.negotiation import NegotiationProtocol
from uwsgitwisted.transport.timer import Timer
from uwsgitwisted.transport.writer import read_more_at_once
from uwsgitwisted.wire.terms import STREAM_WINDOW, Terms
from uwsgitwisted.worker.spec import ACTIVITY_FD, SOCKET_FD, TOKENS_FD, WorkerSpec

#: A worker's output is logged by lines; a longer line is split into pieces of this size.
_MAX_LINE = 8_000
#: Seconds that a retired worker has to exit by itself after its pipe was closed.
_SHUTDOWN_TIME = 2.0
#: A line of a traceback that names a template: see :mod:`uwsgitwisted.worker.templates.lines`.
_TEMPLATE = re.compile(rb'  File "template:(.*)", line ([0-9]+)')


class WorkerOwner(Protocol):
    """Uses a worker process."""

    def on_progress(self) -> None:
        """Handle answered requests, or a worker that has capacity again."""

    def on_retiring(self, worker: WorkerProcess) -> None:
        """Replace *worker*, which has asked for it."""

    def on_report(self, error: Exception, peer: str) -> None:
        """Log that a request of *peer* has failed that a worker had accepted itself."""

    def on_transfer(self, worker: WorkerProcess, size: int) -> None:
        """See whether *worker* may go on sending its large answers, which have *size* bytes."""


class WorkerProcess(ProcessProtocol):
    """A worker process.

    :param reactor: starts it and keeps the time.
    :param worker_id: its number among the engine's workers, from 1.
    :param owner: is called when something happens to its requests.
    :param kind: what it is called in the log.
    """

    _log = Logger()

    def __init__(
        self, reactor: IProcessReactor, worker_id: int, owner: WorkerOwner, kind: str = "worker"
    ) -> None:
        self.worker_id = worker_id
        self.kind = kind
        #: Fires with this worker when it is ready for requests; never, if the process ends before that.
        self.ready: Deferred[WorkerProcess] = Deferred()
        #: Fires when the process has ended, with a text that says how.
        self.ended: Deferred[str] = Deferred()
        #: Whether it gets no further requests.
        self.retired = False
        #: Whether it is being killed.
        self.killed = False
        #: The template and the line where it was when it was killed, if it was in one and has told.
        self.place = ""
        self._traces = False
        self._reactor = reactor
        self._owner = owner
        self._tokens = Tokens()
        #: The pipe to it, as soon as it is ready.
        self.pipe: Pipe
        self._is_ready = False
        self._output: dict[int, bytes] = {}
        self._kill_later = Timer(reactor, self._end_retired)
        self._memory: Activity | None = None
        # The same, if requests are to be seen there while they run.
        self._activity: Activity | None = None
        #: What the process has counted, and the last warning and its time, as of its end.
        self._last_counts: list[Counts] = []
        self._last_signals = 0
        self._last_warning: tuple[float, bytes] = (0.0, b"")
        self._last_cache = CacheCounts()

    def spawn(self, spec: WorkerSpec, node: str, descriptors: Mapping[int, int] | None = None) -> None:
        """Start the process.

        :param spec: the handlers.
        :param node: the node's name, for error texts.
        :param descriptors: further descriptors for the process, by their numbers there.
        :raises OSError: if the system has no process or file descriptor left.
        """
        self._traces = spec.traces
        with contextlib.ExitStack() as opened:
            opened.callback(self._tokens.close)
            ours, theirs = map(opened.enter_context, socket.socketpair())
            nothing = opened.enter_context(open(os.devnull, "rb"))
            further = dict(descriptors or {})
            further[ACTIVITY_FD] = Activity.create()
            opened.callback(os.close, further[ACTIVITY_FD])
            self._memory = Activity(further[ACTIVITY_FD], spec.threads)
            self._activity = self._memory if spec.is_watched else None
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
                    **further,
                },
            )
            opened.pop_all()
        os.close(further[ACTIVITY_FD])
        theirs.close()
        nothing.close()
        terms = Terms(max_message=spec.max_message, node=node, window=STREAM_WINDOW)
        protocol = NegotiationProtocol(
            terms,
            lambda transport, worker: Pipe(
                transport, self._reactor, terms, worker, self._tokens, self, spec.threads
            ),
        )
        protocol.negotiated.addCallback(self._on_negotiated)
        protocol.lost.addCallback(lambda _: self._on_pipe_lost())
        # Twisted's own transport for UNIX sockets would check each read for file descriptors.
        self._connection = Connection(ours, protocol, self._reactor)
        self._connection.connected = 1
        read_more_at_once(self._connection, True)
        self._connection.startReading()
        protocol.makeConnection(self._connection)  # type: ignore[no-untyped-call]

    def _on_negotiated(self, pipe: Pipe | None) -> None:
        if pipe is not None:
            self.pipe = pipe
            self._is_ready = True
            self.ready.callback(self)

    def _on_pipe_lost(self) -> None:
        """End the process, whose pipe is closed. A retired one gets some time to exit by itself."""
        if self.retired:
            self._kill_later.set(_SHUTDOWN_TIME)
        else:
            self.kill()

    def _end_retired(self) -> None:
        """Kill a retired process that has not exited by itself, unless it still answers a request."""
        if self.accepted():
            self._kill_later.set(_SHUTDOWN_TIME)
        else:
            self.kill()

    def accepted(self, seconds: float = 0.0) -> int:
        """Return how many requests it runs that it has accepted itself.

        :param seconds: count those only that have not gone on for so long.
        """
        return 0 if self._activity is None else self._activity.accepted(seconds)

    def overdue(self, seconds: float) -> list[int]:
        """Return the ids of the requests that have not gone on for *seconds*, for which no peer is to blame.

        The id of a request that the worker has accepted itself is 0. The requests of the front count only in a
        worker with threads.
        """
        return [] if self._activity is None else self._activity.overdue(seconds)

    def overdue_peers(self, seconds: float) -> list[str]:
        """Return whose requests they are that the worker has accepted itself, and that are overdue."""
        return [] if self._activity is None else self._activity.overdue_peers(seconds)

    @property
    def working_for(self) -> float:
        """For how many seconds such a request has not gone on; the longest, or 0."""
        return 0.0 if self._activity is None else self._activity.working_for

    @property
    def counts(self) -> list[Counts]:
        """What each of its threads has counted."""
        return self._last_counts if self._memory is None else self._memory.counts()

    @property
    def worker_pid(self) -> int:
        """The id of the process that runs the handlers, below that of the reaper; 0 if there is none."""
        return 0 if self._memory is None else self._memory.pid

    @property
    def signals(self) -> int:
        """How many of the requests that it has counted are signals."""
        return self._last_signals if self._memory is None else self._memory.signals

    @property
    def warning(self) -> tuple[float, bytes]:
        """When a handler there has set a warning, and the warning."""
        return self._last_warning if self._memory is None else self._memory.warning()

    @property
    def cache(self) -> CacheCounts:
        """The figures of its result cache."""
        return self._last_cache if self._memory is None else self._memory.cache()

    @property
    def capacity(self) -> int:
        """How many more requests it can be assigned when it is ready."""
        return 0 if self.retired else self.pipe.capacity

    def retire(self) -> None:
        """Assign it nothing more, and end it when its last request is answered."""
        self.retired = True
        if self._memory is not None:
            self._memory.retire()
        if not self._is_ready:
            self.kill()
        elif not self.pipe.in_flight:
            self.pipe.close()
        else:
            self.pipe.stop_accepting()  # it may have threads that are free

    def on_progress(self) -> None:
        """Close the pipe of a retired worker that has finished, and call the owner."""
        if self.retired and not self.pipe.in_flight:
            self.pipe.close()
        self._owner.on_progress()

    def on_retiring(self) -> None:
        """Have the owner replace this worker, which has asked for it."""
        self._owner.on_retiring(self)

    def on_report(self, error: Exception, peer: str) -> None:
        """Have the owner log an error."""
        self._owner.on_report(error, peer)

    def on_transfer(self, size: int) -> None:
        """Tell the owner how much of large answers the worker is sending."""
        self._owner.on_transfer(self, size)

    def set_reading(self, reading: bool) -> None:
        """Read from the worker, or stop for now, so that it waits in its write."""
        if self._connection.connected:
            if reading:
                self._connection.startReading()
            else:
                self._connection.stopReading()

    @property
    def pid(self) -> int:
        """The process id; 0 after the process has ended."""
        return 0 if self.ended.called else self.transport.pid  # type: ignore[union-attr]

    def kill(self, *, trace: bool = False) -> None:
        """Kill the process and all that its handler started; see :mod:`uwsgitwisted.worker.reaper`.

        :param trace: whether it first logs where it is, if it was started so.
        """
        self.killed = True
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGUSR1 if trace and self._traces else signal.SIGTERM)

    def take_unfinished(self) -> tuple[list[Job], list[Job]]:
        """Read the last answers of a process that has ended, and take its unanswered requests.

        :return: the requests that it had started, and those that it had not.
        """
        while self.has_data and self._connection.doRead() is None:
            pass
        if self.killed and self._traces:
            self._read_output()
        started: list[Job] = []
        unstarted: list[Job] = []
        if self._is_ready:
            started, unstarted = self.pipe.take_unfinished()
        else:
            self._connection.abortConnection()
        self._tokens.close()
        return started, unstarted

    @property
    def has_data(self) -> bool:
        """Whether bytes of it wait to be read: an answer, for which the reactor had no time yet, or no room."""
        try:
            return bool(self._connection.connected and self._connection.socket.recv(1, socket.MSG_PEEK))
        except OSError:  # there is no data; or the connection is broken, and none will come
            return False

    def _read_output(self) -> None:
        """Read what the process has written last; the reactor may not have come to that."""
        pipes = getattr(self.transport, "pipes", {})
        for number in (1, 2):
            if number in pipes:
                pipes[number].doRead()

    def childDataReceived(self, childFD: int, data: bytes) -> None:  # noqa: N803
        """Log a handler's output, line by line."""
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
        # A traceback of faulthandler has the innermost line first.
        if self.killed and not self.place and (where := _TEMPLATE.match(line)):
            self.place = f"template {where[1].decode('ascii', 'replace')!r}, line {int(where[2])}"
        self._log.info(
            "[{kind} {id}] {line}", kind=self.kind, id=self.worker_id, line=line.decode("utf-8", "replace")
        )

    def processExited(self, reason: Failure) -> None:
        """Fire ``ended`` with how the process ended."""
        self._kill_later.clear()
        if self._memory is not None:
            self._last_counts, self._last_warning, self._last_cache = self.counts, self.warning, self.cache
            self._last_signals = self.signals
            self._memory.close()
            self._memory = self._activity = None
        self.ended.callback(_describe_exit(reason))


def _describe_exit(reason: Failure) -> str:
    ended = reason.value
    if isinstance(ended, ProcessTerminated) and ended.signal is not None:
        return f"it was killed by {signal.Signals(ended.signal).name}"
    return f"it ended with status {getattr(ended, 'exitCode', 0)}"
