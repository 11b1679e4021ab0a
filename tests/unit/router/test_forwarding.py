"""Where a request goes: the next node where that is safe, and an error where it isn't."""

from __future__ import annotations

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.error import TCPTimedOutError
from twisted.logger import globalLogPublisher

from tests.unit.router.world import OK, Client, World, status
from uwsgitwisted.errors import ConnectionFailed

POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n12"
PUT = POST.replace(b"POST", b"PUT")
CHUNKED = b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n12\r\n0\r\n\r\n"


def requests(world: World) -> list[int]:
    """Return how many requests each node has got."""
    return [len(node.requests) for node in world.nodes]


def test_the_fewest_first() -> None:
    """A request goes to the node with the fewest in flight."""
    world = World(2)
    world.nodes[0].answer, world.nodes[0].closes = None, False
    for _ in range(4):
        world.client().get()
    assert requests(world) == [1, 3]
    world.nodes[0].requests[0].send(OK)
    world.flush()
    world.nodes[0].answer = OK
    world.client().get()
    assert requests(world) == [2, 3]


@pytest.mark.parametrize("data", [None, POST, PUT, CHUNKED])
def test_a_node_that_refuses_connections(data: bytes | None) -> None:
    """Any request goes to another one; the first is left out."""
    world = World(2)
    world.nodes[0].endpoint.refusing = True
    for _ in range(3):
        client = world.client()
        client.send(data) if data is not None else client.get()
        assert status(client.take()) == 200
    assert requests(world) == [0, 3]
    assert world.nodes[0].endpoint.attempts == 1
    if data is not None:
        assert {request.body for request in world.nodes[1].requests} == {b"12"}


