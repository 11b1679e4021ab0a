"""Where services listen, and their errors when they can't."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from socket import gaierror

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactor, MemoryReactorClock, StringTransport
from twisted.internet.threads import deferToThread

from uwsgitwisted.address import parse_address
from uwsgitwisted.errors import StartupError
from uwsgitwisted.services.listening import (
    check_endpoint,
    hold_no_connections,
    listen,
    on_loopback,
    opened_port,
    own_address,
    refuse_new_connections,
    stop_listening,
)
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
        (r"tcp:3033:back\log=5", r"tcp:3033:back\log=5:interface=127.0.0.1"),
        (r"tcp:3033:inter\face=10.0.0.5", r"tcp:3033:inter\face=10.0.0.5"),
        (r"tcp:3033:backlog=5\:interface=x", r"tcp:3033:backlog=5\:interface=x:interface=127.0.0.1"),
        (r"tcp:3033:x\=1", r"tcp:3033:x\=1"),
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


def test_a_backslash_at_the_end() -> None:
    """A description that Twisted can't read is refused with the reason."""
    with pytest.raises(ValueError, match="a backslash that escapes nothing"):
        check_endpoint("tcp:3033\\")


def test_proxies() -> None:
    """An endpoint that hides the peers' addresses is refused, with the reason."""
    for description in ("haproxy:tcp:3033", "HAProxy:unix:/run/node.sock"):
        with pytest.raises(StartupError, match="would see the proxy"):
            listen(MemoryReactor(), description, Factory())


@pytest.mark.parametrize(
    ("given", "mode"), [("", 0o660), (":mode=600", 0o600), (":666", 0o666), (":lockfile=0", 0o660)]
)
@pytest_twisted.ensureDeferred
async def test_who_may_use_a_unix_socket(given: str, mode: int, tmp_path: Path) -> None:
    """A UNIX socket is for its owner and group by default."""
    path = tmp_path / "socket"
    listener = listen(reactor, f"unix:{path}{given}", Factory())
    try:
        assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        await Deferred.fromCoroutine(stop_listening(reactor, [listener]))


def test_listen_and_stop() -> None:
    """A port is opened, and closed again."""
    reactor = MemoryReactorClock()
    listener = listen(reactor, "tcp:3033", Factory())
    assert listener.description == "tcp:3033"
    assert reactor.tcpServers[0][0] == 3_033
    stopped = Deferred.fromCoroutine(stop_listening(reactor, [listener]))
    assert stopped.called


@pytest.mark.parametrize("description", ["nonsense", "bogus:1", "tcp:abc", "tcp", "tcp:1:bogus=2"])
def test_no_endpoint(description: str) -> None:
    """An invalid endpoint description stops the service; the error names the option."""
    with pytest.raises(StartupError) as caught:
        listen(MemoryReactor(), description, Factory())
    assert str(caught.value).startswith(f"--listen {description}: ")


