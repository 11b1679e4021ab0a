"""Uses the public interface as a user's program would; mypy checks it, nothing runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from typing_extensions import assert_type

from uwsgitwisted import Cluster, __version__, blocking
from uwsgitwisted.address import Address, AddressLike, FanOutNode, parse_address
from uwsgitwisted.blocking.tasks import manage
from uwsgitwisted.client import AnswerStream, Client
from uwsgitwisted.errors import (
    FanOutError,
    MessageTooLarge,
    RemoteError,
    RequestTimeout,
    SpoolRefused,
    StartupError,
    UwsgiError,
)
from uwsgitwisted.taps import node, renderer, spooler

NODES: list[AddressLike] = [
    ("10.0.0.5", 3033),
    ("10.0.0.5", "3033"),
    ["10.0.0.5", 3033],
    "10.0.0.5:3033",
    "unix:/run/node.sock",
    "tls:node.example.com:3033",
    parse_address("tcp:10.0.0.5:3033"),
]

FAN_OUT: list[FanOutNode] = [
    ("10.0.0.5", 3033, {"first": 0}),
    ("10.0.0.5", "3033", None),
    ("unix:/run/node.sock", [1, 2]),
    (("10.0.0.6", 3033), b"bytes"),
    (parse_address("tls:node.example.com:3033"), 1),
]


def addresses() -> None:
    """Addresses have fields."""
    address = parse_address("tls:node.example.com:3033")
    assert_type(address, Address)
    assert_type(address.host, str)
    assert_type(address.port, int)
    assert_type(address.description, str)
    assert_type(__version__, str)


def blocking_calls() -> None:
    """Blocking calls return their answers."""
    assert_type(blocking.send_uwsgi_message("10.0.0.5", 3033, 33, 17, [1, 2], 30), object)
    assert_type(blocking.send_uwsgi_message("10.0.0.5", "3033", 33, 17, {"key": None}), object)
    for address in NODES:
        assert_type(blocking.send_message(address, 33, 17, ("page.txt", {"n": 1}), timeout=2.5), object)
        assert_type(blocking.ping(address), float)
        assert_type(blocking.rpc(address, "f", b"x", "y", 3, timeout=2.5), bytes | None)
        assert_type(blocking.spool(address, {"key": "value", "at": "1767225600"}), bool)
        assert_type(blocking.spool(address, {b"key": b"value"}, timeout=1), bool)
    cluster = (("10.0.0.5", 3033, [0, 3000]), ("10.0.0.6", 3033, [3000, 6000]))
    assert_type(blocking.send_multi_uwsgi_message(cluster, 33, 17, 40), tuple[object, ...])
    assert_type(blocking.send_multi_uwsgi_message(FAN_OUT, 33, 17, 40), tuple[object, ...])
    assert_type(blocking.send_multi_uwsgi_message([("10.0.0.5:3033", 1)], 33, 17), tuple[object, ...])
    addressed = [(address, [0, 3000]) for address in NODES]
    assert_type(blocking.send_multi_uwsgi_message(addressed, 33, 17), tuple[object, ...])


def blocking_stream() -> None:
    """An answer that is read as it arrives is an iterator, and closes itself."""
    with blocking.stream(NODES[0], 173, 1, ("render", "page.html"), timeout=5) as answer:
        assert_type(answer.modifier1, int)
        assert_type(answer.read(), bytes)
        for part in answer:
            assert_type(part, bytes)
    answer.close()


async def deferred_stream(client: Client) -> None:
    """So is one with Deferreds."""
    starting = client.stream(("10.0.0.5", 3033), 0, 0, {"PATH_INFO": "/"}, timeout=5, idempotent=True)
    assert_type(starting, Deferred[AnswerStream])
    async with await starting as answer:
        assert_type(answer.read(), Deferred[bytes])
        async for part in answer:
            assert_type(part, bytes)
    answer.cancel()


def blocking_cluster() -> None:
    """A cluster's maps are iterators."""
    cluster = blocking.Cluster(["10.0.0.5:3033", ("10.0.0.6", 3033), "dns:farm.example.com:3033"])
    assert_type(blocking.Cluster("@nodes.txt").nodes, list[Address])
    assert_type(cluster.send_message(33, 17, [1, 2], timeout=5, idempotent=True), object)
    for _ in cluster.map(33, 17, range(10), 30, chunked=True, chunk=5, on_error="return", progress=True):
        pass
    for result in cluster.as_completed(33, 17, ["a"], idempotent=True, on_progress=lambda progress: None):
        assert_type((result.index, result.value, result.error), tuple[int, object, BaseException | None])


