"""The blocking cluster: maps and single calls over several servers, of which some fail."""

from __future__ import annotations

import os
import re
import socket
import ssl
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from tests.unit.servers import (
    ENOUGH,
    ScriptedServer,
    closed_port,
    echoing,
    nothing_left_open,  # noqa: F401 - a fixture
    outside_the_reactor,  # noqa: F401 - a fixture
    reset,
)
from tests.unit.speaking import Speaker, SpeakingServer
from uwsgitwisted import blocking
from uwsgitwisted.blocking import bar, links
from uwsgitwisted.errors import (
    Busy,
    ConnectionBroken,
    ConnectionFailed,
    MessageTooLarge,
    MisuseError,
    NoAnswer,
    RemoteError,
    RequestTimeout,
    Unavailable,
    UnencodableMessage,
    UwsgiError,
    WorkerDied,
)
from uwsgitwisted.planner.progress import NodeProgress, Progress
from uwsgitwisted.sources import sources
from uwsgitwisted.wire.bundle import decode_bundle
from uwsgitwisted.wire.events import CancelReceived
from uwsgitwisted.wire.failure import no_keepalive
from uwsgitwisted.wire.objects import loads
from uwsgitwisted.wire.packet import BUNDLE, MARSHAL, PING
from uwsgitwisted.wire.terms import Terms

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("outside_the_reactor", "nothing_left_open")]

CERTIFICATES = Path(__file__).parents[1] / "tls"
ITEMS = list(range(100))


def at(server: ScriptedServer) -> str:
    return f"127.0.0.1:{server.port}"


def cluster(*servers: ScriptedServer) -> blocking.Cluster:
    return blocking.Cluster([at(server) for server in servers])


def echo_each(speaker: Speaker) -> None:
    """Answer every request with what it has, until the client closes."""
    while True:
        request = speaker.next()
        speaker.answer(request, loads(request.packet.payload))


def hang(speaker: Speaker) -> None:
    """Read requests, and answer nothing."""
    while True:
        speaker.next()


def die_at(number: int) -> Any:
    """Answer some requests, and reset the connection at the next one."""

    def turn(speaker: Speaker) -> None:
        for _ in range(number):
            speaker.answer(speaker.next(), "answered")
        speaker.next()
        reset(speaker.connection)

    return turn


def note_cancels(speaker: Speaker) -> None:
    """Answer the item 0 only; say when as many other requests are cancelled as have come."""
    got, cancelled = 0, 0
    while data := speaker.connection.recv(65_536):
        for event in speaker.session.receive(data):
            if isinstance(event, CancelReceived):
                cancelled += 1
            elif got == 0:
                speaker.answer(event, 0)  # type: ignore[arg-type]
                got = 1
            else:
                got += 1
        if cancelled and cancelled == got - 1:
            speaker.note_done()


def test_map() -> None:
    """The answers come in the order of the items, over one session with each node."""
    with SpeakingServer(echo_each) as one, SpeakingServer(echo_each) as two:
        assert list(cluster(one, two).map(33, 17, ITEMS)) == ITEMS
        assert list(cluster(one, two).map(33, 17, [])) == []
    assert len(one.sessions) == 1
    assert len(two.sessions) == 1
    assert sorted(one.sessions[0] + two.sessions[0]) == ITEMS


def test_bundles() -> None:
    """A node that takes bundles gets several items in a request; each has its own result, in order."""
    requests = []

    def answer_bundles(speaker: Speaker) -> None:
        while True:
            request = speaker.next()
            requests.append(request)
            if request.packet.modifier1 != BUNDLE:
                speaker.answer(request, loads(request.packet.payload))
                continue
            items = [loads(packet.payload) for packet in decode_bundle(request.packet)]
            if 50 in items:
                speaker.fail(request, WorkerDied("killed"))
            else:
                outcomes = [RemoteError(type="KeyError") if item == 7 else item for item in items]
                speaker.answer_bundle(request, *outcomes[:9])  # the last one was not begun

    with SpeakingServer(answer_bundles, terms=Terms(node="x", workers=1, bundle=256)) as server:
        nodes = cluster(server)
        values = list(nodes.map(33, 17, ITEMS, chunk=10, idempotent=True, on_error="return"))
        assert isinstance(values[7], RemoteError)
        assert str(values[7].address) == at(server)
        assert values[:7] + values[8:] == ITEMS[:7] + ITEMS[8:]
        bundled = [request for request in requests if request.packet.modifier1 == BUNDLE]
        assert len(bundled) == 10
        assert not any(request.idempotent for request in bundled)
        assert all(request.idempotent for request in requests if request not in bundled)
        requests.clear()
        assert list(nodes.map(33, 17, ITEMS, chunk=1)) == ITEMS
        assert BUNDLE not in {request.packet.modifier1 for request in requests}


