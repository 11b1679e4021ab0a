"""The connections of a router's clients: what they may do, and for how long."""

from __future__ import annotations

import pytest
from twisted.internet.address import IPv4Address, UNIXAddress

from tests.unit.router.world import CLIENT, OK, World, status
from uwsgitwisted.access import parse_network

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"


@pytest.mark.parametrize("size", [None, 1, 7])
def test_a_request(size: int | None) -> None:
    """A request is answered, however it is cut, and the connection is kept."""
    world = World()
    client = world.client()
    for _ in range(3):
        answer = client.send(GET, size).take()
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\nok")
        assert client.state == "open"
    assert len(world.node.requests) == 3


def test_pipelined_requests() -> None:
    """Requests that come at once are answered one after another."""
    world = World()
    answers = world.client().send(GET * 5).take()
    assert answers.count(b"HTTP/1.1 200 OK") == 5


def test_pipelined_requests_that_are_answered_here() -> None:
    """Any number of them takes no more stack than one."""
    world = World()
    client = world.client()
    for number in range(30):
        client.send(b"GET /%% HTTP/1.1\r\nHost: %d\r\n\r\n" % number * 400)
    assert client.take().count(b"HTTP/1.1 400 Bad Request") == 12_000
    assert client.state == "open"


# Bodies


@pytest.mark.parametrize("size", [None, 1, 7])
def test_a_body(size: int | None) -> None:
    """A body is sent on, and the next request behind it is another one."""
    world = World()
    world.client().send(POST % 5 + b"12345" + POST % 2 + b"67", size)
    assert [each.body for each in world.node.requests] == [b"12345", b"67"]
    assert [each.variables["CONTENT_LENGTH"] for each in world.node.requests] == ["5", "2"]


def test_a_body_is_passed_on_as_it_comes() -> None:
    """The node has the first bytes before the last have come."""
    world = World()
    world.node.answer, world.node.closes = None, False
    client = world.client().send(POST % 5 + b"12")
    assert world.node.requests[0].body == b"12"
    client.send(b"345")
    assert world.node.requests[0].body == b"12345"


def test_a_body_waits_for_the_node() -> None:
    """Nothing is read from the client while there is no connection, or the node takes no more."""
    world = World()
    world.node.answer, world.node.closes = None, False
    world.node.endpoint.held = []
    client = world.client().send(POST % 9 + b"12")
    assert client.transport.producerState == "paused"
    client.send(b"34")
    world.node.endpoint.go_on()
    world.flush()
    assert client.transport.producerState == "producing"
    link = world.node.endpoint.links[0]
    link.client.producer.pauseProducing()
    assert client.transport.producerState == "paused"
    client.channel.pauseProducing()
    client.channel.resumeProducing()  # the client has read some of an answer; that changes nothing
    assert client.transport.producerState == "paused"
    world.advance(40)  # the client's time doesn't run
    assert client.state == "open"
    link.client.producer.resumeProducing()
    assert client.transport.producerState == "producing"
    assert client.send(b"56789").state == "open"
    assert world.node.requests[0].body == b"123456789"


def test_a_body_that_ends_while_the_node_takes_no_more() -> None:
    """When all of a body has come, the connection is read again: its end is noticed."""
    world = World()
    world.node.answer, world.node.closes = None, False
    world.node.endpoint.held = []
    client = world.client().send(POST % 2 + b"12")
    assert client.transport.producerState == "producing"
    world.node.endpoint.go_on()
    world.flush()
    assert world.node.requests[0].body == b"12"


@pytest.mark.parametrize("size", [None, 1, 7])
def test_a_chunked_body(size: int | None) -> None:
    """A body of unknown size is kept until its end; the node gets its size."""
    world = World()
    client = world.client()
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    client.send(head + b"2\r\n12\r\n3\r\n345\r\n", size)
    assert world.node.requests == []
    assert world.shared.spooled.used == 5
    client.send(b"0\r\n\r\n" + GET, size)
    first, second = world.node.requests
    assert (first.body, first.variables["CONTENT_LENGTH"]) == (b"12345", "5")
    assert second.variables["REQUEST_METHOD"] == "GET"
    assert world.shared.spooled.used == 0


