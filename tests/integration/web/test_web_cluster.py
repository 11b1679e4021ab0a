"""The public web server as docs/nginx.md builds it: browser, nginx with TLS, three nodes, and a renderer."""

from __future__ import annotations

import http.client
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.integration.services import PATIENCE, Launcher, until
from tests.integration.web_cluster import Cluster, running_cluster

pytestmark = [pytest.mark.integration, pytest.mark.needs("nginx")]

#: Browsers that ask at once; the nodes have six workers together.
BROWSERS = 4


@pytest.fixture
def cluster(launch: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Give a running cluster."""
    with running_cluster(launch, tmp_path, monkeypatch) as running:
        yield running


class Load:
    """Browsers that ask for one page after another.

    :param method: how they ask.
    """

    def __init__(self, cluster: Cluster, method: str, browsers: int) -> None:
        self._cluster = cluster
        self._method = method
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(browsers)]
        #: What was answered: the node's name, or the status or error if it is no page.
        self.answers: list[str] = []
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        browser = self._cluster.browser()
        while not self._ended.is_set():
            try:
                browser.request(self._method, "/?n=12&time=1.5", b"n" if self._method == "POST" else None)
                answer = browser.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.answers.append(repr(error))
                browser.close()
                continue
            whole = answer.status == 200 and b"<td>89</td>" in body
            self.answers.append(answer.headers["X-Node"] if whole else str(answer.status))
        browser.close()

    def more(self, number: int = 200) -> None:
        """Wait for more answers."""
        seen = len(self.answers)
        until(lambda: len(self.answers) >= seen + number, "more answers")

    def stop(self) -> Counter[str]:
        """Let the browsers stop, and return how often there was each answer."""
        self._ended.set()
        for thread in self._threads:
            thread.join()
        return Counter(self.answers)


@contextmanager
def load(cluster: Cluster, **browsers: int) -> Iterator[list[Load]]:
    """Load the cluster while the block runs.

    :param browsers: how many use each method.
    """
    with ExitStack() as stack:
        loads = []
        for method, number in browsers.items():
            loads.append(Load(cluster, method, number))
            stack.callback(loads[-1].stop)
        yield loads


NODES = {"node 0", "node 1", "node 2"}


def test_pages(cluster: Cluster) -> None:
    """A browser gets the page with the sequence that it asked for, files, and the address with TLS."""
    status, headers, body = cluster.get("/?n=12&time=1.5")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "<tr><td>11</td><td>89</td></tr>" in body.decode()
    assert cluster.get("/?n=many")[0] == 400
    assert cluster.get("/?n=3", "HEAD")[2] == b""
    assert cluster.get("/static/style.css")[2] == b"body { color: black }"
    assert cluster.get("/nginx-health")[0] == 204
    plain = http.client.HTTPConnection("127.0.0.1", cluster.plain_port, timeout=PATIENCE)
    plain.request("GET", "/?n=12", headers={"Host": "www.example.com"})
    moved = plain.getresponse()
    assert (moved.status, moved.headers["Location"]) == (301, "https://www.example.com/?n=12")
    moved.read()
    plain.close()


def test_a_node_that_is_killed(cluster: Cluster) -> None:
    """Every GET gets its page; a POST fails only if it was in the killed node's hands."""
    with load(cluster, GET=BROWSERS, POST=2) as (gets, posts):
        gets.more()
        cluster.nodes[0].kill()
        gets.more()
        posts.more(20)
        answered, posted = gets.stop(), posts.stop()
    assert set(answered) == NODES, f"{answered}\n{cluster.nginx.log}"
    assert set(posted) <= {*NODES, "502"}
    assert posted["502"] <= 2


def test_a_reload(cluster: Cluster) -> None:
    """No request fails while a node's workers are replaced, whatever its method."""
    with load(cluster, GET=BROWSERS, POST=2) as (gets, posts):
        gets.more()
        for node in cluster.nodes:
            node.process.send_signal(signal.SIGHUP)
            node.wait_for("every worker was replaced")
        gets.more()
        answered, posted = gets.stop(), posts.stop()
    assert set(answered) == NODES, f"{answered}\n{cluster.nginx.log}"
    assert set(posted) <= NODES, f"{posted}\n{cluster.nginx.log}"


def test_a_node_that_is_stopped(cluster: Cluster) -> None:
    """No request fails while nodes are stopped and end, whatever its method."""
    with load(cluster, GET=BROWSERS, POST=BROWSERS) as (gets, posts):
        for node in cluster.nodes[:2]:
            gets.more()
            node.terminate()
        gets.more()
        answered, posted = gets.stop(), posts.stop()
    assert set(answered) == NODES, f"{answered}\n{cluster.nginx.log}"
    assert set(posted) == NODES, cluster.nginx.log


def test_no_renderer(cluster: Cluster) -> None:
    """Without a renderer, a browser gets the application's own 503."""
    cluster.renderer.terminate()
    status, _, body = cluster.get("/?n=3")
    assert (status, b"No page can be rendered" in body) == (503, True)
