"""Where a request goes: the next node where that is safe, and an error where it isn't."""

from __future__ import annotations

import pytest
from twisted.logger import globalLogPublisher

from tests.unit.router.fronts import OK, World, status

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
    assert len(lines) == 1
    assert lines[0].startswith("192.0.2.7:40001: GET /xxx")
    assert lines[0].endswith("xxx: node node0: its head has the line b'junk'")
    assert len(lines[0]) < 300
