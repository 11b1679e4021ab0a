"""The client with Deferreds: every call, every misuse, against our server in memory."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

from tests.unit.transports import ScriptedServer, ServedEndpoint
from uwsgitwisted.address import parse_address
from uwsgitwisted.client import Client
from uwsgitwisted.errors import (
    ConnectionFailed,
    InvalidAddress,
    MessageTooLarge,
    MisuseError,
    NoAnswer,
    ProtocolError,
    RemoteError,
    RequestCancelled,
    SpoolRefused,
    UnencodableMessage,
)
from uwsgitwisted.interfaces import Reply, Request
from uwsgitwisted.responders.echo import EchoResponder
from uwsgitwisted.responders.ping import PingResponder
from uwsgitwisted.transport.server.factory import ServerFactory
from uwsgitwisted.wire.objects import dumps, loads
from uwsgitwisted.wire.packet import ECHO, MARSHAL, NO, PING, RPC, SPOOL, YES, Packet
from uwsgitwisted.wire.terms import Terms

#: The answers to calls, by their array blocks.
CALLS: dict[bytes, tuple[int, int, bytes]] = {
    b"\x01\x00f\x01\x00a\x02\x0017": (RPC, 0, b"result"),
    b"\x04\x00none": (RPC, 255, b""),
    b"\x05\x00empty": (RPC, 0, b""),
    b"\x05\x00other": (MARSHAL, 0, dumps([1])),
}

A, B = ("192.0.2.1", 3_033), ("192.0.2.2", 3_033)


class Cluster(Client):
    """A client whose addresses lead to servers in memory, one each."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        super().__init__(self.clock, **options)
        self.endpoints: dict[object, ServedEndpoint] = {}
        self.cancelled: list[object] = []

    def _endpoint(self, address: Any) -> IStreamClientEndpoint:
        factory = ServerFactory(self.clock, self.respond, terms=Terms(max_message=1_000_000))
        endpoint = self.endpoints[address] = ServedEndpoint(factory)
        return endpoint  # type: ignore[return-value]

    def at(self, address: object) -> ServedEndpoint:
        return self.endpoints[parse_address(address)]  # type: ignore[arg-type]

    def respond(self, request: Request) -> Reply:
        packet = request.packet
        if packet.modifier1 == RPC:
            return Packet(*CALLS[packet.payload])
        if packet.modifier1 == MARSHAL:
            message = loads(packet.payload)
            if message == "wait":
                return Deferred(self.cancelled.append)
            if message == "raise":
                raise KeyError("x")
            return Packet(MARSHAL, packet.modifier2, dumps(("answer", message)))
        if packet.modifier1 == SPOOL:
            return {b"y": YES, b"n": NO, b"?": Packet(MARSHAL, 0, dumps(1))}[packet.payload[-1:]]
        return (PingResponder() if packet.modifier1 == PING else EchoResponder()).respond(request)

    def result(self, deferred: Deferred[Any]) -> Any:
        """Return what became of *deferred* when all has been delivered."""
        results: list[Any] = []
        deferred.addBoth(results.append)
        for _ in range(3):
            for endpoint in self.endpoints.values():
                endpoint.flush()
        [result] = results
        return result


