"""Dispatch of requests to responders."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from twisted.internet.defer import Deferred
from zope.interface import implementer

from tests.unit.peers import peer_at
from uwsgitwisted.errors import UnknownModifier
from uwsgitwisted.interfaces import IResponder, Reply, Request
from uwsgitwisted.responders.dispatch import Dispatcher
from uwsgitwisted.wire.packet import Packet

TOLD = Packet(33, 0, b"told")


@implementer(IResponder)
class Responder:
    def __init__(self, respond: Callable[[Request], Reply]) -> None:
        self.respond = respond  # type: ignore[method-assign,assignment]

    def respond(self, request: Request) -> Reply:
        raise NotImplementedError


def dispatcher(respond: Callable[[Request], Reply]) -> Dispatcher:
    return Dispatcher({33: Responder(respond), 17: Responder(lambda _: TOLD)})


def ask(modifier1: int) -> Request:
    return Request(Packet(modifier1, 0), peer_at("192.0.2.7", 40001))


def test_answer() -> None:
    """The responder of the request's modifier1 answers."""
    later: Deferred[Packet] = Deferred()
    chosen = dispatcher(lambda _: later)
    assert chosen.respond(ask(33)) is later
    assert chosen.respond(ask(17)) == TOLD


def test_unknown_modifier() -> None:
    """An unknown modifier1 is refused; the error names the known ones."""
    with pytest.raises(UnknownModifier) as caught:
        dispatcher(lambda _: TOLD).respond(ask(173))
    assert caught.value.modifier1 == 173
    assert "17, 33" in str(caught.value)