@pytest.mark.parametrize(
    ("data", "codes"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", [200, 200]),
        (b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", [200, 200]),
        (b"DELETE / HTTP/1.1\r\nHost: a\r\n\r\n", [200, 200]),
        (CHUNKED, [200, 200]),
        (PUT, [502, 200]),
        (POST, [502, 200]),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", [502, 200]),
        (CHUNKED.replace(b"PUT", b"POST"), [502, 200]),
    ],
)
def test_a_connection_that_is_closed_without_an_answer(data: bytes, codes: list[int]) -> None:
    """The request goes to another node if it may run twice, and all of it is still there."""
    world = World(2)
    world.nodes[0].answer = None
    client = world.client()
    assert [status(client.send(data).take()) for _ in range(2)] == codes
    if data is CHUNKED:
        assert world.nodes[1].requests[0].body == b"12"


def test_a_body_that_is_still_there() -> None:
    """A request with a body that was kept goes to another node, if it may run twice."""
    world = World(2, buffer_body=2)
    world.nodes[0].answer = None
    client = world.client()
    assert [status(client.send(data).take()) for data in (PUT, POST)] == [200, 502]
    assert world.nodes[1].requests[0].body == b"12"


def test_a_body_that_comes_between_two_nodes() -> None:
    """A body that comes after one node has failed and before the next is connected, reaches that one."""
    world = World(2)
    world.nodes[0].answer = None
    world.nodes[1].answer, world.nodes[1].closes = None, False
    world.nodes[1].endpoint.held = []
    client = world.client().send(PUT[:-2])
    assert requests(world) == [1, 0]
    assert client.transport.producerState == "paused"
    client.send(b"12")
    world.nodes[1].endpoint.go_on()
    world.flush()
    assert world.nodes[1].requests[0].body == b"12"


def test_a_request_that_kills() -> None:
    """At most three nodes get a request that ends without an answer."""
    world = World(5)
    for node in world.nodes:
        node.answer = None
    assert status(world.client().get().take()) == 502
    assert requests(world) == [1, 1, 1, 0, 0]


def test_no_other_node() -> None:
    """If all nodes have closed the connection, the client is told that the answer was bad."""
    world = World(2)
    for node in world.nodes:
        node.answer = None
    assert status(world.client().get().take()) == 502
    assert requests(world) == [1, 1]


def test_no_node() -> None:
    """Without a node, the client is told when to try again."""
    world = World(2)
    for node in world.nodes:
        node.endpoint.refusing = True
    client = world.client()
    for _ in range(2):
        answer = client.get().take()
        assert status(answer) == 503
        assert b"Retry-After: 1\r\n" in answer
    assert [node.endpoint.attempts for node in world.nodes] == [1, 1]
    assert client.state == "open"


def test_a_node_that_is_silent() -> None:
    """The client is told that it was too late, and the request doesn't run again."""
    world = World(2, timeout=5.0)
    world.node.answer, world.node.closes = None, False
    client = world.client().get()
    world.advance(5)
    assert status(client.take()) == 504
    assert requests(world) == [1, 0]
    assert world.node.requests[0].lost
    assert client.state == "open"


@pytest.mark.parametrize(
    "answer", [b"\x64\0\0\1junk\r\n\r\n", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nx\r\n\r\n"]
)
def test_a_bad_answer(answer: bytes) -> None:
    """An answer that is no HTTP is an error, and other nodes are not asked."""
    world = World(2)
    world.node.answer = answer
    client = world.client()
    page = client.get().take()
    assert status(page) == 502
    assert b"junk" not in page
    assert b"node0" not in page
    assert requests(world) == [1, 0]


def test_an_answer_that_breaks_off() -> None:
    """The client's connection is reset."""
    world = World(2)
    world.node.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nanswer"
    client = world.client().get()
    assert client.take().endswith(b"answer")
    assert client.state == "aborted"
    assert requests(world) == [1, 0]


def test_a_client_that_leaves_early() -> None:
    """A request whose client leaves before there is a connection is dropped."""
    world = World(2)
    world.node.endpoint.held = []
    world.client().get().lose()
    world.node.endpoint.go_on()
    world.flush()
    assert requests(world) == [0, 0]
    for node in world.nodes:
        node.answer, node.closes = None, False
    for _ in range(4):
        world.client().get()
    assert requests(world) == [2, 2]


def test_it_counts_requests_in_flight() -> None:
    """However a request ends, it is no longer in flight then."""
    world = World(2, timeout=5.0)
    first, second = world.nodes
    for answer, closes in (
        (None, True),
        (b"junk\n\n", True),
        (None, False),
        (b"HTTP/1.0 200 OK\r\n\r\n", False),
    ):
        for node in world.nodes:
            node.answer, node.closes = answer, closes
        for method in (b"GET", b"POST"):
            client = world.client().send(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n")
            world.advance(3)
            client.lose()
            world.flush()
    world.advance(60)
    for node in world.nodes:
        node.answer, node.closes = None, False
    before = requests(world)
    for _ in range(4):
        world.client().get()
    assert [after - old for after, old in zip(requests(world), before, strict=True)] == [2, 2]
    assert first is not second


def waiting(world: World, number: int, host: str = "192.0.2.7") -> list[Client]:
    """Return clients of one address whose requests are on their way."""
    return [world.client(IPv4Address("TCP", host, 1)).get(f"/{host}") for _ in range(number)]


def hold(world: World) -> None:
    """Let the nodes answer only when they are told to."""
    for node in world.nodes:
        node.answer, node.closes = None, False


def test_turns() -> None:
    """If no node has room, requests wait, and clients take turns."""
    world = World(in_flight=2)
    hold(world)
    many = waiting(world, 10, "192.0.2.1")
    few = waiting(world, 1, "192.0.2.2")
    assert requests(world) == [2]
    for number in range(3):
        world.node.requests[number].send(OK)
        world.flush()
    assert requests(world) == [5]
    paths = [request.variables["PATH_INFO"] for request in world.node.requests]
    assert "/192.0.2.2" in paths[:4]
    assert status(many[0].take()) == 200
    assert few[0].take() == b""


def test_waiting_clients_that_leave() -> None:
    """A request whose client leaves while it waits never reaches a node."""
    world = World(in_flight=1)
    hold(world)
    first, second, third = waiting(world, 3)
    second.lose()
    world.node.requests[0].send(OK)
    world.flush()
    assert requests(world) == [2]
    world.node.requests[1].send(OK)
    world.flush()
    assert requests(world) == [2]
    assert status(third.take()) == 200
    assert first.state == "open"


def test_waiting_for_too_long() -> None:
    """A request for which no node has room in time is refused."""
    world = World(in_flight=1, timeout=5.0)
    hold(world)
    _, client = waiting(world, 2)
    world.advance(4)
    world.node.requests[0].send(b"HTTP/1.1 200 OK\r\n\r\n", close=False)
    world.advance(0.9)
    assert client.take() == b""
    world.advance(0.1)
    assert status(client.take()) == 503
    assert requests(world) == [1]
    assert client.state == "open"


def test_waiting_when_all_nodes_fail() -> None:
    """Requests that wait are refused when no node is left."""
    world = World(2, in_flight=1)
    hold(world)
    waiting(world, 2)
    clients = waiting(world, 3)
    for node in world.nodes:
        world.balanced.fail(node.node, ConnectionFailed("refused"))
    assert [status(client.take()) for client in clients] == [503] * 3


def test_waiting_when_a_node_is_back() -> None:
    """Requests that wait go to a node that is back."""
    world = World(2, in_flight=1)
    hold(world)
    world.balanced.fail(world.nodes[1].node, ConnectionFailed("refused"))
    waiting(world, 2)
    assert requests(world) == [1, 0]
    world.advance(0.5)
    assert requests(world) == [1, 1]


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_connection_that_takes_too_long(nodes: int) -> None:
    """It leaves a node out only while there is another one: its queue may just be full."""
    world = World(nodes)
    world.node.endpoint.held = []
    client = world.client().get()
    held, world.node.endpoint.held = world.node.endpoint.held, None
    held[0][0].errback(TCPTimedOutError())
    world.flush()
    assert status(client.take()) == (503 if nodes == 1 else 200)
    assert status(world.client().get().take()) == 200
    assert requests(world) == ([1] if nodes == 1 else [0, 2])


def test_the_log() -> None:
    """A node's failure is logged, a few lines for each kind."""
    lines: list[str] = []
    observer = lambda event: lines.append(event["log_format"].format(**event))  # noqa: E731
    globalLogPublisher.addObserver(observer)
    try:
        world = World()
        world.node.answer = b"junk\n\n"
        client = world.client()
        for _ in range(100):
            client.get("/" + "x" * 1_000)
    finally:
        globalLogPublisher.removeObserver(observer)
    assert 1 <= len(lines) < 10  # one a second at most
    assert lines[0].startswith("192.0.2.7:40001: GET /xxx")
    assert lines[0].endswith("xxx: node node0: its head has the line b'junk'")
    assert len(lines[0]) < 300
