"""Bundles (modifier1 35): runs the handler of objects for each object of a bundle, one after another."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic

from uwsgitwisted.errors import MessageTooLarge, UwsgiError
from uwsgitwisted.wire.bundle import (
    OUTCOME_HEAD,
    decode_bundle,
    encode_error,
    encode_outcomes,
    encode_value,
)
from uwsgitwisted.wire.failure import encode_failure
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.wire.terms import MAX_MESSAGE
from uwsgitwisted.worker.handlers.handler import Handler
from uwsgitwisted.worker.recycling import ran_out_of_memory

#: After so many seconds, or so many bytes of outcomes, no further object is begun. Its caller sends it again,
#: to whichever worker is free, so an object that takes long doesn't hold up those behind it.
MAX_TIME, ENOUGH_BYTES = 0.1, 65_536


@dataclass(frozen=True, slots=True)
class BundleHandler(Handler):
    """The handler of objects, for bundles of them.

    :param limit: how many bytes an answer may have.
    """

    limit: int = MAX_MESSAGE

    @classmethod
    def of(cls, handler: Handler, limit: int) -> BundleHandler:
        """Return what runs *handler*, which answers single objects."""
        return cls(handler.run, handler.answer, handler.read, limit=limit)

    def __call__(self, request: Packet, node: str = "") -> Packet:
        """Run the handler for the objects of *request*, and return the outcomes.

        A failure is the outcome of its object. The answer has fewer outcomes than there are objects if time or
        bytes have run out; without memory, what is left is not begun either.

        :raises MalformedPacket: if it is no bundle.
        """
        until = monotonic() + MAX_TIME
        size, outcomes = 0, []
        for each in decode_bundle(request):
            failure = None
            try:
                outcome = encode_value(self._run(each, node, self.limit - size))
            except UwsgiError as error:
                outcome, failure = encode_error(encode_failure(error)), error
            outcomes.append(outcome)
            size += len(outcome)
            if size >= ENOUGH_BYTES or monotonic() >= until or (failure and ran_out_of_memory(failure)):
                break
        return encode_outcomes(request, outcomes)

    def _run(self, request: Packet, node: str, room: int) -> bytes:
        """Return the answer to one object.

        :raises MessageTooLarge: if the answer has no room for it.
        """
        payload = Handler.__call__(self, request, node).payload  # super() finds no class with slots
        size = OUTCOME_HEAD + len(payload)
        if size > room:
            text = f"an answer of {size} bytes in a bundle; there is room for {room}"
            raise MessageTooLarge(text, size=size, limit=room)
        return payload