class PlainLater(SpeakingServer):
    """A server that grants one session, and is a plain one afterwards."""

    def _speak(self, server: ScriptedServer, connection: socket.socket) -> None:
        (echoing if self.sessions else super()._speak)(server, connection)


def test_a_node_that_becomes_plain() -> None:
    """No bundle reaches a server that grants no session any more; its items go there one by one."""

    def leave(speaker: Speaker) -> None:
        speaker.answer(speaker.next(), 0)
        speaker.announce_shutdown()
        while True:
            speaker.fail(speaker.next(), Unavailable("draining"))

    with PlainLater(leave, terms=Terms(node="x", workers=1, bundle=256)) as server:
        assert list(cluster(server).map(33, 17, ITEMS[:20], chunk=5)) == ITEMS[:20]
    assert {request[0] for request in server.requests} == {PING, MARSHAL}


def test_several_in_flight() -> None:
    """A node that has more workers gets more requests at once."""
    flying: list[int] = []

    def collect(speaker: Speaker) -> None:
        requests = [speaker.next() for _ in range(4)]
        flying.append(len(requests))
        for request in reversed(requests):
            speaker.answer(request, request.id)
        echo_each(speaker)

    with SpeakingServer(collect, terms=Terms(node="x", workers=4)) as server:
        assert len(list(cluster(server).map(33, 17, range(8)))) == 8
    assert flying == [4]


def test_as_completed() -> None:
    """Each result has its index, its value, its node and its time."""
    with SpeakingServer(echo_each) as server:
        results = sorted(cluster(server).as_completed(33, 17, "abc"), key=lambda result: result.index)
    assert [(each.index, each.value, each.error, str(each.node)) for each in results] == [
        (0, "a", None, at(server)),
        (1, "b", None, at(server)),
        (2, "c", None, at(server)),
    ]
    assert all(0 < each.seconds < 5 for each in results)


def test_chunks() -> None:
    """A chunk is a list, or the bounds of a part of a range."""
    with SpeakingServer(echo_each) as server:
        both = cluster(server)
        assert list(both.map(33, 17, range(5), chunked=True, chunk=2)) == [[0, 2], [2, 4], [4, 5]]
        assert list(both.map(33, 17, iter("abc"), chunked=True, chunk=2)) == [["a", "b"], ["c"]]


def test_plain_peers() -> None:
    """A server that grants no session gets a connection for each request."""
    with ScriptedServer(echoing) as server:
        assert list(cluster(server).map(33, 17, ITEMS[:20])) == ITEMS[:20]
    assert len(server.requests) == 21  # with the offer of a session


def test_large_items() -> None:
    """Items that don't fit the socket's buffer are sent as the node takes them."""
    items = [bytes([number]) * 1_000_000 for number in range(6)]
    with SpeakingServer(echo_each, terms=Terms(node="x", workers=3)) as server:
        assert list(cluster(server).map(33, 17, items)) == items