def cluster_executor(cluster: blocking.Cluster) -> None:
    """An executor's futures have the answers."""
    with blocking.ClusterExecutor(cluster, 33, 17, timeout=5, idempotent=True, in_flight=8) as executor:
        assert_type(executor.submit([1, 2]).result(), Any)
        for _ in executor.map(len, ["a", "b"]):
            pass


def blocking_calls_for_tasks() -> None:
    """So do those for tasks."""
    for address in NODES:
        assert_type(
            blocking.enqueue(address, {"to": "ann", "priority": 1}, body=b"letter", timeout=5), int | None
        )
        assert_type(blocking.enqueue_many(address, [{"a": "b"}, ({b"a": b"b"}, b"body")]), list[int])
        assert_type(blocking.cancel(address, [1, 2]), list[int])
        assert_type(manage(address, "stats", {}), object)
        status = blocking.wait(address, 1, timeout=60)
        assert_type(status, blocking.TaskStatus)
        assert_type(blocking.status(address, 1), blocking.TaskStatus)
        assert_type((status.done, status.failed, status.over), tuple[bool, bool, bool])
        assert_type((status.state, status.error, status.result), tuple[str, str, object])
        assert_type((status.started, status.finished), tuple[float | None, float | None])


def errors(address: AddressLike, task: Mapping[str, str]) -> str:
    """Errors carry what a program asks for."""
    try:
        blocking.spool(address, task)
    except SpoolRefused as error:
        return error.text
    except MessageTooLarge as error:
        return str(assert_type(error.size, int) - assert_type(error.limit, int))
    except RequestTimeout as error:
        return str(assert_type(error.seconds, float))
    except FanOutError as error:
        assert_type(error.failures, dict[int, UwsgiError])
        return str(assert_type(error.results, tuple[object, ...]))
    except RemoteError as error:
        return (
            assert_type(error.type, str) + assert_type(error.message, str) + assert_type(error.traceback, str)
        )
    except StartupError as error:
        return str(error)
    except UwsgiError as error:
        return f"{error.address}: {error}"
    return "spooled"


async def deferred_calls(reactor: IReactorTime) -> None:
    """The client's calls return Deferreds, which can be awaited."""
    client = Client(reactor, max_message=1 << 20, plain=[("10.0.0.9", 3031)])
    address = ("10.0.0.5", 3033)
    assert_type(client.send_message(address, 33, 17, [1, 2], timeout=5), Deferred[object])
    assert_type(client.send_multi_message([("10.0.0.5", 3033, 1)], 33, 17), Deferred[list[tuple[bool, object]]])
    assert_type(client.send_multi_message(FAN_OUT, 33, 17), Deferred[list[tuple[bool, object]]])
    assert_type(client.send_multi_message([(address, 1)], 33, 17), Deferred[list[tuple[bool, object]]])
    assert_type(await client.send_message("unix:/run/node.sock", 33, 0, None), object)
    assert_type(await client.spool(address, {"key": "value"}), bool)
    assert_type(await client.enqueue(address, {"key": "value"}, b"body"), int | None)
    assert_type(await client.enqueue_many(address, [{"key": "value"}]), list[int])
    assert_type(await client.status(address, 1), blocking.TaskStatus)
    assert_type(await client.wait(address, 1, timeout=60), blocking.TaskStatus)
    assert_type(client.cancel(address, [1]), Deferred[list[int]])
    assert_type(await client.ping(address), float)
    assert_type(await client.rpc(address, b"f", "x", timeout=2.5), bytes | None)
    client.send_message(address, 33, 17, b"").cancel()
    await client.close()


async def clusters(reactor: IReactorTime) -> None:
    """A cluster takes every form of an address, and its maps are async iterators."""
    cluster = Cluster(reactor, NODES)
    cluster.set_nodes(NODES)
    assert_type(await cluster.send_message(33, 17, {"key": "value"}, idempotent=True), object)
    async for value in cluster.map(33, 17, range(10), chunked=True, on_error="return"):
        print(value)
    async for result in cluster.as_completed(33, 17, iter([1, 2]), on_progress=print):
        assert_type(result.index, int)
        assert_type(result.error, BaseException | None)
        assert_type(result.seconds, float)
    await cluster.close()


def services() -> list[IService]:
    """A program of its own makes services as twistd does."""
    return [
        node.makeService(node.Options()),
        renderer.makeService(renderer.Options()),
        spooler.makeService(spooler.Options()),
    ]
