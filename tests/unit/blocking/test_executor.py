"""An executor whose workers are nodes."""

from __future__ import annotations

from concurrent.futures import CancelledError, wait
from typing import Any

import pytest

from tests.unit.servers import (
    closed_port,
    nothing_left_open,  # noqa: F401 - a fixture
    outside_the_reactor,  # noqa: F401 - a fixture
)
from tests.unit.speaking import Speaker, SpeakingServer, echo_all
from uwsgitwisted.blocking import Cluster, ClusterExecutor
from uwsgitwisted.errors import ConnectionFailed, MisuseError, RemoteError

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("outside_the_reactor", "nothing_left_open")]


def executor(server: SpeakingServer, **options: Any) -> ClusterExecutor:
    return ClusterExecutor(Cluster(f"127.0.0.1:{server.port}"), 33, 17, **options)


def test_submit_and_map() -> None:
    """An item is answered by a node; a function that comes with items is not sent."""
    with SpeakingServer(echo_all) as server, executor(server) as nodes:
        assert nodes.submit({"a": 1}).result(10) == {"a": 1}
        assert nodes.submit(len, "item").result(10) == "item"
        assert nodes.submit(pow, 2, 3).result(10) == [2, 3]
        assert list(nodes.map(len, ["a", "b"], timeout=10)) == ["a", "b"]
        assert list(nodes.map(pow, [1, 2], [3, 4])) == [[1, 3], [2, 4]]


def test_errors() -> None:
    """A future has the error with which its item failed."""

    def fail(speaker: Speaker) -> None:
        while True:
            speaker.fail(speaker.next(), RemoteError(type="ValueError"))

    with SpeakingServer(fail) as server, executor(server) as nodes:
        assert isinstance(nodes.submit(1).exception(10), RemoteError)
    with ClusterExecutor(Cluster(f"127.0.0.1:{closed_port()}"), 33, 17) as nodes:
        assert isinstance(nodes.submit(1).exception(10), ConnectionFailed)


def test_cancel_and_shutdown() -> None:
    """What isn't sent yet can be cancelled; shutdown takes nothing more."""

    def answer_when_cancelled(speaker: Speaker) -> None:
        request = speaker.next()
        assert speaker.peer.done.wait(10)
        speaker.answer(request, "late")

    with SpeakingServer(answer_when_cancelled) as server:
        nodes = executor(server, in_flight=1)
        first, second, third = (nodes.submit(n) for n in range(3))
        assert second.cancel()
        nodes.shutdown(wait=False, cancel_futures=True)
        server.done.set()
        wait([first], 10)
        assert first.result() == "late"
        with pytest.raises(CancelledError):
            third.result(10)
        with pytest.raises(RuntimeError):
            nodes.submit(4)
        nodes.shutdown()


@pytest.mark.parametrize("call", [(len,), (1, 2)])
def test_misuse(call: tuple[Any, ...]) -> None:
    """What has no item is refused at once."""
    with ClusterExecutor(Cluster("127.0.0.1:1"), 33, 17) as nodes, pytest.raises(MisuseError):
        nodes.submit(*call)
    with ClusterExecutor(Cluster("127.0.0.1:1"), 33, 17) as nodes, pytest.raises(MisuseError):
        nodes.submit(1, key=2)
    for options in ({"in_flight": 0}, {"timeout": 0}):
        with pytest.raises(MisuseError):
            ClusterExecutor(Cluster("127.0.0.1:1"), 33, 17, **options)
    with pytest.raises(MisuseError):
        ClusterExecutor(Cluster("127.0.0.1:1"), 33, 256)
