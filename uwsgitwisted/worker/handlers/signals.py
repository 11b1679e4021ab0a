"""Signals (modifier1 110): calls the function that the handler module has registered for a number.

They come from the front, which decides who may raise one.
"""

from __future__ import annotations

from uwsgitwisted.activity import NOTICE
from uwsgitwisted.wire.packet import SIGNAL, Packet
from uwsgitwisted.worker.compat.signals import SignalFunction, find_function
from uwsgitwisted.worker.handlers.handler import Handler


def table() -> dict[int, Handler]:
    """Return the handler of signals, by modifier1."""
    return {SIGNAL: Handler(_run, _answer, _read)}


def _read(request: Packet) -> tuple[SignalFunction, int]:
    return find_function(request.modifier2), request.modifier2


def _run(message: tuple[SignalFunction, int]) -> object:
    function, number = message
    try:
        return function(number)
    finally:
        NOTICE.count_signal()  # at the end, as the worker counts what it has run


def _answer(request: Packet, result: object) -> Packet:
    return request
