"""Ports from which idle workers take web requests themselves, and the front what they leave.

An idle worker accepts a connection, and answers a small web request on it, or hands the connection over (see
:mod:`uwsgitwisted.worker.accepting`). While all workers are busy, nobody would accept, and a ping would wait.
So the front looks at the ports from time to time. If connections wait, and every worker has been busy with one
request for a while, it accepts them itself, as it does for a service without web applications.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace

from twisted.internet.interfaces import IReactorTime
from twisted.internet.tcp import Port

from uwsgitwisted.transport.server.handoff import Handoff
from uwsgitwisted.transport.timer import Timer
from uwsgitwisted.worker.spec import HANDOFF_FD, LISTENER_FD, MAX_PORTS, Accepting

#: For how many seconds Linux holds a connection on which nothing has arrived. Otherwise a worker often accepts
#: one before its request is there, and hands it over.
_DEFERRED = 1
#: Seconds between two looks at the ports and at the workers.
INTERVAL = 0.01


def can_share() -> bool:
    """Whether the system has what sharing ports needs, which is Linux."""
    return hasattr(select, "epoll") and hasattr(os, "memfd_create")


class SharedPorts:
    """The ports that the front shares with its workers.

    :param clock: for the looks.
    :param handoff: takes the connections that the workers hand over.
    :param ports: the ports, at most :data:`~uwsgitwisted.worker.spec.MAX_PORTS`.
    :param accepting: what the workers are told, but for the number of ports.
    """

    def __init__(
        self,
        clock: IReactorTime,
        handoff: Handoff,
        ports: Sequence[Port],
        accepting: Accepting,
    ) -> None:
        self._ports = ports[:MAX_PORTS]
        self._handoff = handoff
        self._timer = Timer(clock, self._look)
        self._poll = select.poll()
        self._by_descriptor = {port.socket.fileno(): port for port in self._ports}
        self._on_look: Callable[[], bool] = lambda: True
        #: What the workers are told.
        self.accepting = replace(accepting, ports=len(self._ports))
        #: The descriptors that a worker gets, by the numbers that they have there.
        self.descriptors = {
            HANDOFF_FD: handoff.descriptor,
            **{LISTENER_FD + number: descriptor for number, descriptor in enumerate(self._by_descriptor)},
        }

    def start(self, on_look: Callable[[], bool]) -> None:
        """Leave the ports to the workers.

        :param on_look: called at each look; returns whether the front should accept what waits.
        """
        self._on_look = on_look
        for descriptor, port in self._by_descriptor.items():
            port.stopReading()
            if port.socket.family != socket.AF_UNIX:
                port.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, _DEFERRED)
            self._poll.register(descriptor, select.POLLIN)
        self._handoff.start()
        self._timer.set(INTERVAL)

    def stop(self) -> None:
        """Look no more."""
        self._timer.clear()
        self._handoff.stop()

    def _look(self) -> None:
        self._timer.set(INTERVAL)
        if self._on_look():
            for descriptor, _ in self._poll.poll(0):
                port = self._by_descriptor[descriptor]
                if port.connected:  # it is still open
                    port.doRead()