@pytest.mark.parametrize("error", [ImportError("ssl"), NameError("ssl"), OSError("no such file")])
def test_tls(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing certificate stops it too; if TLS is missing, the error says what to install."""

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

    def listenUNIX(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
        raise self._error


def _failed(cause: object) -> CannotListenError:
    return CannotListenError("", 0, cause)


def _error(number: int) -> CannotListenError:
    return _failed(OSError(number, os.strerror(number)))


HERE = os.getcwd()


@pytest.mark.parametrize(
    ("description", "error", "reason", "advice"),
    [
        ("tcp:3033", _error(errno.EADDRINUSE), "Address already in use", "Stop the service"),
        ("tcp:80", _error(errno.EACCES), "Permission denied", "below 1024"),
        ("tcp:80", _error(errno.EPERM), "Operation not permitted", "below 1024"),
        ("tcp:1:interface=10.9.9.9", _error(errno.EADDRNOTAVAIL), "Cannot assign requested", "of this machine"),
        ("tcp:1:interface=here", _failed(gaierror(-2, "not known")), "not known", "of this machine"),
        ("tcp6:3033", _error(errno.EAFNOSUPPORT), "Address family", "no IPv6"),
        ("tcp:99999", OverflowError("port must be 0-65535."), "port must be 0-65535", "from 0 to 65535"),
        ("unix:/run/x", _error(errno.EADDRINUSE), "Address already in use", "what is at /run/x"),
        ("unix:/run/x", _failed("Cannot acquire lock"), "Cannot acquire lock", "/run/x.lock"),
        ("unix:address=/a/x", _error(errno.ENOENT), "No such file", "Create the directory /a,"),
        ("unix:x", OSError(errno.ENOENT, "No such file"), "No such file", f"Create the directory {HERE},"),
        ("unix:/a/x", _error(errno.ENOTDIR), "Not a directory", "/a is not a directory"),
        ("unix:/a/x", _error(errno.EACCES), "Permission denied", "create files in /a"),
        ("unix:/a/x", _error(errno.EROFS), "Read-only file system", "create files in /a"),
        ("unix:/x", _failed(OSError("AF_UNIX path too long")), "AF_UNIX path", "a shorter path"),
    ],
)  # fmt: skip
def test_why_not(description: str, error: Exception, reason: str, advice: str) -> None:
    """A port that can't be opened stops the service, with the reason and advice for it."""
    with pytest.raises(StartupError) as caught:
        listen(FullReactor(error), description, Factory())
    text = str(caught.value)
    assert text.startswith(f"can't listen on {description}: {reason}")
    assert advice in text
    assert ".." not in text
    assert ("Stop the service" in text) == ("in use" in reason or "lock" in reason)


@pytest.mark.parametrize("error", [_error(errno.EMFILE), OSError("odd"), _failed(OSError("odd"))])
def test_another_reason(error: Exception) -> None:
    """An unknown reason is reported without advice, which might be wrong."""
    with pytest.raises(StartupError) as caught:
        listen(FullReactor(error), "tcp:3033", Factory())
    assert str(caught.value) in (
        "can't listen on tcp:3033: odd",
        "can't listen on tcp:3033: Too many open files",
    )


def test_refused_connections_with_tls() -> None:
    """With TLS, a connection that the factory refuses gets a protocol, which closes it at once."""

    class Refusing(Factory):
        def buildProtocol(self, addr: object) -> None:
            return None

    files = Path(__file__).parents[1] / "tls"
    reactor = MemoryReactor()
    listen(reactor, f"ssl:3033:privateKey={files}/key.pem:certKey={files}/roots/node.pem", Refusing())
    listen(reactor, "tcp:3033", Refusing())
    transport = StringTransport()
    reactor.sslServers[0][1].buildProtocol(transport.getPeer()).makeConnection(transport)
    assert transport.disconnected
    assert reactor.tcpServers[0][1].buildProtocol(transport.getPeer()) is None


def test_another_option() -> None:
    """The error names the option that has named the endpoint."""
    with pytest.raises(StartupError, match=r"^--http nonsense: "):
        listen(MemoryReactor(), "nonsense", Factory(), "--http")
    with pytest.raises(StartupError, match=r"name another port with --http$"):
        listen(FullReactor(_error(errno.EADDRINUSE)), "tcp:3033", Factory(), "--http")


def test_stop_what_could_not_be_opened() -> None:
    """A port that failed later doesn't keep the service from stopping."""
    reactor = MemoryReactorClock()
    listener = listen(reactor, "tcp:3033", Factory())
    listener.port.addCallback(lambda _: None)
    assert Deferred.fromCoroutine(stop_listening(reactor, [listener])).called


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
    await stop_listening(reactor, [listener])


class Greeter(Protocol):
    """Greets who connects."""

    def connectionMade(self) -> None:
        """Send the greeting."""
        assert self.transport is not None
        self.transport.write(b"hello")
        self.transport.loseConnection()


@pytest.mark.integration
@pytest.mark.parametrize("description", ["tcp:0:interface=127.0.0.1", "unix:{path}/socket"])
@pytest_twisted.ensureDeferred
async def test_connections_that_wait_when_a_port_is_closed(description: str, tmp_path: Path) -> None:
    """They are accepted and not reset; later ones are refused."""
    listener = listen(reactor, description.format(path=tmp_path), Factory.forProtocol(Greeter))
    port = opened_port(listener)
    family, address = port.socket.family, port.socket.getsockname()
    waiting = [socket.socket(family) for _ in range(20)]
    for connection in waiting:
        connection.connect(address)  # this test blocks the reactor, so nobody accepts
    await stop_listening(reactor, [listener])
    for connection in waiting:
        with connection:
            assert await deferToThread(connection.recv, 100) == b"hello"
    with socket.socket(family) as late, pytest.raises(OSError, match=r"refused|No such file"):
        late.connect(address)


@pytest.mark.integration
def test_refused_connections() -> None:
    """A port that is about to be closed has the connections that were made before, and no further ones."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as early, socket.socket() as late:
        early.connect(listener.getsockname())
        refuse_new_connections(listener)
        late.settimeout(0.2)
        with pytest.raises(TimeoutError):
            late.connect(listener.getsockname())
        early.sendall(b"early")
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.recv(100) == b"early"
            accepted.sendall(b"answer")
        assert early.recv(100) == b"answer"
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.integration
def test_connections_that_were_held_back() -> None:
    """A port gives them away when something arrives on them, and later ones at once."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as early, socket.socket() as late:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 60)
        listener.settimeout(20)
        early.connect(listener.getsockname())
        hold_no_connections(listener)
        late.connect(listener.getsockname())
        accepted = [listener.accept()]  # usually the late one; the other one is given away after a second too
        early.sendall(b"early")
        accepted.append(listener.accept())
        assert {address for _, address in accepted} == {early.getsockname(), late.getsockname()}
        for connection, _ in accepted:
            connection.close()


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        (["tcp:3034"], "127.0.0.1:3034"),
        (["tcp:port=3034:interface=0.0.0.0"], "127.0.0.1:3034"),
        (["tcp:3034:interface=10.0.0.7"], "10.0.0.7:3034"),
        (["tcp6:3034"], "[::1]:3034"),
        ([r"tcp6:3034:interface=fe80\:\:1"], "[fe80::1]:3034"),
        (["ssl:3034:privateKey=k", "tcp:0", "unix:/run/spooler:mode=600", "tcp:3034"], "unix:/run/spooler"),
        (["ssl:3034:privateKey=k", "systemd:domain=INET:index=0"], ""),
    ],
)
def test_own_address(listen: list[str], address: str) -> None:
    """A worker reaches its spooler at the first endpoint that has an address and no TLS."""
    assert own_address(listen) == address
    assert not address or parse_address(address)
