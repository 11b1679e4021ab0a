"""Where services listen, and what they say when they can't."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactor

from uwsgitwisted.errors import StartupError
from uwsgitwisted.services.listening import listen, on_loopback, stop_listening
from uwsgitwisted.transport.writer import RECEIVE_BUFFER


@pytest.mark.parametrize(
    ("given", "opened"),
    [
        ("tcp:3033", "tcp:3033:interface=127.0.0.1"),
        ("tcp:port=3033", "tcp:port=3033:interface=127.0.0.1"),
        ("tcp:3033:backlog=5", "tcp:3033:backlog=5:interface=127.0.0.1"),
        ("tcp:3033:interface=10.0.0.5", "tcp:3033:interface=10.0.0.5"),
        ("tcp:3033:10.0.0.5", "tcp:3033:10.0.0.5"),
        ("tcp6:3033", "tcp6:3033:interface=\\:\\:1"),
        ("tcp6:3033:interface=\\:\\:", "tcp6:3033:interface=\\:\\:"),
        ("ssl:3033:privateKey=k.pem", "ssl:3033:privateKey=k.pem:interface=127.0.0.1"),
        ("TCP6:3033", "TCP6:3033:interface=\\:\\:1"),
        ("Tcp:3033", "Tcp:3033:interface=127.0.0.1"),
        ("unix:/run/node.sock", "unix:/run/node.sock"),
        ("systemd:domain=INET:index=0", "systemd:domain=INET:index=0"),
    ],
)
def test_loopback(given: str, opened: str) -> None:
    """An internet port is on loopback, unless an interface is named."""
    assert on_loopback(given) == opened


@pytest.mark.parametrize(
    ("given", "interface"), [("tcp:3033", "127.0.0.1"), ("tcp6:3033", "::1"), ("TCP6:3033", "::1")]
)
def test_what_twisted_makes_of_it(given: str, interface: str) -> None:
    """Twisted reads our addition as we mean it."""
    reactor = MemoryReactor()
    serverFromString(reactor, on_loopback(given)).listen(Factory())
    assert reactor.tcpServers[0][3] == interface


def test_proxies() -> None:
    """An endpoint on which it isn't known who calls is refused, with the reason."""
    for description in ("haproxy:tcp:3033", "HAProxy:unix:/run/node.sock"):
        with pytest.raises(StartupError, match="would see the proxy"):
            listen(MemoryReactor(), description, Factory())


@pytest.mark.parametrize(
    ("given", "mode"), [("", 0o660), (":mode=600", 0o600), (":666", 0o666), (":lockfile=0", 0o660)]
)
@pytest_twisted.ensureDeferred
async def test_who_may_use_a_unix_socket(given: str, mode: int, tmp_path: Path) -> None:
    """A UNIX socket is for its owner and group, if nothing else is said."""
    path = tmp_path / "socket"
    listener = listen(reactor, f"unix:{path}{given}", Factory())
    try:
        assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        await Deferred.fromCoroutine(stop_listening([listener]))


def test_listen_and_stop() -> None:
    """A port is opened, and closed again."""
    reactor = MemoryReactor()
    listener = listen(reactor, "tcp:3033", Factory())
    assert listener.description == "tcp:3033"
    assert reactor.tcpServers[0][0] == 3_033
    stopped = Deferred.fromCoroutine(stop_listening([listener]))
    assert stopped.called


@pytest.mark.parametrize("description", ["nonsense", "bogus:1", "tcp:abc", "tcp", "tcp:1:bogus=2"])
def test_no_endpoint(description: str) -> None:
    """What is no endpoint's description stops the service, with the option that said it."""
    with pytest.raises(StartupError) as caught:
        listen(MemoryReactor(), description, Factory())
    assert str(caught.value).startswith(f"--listen {description}: ")


@pytest.mark.parametrize("error", [ImportError("ssl"), NameError("ssl"), OSError("no such file")])
def test_tls(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """So does a certificate that isn't there, or TLS as a whole, saying what to install."""

    def refuse(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("uwsgitwisted.services.listening.serverFromString", refuse)
    with pytest.raises(StartupError) as caught:
        listen(MemoryReactor(), "ssl:3033", Factory())
    assert ("uwsgitwisted[tls]" in str(caught.value)) is not isinstance(error, OSError)


class FullReactor(MemoryReactor):
    """Opens nothing."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def listenTCP(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
        raise self._error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (CannotListenError("", 3_033, OSError(98, "Address already in use")), "Address already in use"),
        (CannotListenError("", 3_033, OSError("in use")), "in use"),
        (OverflowError("port must be 0-65535"), "port must be 0-65535"),
    ],
)
def test_port_in_use(error: Exception, text: str) -> None:
    """A port that can't be opened stops the service, saying why and what to do."""
    with pytest.raises(StartupError) as caught:
        listen(FullReactor(error), "tcp:3033", Factory())
    assert str(caught.value).startswith(f"can't listen on tcp:3033: {text}. ")
    assert "--listen" in str(caught.value)


def test_stop_what_could_not_be_opened() -> None:
    """A port that failed later is no obstacle when the service stops."""
    reactor = MemoryReactor()
    listener = listen(reactor, "tcp:3033", Factory())
    listener.port.addCallback(lambda _: None)
    assert Deferred.fromCoroutine(stop_listening([listener])).called


@pytest.mark.integration
@pytest_twisted.ensureDeferred
async def test_what_connections_inherit() -> None:
    """A connection has TCP_NODELAY from its first byte on, and a bounded buffer."""
    listener = listen(reactor, "tcp:0:interface=127.0.0.1", Factory())
    port = await listener.port
    with socket.create_connection(port.socket.getsockname()):
        accepted, _ = port.socket.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            # Linux keeps the doubled value; the system's own limit may be lower.
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) <= 2 * RECEIVE_BUFFER
    listener.port.addCallback(lambda _: port)
    await stop_listening([listener])
