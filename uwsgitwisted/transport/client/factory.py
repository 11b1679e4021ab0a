"""Gives an endpoint the protocol of the connection that it makes."""

from __future__ import annotations

from typing import Generic, TypeVar

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol

P = TypeVar("P", bound=Protocol)


class SingleFactory(Factory, Generic[P]):
    """The factory of one connection; it logs nothing.

    :param protocol: the connection's.
    """

    noisy = False

    def __init__(self, protocol: P) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: IAddress | None) -> P:
        """Return the protocol."""
        return self._protocol
