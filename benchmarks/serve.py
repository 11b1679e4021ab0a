"""The servers of the peers: ``python -m benchmarks.serve NAME PORT``."""

from __future__ import annotations

import marshal
import socket
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.drivers.framing import receive, send
from benchmarks.processes import HOST


def _set_nodelay(transport: Any) -> None:
    transport.setTcpNoDelay(True)


def bare(port: int) -> None:
    """Twisted without a protocol: each chunk is an object, and is echoed; the connection stays open."""
    _serve_chunks(port, keep=True)


def bare_plain(port: int) -> None:
    """The same with one connection per request, in uwsgi's framing."""
    _serve_chunks(port, keep=False)


def _serve_chunks(port: int, *, keep: bool) -> None:
    from twisted.internet.protocol import Protocol

    class Chunks(Protocol):
        def connectionMade(self) -> None:
            _set_nodelay(self.transport)

        def dataReceived(self, data: bytes) -> None:
            head, body = (b"", data) if keep else (data[:4], data[4:])
            transport: Any = self.transport
            transport.writeSomeData(head + marshal.dumps(marshal.loads(body), 2))
            if not keep:
                transport.loseConnection()

    _serve_twisted(port, Chunks)


def _serve_twisted(port: int, protocol: Any) -> None:
    from twisted.internet import reactor
    from twisted.internet.protocol import Factory

    listening: Any = reactor
    listening.listenTCP(port, Factory.forProtocol(protocol), backlog=1_024, interface=HOST)
    listening.run()


def amp(port: int) -> None:
    """Twisted's AMP, with a marshalled object in a String."""
    from twisted.protocols.amp import AMP

    from benchmarks.drivers.amp import Echo

    class Server(AMP):
        @Echo.responder
        def echo(self, data: bytes) -> dict[str, bytes]:
            return {"data": marshal.dumps(marshal.loads(data))}

        def connectionMade(self) -> None:
            super().connectionMade()  # type: ignore[no-untyped-call]
            _set_nodelay(self.transport)

    _serve_twisted(port, Server)


def pyro_thread(port: int) -> None:
    """Pyro5 with a thread for each connection."""
    _serve_pyro(port, "thread")


def pyro_multiplex(port: int) -> None:
    """Pyro5 with one thread for all connections."""
    _serve_pyro(port, "multiplex")


def _serve_pyro(port: int, kind: str) -> None:
    import Pyro5.api

    @Pyro5.api.expose
    class Echo:
        def echo(self, message: object) -> object:
            return message

    Pyro5.config.SERVERTYPE = kind
    Pyro5.config.THREADPOOL_SIZE = 200  # no thread waits for another's connection to end
    with Pyro5.api.Daemon(host=HOST, port=port) as daemon:
        daemon.register(Echo, objectId="echo")
        daemon.requestLoop()


def marshal_socket(port: int) -> None:
    """Marshal over a blocking socket, after the size: the lower bound of the cost of large objects."""
    with socket.create_server((HOST, port)) as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                while (data := receive(connection)) is not None:
                    send(connection, marshal.dumps(marshal.loads(data), 2))


_SERVERS: dict[str, Callable[[int], None]] = {
    "bare": bare,
    "bare_plain": bare_plain,
    "amp": amp,
    "pyro_thread": pyro_thread,
    "pyro_multiplex": pyro_multiplex,
    "marshal_socket": marshal_socket,
}

if __name__ == "__main__":
    _SERVERS[sys.argv[1]](int(sys.argv[2]))
