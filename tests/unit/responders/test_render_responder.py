"""The front's result cache: what is found there, what is kept, and that every change of a file is seen."""

from __future__ import annotations

import gc
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from tests.unit.responders.test_simple_responders import Engine
from tests.unit.worker.test_template_changes import EDITS, PAGES, Site
from uwsgitwisted.activity import CacheCounts
from uwsgitwisted.engines.inline import InlineEngine
from uwsgitwisted.errors import RemoteError
from uwsgitwisted.interfaces import IResponder, Request, TimedAnswer
from uwsgitwisted.responders.render import RenderResponder
from uwsgitwisted.transport.batch import BATCH
from uwsgitwisted.wire.objects import dumps, loads
from uwsgitwisted.wire.packet import MARSHAL, Packet
from uwsgitwisted.worker.spec import Loader, WorkerSpec
from uwsgitwisted.worker.templates import directories as directories_module
from uwsgitwisted.worker.templates import results
from uwsgitwisted.worker.templates.directories import File
from uwsgitwisted.worker.templates.keeping import MAY_KEEP, encode

LIMIT = 100_000
#: It says how often it was rendered.
COUNTER = "<%! times = [] %><% times.append(1) %>${len(times)} ${x}"


class Pages:
    """A renderer in this process with a result cache in front of it.

    :param directories: its templates.
    :param options: of its handlers, and ``limit``.
    """

    def __init__(self, *directories: Path, **options: Any) -> None:
        limit = options.pop("limit", LIMIT)
        arguments = {"directories": list(map(str, directories)), "max_kept": limit, **options}
        loader = Loader("uwsgitwisted.worker.handlers.render:load", arguments)
        engine = InlineEngine(Clock(), WorkerSpec((loader,)), timeout=1, max_queue=1)
        engine.start()
        self.responder = RenderResponder(engine, limit, 10.0, reload=options.get("reload", True))

    def ask(self, message: object) -> object:
        """Return the answer to a request, or raise its error."""
        answer: Any = self.responder.respond(Request(Packet(MARSHAL, 7, dumps(message))))
        if isinstance(answer, Deferred):
            found: list[Any] = []
            answer.addBoth(found.append)
            (answer,) = found
            if not isinstance(answer, Packet):
                answer.raiseException()
        assert answer[:2] == (MARSHAL, 7)
        return loads(answer.payload)

    @property
    def counts(self) -> CacheCounts:
        return self.responder.statistics


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory of templates, whose files count as old enough to be judged by their status."""
    monkeypatch.setattr(directories_module, "SETTLED_AFTER", -(10**18))
    (tmp_path / "counter.html").write_text(COUNTER)
    return tmp_path


def test_interface() -> None:
    """It is a responder."""
    assert verifyObject(IResponder, RenderResponder(Engine(), LIMIT, 10.0, reload=True))


def test_hits(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is kept for its variables, for some time, and in so many bytes; hits and misses are counted."""
    now = [0.0]
    monkeypatch.setattr(results, "monotonic", lambda: now[0])
    pages = Pages(site, limit=8_000)

    def page(x: object) -> object:
        return pages.ask(("counter.html", {"x": x}))

    assert [page(1), page(1), page(2), page(1)] == ["1 1", "1 1", "2 2", "1 1"]
    assert pages.counts[:3] == (2, 2, 2)
    now[0] = 10.0
    assert page(1) == "3 1"
    for x in range(20):
        page(x)
    assert page(1) != "3 1"
    assert pages.counts.size <= 8_000
    assert page("x" * 2_000) != page("x" * 2_000)


