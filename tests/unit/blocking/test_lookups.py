"""Looking up the nodes that names stand for, without Twisted."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.threads import deferToThread
from twisted.names import dns
from twisted.names.authority import FileAuthority
from twisted.names.server import DNSServerFactory

from tests.unit.servers import nothing_left_open  # noqa: F401 - a fixture
from uwsgitwisted.address import Address, parse_address
from uwsgitwisted.blocking.lookups import find_addresses, look_up
from uwsgitwisted.blocking.sockets import Deadline, drive
from uwsgitwisted.errors import ConnectionFailed, MisuseError, RequestTimeout
from uwsgitwisted.sources.names import HostName, Name, ServiceName

SERVICE = ServiceName("_uwsgi._tcp.example.com")


def find(name: Name, seconds: float = 5.0) -> list[Address]:
    return drive(look_up(name, Deadline.after(seconds)))


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Answer all look-ups of hosts with what is in this list; an exception is raised."""
    answers: list[Any] = []

    def getaddrinfo(host: str, port: int, **options: object) -> list[Any]:
        if isinstance(answers[0], Exception):
            raise answers[0]
        return [(family, 1, 6, "", (ip, port)) for family, ip in answers]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return answers


@pytest.mark.usefixtures("nothing_left_open")
def test_hosts(resolver: list[Any]) -> None:
    """Each address of a name is a node."""
    resolver += [(socket.AF_INET, "10.0.0.1"), (socket.AF_INET, "10.0.0.2"), (socket.AF_INET6, "::1")]
    assert find(HostName("farm", 3033)) == [parse_address("10.0.0.1:3033"), parse_address("10.0.0.2:3033")]


@pytest.mark.usefixtures("nothing_left_open")
@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (socket.gaierror(-2, "Name or service not known"), ConnectionFailed, "Name or service not known"),
        (UnicodeError("label too long"), MisuseError, "can't be a host's name: label too long"),
    ],
)
def test_hosts_that_are_not_there(
    resolver: list[Any], error: Exception, kind: type[Exception], text: str
) -> None:
    """A name that can't be looked up is an error of ours."""
    resolver.append(error)
    with pytest.raises(kind, match=text):
        find(HostName("farm", 3033))


def test_finding_all(resolver: list[Any]) -> None:
    """A list of nodes is resolved once."""
    resolver += [(socket.AF_INET, "10.0.0.1"), (socket.AF_INET, "10.0.0.2")]
    nodes = ["10.0.0.2:3033", "dns:farm:3033"]
    assert [address.host for address in find_addresses(nodes)] == ["10.0.0.2", "10.0.0.1"]
    resolver[:] = [socket.gaierror(-2, "not known")]
    with pytest.raises(ConnectionFailed, match="dns:farm:3033: not known"):
        find_addresses(nodes)


def test_services_without_dnspython(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without dnspython, SRV names fail with what to install."""
    monkeypatch.setitem(sys.modules, "dns.resolver", None)
    with pytest.raises(MisuseError, match=r"pip install 'uwsgitwisted\[srv\]'"):
        find(SERVICE)


class Zone(FileAuthority):  # type: ignore[misc]
    """A zone with SRV records."""

    def __init__(self) -> None:
        soa = dns.Record_SOA("ns.example.com", "nobody.example.com", 1, 1, 1, 1, 1)
        records = [dns.Record_SRV(10, 0, 3033, "a.example.com"), dns.Record_SRV(10, 5, 3034, "b.example.com")]
        records.append(dns.Record_SRV(20, 0, 3033, "backup.example.com"))
        self.soa = b"example.com", soa
        self.records = {b"example.com": [soa], SERVICE.name.encode(): records}
        FileAuthority.__init__(self, None)

    def loadFile(self, filename: object) -> None:
        pass


@pytest_twisted.async_yield_fixture(name="port")
async def name_server() -> AsyncIterator[int]:
    """Run a DNS server on a port of loopback."""
    port = reactor.listenUDP(0, dns.DNSDatagramProtocol(DNSServerFactory([Zone()])), "127.0.0.1")
    yield port.getHost().port
    await port.stopListening()


async def ask(monkeypatch: pytest.MonkeyPatch, port: int, name: ServiceName, seconds: float) -> list[Address]:
    import dns.resolver as resolvers

    resolver = resolvers.Resolver(configure=False)
    resolver.nameservers, resolver.port = ["127.0.0.1"], port
    monkeypatch.setattr(resolvers, "default_resolver", resolver)
    found: list[Address] = await deferToThread(find, name, seconds)
    return found


@pytest_twisted.ensureDeferred
async def test_services(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """The SRV records of a name are nodes; those of a worse priority are not used."""
    found = await ask(monkeypatch, port, SERVICE, 5.0)
    assert sorted(found) == [parse_address("a.example.com:3033"), parse_address("b.example.com:3034")]
    with pytest.raises(ConnectionFailed, match=r"does not exist|no answer|not contain"):
        await ask(monkeypatch, port, ServiceName("_other._tcp.example.com"), 5.0)


@pytest_twisted.ensureDeferred
async def test_a_name_server_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up that takes too long fails."""
    silent = reactor.listenUDP(0, DatagramProtocol(), "127.0.0.1")
    with pytest.raises((ConnectionFailed, RequestTimeout)):
        await ask(monkeypatch, silent.getHost().port, SERVICE, 0.2)
    await silent.stopListening()