def test_tls() -> None:
    """A session may be in TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / "roots" / "node.pem", CERTIFICATES / "key.pem")
    items = [number if number % 10 else bytes(100_000) for number in range(50)]
    with SpeakingServer(echo_each, context=context) as server:
        nodes = blocking.Cluster(f"tls:localhost:{server.port}:trustRoots={CERTIFICATES}/roots")
        assert list(nodes.map(33, 17, items)) == items


def test_nodes_that_are_not_there() -> None:
    """What a node that is not there should have done is done by the others."""
    with SpeakingServer(echo_each) as server:
        both = blocking.Cluster([f"127.0.0.1:{closed_port()}", at(server)])
        assert list(both.map(33, 17, ITEMS)) == ITEMS


def test_no_node_at_all() -> None:
    """A map without a node that is well ends, and says why."""
    alone = blocking.Cluster(f"127.0.0.1:{closed_port()}")
    with pytest.raises(Unavailable, match=r"no node was well for 0\.3 s: .*Connection refused"):
        list(alone.map(33, 17, ITEMS, 0.3))


@pytest.mark.parametrize("idempotent", [False, True])
def test_a_node_that_dies(idempotent: bool) -> None:
    """A request that may have run fails, unless it may run twice; the others go elsewhere in any case."""
    with SpeakingServer(die_at(0), echo_each) as one, SpeakingServer(echo_each) as two:
        values = list(cluster(one, two).map(33, 17, ITEMS, idempotent=idempotent, on_error="return"))
    failed = [value for value in values if isinstance(value, UwsgiError)]
    assert all(isinstance(error, NoAnswer) and error.address is not None for error in failed)
    assert bool(failed) is not idempotent
    assert len(values) == 100


def test_a_node_that_drains() -> None:
    """A node that sends its shutdown notice gets no further requests on that session."""

    def drain(speaker: Speaker) -> None:
        speaker.announce_shutdown()
        while True:
            speaker.fail(speaker.next(), Unavailable("draining"))

    with SpeakingServer(drain, echo_each) as one, SpeakingServer(echo_each) as two:
        assert list(cluster(one, two).map(33, 17, ITEMS)) == ITEMS


def test_a_node_that_is_busy() -> None:
    """A node that has no room is not asked less than the others for long."""

    def refuse(speaker: Speaker) -> None:
        speaker.fail(speaker.next(), Busy("full"))
        echo_each(speaker)

    with SpeakingServer(refuse) as server:
        assert list(cluster(server).map(33, 17, ITEMS)) == ITEMS


def test_errors() -> None:
    """A handler's exception ends the map at its place, or is returned."""

    def fail_at_one(speaker: Speaker) -> None:
        while True:
            request = speaker.next()
            item = loads(request.packet.payload)
            if item == 1:
                speaker.fail(request, RemoteError(type="ValueError", message="one"))
            else:
                speaker.answer(request, item)

    with SpeakingServer(fail_at_one) as server:
        mapped = cluster(server).map(33, 17, range(3))
        assert next(mapped) == 0
        with pytest.raises(RemoteError, match="ValueError: one") as caught:
            next(mapped)
        assert str(caught.value.address) == at(server)
        values = list(cluster(server).map(33, 17, range(3), on_error="return"))
        assert [type(value) for value in values] == [int, RemoteError, int]


def test_what_can_not_be_sent() -> None:
    """An item that can't be sent, or is too large for the node, fails alone."""
    with SpeakingServer(echo_each, terms=Terms(max_message=1_000, node="x")) as server:
        values = list(cluster(server).map(33, 17, [1, object(), "x" * 2_000, 2], on_error="return"))
    assert [type(value) for value in values] == [int, UnencodableMessage, MessageTooLarge, int]


def test_requests_that_take_too_long() -> None:
    """A request that times out is an error, and is cancelled on its node."""
    with SpeakingServer(note_cancels) as server:
        values = list(cluster(server).map(33, 17, [0, 1], ENOUGH, on_error="return"))
        assert server.done.wait(5)
    assert values[0] == 0
    assert isinstance(values[1], RequestTimeout)


def test_a_node_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that doesn't even answer a ping is found out long before the time limit."""
    monkeypatch.setattr(links, "KEEPALIVE", 0.1)

    def freeze(speaker: Speaker) -> None:
        speaker.next()
        speaker.peer.stopping.wait(10)

    with SpeakingServer(freeze) as one, SpeakingServer(echo_each) as two:
        values = list(cluster(one, two).map(33, 17, ITEMS, on_error="return"))
    lost = [value for value in values if isinstance(value, NoAnswer)]
    assert lost
    assert {re.sub("[0-9.]+", "N", error.text) for error in lost} == {
        re.sub("[0-9.]+", "N", no_keepalive(0.2).text)
    }
    assert [value for value in values if value not in lost] == [
        item for item, value in enumerate(values) if value not in lost
    ]


@pytest.mark.parametrize("how", ["break", "error", "interrupt"])
def test_early_ends(how: str) -> None:
    """When the loop ends early, all that is in flight is cancelled on the nodes."""
    with SpeakingServer(note_cancels, terms=Terms(node="x", workers=4)) as server:
        seen: list[Progress] = []
        values = cluster(server).map(33, 17, ITEMS, on_progress=seen.append)
        try:
            for value in values:
                assert value == 0
                if how == "break":
                    break
                raise KeyboardInterrupt if how == "interrupt" else ZeroDivisionError
        except (KeyboardInterrupt, ZeroDivisionError):
            pass
        del values
        assert server.done.wait(5)
    assert (seen[-1].done, seen[-1].nodes[0].in_flight) == (1, 0)