@pytest.mark.parametrize("engine", PAGES)
def test_any_change_is_seen(tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, links and directories are edited at random; each request shows what is there when it arrives."""
    monkeypatch.setattr(directories_module, "SETTLED_AFTER", -(10**18))
    seed = random.randrange(10**9)
    site = Site(tmp_path, engine, random.Random(seed))
    pages = Pages(site.theme, site.site, engines={".html": engine})
    for number in range(EDITS):
        edit = site.edit()
        for _ in range(2):
            assert pages.ask((site.page, {})) == site.expected(), f"seed {seed}, edit {number}: {edit}"
    assert pages.counts.hits >= EDITS


def test_young_files(tmp_path: Path) -> None:
    """A page of a file that may change without a trace isn't kept."""
    (tmp_path / "counter.html").write_text(COUNTER)
    pages = Pages(tmp_path)
    assert [pages.ask(("counter.html", {"x": 1})) for _ in range(2)] == ["1 1", "2 1"]
    pages = Pages(tmp_path, reload=False)
    assert [pages.ask(("counter.html", {"x": 1})) for _ in range(2)] == ["1 1", "1 1"]


def test_without_reload(site: Path) -> None:
    """With --no-reload nobody looks at the files, until the workers are replaced."""
    pages = Pages(site, reload=False)
    assert pages.ask(("counter.html", {"x": 1})) == "1 1"
    (site / "counter.html").unlink()
    assert pages.ask(("counter.html", {"x": 1})) == "1 1"
    pages.responder.clear()
    assert pages.ask(("counter.html", {"x": 1})) == "2 1"
    assert pages.counts[:3] == (1, 2, 1)


def test_missing_and_back(site: Path) -> None:
    """A page that includes a deleted file fails, and is back with the file."""
    (site / "page.html").write_text('<%include file="part.html"/>')
    pages = Pages(site)
    for text in ("one", "two"):
        (site / "part.html").write_text(text)
        assert [pages.ask(("page.html", {})) for _ in range(2)] == [text, text]
        (site / "part.html").unlink()
        with pytest.raises(RemoteError, match="asks for it"):
            pages.ask(("page.html", {}))


def test_a_page_that_looked_for_a_missing_file(site: Path) -> None:
    """A page that has asked for a file that isn't there is not kept, since that file may come."""
    (site / "page.j2").write_text("{% include ['part.j2', 'other.j2'] ignore missing %}")
    pages = Pages(site)
    assert pages.ask(("page.j2", {})) == ""
    (site / "part.j2").write_text("there")
    assert pages.ask(("page.j2", {})) == "there"


def test_a_file_that_changes_within_a_page(site: Path) -> None:
    """A page that has the old and the new text of a file is not kept."""
    (site / "part.html").write_text("old")
    (site / "other.html").touch()
    (site / "page.html").write_text(
        "<%include file='part.html'/><% change() %><%include file='other.html'/><%include file='part.html'/>"
        f"<%! from pathlib import Path; change = lambda: Path({str(site)!r}, 'part.html').write_text('new!') %>"
    )
    pages = Pages(site, cache_size=1)
    assert [pages.ask(("page.html", {})) for _ in range(2)] == ["oldnew!", "new!new!"]


def test_lists_and_failures(site: Path) -> None:
    """Lists of pages and failures are not kept."""
    pages = Pages(site)
    message = [("counter.html", {"x": 1})]
    assert [pages.ask(message) for _ in range(2)] == [[(True, "1 1")], [(True, "2 1")]]
    for _ in range(2):
        with pytest.raises(RemoteError, match="no template"):
            pages.ask(("missing.html", {}))
    assert pages.counts.pages == 0


def test_a_large_page(site: Path) -> None:
    """A page that is larger than a message with what it was made from is answered all the same."""
    pages = Pages(site, max_kept=100)
    assert [pages.ask(("counter.html", {"x": "x" * 90})) for _ in range(2)] == [
        f"{number} {'x' * 90}" for number in (1, 2)
    ]


def test_one_look_for_requests_that_arrive_together(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the requests of one chunk of input each file is looked at once, and for later ones again."""
    looks: list[str] = []
    is_unchanged = File.is_unchanged
    monkeypatch.setattr(File, "is_unchanged", lambda self: looks.append(self.path) or is_unchanged(self))
    pages = Pages(site)
    for x in range(3):
        pages.ask(("counter.html", {"x": x}))
    looks.clear()
    with BATCH:
        for x in range(3):
            pages.ask(("counter.html", {"x": x}))
    assert looks == [str(site / "counter.html")]
    (site / "counter.html").write_text("new ${x}")
    assert pages.ask(("counter.html", {"x": 1})) == "new 1"


def test_cleared_meanwhile() -> None:
    """A page of old code that arrives after the workers were replaced is not kept."""
    engine = Engine()
    responder = RenderResponder(engine, LIMIT, 10.0, reload=False)
    for clears in (False, True):
        engine.answer = Deferred()
        replies: list[Any] = []
        answer: Any = responder.respond(Request(Packet(MARSHAL, 7, b"asked %d" % clears)))
        answer.addCallback(replies.append)
        if clears:
            responder.clear()
        engine.answer.callback(TimedAnswer(Packet(MAY_KEEP, 7, encode([], b"page")), 0.5))  # type: ignore[arg-type]
        assert replies == [TimedAnswer(Packet(MARSHAL, 7, b"page"), 0.5)]
        assert responder.statistics.pages == (not clears)
    assert all(request.idempotent for request in engine.submitted)


def test_size(site: Path) -> None:
    """The cache's size is the memory that it takes, also of pages that are made from ever other templates."""
    for number in range(40):
        (site / f"{number}.html").touch()
    (site / "many.html").write_text("% for i in names:\n<%include file='${i}.html'/>\n% endfor\n")
    pages = Pages(site, limit=10_000_000)
    names = [str(number) for number in range(40)]
    pages.ask(("many.html", {"names": names}))
    gc.collect()
    before = pages.counts.size
    tracemalloc.start()
    try:
        for number in range(200):
            pages.ask(("many.html", {"names": random.sample(names, 20), "number": number}))
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert pages.counts.pages == 201
    assert held < pages.counts.size - before


def test_other_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker doesn't allow to keep is passed on unchanged."""
    engine = Engine()
    responder = RenderResponder(engine, LIMIT, 10.0, reload=True)
    answer = TimedAnswer(Packet(MARSHAL, 7, b"page"), 0.5)
    monkeypatch.setattr(engine, "submit", lambda _: succeed(answer))
    replies: list[Any] = []
    reply: Any = responder.respond(Request(Packet(MARSHAL, 7, b"asked")))
    reply.addCallback(replies.append)
    assert replies == [answer]
    assert responder.statistics == CacheCounts(misses=1)
