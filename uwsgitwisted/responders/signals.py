"""Modifier1 110: raises a signal of uWSGI's for a peer, with modifier2 as its number.

A signal runs a function of the handler module, perhaps in every worker. So only peers of the networks that the
service's owner has named may raise one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twisted.logger import Logger
from zope.interface import implementer

from uwsgitwisted.access import Network, Peer
from uwsgitwisted.interfaces import IResponder, Request
from uwsgitwisted.transport.reports import Reports
from uwsgitwisted.wire.packet import NO, YES, Packet


@implementer(IResponder)
class SignalResponder:
    """Answers as uWSGI does: yes, or no.

    :param networks: whose peers may raise signals; nobody may, if there are none. Otherwise so may peers on a
        UNIX socket: the file's permissions decide who connects to it.
    :param fire: raises a signal for a peer, and returns whether it was taken.
    """

    _log = Logger()

    def __init__(self, networks: Iterable[Network], fire: Callable[[int, Peer], bool]) -> None:
        self._networks = tuple(networks)
        self._fire = fire
        self._reports = Reports(self._log)

    def respond(self, request: Request) -> Packet:
        """Raise a signal, and return the answer. A payload is ignored, as in uWSGI."""
        number = request.packet.modifier2
        if not self._networks or not request.peer.is_allowed(self._networks):
            line = "{peer}: signal {number} is refused; --signals-from says who may raise signals"
            self._reports.report("signal", line, peer=request.peer, number=number)
            return NO
        return YES if self._fire(number, request.peer) else NO
