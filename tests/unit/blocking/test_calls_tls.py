"""TLS in the blocking calls, against a real server on loopback."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tests.unit.servers import (
    ScriptedServer,
    closed_port,
    echoing,
    idle,
    nothing_left_open,  # noqa: F401 - a fixture
    outside_the_reactor,  # noqa: F401 - a fixture
    plain_peers,  # noqa: F401 - a fixture
)
from uwsgitwisted import blocking
from uwsgitwisted.errors import (
    ConnectionFailed,
    InvalidAddress,
    RequestTimeout,
)

MESSAGE = ("mytemplate.txt", {"fib_sequence": [1, 1, 2], "whattimeisit": 1.5})
#: Short, for tests in which the time does run out.
SHORT = 0.2

#: ``tls/roots/README`` says what is there.
CERTIFICATES = Path(__file__).parents[1] / "tls"
NODE = CERTIFICATES / "roots" / "node.pem"
KEY = CERTIFICATES / "key.pem"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.usefixtures("outside_the_reactor", "plain_peers", "nothing_left_open"),
]


@pytest.fixture
def tls() -> ssl.SSLContext:
    """Settings of a server that tells an accepted client's certificate from a strange one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(NODE, KEY)
    context.load_verify_locations(NODE)
    return context


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_tls(tls: ssl.SSLContext, host: str) -> None:
    """A tls address is called over TLS, if the trust roots verify the server."""
    with ScriptedServer(echoing, context=tls) as server:
        address = f"tls:{host}:{server.port}:trustRoots={CERTIFICATES}/roots"
        message = b"x" * 60000
        assert blocking.send_message(address, 33, 0, message, 10) == message


def test_tls_with_a_client_certificate(tls: ssl.SSLContext) -> None:
    """The certificate and its key in the address are shown to the server."""
    tls.verify_mode = ssl.CERT_REQUIRED
    with ScriptedServer(echoing, context=tls) as server:
        address = f"tls:localhost:{server.port}:trustRoots={CERTIFICATES}/roots"
        with pytest.raises(ConnectionFailed):
            blocking.send_message(address, 33, 0, MESSAGE, 10)
        address += f":certificate={NODE}:privateKey={KEY}"
        assert blocking.send_message(address, 33, 0, MESSAGE, 10) == MESSAGE


def test_tls_to_a_stranger(tls: ssl.SSLContext) -> None:
    """A server that no root verifies gets nothing."""
    with ScriptedServer(echoing, context=tls) as server:
        with pytest.raises(ConnectionFailed, match="certificate verify failed"):
            blocking.send_message(f"tls:localhost:{server.port}", 33, 0, MESSAGE, 10)
        assert server.requests == []


def test_tls_through_another_endpoint(tls: ssl.SSLContext, tmp_path: Path) -> None:
    """The endpoint keyword says where to connect; the host is then only the certificate's name."""
    path = str(tmp_path / "node.sock")
    address = f"tls:localhost:1:trustRoots={CERTIFICATES}/roots:endpoint=unix\\:{path}"
    with ScriptedServer(echoing, path=path, context=tls):
        assert blocking.send_message(address, 33, 0, MESSAGE, 10) == MESSAGE
    with pytest.raises(InvalidAddress, match="not tls itself"):
        blocking.send_message(r"tls:localhost:1:endpoint=tls\:localhost\:1", 33, 0, MESSAGE, 10)


def test_tls_with_a_silent_server(tls: ssl.SSLContext) -> None:
    """The timeout covers the handshake as well."""
    with (
        ScriptedServer(idle) as server,
        pytest.raises(RequestTimeout, match="no TLS connection within"),
    ):
        blocking.send_message(f"tls:localhost:{server.port}", 33, 0, MESSAGE, 1)


def test_tls_under_no_name() -> None:
    """A host that can't be in a certificate is refused before anybody is connected to."""
    with pytest.raises(InvalidAddress, match="can't be the name in a certificate"):
        blocking.send_message(f"tls:.local:{closed_port()}", 33, 0, MESSAGE, 10)


def test_tls_without_its_files(tmp_path: Path) -> None:
    """Trust roots or certificates that can't be loaded raise InvalidAddress."""
    (tmp_path / "bad.pem").write_text("junk")
    for options in ("trustRoots=/nonexistent", f"trustRoots={tmp_path}", f"certificate={tmp_path}/bad.pem"):
        with pytest.raises(InvalidAddress, match="can't load certificates from /"):
            blocking.send_message(f"tls:localhost:1:{options}", 33, 0, MESSAGE, 10)


def test_an_encrypted_key_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that needs a password fails at once: a password is given, so the terminal isn't asked for one."""
    passwords = []
    load = ssl.SSLContext.load_cert_chain

    def load_cert_chain(self: ssl.SSLContext, certfile: str, keyfile: str, password: str | None = None) -> None:
        passwords.append(password)
        load(self, certfile, keyfile, password or "")

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load_cert_chain)
    address = f"tls:localhost:1:certificate={NODE}:privateKey={CERTIFICATES}/locked.pem"
    with pytest.raises(InvalidAddress, match="can't load certificates"):
        blocking.send_message(address, 33, 0, MESSAGE, 10)
    assert passwords == [""]
