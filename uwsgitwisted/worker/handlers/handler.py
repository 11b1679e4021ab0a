"""What a table of handlers holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uwsgitwisted.errors import UwsgiError
from uwsgitwisted.wire.failure import describe
from uwsgitwisted.wire.packet import Packet


def _as_it_is(request: Packet) -> Packet:
    return request


@dataclass(frozen=True, slots=True)
class Handler:
    """Runs the requests of one modifier1, in three steps.

    They are apart for an engine in which a function may return a coroutine or a Deferred, and so that what
    can't be read is the fault of who sent it, not of the user's function.

    :param run: calls the user's function with what was read, and returns what that returns.
    :param answer: makes the answer to the request of it.
    :param read: decodes a request; its errors of ours are told as they are.
    """

    run: Callable[[Any], object]
    answer: Callable[[Packet, object], Packet]
    read: Callable[[Packet], Any] = _as_it_is

    def __call__(self, request: Packet, node: str = "") -> Packet:
        """Do all three, and return the answer.

        :param node: which node and worker this is.
        :raises UwsgiError: if the request can't be read.
        :raises RemoteError: if anything else went wrong. Its cause is the exception; also one of ours is
            described as the function's own: the Busy of a node that it asked must not be taken for this one's.
        """
        try:
            value = self.read(request)
        except UwsgiError:
            raise
        except Exception as error:
            raise describe(error, node=node) from error
        try:
            return self.answer(request, self.run(value))
        except (Exception, SystemExit) as error:  # sys.exit() ends the request, not the worker
            raise describe(error, node=node) from error