class TestSendMessage:
    def test_object(self) -> None:
        """An object comes back as an object."""
        client = Cluster()
        assert client.result(client.send_message(A, 33, 17, {"a": [1]})) == ("answer", {"a": [1]})

    def test_bytes(self) -> None:
        """Other modifiers give bytes."""
        client = Cluster()
        assert client.result(client.send_message(A, ECHO, 0, b"x")) == b"x"

    def test_one_session_for_all_spellings(self) -> None:
        """The same place is the same peer, however it is written."""
        client = Cluster()
        for address in (A, list(A), "192.0.2.1:3033", "tcp:192.0.2.1:3033"):
            client.result(client.send_message(address, ECHO, 0, b"x"))  # type: ignore[arg-type]
        [endpoint] = client.endpoints.values()
        assert endpoint.attempts == 1

    def test_plain_addresses(self) -> None:
        """An address that was declared plain has a connection a request."""
        client = Cluster(plain=["192.0.2.1:3033"])
        for _ in range(2):
            assert client.result(client.send_message(A, 33, 0, 1)) == ("answer", 1)
        assert client.at(A).attempts == 2

    def test_remote_error(self) -> None:
        """A handler's exception comes back with the address it came from."""
        client = Cluster()
        failure = client.result(client.send_message(A, 33, 0, "raise"))
        assert failure.check(RemoteError)
        assert failure.value.address == A
        assert str(failure.value) == f"{A[0]}:{A[1]}: KeyError: 'x'"

    @pytest.mark.parametrize("plain", [[], [A]])
    def test_rpc(self, plain: list[Any]) -> None:
        """A call's result is bytes."""
        client = Cluster(plain=plain)
        assert client.result(client.rpc(A, "f", b"a", 17)) == b"result"

    def test_empty_results(self) -> None:
        """In a session, None is told from an empty result."""
        client = Cluster()
        assert client.result(client.rpc(A, "none")) is None
        assert client.result(client.rpc(A, "empty")) == b""

    def test_rpc_failures(self) -> None:
        """A call that can't be sent fails, and so does an answer that is no result."""
        client = Cluster()
        failure = client.result(client.rpc(A, "f", b""))
        assert failure.check(UnencodableMessage)
        failure = client.result(client.rpc(A, "other"))
        assert failure.check(ProtocolError)
        assert failure.value.address == A

    def test_refused(self) -> None:
        """So does the failure of a connection."""
        client = Cluster()
        client.result(client.send_message(A, ECHO, 0, b""))
        client.at(A).refusing = True
        client.at(A).links[0].cut()
        failure = client.result(client.send_message(A, ECHO, 0, b""))
        assert failure.check(ConnectionFailed)
        assert failure.value.address == A

    def test_cancel(self) -> None:
        """Cancelling withdraws the request at the node."""
        client = Cluster()
        results: list[Any] = []
        deferred = client.send_message(A, 33, 0, "wait").addErrback(results.append)
        client.at(A).flush()
        deferred.cancel()
        client.at(A).flush()
        assert results[0].check(RequestCancelled)
        assert len(client.cancelled) == 1

    @pytest.mark.parametrize(
        ("address", "modifier1", "modifier2", "message", "timeout", "error"),
        [
            ("nowhere", 33, 0, None, 30, InvalidAddress),
            (("h", 0), 33, 0, None, 30, InvalidAddress),
            (None, 33, 0, None, 30, InvalidAddress),
            (A, 256, 0, None, 30, MisuseError),
            (A, 33, -1, None, 30, MisuseError),
            (A, 33, 0, object(), 30, UnencodableMessage),
            (A, 17, 0, "no dict", 30, UnencodableMessage),
            (A, 33, 0, None, 0, MisuseError),
            (A, 33, 0, None, -1, MisuseError),
            (A, 33, 0, None, float("nan"), MisuseError),
            (A, 33, 0, None, float("inf"), MisuseError),
            (A, 33, 0, None, "30", MisuseError),
            (A, 33, 0, None, True, MisuseError),
            (A, 101, 0, bytes(1_000_001), 30, MessageTooLarge),
        ],
    )
    def test_misuse(
        self,
        address: Any,
        modifier1: int,
        modifier2: int,
        message: object,
        timeout: Any,
        error: type[Exception],
    ) -> None:
        """A call that can't be made fails its Deferred, with the address, and raises nothing itself."""
        client = Cluster()
        failure = client.result(client.send_message(address, modifier1, modifier2, message, timeout))
        assert failure.check(error)
        assert failure.value.address == address

    def test_misuse_of_an_open_session(self) -> None:
        """So it does when there is a session already."""
        client = Cluster()
        client.result(client.send_message(A, ECHO, 0, b""))
        failure = client.result(client.send_message(A, ECHO, 0, bytes(1_000_001)))
        assert failure.check(MessageTooLarge)
        assert failure.value.address == A


