"""The types of the entries in a table of handlers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from uwsgitwisted.errors import UwsgiError
from uwsgitwisted.wire.failure import describe
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.worker.compat.requests import requests
from uwsgitwisted.worker.exchange import AnyExchange


def _unchanged(request: Packet) -> Packet:
    return request


def _nothing(exchange: AnyExchange) -> None:
    return None


def _unlogged(request: Packet, status: HTTPStatus, size: int) -> None:
    return None


@dataclass(frozen=True, slots=True)
class StreamHandler:
    """Runs the requests of one modifier1, whose bodies and answers may be streams.

    :param serve: answers the request of an exchange, which it gets with what *read* returned.
    :param read: decodes the request. Callers get its :class:`UwsgiError` exceptions unchanged.
    :param refused: is told of a request that could not be decoded, and that the worker has answered itself:
        with which status, and how many bytes of a body.
    """

    serve: Callable[[AnyExchange, Any], None]
    read: Callable[[AnyExchange], Any] = _nothing
    refused: Callable[[Packet, HTTPStatus, int], None] = _unlogged

    def __call__(self, exchange: AnyExchange, node: str = "") -> None:
        """Answer the request.

        :param node: the name of this node and worker.
        :raises UwsgiError: if the request can't be decoded; the answer has not begun.
        :raises RemoteError: if anything else fails. Its cause is the exception, as for a :class:`Handler`.
        """
        value = self.read(exchange)
        requests.begin()
        try:
            self.serve(exchange, value)
        except (Exception, SystemExit) as error:
            raise describe(error, node=node) from error
        finally:
            requests.end()


@dataclass(frozen=True, slots=True)
class Handler:
    """Runs the requests of one modifier1, in three steps.

    The steps are separate for two reasons: in some engines the user's function may return a coroutine or a
    Deferred; and an error in decoding is the sender's fault, not the function's.

    :param run: calls the user's function with the decoded request, and returns its result.
    :param answer: encodes the result as the answer to the request.
    :param read: decodes a request. Callers get its :class:`UwsgiError` exceptions unchanged.
    :param streams: what answers instead, by modifier2, in an engine that has streams.
    """

    run: Callable[[Any], object]
    answer: Callable[[Packet, object], Packet]
    read: Callable[[Packet], Any] = _unchanged
    streams: Mapping[int, StreamHandler] = field(default_factory=dict)

    def __call__(self, request: Packet, node: str = "") -> Packet:
        """Do all three steps, and return the answer.

        :param node: the name of this node and worker.
        :raises UwsgiError: if the request can't be decoded.
        :raises RemoteError: if anything else fails. Its cause is the exception. An error of this package that
            the function raises is described in the same way: the Busy of a node that the function called must
            not look like this node's own.
        """
        try:
            value = self.read(request)
        except UwsgiError:
            raise
        except Exception as error:
            raise describe(error, node=node) from error
        requests.begin()
        try:
            return self.answer(request, self.run(value))
        except (Exception, SystemExit) as error:  # sys.exit() ends the request, not the worker
            raise describe(error, node=node) from error
        finally:
            requests.end()