@pytest.mark.parametrize("size", [None, 1, 7])
def test_a_small_body(size: int | None) -> None:
    """A body that may be kept reaches a node only when all of it has come; a larger one is passed on."""
    world = World(buffer_body=5)
    world.node.answer, world.node.closes = None, False
    client = world.client().send(POST % 5 + b"1234", size)
    assert world.node.connections == []
    client.send(b"5")
    assert world.node.requests[0].body == b"12345"
    assert world.node.requests[0].variables["CONTENT_LENGTH"] == "5"
    world.node.requests[0].send(OK)
    world.flush()
    assert status(client.take()) == 200
    client.send(POST % 6 + b"1", size)
    assert world.node.requests[1].body == b"1"
    assert world.shared.spooled.used == 0


def test_a_chunked_body_without_bytes() -> None:
    """An empty body has no size."""
    world = World()
    world.client().send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert world.node.requests[0].variables["CONTENT_LENGTH"] == ""


def test_large_bodies() -> None:
    """A body beyond the limit is refused, before it comes if its size is known."""
    world = World(max_body=4)
    client = world.client().send(POST % 5)
    assert status(client.take()) == 413
    assert client.state == "half-closed"
    client = world.client().send(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n123\r\n2\r\n45\r\n0\r\n\r\n"
        + GET
    )
    assert status(client.take()) == 413
    assert client.state == "half-closed"
    assert world.shared.spooled.used == 0
    assert world.node.requests == []
    world.client().send(POST % 4 + b"1234")
    assert world.node.requests[0].body == b"1234"


def test_bodies_of_all_clients() -> None:
    """Chunked bodies of all clients together have a limit."""
    world = World(max_spooled=200_000)
    piece = b"%x\r\n%s\r\n" % (90_000, bytes(90_000))
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    first = world.client().send(head + piece)
    assert first.state == "open"
    second = world.client().send(head + piece)
    assert status(second.take()) == 503
    first.lose()
    assert world.shared.spooled.used == 0
    third = world.client().send(head + piece)
    assert third.state == "open"
    third.lose()


def test_expect() -> None:
    """A client that asks before it sends its body is told to go on, or is refused."""
    head = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    world = World(max_body=4)
    world.node.answer, world.node.closes = None, False
    assert world.client().send(head % 4).take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    answer = world.client().send(head % 5).take()
    assert status(answer) == 413
    assert answer.count(b"HTTP/1.1 ") == 1


# Answers


def test_an_answer_before_the_end_of_the_body() -> None:
    """It is sent; then the client may go on with its body for a while, which is dropped."""
    world = World()
    world.node.closes = False
    client = world.client().send(POST % 100 + b"12")
    assert client.take().endswith(b"ok")
    assert client.state == "half-closed"
    assert client.transport.producerState == "producing"
    client.send(b"3" * 50)
    client.send(b"3" * 500 + GET)
    assert client.take() == b""
    assert len(world.node.requests) == 1
    world.advance(29)
    assert client.state == "half-closed"
    world.advance(1)
    assert client.state == "aborted"


def test_a_client_that_closes_after_an_early_answer() -> None:
    """Its connection is closed."""
    world = World()
    client = world.client().send(POST % 100)
    client.channel.readConnectionLost()
    assert client.transport.disconnecting
    assert not client.transport.disconnected


def test_an_answer_without_a_length() -> None:
    """It is sent in chunks; to an old client it ends with the connection."""
    world = World()
    world.node.answer = b"HTTP/1.1 200 OK\r\n\r\nok"
    client = world.client().get()
    answer = client.take()
    assert b"Transfer-Encoding: chunked\r\n" in answer
    assert answer.endswith(b"\r\n\r\n2\r\nok\r\n0\r\n\r\n")
    assert client.state == "open"
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    assert client.take().endswith(b"\r\n\r\nok")
    assert client.state == "closing"


def test_a_client_that_does_not_read() -> None:
    """The node's answer waits, and the connection is closed in time."""
    world = World()
    world.node.answer, world.node.closes = b"HTTP/1.1 200 OK\r\n\r\n", False
    client = world.client().get()
    node = world.node.endpoint.links[0].client
    client.channel.pauseProducing()
    assert node.paused
    world.advance(29)
    client.channel.resumeProducing()
    assert not node.paused
    client.channel.pauseProducing()
    client.channel.pauseProducing()
    world.advance(29)
    assert client.state == "open"
    world.advance(1)
    assert client.state == "aborted"
    client.lose()
    world.flush()
    assert world.node.requests[0].lost


