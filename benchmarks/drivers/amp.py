"""Twisted's AMP with many requests in flight."""

from __future__ import annotations

import marshal
from typing import Any

from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.protocols.amp import AMP, Command, String

from benchmarks.drivers.pace import in_flight, react
from benchmarks.messages import SMALL


class Echo(Command):
    """Sends back a marshalled object."""

    arguments = [(b"data", String())]  # noqa: RUF012 - Twisted's form
    response = [(b"data", String())]  # noqa: RUF012


def run(port: int, seconds: float) -> float:
    """Return calls a second."""

    async def main(reactor: Any) -> float:
        protocol = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port), AMP())
        protocol.transport.setTcpNoDelay(True)

        def ask() -> Any:
            answer = protocol.callRemote(Echo, data=marshal.dumps(SMALL))
            return answer.addCallback(lambda box: marshal.loads(box["data"]))

        return await in_flight(ask, seconds)

    rate: float = react(main)
    return rate
