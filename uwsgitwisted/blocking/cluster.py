"""Many nodes as one, without Twisted.

    from uwsgitwisted import blocking

    cluster = blocking.Cluster(["10.0.0.5:3033", "10.0.0.6:3033"])
    for value in cluster.map(33, 17, items, progress=True):
        ...

:mod:`uwsgitwisted.planner` decides which node does what; this module does it, with one selector and no thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from threading import Lock
from typing import Any

from uwsgitwisted.address import Address
from uwsgitwisted.blocking import sessions
from uwsgitwisted.blocking.bar import Display, make_display
from uwsgitwisted.blocking.calls import refuse_in_reactor
from uwsgitwisted.blocking.lookups import Watch
from uwsgitwisted.blocking.run import Run
from uwsgitwisted.blocking.sockets import Deadline, describe
from uwsgitwisted.errors import ConnectionBroken, UwsgiError
from uwsgitwisted.planner.calls import Attempts, CallPlanner
from uwsgitwisted.planner.map import MapPlanner
from uwsgitwisted.planner.piece import OnError, Result, Sending
from uwsgitwisted.planner.progress import Progress
from uwsgitwisted.planner.settings import TARGET, Settings
from uwsgitwisted.sources.sources import Nodes
from uwsgitwisted.timeouts import check_timeout
from uwsgitwisted.wire.message import encode_request
from uwsgitwisted.wire.packet import MARSHAL, Packet

_log = logging.getLogger("uwsgitwisted.cluster")

Report = Callable[[Progress], object]


class Cluster:
    """Sends single messages and whole maps to whichever nodes will answer first.

    :param nodes: addresses; ``"@nodes.txt"`` for the nodes in a file, which may change; and names that stand
        for several nodes, such as ``"dns:farm.example.com:3033"`` or ``"srv:_uwsgi._tcp.example.com"``, which
        are looked up again and again. A single one needs no list.
    :raises MisuseError: if a node is invalid, or a file can't be read.
    """

    def __init__(self, nodes: Nodes) -> None:
        self._watch = Watch(nodes, _log.warning)
        self._lock = Lock()
        self._calls = CallPlanner()
        self._addresses: list[Address] = []
        self._nodes: set[Address] = set()

    @property
    def nodes(self) -> list[Address]:
        """The addresses of the nodes that are known now."""
        return list(self._watch.addresses)

    def send_message(
        self, modifier1: int, modifier2: int, message: object, timeout: float = 30, *, idempotent: bool = False
    ) -> object:
        """Send *message* to the node with the shortest expected wait, and return its answer.

        Several threads may call this; each has its own session with a node.

        :param modifier1: the kind of request, as for :func:`uwsgitwisted.blocking.send_message`.
        :param modifier2: a number from 0 to 255 that the handler gets.
        :param message: the content.
        :param timeout: seconds for everything, other nodes included.
        :param idempotent: whether the request may run twice; it is then tried elsewhere also if it may have
            been started.
        :raises Unavailable: if there is no node.
        :raises MisuseError: if the message can't be sent; nothing was sent then.
        :raises UwsgiError: the error of the last node, if the request can't be tried on another one, or three
            have failed.
        """
        refuse_in_reactor()
        packet = encode_request(modifier1, modifier2, message)
        deadline = Deadline.after(check_timeout(timeout))
        self._watch.refresh()
        until = time.monotonic() + deadline.left
        attempts = Attempts(self._calls, idempotent=idempotent, until=until)
        while True:
            with self._lock:
                self._update_calls()
                sending = attempts.begin(time.monotonic())
            outcome = self._send(sending, packet, deadline)
            if not isinstance(outcome, UwsgiError):
                return outcome
            attempts.failed(sending, outcome)

    def _send(self, sending: Sending, packet: Packet, deadline: Deadline) -> object:
        """Send a request to a node; return the answer or the error."""
        address: Any = sending.node
        outcome: object
        ended: BaseException | None = None
        try:
            outcome = sessions.call_fast(address, packet, deadline)
        except (UwsgiError, OSError) as error:
            # An error of the system may come from any step, so the node may have begun.
            outcome = ended = error if isinstance(error, UwsgiError) else ConnectionBroken(describe(error))
            outcome.address = outcome.address or address
            outcome.__traceback__ = None  # its frames would keep this thread's session open
        except BaseException as error:
            ended = error
            raise
        finally:
            with self._lock:
                self._calls.end(sending, time.monotonic(), error=ended)
        return outcome

    def _update_calls(self) -> None:
        addresses = self._watch.addresses
        if addresses is self._addresses:  # as nearly always
            return
        self._addresses = addresses
        nodes = set(addresses)
        for address in nodes - self._nodes:
            self._calls.add_node(address)
        for address in self._nodes - nodes:
            self._calls.remove_node(address)
        self._nodes = nodes

    def as_completed(
        self,
        modifier1: int,
        modifier2: int,
        items: Iterable[Any],
        timeout: float = 30,
        *,
        chunked: bool = False,
        chunk: int | None = None,
        target: float = TARGET,
        idempotent: bool = False,
        on_progress: Report | None = None,
        progress: bool = False,
    ) -> Iterator[Result]:
        """Send each item to a node, and yield a result for each as soon as it is there.

        Nothing is sent before the first result is asked for. When the iteration ends early, all that is in
        flight is withdrawn: at a ``break``, at an error, and at Ctrl-C.

        :param modifier1: the kind of request, as for :meth:`send_message`.
        :param modifier2: a number from 0 to 255 that the handler gets.
        :param items: what the handler gets, one by one. A generator is read only as far as the work has gone.
        :param timeout: seconds for each request. If no node is well for so long, the map ends with
            ``Unavailable``.
        :param chunked: whether the handler gets a list of items at once; of a ``range``, the bounds
            ``[start, stop]`` of a part, or ``[start, stop, step]`` if the step isn't 1. There is one result for
            each chunk.
        :param chunk: how many items a chunk has; None to size chunks by the time that they take. Without
            *chunked* it is how many items of modifier1 33 go in one request at most, though the handler gets
            them one by one; with None it is many if they are tiny.
        :param target: how long a chunk should take, in seconds.
        :param idempotent: whether an item may run twice. It is then tried elsewhere also if it may have been
            started, and toward the end idle nodes get copies of the oldest pieces.
        :param on_progress: called with the progress, ten times a second at most, and at the end.
        :param progress: whether to show the progress on the standard error: a bar if that is a terminal or a
            notebook and rich is installed (the extra ``progress``), else lines.
        :return: the results, each with the value or the error.
        :raises MisuseError: if the arguments don't fit together.
        """
        settings = Settings(
            ordered=False,
            chunked=chunked,
            bundled=modifier1 == MARSHAL,
            chunk=chunk,
            target=target,
            idempotent=idempotent,
            timeout=check_timeout(timeout),
        )
        return self._run(modifier1, modifier2, items, settings, on_progress, progress)

    def map(
        self,
        modifier1: int,
        modifier2: int,
        items: Iterable[Any],
        timeout: float = 30,
        *,
        chunked: bool = False,
        chunk: int | None = None,
        target: float = TARGET,
        idempotent: bool = False,
        on_error: OnError = "raise",
        on_progress: Report | None = None,
        progress: bool = False,
    ) -> Iterator[Any]:
        """Send each item to a node, and yield the answers in the order of the items.

        The other parameters are those of :meth:`as_completed`.

        :param on_error: ``"raise"`` raises the error of an item at its place, and withdraws all behind it;
            ``"return"`` yields the error, and goes on.
        :return: the answers.
        :raises MisuseError: if the arguments don't fit together.
        """
        settings = Settings(
            chunked=chunked,
            bundled=modifier1 == MARSHAL,
            chunk=chunk,
            target=target,
            idempotent=idempotent,
            on_error=on_error,
            timeout=check_timeout(timeout),
        )
        results = self._run(modifier1, modifier2, items, settings, on_progress, progress)
        return _values(results, on_error)

    def _run(
        self,
        modifier1: int,
        modifier2: int,
        items: Iterable[Any],
        settings: Settings,
        on_progress: Report | None,
        progress: bool,
    ) -> Generator[Result, None, None]:
        refuse_in_reactor()
        encode_request(modifier1, modifier2, None if modifier1 == MARSHAL else b"")

        def encode(message: object) -> Packet:
            return encode_request(modifier1, modifier2, message)

        # Checked now rather than with the first result.
        planner = MapPlanner(items, settings, time.monotonic(), encode)
        return self._results(planner, settings, encode, on_progress, progress)

    def _results(
        self,
        planner: MapPlanner,
        settings: Settings,
        encode: Callable[[object], Packet],
        on_progress: Report | None,
        progress: bool,
    ) -> Generator[Result, None, None]:
        display = make_display() if progress else None
        report = _both(on_progress, display)
        try:
            running = Run(self._watch, planner, encode, settings.timeout, settings.idempotent, report)
            yield from running.results()
        finally:
            if display is not None:
                display.close()


def _both(on_progress: Report | None, display: Display | None) -> Report | None:
    """Return what reports the progress to both."""
    if display is None:
        return on_progress
    if on_progress is None:
        return display.update

    def report(progress: Progress) -> None:
        on_progress(progress)
        display.update(progress)

    return report


def _values(results: Generator[Result, None, None], on_error: OnError) -> Iterator[Any]:
    with closing(results):  # at an error, the traceback would keep it open
        for result in results:
            yield result.value_or_error(on_error)