def test_a_client_that_leaves() -> None:
    """Its request is dropped at the node."""
    world = World()
    world.node.answer, world.node.closes = None, False
    client = world.client().get()
    client.channel.readConnectionLost()
    assert client.state == "aborted"
    client.lose()
    world.flush()
    assert world.node.requests[0].lost
    assert list(world.shared.connections) == []


def test_close() -> None:
    """A client that wants the connection closed gets that."""
    world = World()
    client = world.client().send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" + GET)
    assert b"Connection: close\r\n" in client.take()
    assert client.state == "closing"
    assert len(world.node.requests) == 1
    client.channel.dataReceived(GET)
    client.channel.readConnectionLost()
    client.channel.writeConnectionLost()
    assert client.state == "closing"
    world.advance(30)
    assert client.state == "aborted"


# What is refused


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\nX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n12345",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\n12345",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %s\r\n\r\n" % (b"1" * 5_000),
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: identity\r\n\r\n12345",
        b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n12\r\n0\r\n\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 600 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: %s\r\n" % (b"y" * 1_000) * 20 + b"\r\n",
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [None, 997, 1])
def test_bad_requests(data: bytes, size: int | None) -> None:
    """A request that can't be understood is refused, no node gets it, and nothing behind it is a request."""
    world = World()
    client = world.client().send(data + GET, size)
    answer = client.take()
    assert status(answer) == 400
    assert world.node.requests == [] or b"HTTP/1.1\r\n\r\n" in data
    if b"\r\nHost" in data:
        assert client.state == "half-closed"
        assert answer.count(b"HTTP/1.") == 1
        client.send(GET)
        assert client.take() == b""
    client.lose()


def test_a_bad_chunk_after_the_first() -> None:
    """A body that breaks off into nonsense is refused, and what was kept of it is dropped."""
    world = World()
    client = world.client().send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1\r\n")
    assert client.take() == b""
    client.send(b"nonsense\r\n")
    assert status(client.take()) == 400
    client.lose()
    assert world.shared.spooled.used == 0
    assert world.node.requests == []


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: %s" % (b"a" * 16_300),
        b"GET /%s HTTP/1.1\r\nHost: a" % (b"a" * 16_300),
        b"GET / HTTP/1.1\r\nHost: a%s" % (b"\r\nX-%d: abcdefghijklmnopqrst" * 499 % tuple(range(499))),
    ],
)
def test_large_heads(head: bytes) -> None:
    """The largest head that is accepted fits the variables of a packet."""
    world = World()
    assert status(world.client().send(head + b"\r\n\r\n").take()) == 200
    assert len(world.node.requests) == 1


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunked body that can't be kept is refused."""

    def fail(*arguments: object) -> None:
        raise OSError("no space left")

    world = World()
    client = world.client().send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    monkeypatch.setattr("tempfile.SpooledTemporaryFile.write", fail)
    client.send(b"5\r\n12345\r\n")
    answer = client.take()
    assert status(answer) == 503
    assert b"no space" not in answer


# Time


def test_slow_heads() -> None:
    """A head has to come in time, at whatever pace; so has each further one, from its first byte."""
    world = World()
    client = world.client()
    for byte in GET[:9]:
        client.send(bytes([byte]))
        world.advance(1)
    assert client.state == "open"
    world.advance(1)
    assert client.state == "aborted"
    client = world.client().get()
    world.advance(50)
    client.send(GET[:5])
    world.advance(9)
    assert client.state == "open"
    client.send(GET[5:6])
    world.advance(1)
    assert client.state == "aborted"


def test_silent_connections() -> None:
    """A connection on which nothing comes is closed after as much time, and without a line in the log."""
    world = World()
    client = world.client()
    world.advance(9)
    assert client.state == "open"
    world.advance(1)
    assert client.state == "closing"
    client.lose()


def test_a_head_behind_another_request() -> None:
    """A head that has begun to come behind a request has as much time."""
    world = World()
    client = world.client().send(GET + GET[:5])
    world.advance(10)
    assert client.state == "aborted"