class TestEndpoints:
    def test_tcp(self) -> None:
        """A host and a port are connected to by whatever addresses the host has."""
        client = Client(MemoryReactorClock())
        assert isinstance(client._endpoint(parse_address(A)), HostnameEndpoint)

    def test_description(self) -> None:
        """Anything else is left to Twisted."""
        client = Client(Clock())
        assert type(client._endpoint(parse_address("unix:/run/x.sock"))).__name__ == "UNIXClientEndpoint"

    @pytest.mark.parametrize(
        "error", [ImportError("ssl"), NameError("ssl"), OSError("no file"), ValueError("x")]
    )
    def test_unusable_description(self, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
        """What Twisted doesn't take, or can't without TLS, fails the Deferred."""

        def refuse(*arguments: object) -> None:
            raise error

        monkeypatch.setattr("uwsgitwisted.transport.client.endpoint.clientFromString", refuse)
        results: list[Any] = []
        address = "tls:192.0.2.1:3033"
        Client(Clock()).send_message(address, 33, 0, None).addErrback(results.append)
        assert results[0].check(InvalidAddress)
        assert results[0].value.address == address
        assert ("uwsgitwisted[tls]" in str(results[0].value)) is isinstance(error, (ImportError, NameError))


class TestSendMulti:
    def test_every_nodes_own_result(self) -> None:
        """Each node's answer or failure stands at its place."""
        client = Cluster()
        results = client.result(
            client.send_multi_message([(*A, 1), (*B, "raise"), ("192.0.2.3:3033", 3), ("nowhere", 4)], 33, 0)
        )
        assert [good for good, _ in results] == [True, False, True, False]
        assert results[0][1] == ("answer", 1)
        assert results[1][1].check(RemoteError)
        assert results[1][1].value.address == B
        assert results[2][1] == ("answer", 3)
        assert results[3][1].check(InvalidAddress)

    def test_lists(self) -> None:
        """A node may be a list, as JSON makes them, and its address a pair."""
        client = Cluster()
        nodes: Any = [[*A, 1], [list(B), 2]]
        assert client.result(client.send_multi_message(nodes, 33, 0)) == [
            (True, ("answer", 1)),
            (True, ("answer", 2)),
        ]

    def test_both_forms(self) -> None:
        """A node's address is a host and a port, or one value in any of its spellings."""
        client = Cluster()
        deferred = client.send_multi_message([(A[0], str(A[1]), 1), (f"{B[0]}:{B[1]}", 2), (B, 3)], 33, 0)
        assert client.result(deferred) == [(True, ("answer", number)) for number in (1, 2, 3)]

    def test_none(self) -> None:
        """No node, no answer."""
        client = Cluster()
        assert client.result(client.send_multi_message([], 33, 0)) == []

    @pytest.mark.parametrize("node", ["192.0.2.1:3033", ("a",), ("a", 1, 2, 3), None])
    def test_misuse(self, node: Any) -> None:
        """What is no node fails the call before anything is sent."""
        client = Cluster()
        failure = client.result(client.send_multi_message([(*A, 1), node], 33, 0))
        assert failure.check(MisuseError)
        assert not client.endpoints

    def test_cancel(self) -> None:
        """Cancelling it withdraws every request."""
        client = Cluster()
        deferred = client.send_multi_message([(*A, "wait"), (*B, "wait")], 33, 0)
        for address in (A, B):
            client.at(address).flush()
        deferred.cancel()
        results = client.result(deferred)
        assert all(not good and failure.check(RequestCancelled) for good, failure in results)
        assert len(client.cancelled) == 2


class TestSpool:
    def test_taken(self) -> None:
        """A task that was stored gives True."""
        client = Cluster()
        assert client.result(client.spool(A, {"k": "y"})) is True

    def test_refused(self) -> None:
        """One that wasn't is an error."""
        client = Cluster()
        failure = client.result(client.spool(A, {"k": "n"}))
        assert failure.check(SpoolRefused)
        assert failure.value.address == A

    def test_no_spooler(self) -> None:
        """So is an answer that is neither yes nor no."""
        client = Cluster()
        failure = client.result(client.spool(A, {"k": "?"}))
        assert failure.check(ProtocolError)
        assert failure.value.address == A


class TestPing:
    def test_time(self) -> None:
        """A ping tells how long it took."""
        client = Cluster()
        deferred = client.ping(A)
        client.clock.advance(0.25)
        assert client.result(deferred) == 0.25

    def test_dead(self) -> None:
        """A server that doesn't answer is an error."""
        client = Cluster(plain=[A])
        client.result(client.ping(A))
        client.at(A).accept = ScriptedServer
        assert client.result(client.ping(A)).check(NoAnswer)


def test_close() -> None:
    """Closing ends every connection; what is in flight fails, and the client can be used again."""
    client = Cluster()
    waiting = client.send_message(A, 33, 0, "wait")
    client.at(A).flush()
    client.result(client.send_message(B, ECHO, 0, b""))
    links = [endpoint.links[0] for endpoint in client.endpoints.values()]
    assert client.result(client.close()) is None
    assert [link.client.connected for link in links] == [False, False]
    assert client.result(waiting).check(NoAnswer)
    assert client.result(client.send_message(A, ECHO, 0, b"again")) == b"again"