def test_interrupted_while_it_waits() -> None:
    """So it is when Ctrl-C comes while the map waits for an answer."""

    def interrupt(progress: Progress) -> None:
        if progress.done:
            raise KeyboardInterrupt

    with SpeakingServer(note_cancels, terms=Terms(node="x", workers=2)) as server:
        values = cluster(server).map(33, 17, ITEMS, on_progress=interrupt)
        with pytest.raises(KeyboardInterrupt):
            list(values)
        assert server.done.wait(5)


def test_a_generator_is_read_as_the_work_goes() -> None:
    """Items are read only as nodes need them, and what reading raises comes out."""
    read = []

    def items() -> Iterator[int]:
        for number in range(10**9):
            read.append(number)
            yield number

    def broken() -> Iterator[int]:
        yield 0
        raise ZeroDivisionError

    with SpeakingServer(echo_each) as server:
        values = cluster(server).map(33, 17, items())
        assert next(values) == 0
        values.close()  # type: ignore[attr-defined]
        assert len(read) < 100
        with pytest.raises(ZeroDivisionError):
            list(cluster(server).map(33, 17, broken()))


def test_nodes_that_come_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that is added to the file while a map runs gets work."""
    monkeypatch.setattr(sources, "FILE_INTERVAL", 0.01)
    path = tmp_path / "nodes.txt"
    with SpeakingServer(hang) as one, SpeakingServer(echo_each) as two:
        path.write_text(f"{at(one)}\n")
        both = blocking.Cluster(f"@{path}")

        def add(progress: Progress) -> None:
            new = path.with_name("new")
            new.write_text(f"{at(two)}\n")
            os.replace(new, path)

        values = both.map(33, 17, range(3), 1, idempotent=True, on_progress=add)
        assert list(values) == [0, 1, 2]
        assert list(map(str, both.nodes)) == [at(two)]


def test_single_calls() -> None:
    """A single call goes to a node that is well, and to another one if that fails."""
    with SpeakingServer(die_at(0)) as one, SpeakingServer(echo_each) as two:
        both = cluster(one, two)
        assert [both.send_message(33, 17, number, idempotent=True) for number in range(20)] == list(range(20))
    with SpeakingServer(die_at(0)) as server:
        with pytest.raises((NoAnswer, ConnectionBroken)) as caught:
            cluster(server).send_message(33, 17, 1)
        assert str(caught.value.address) == at(server)
    with pytest.raises(ConnectionFailed):
        blocking.Cluster(f"127.0.0.1:{closed_port()}").send_message(33, 17, 1)
    blocking.close()


@pytest.mark.parametrize(
    "options", [{"chunk": 2}, {"chunk": 0, "chunked": True}, {"on_error": "x"}, {"timeout": 0}]
)
def test_misuse(options: dict[str, Any]) -> None:
    """Arguments that don't fit together are refused before anything is sent."""
    with pytest.raises(MisuseError):
        blocking.Cluster("127.0.0.1:1").map(173, 0, [b"x"], **options)
    with pytest.raises(MisuseError):
        blocking.Cluster("127.0.0.1:1").map(300, 17, [1])
    with pytest.raises(MisuseError):
        blocking.Cluster("127.0.0.1:1").map(33, 17, 5)  # type: ignore[arg-type]


def test_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal, the progress is lines on the standard error; a program gets numbers."""
    output = StringIO()
    monkeypatch.setattr(sys, "stderr", output)
    seen: list[Progress] = []
    with SpeakingServer(echo_each) as server:
        list(cluster(server).map(33, 17, ITEMS, progress=True, on_progress=seen.append))
    assert (seen[-1].done, seen[-1].failed, seen[-1].total) == (100, 0, 100)
    assert [(node.done, node.in_flight) for node in seen[-1].nodes] == [(100, 0)]
    assert output.getvalue().splitlines()[-1].startswith("100 of 100 done, ")


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("rich", [True, False])
def test_bar(rich: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a terminal there is a bar; without rich there are lines."""
    if not rich:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    node = NodeProgress("a", 5, 1.0, 1, 1, True)
    display = bar.make_display()
    for done in (5, 6):
        display.update(Progress(done, 1, 10, 2.0, 2.0, 2.5, (node,)))
    display.close()
    shown = terminal.getvalue()
    assert "6 of 10 done, 1 failed, 2.0/s, 2 s left, 0 of 1 nodes" in shown
    assert ("\x1b[" in shown) is rich
    assert isinstance(display, bar.Lines) is not rich