def test_slow_bodies() -> None:
    """Each 64 KB of a body have to come in time."""
    world = World()
    world.node.answer, world.node.closes = None, False
    client = world.client().send(POST % 200_000)
    for _ in range(2):
        world.advance(29)
        client.send(bytes(40_000))
        world.advance(0.5)
        client.send(bytes(30_000))
    assert client.state == "open"
    world.advance(29)
    client.send(b"1")
    world.advance(1)
    assert client.state == "aborted"


def test_idle_connections() -> None:
    """A connection is kept for the next request for a while."""
    world = World()
    client = world.client().get()
    world.advance(59)
    assert client.get().state == "open"
    world.advance(60)
    assert client.state == "closing"
    client.lose()
    world.advance(60)  # a timer may expire for nothing
    assert world.clock.getDelayedCalls() == []


# Connections


def test_who_may_connect() -> None:
    """Only clients in the networks, and those of UNIX sockets, may connect."""
    world = World(networks=[parse_network("10.0.0.0/8")])
    assert world.factory.buildProtocol(IPv4Address("TCP", "192.0.2.7", 1)) is None
    assert world.factory.buildProtocol(IPv4Address("TCP", "10.0.0.7", 1)) is not None
    world.client(UNIXAddress("")).get()
    variables = world.node.requests[0].variables
    assert (variables["REMOTE_ADDR"], variables["REMOTE_PORT"]) == ("unix:", "")


def test_room_for_others() -> None:
    """At the limit, idle connections make room: those between requests, and those that have sent nothing."""
    world = World(limits={"max_connections": 2, "max_peer_connections": 2})
    busy = world.client()
    world.node.answer, world.node.closes = None, False
    busy.get()
    idle = world.client()
    world.advance(0.5)
    world.client()
    assert busy.state == "open"
    assert idle.state == "open"
    world.advance(0.5)
    assert idle.state == "closing"
    assert busy.state == "open"


@pytest.mark.parametrize("requests", [0, 1])
def test_a_request_on_its_way(requests: int) -> None:
    """A request that arrives after its connection has made room for another is answered; no further one is."""
    world = World(limits={"max_connections": 1, "max_peer_connections": 1})
    client = world.client()
    for _ in range(requests):
        client.get().take()
    world.advance(0.5)
    world.client()
    assert b"Connection: close" in client.get().take()
    assert client.state == "closing"


def test_new_connections_are_in_use() -> None:
    """A connection is not evicted as soon as it is accepted, before its request can arrive."""
    world = World(limits={"max_connections": 1, "max_peer_connections": 1})
    client = world.client()
    assert world.factory.buildProtocol(CLIENT) is None
    assert b"200 OK" in client.get().take()


def test_room_after_an_early_answer() -> None:
    """A client that still sends a body which nobody reads makes room as well."""
    world = World(limits={"max_connections": 2, "max_peer_connections": 2})
    world.node.answer, world.node.closes = None, False
    world.client().get()
    lingering = world.client().send(POST % 100)
    world.node.requests[1].send(OK)
    world.flush()
    assert lingering.state == "half-closed"
    world.client()
    assert lingering.state == "aborted"


def test_draining() -> None:
    """Idle connections are closed at once, the others after their answer."""
    world = World()
    idle, fresh, reading = world.client().get(), world.client(), world.client().send(GET[:5])
    world.node.answer, world.node.closes = None, False
    busy = world.client().get()
    begun = world.client().get()
    world.node.requests[-1].send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", close=False)
    world.flush()
    drained = world.shared.finish()
    assert [each.state for each in (idle, fresh, reading, busy, begun)] == [
        "closing",
        "closing",
        "open",
        "open",
        "open",
    ]
    reading.send(GET[5:])
    for request, answer in zip(world.node.requests[1:], (OK, b"ok", OK), strict=True):
        request.send(answer)
    world.flush()
    assert {each.state for each in (idle, fresh, reading, busy, begun)} == {"closing"}
    assert b"Connection: close" in busy.take()
    assert b"Connection: close" in reading.take()
    assert b"Connection: close" not in begun.take()
    for each in (idle, fresh, reading, busy, begun):
        assert not drained.called
        each.lose()
    assert drained.called


def test_aborting() -> None:
    """All connections are closed now."""
    world = World()
    clients = [world.client(), world.client().get()]
    world.shared.abort()
    assert [client.state for client in clients] == ["aborted", "aborted"]
    for client in clients:
        client.lose()
        client.channel.abort()
