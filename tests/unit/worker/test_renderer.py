"""What a renderer does besides rendering a page by name: parts, limits, caches, Jinja2, outlines."""

from __future__ import annotations

import gc
import os
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.template_files import write_templates
from uwsgitwisted.activity import CacheCounts
from uwsgitwisted.errors import MisuseError, StartupError
from uwsgitwisted.wire.objects import dumps, loads
from uwsgitwisted.wire.packet import MARSHAL, Packet
from uwsgitwisted.worker.compat.requests import requests
from uwsgitwisted.worker.handlers import render
from uwsgitwisted.worker.handlers.render import load
from uwsgitwisted.worker.templates import code_store, results
from uwsgitwisted.worker.templates.errors import (
    TemplateFailed,
    TemplateMissing,
    TemplateRefused,
)
from uwsgitwisted.worker.templates.interface import Outline
from uwsgitwisted.worker.templates.mako_engine import MakoTemplates
from uwsgitwisted.worker.templates.output import PART
from uwsgitwisted.worker.templates.renderer import Renderer, RenderSettings, split

JINJA_BASE = "<{% block body %}base{% endblock %}>"
JINJA = """{% extends 'base.j2' %}{% from 'macros.j2' import bold %}
{% block body %}{{ bold(title) }}
{{ super() }} {% include ['missing.j2', 'part.j2'] %}{% include 'nothing.j2' ignore missing %}{% endblock %}"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return a directory of templates for both engines."""
    files = {
        "page.html": '<%inherit file="base.html"/><%def name="sidebar(width, height=2)">'
        "${width}x${height} ${title}</%def>"
        '${title}: ${sidebar(1)} <%include file="part.html"/><%include file="${kind}.html"/>',
        "base.html": "[${self.body()}]",
        "part.html": "part of ${attributes['owner']}",
        "base.j2": JINJA_BASE,
        "page.html.j2": JINJA,
        "macros.j2": "{% macro bold(text) %}<b>{{ text }}</b>{% endmacro %}",
        "part.j2": "part",
        "broken.j2": "a\n{% for %}",
        "raises.j2": "a\n\n{{ 1 // n }}",
        "outer.j2": "a\n{% include 'raises.j2' %}",
    }
    return write_templates(tmp_path / "site", files)


def make(site: Path, **settings: Any) -> Renderer:
    return Renderer(RenderSettings([str(site)], **settings))


@pytest.fixture(autouse=True)
def at_exit(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return what is to run at the worker's end, which this process isn't."""
    calls: list[object] = []
    monkeypatch.setattr("atexit.register", lambda *call: calls.append(call))
    return calls


def ask(site: Path, message: object, **settings: Any) -> object:
    handler = load([str(site)], **settings)[MARSHAL]
    return loads(handler(Packet(MARSHAL, 0, dumps(message))).payload)


# -- parts, and many pages


def test_def(site: Path) -> None:
    """A request may ask for one def, whose arguments are variables."""
    assert ask(site, ("page.html#sidebar", {"title": "T", "width": 3})) == "3x2 T"


@pytest.mark.parametrize("name", ["page.html#nothing", "page.html.j2#nothing", "page.html.j2#_x"])
def test_missing_part(site: Path, name: str) -> None:
    """A part that a template doesn't have is missing."""
    with pytest.raises(TemplateMissing, match=r"has no (def|block or macro) "):
        make(site).render(name, {"title": ""})


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a#b", ("a", "b")),
        ("a", ("a", "")),
        ("a#b.html", ("a#b.html", "")),
        ("#b", ("", "b")),
        ("a#", ("a#", "")),
    ],
)
def test_split(name: str, parts: tuple[str, str]) -> None:
    """What follows the last # is a part, if it can be the name of one."""
    assert split(name) == parts


@pytest.mark.parametrize("kind", [list, tuple])
def test_many(site: Path, kind: type) -> None:
    """A list of pairs is many pages, each with its own text or error, in their order."""
    asked = [("part.html", {"owner": "é"}), (b"part.html", {}), ("../x", {}), 3, ["part.html", {b"owner": 1}]]
    pages = ask(site, kind([part for part in asked if part != 3]))
    assert isinstance(pages, list)
    assert [ok for ok, _ in pages] == [True, False, False, True]
    assert [text for ok, text in pages if ok] == ["part of é", "part of 1"]
    assert pages[1][1] == "template 'part.html', line 1: KeyError: 'owner'"
    assert "is refused" in pages[2][1]
    with pytest.raises(MisuseError):
        ask(site, kind(asked))


def test_no_pages(site: Path) -> None:
    """An empty list has no pages."""
    assert ask(site, []) == []


def test_many_are_bounded(site: Path) -> None:
    """The pages of one request have at most --max-output bytes together; those beyond fail."""
    (site / "ten.txt").write_text("0123456789")
    pages = ask(site, [("ten.txt", {})] * 4, max_output=15)
    assert isinstance(pages, list)
    assert [ok for ok, _ in pages] == [True, False, False, False]
    assert "--max-output" in pages[1][1]
    (site / "five.txt").write_text("12345")
    assert ask(site, [("ten.txt", {}), ("five.txt", {})], max_output=15) == [
        (True, "0123456789"),
        (True, "12345"),
    ]


def test_errors_of_many_are_bounded(site: Path) -> None:
    """Errors count like pages: variables that are repeated in them don't make a larger answer."""
    pages = ask(site, [("part.html", {"x" * 10: 1}), (), ("x" * 100, {})], max_output=100)
    assert isinstance(pages, list)
    assert [ok for ok, _ in pages] == [False, False, False]
    assert pages[0][1] == "template 'part.html', line 1: KeyError: 'owner'"
    assert {text for _, text in pages[1:]} == {"the pages before it take all that --max-output allows"}


def test_too_many(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request for more pages than allowed is refused as a whole; each would have an error at least."""
    monkeypatch.setattr(render, "MAX_PAGES", 2)
    assert len(ask(site, [("part.html", {})] * 2)) == 2  # type: ignore[arg-type]
    with pytest.raises(MisuseError, match=r"3 pages.* at most 2"):
        ask(site, [("part.html", {})] * 3)


def test_bytes(site: Path) -> None:
    """Python 2 peers send names as bytes, and get bytes, errors too."""
    assert ask(site, (b"part.html", {b"owner": "é"}), answer="bytes") == "part of é".encode()
    pages = ask(site, [(b"part.html", {b"owner": 1}), (b"x", {})], answer="bytes")
    assert pages == [(True, b"part of 1"), (False, b"there is no template 'x' in the template directories")]


# -- options


def test_autoescape(site: Path) -> None:
    """Templates with these extensions are escaped, by either engine, and others aren't; | n is as ever."""
    for name, text in {
        "a.html": "${x}${x | n}", "a.txt": "${x}", "a.html.j2": "{{ x }}{{ x|safe }}", "a.txt.j2": "{{ x }}",
    }.items():  # fmt: skip
        (site / name).write_text(text)
    renderer = make(site, autoescape=["html", "xml"])
    texts = [renderer.render(name, {"x": "<"}) for name in ("a.html", "a.txt", "a.html.j2", "a.txt.j2")]
    assert texts == [b"&lt;<", b"<", b"&lt;<", b"<"]


@pytest.fixture
def helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make a module with filters importable."""
    (tmp_path / "render_helpers.py").write_text(
        "import os\n_hidden = 1\nanswer = 42\ndef shout(text):\n    return str(text).upper() + '!'\n"
    )
    (tmp_path / "render_chosen.py").write_text("__all__ = ['a', 'nothing']\na = 1\n")
    monkeypatch.chdir(tmp_path)
    return


@pytest.mark.usefixtures("helpers")
def test_imports(site: Path) -> None:
    """Every template has the public names of a module, as filters too; no variable takes their place."""
    (site / "a.html").write_text("${x | shout} ${shout(x)} ${answer} ${_hidden} ${os}")
    (site / "a.j2").write_text("{{ x|shout }} {{ shout(x) }} {{ answer }} {{ _hidden }} {{ os }}")
    renderer = make(site, imports=["render_helpers"])
    variables = {"x": "a", "_hidden": "", "os": "", "shout": "data", "answer": "data"}
    for name in ("a.html", "a.j2"):
        assert renderer.render(name, variables) == b"A! A! 42  "


@pytest.mark.usefixtures("helpers")
@pytest.mark.parametrize(
    ("module", "text"), [("no_such_helpers", "no_such_helpers"), ("render_chosen", "'nothing'")]
)
def test_imports_that_fail(site: Path, module: str, text: str) -> None:
    """A module that can't be imported, or hasn't what it promises, prevents the start."""
    with pytest.raises(StartupError, match=text):
        make(site, imports=[module])


def test_encoding(site: Path) -> None:
    """Templates are read in the encoding that is given, unless one names another."""
    (site / "a.txt").write_bytes(b"\xe9")
    (site / "b.txt").write_bytes("## -*- coding: utf-8 -*-\né".encode())
    (site / "a.j2").write_bytes(b"\xe9")
    renderer = make(site, encoding="latin-1")
    assert [renderer.render(name, {}).decode() for name in ("a.txt", "b.txt", "a.j2")] == ["é"] * 3
    with pytest.raises(TemplateFailed, match=r"a\.j2"):
        make(site).render("a.j2", {})


def test_preload(site: Path) -> None:
    """What is broken is listed, all of it, and the start refused."""
    (site / "bad.html").write_text("\n${1 +}")
    with pytest.raises(StartupError) as caught:
        make(site, preload=True)
    assert caught.value.text.splitlines()[0] == "--preload: 2 templates are broken:"
    assert "template 'bad.html', line 2: (SyntaxError)" in caught.value.text
    assert "template 'broken.j2', line 2: " in caught.value.text
    (site / "bad.html").unlink()
    (site / "broken.j2").unlink()
    renderer = make(site, preload=True, cache_size=1, reload=False)
    (site / "part.html").unlink()
    assert renderer.render("part.html", {"owner": "Ann"}) == b"part of Ann"


def test_no_reload(site: Path) -> None:
    """Without reloading, a change is not seen."""
    renderer = make(site, reload=False)
    for _ in range(2):
        renderer.begin()
        assert renderer.render("part.j2", {}) == b"part"
        (site / "part.j2").write_text("changed")


def test_max_output(site: Path) -> None:
    """A page that is too large fails in its line, though it has no end, and the next one is whole."""
    (site / "endless.html").write_text("\n% while True:\nmore and more\n% endwhile\n")
    (site / "endless.j2").write_text(
        "a\n{% for i in x %}{% for i in x %}{% for i in x %}more{% endfor %}{% endfor %}{% endfor %}"
    )
    renderer = make(site, max_output=100_000)
    for name in ("endless.html", "endless.j2"):
        with pytest.raises(TemplateFailed, match=r"line [23]: OutputTooLarge: the output exceeds 100000 bytes"):
            renderer.render(name, {"x": "x" * 10_000})
        assert renderer.render("part.j2", {}) == b"part"


def test_module_directory(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled templates are kept for the next worker, which compiles nothing; a change is never missed."""
    kept = tmp_path / "kept"
    expected = [
        make(site, module_directory=str(kept)).render(name, {"owner": 1}) for name in ("part.html", "part.j2")
    ]
    with monkeypatch.context() as patched:
        patched.setattr(MakoTemplates, "translate", None)
        again = make(site, module_directory=str(kept))
        assert [again.render(name, {"owner": 1}) for name in ("part.html", "part.j2")] == expected
    status = (site / "part.html").stat()
    (site / "part.html").write_text("PART of ${attributes['owner']}")
    os.utime(site / "part.html", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert make(site, module_directory=str(kept)).render("part.html", {"owner": 1}) == b"PART of 1"
    assert (
        make(site, module_directory=str(kept), filters=["h"]).render("part.html", {"owner": "<"})
        == b"PART of &lt;"
    )
    for file in kept.iterdir():
        file.write_bytes(b"broken")
    assert make(site, module_directory=str(kept)).render("part.html", {"owner": 1}) == b"PART of 1"
    monkeypatch.setattr(code_store, "MAX_ENTRIES", 4)
    for number in range(10):
        (site / "part.html").write_text(str(number))
        make(site, module_directory=str(kept)).render("part.html", {})
    assert len(list(kept.iterdir())) <= 4


def test_module_directory_and_imports(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a change of a module of --imports, no code from before is used: names and filters are new."""
    monkeypatch.chdir(tmp_path)
    (site / "both.html").write_text("${mark('x')}")
    (site / "both.j2").write_text("{{ 'x'|mark }}")
    for source, page in (
        ("def mark(text): return f'1{text}'\ndef other(): ...", b"1x"),
        ("def mark(text): return f'22{text}'", b"22x"),
        ("def mark(text): return f'22{text}'\ndef another(): ...", b"22x"),
    ):
        Path("changing_helpers.py").write_text(source)
        monkeypatch.delitem(sys.modules, "changing_helpers", raising=False)
        renderer = make(site, imports=["changing_helpers"], module_directory=str(tmp_path / "kept"))
        assert [renderer.render(name, {}) for name in ("both.html", "both.j2")] == [page, page]
    monkeypatch.delitem(sys.modules, "changing_helpers")


def test_module_directory_of_others(site: Path, tmp_path: Path) -> None:
    """A directory where others may write would let them run code; and one that can't be made is no use."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for name, text in (("open", "others may write there"), ("site/part.html/x", "Not a directory")):
        with pytest.raises(StartupError, match=text):
            make(site, module_directory=str(tmp_path / name))


# -- Jinja2


def test_jinja(site: Path) -> None:
    """Jinja2's templates inherit, include and import, and tell when one is missing."""
    text = make(site).render("page.html.j2", {"title": "T"}).decode()
    assert text == "<<b>T</b>\nbase part>"


def test_jinja_parts(site: Path) -> None:
    """A block or a macro can be asked for; a macro's arguments are variables."""
    renderer = make(site)
    assert renderer.render("base.j2#body", {}) == b"base"
    assert renderer.render("macros.j2#bold", {"text": "x"}) == b"<b>x</b>"


_LOOP = "{% for i in items %}0123456789{% endfor %}"


@pytest.mark.parametrize(
    ("part", "line"), [("plain", 1), ("setting", 2), ("filtered", 3), ("calling", 4), ("around", 5)]
)
def test_jinja_parts_are_bounded(site: Path, part: str, line: int) -> None:
    """A macro that writes without end fails as soon as it has written too much; so does the page around it."""
    (site / "a.j2").write_text(
        f"{{% macro plain(items) %}}{_LOOP}{{% endmacro %}}\n"
        f"{{% macro setting(items) %}}{{% set x %}}{_LOOP}{{% endset %}}{{% endmacro %}}\n"
        f"{{% macro filtered(items) %}}{{% filter upper %}}{_LOOP}{{% endfilter %}}{{% endmacro %}}\n"
        f"{{% macro calling(items) %}}{{% call caller_of() %}}{_LOOP}{{% endcall %}}{{% endmacro %}}\n"
        f"{{% macro around() %}}{{% endmacro %}}{{% if whole %}}{_LOOP}{{% endif %}}\n"
        "{% macro caller_of() %}{{ caller() }}{% endmacro %}"
    )
    items = iter(range(100_000))
    with pytest.raises(TemplateFailed, match=rf"line {line}: OutputTooLarge: the output exceeds 1000 bytes"):
        make(site, max_output=1_000).render(f"a.j2#{part}", {"items": items, "whole": part == "around"})
    assert next(items) <= 101


def test_jinja_parts_within_bounds(site: Path) -> None:
    """A macro may write as much as a page, also after another one has failed; a page may discard more."""
    (site / "a.j2").write_text("{% macro m(n) %}{{ 'x' * n }}{% endmacro %}{{ m(600)|length + m(600)|length }}")
    renderer = make(site, max_output=1_000)
    with pytest.raises(TemplateFailed, match="OutputTooLarge"):
        renderer.render("a.j2#m", {"n": 1_001})
    assert renderer.render("a.j2#m", {"n": 1_000}) == b"x" * 1_000
    assert renderer.render("a.j2", {}) == b"1200"


def test_jinja_variables(site: Path) -> None:
    """Attributes has all variables, and none takes the place of Jinja2's own names."""
    (site / "a.j2").write_text("{{ attributes['range'] }} {{ range(2)|list }} {{ attributes['a-b'] }}")
    assert make(site).render("a.j2", {"range": "data", "a-b": 1}) == b"data [0, 1] 1"


@pytest.mark.parametrize(("strict", "text"), [(False, b"[]"), (True, b"")])
def test_jinja_strict(site: Path, strict: bool, text: bytes) -> None:
    """With --strict an unknown name is an error."""
    (site / "a.j2").write_text("[{{ nothing }}]")
    renderer = make(site, strict=strict)
    if strict:
        with pytest.raises(TemplateFailed, match="'nothing' is undefined"):
            renderer.render("a.j2", {})
    else:
        assert renderer.render("a.j2", {}) == text


@pytest.mark.parametrize(
    ("name", "where", "line"),
    [("broken.j2", "broken.j2", 2), ("raises.j2", "raises.j2", 3), ("outer.j2", "raises.j2", 3)],
)
def test_jinja_errors(site: Path, name: str, where: str, line: int) -> None:
    """An error has the template and its line, as with Mako."""
    with pytest.raises(TemplateFailed) as caught:
        make(site).render(name, {"n": 0})
    assert (caught.value.name, caught.value.line) == (where, line)


def test_jinja_names(site: Path) -> None:
    """A name from a template can't leave the directories, nor reach a template of the other engine."""
    (site / "a.j2").write_text("\n{% include x ignore missing %}")
    (site / "b.j2").write_text("\n{% include x %}")
    renderer = make(site)
    assert renderer.render("a.j2", {"x": "nothing"}) == b"\n"
    with pytest.raises(TemplateRefused, match=r"template 'a.j2', line 2 asks for it"):
        renderer.render("a.j2", {"x": "../secret"})
    with pytest.raises(TemplateMissing, match=r"no template 'nothing'.*template 'b.j2', line 2 asks for it"):
        renderer.render("b.j2", {"x": "nothing"})
    with pytest.raises(TemplateFailed, match="another engine"):
        renderer.render("b.j2", {"x": "part.html"})


def test_engine_for(site: Path) -> None:
    """An extension may be given to another engine."""
    (site / "a.html").write_text("{{ 1 + 1 }}")
    (site / "a.txt").write_text("${1 + 1}")
    renderer = make(site, engines={"*": "jinja2", ".txt": "mako"})
    assert [renderer.render(name, {}) for name in ("a.html", "a.txt")] == [b"2", b"2"]


# -- outlines


def test_outlines(site: Path) -> None:
    """An outline has parents, what is used, parts and variables, for either engine."""
    renderer = make(site)
    assert renderer.outline("page.html") == Outline(
        ("base.html",), ("part.html", "${kind}.html"), ("sidebar",), ("kind", "title")
    )
    assert renderer.outline("part.html") == Outline(variables=("owner",))
    assert renderer.outline("page.html.j2") == Outline(
        ("base.j2",), ("macros.j2", "missing.j2", "part.j2", "nothing.j2"), ("body",), ("title",)
    )
    with pytest.raises(TemplateFailed):
        renderer.outline("broken.j2")
    assert renderer.names() == sorted(path.name for path in site.iterdir())
    assert [error.name for error in renderer.check() if isinstance(error, TemplateFailed)] == ["broken.j2"]
    assert renderer.source("part.j2") == "part"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.html", "text/html; charset=utf-8"),
        ("a.html.j2#part", "text/html; charset=utf-8"),
        ("a.xml.mako", "text/xml; charset=utf-8"),
        ("a.json", "application/json"),
        ("a", "text/plain; charset=utf-8"),
    ],
)
def test_content_type(name: str, kind: str) -> None:
    """The type of a page is that of its template's name."""
    assert Renderer.content_type(name).replace("application/xml", "text/xml; charset=utf-8") == kind


# -- streams and results


def test_stream(site: Path) -> None:
    """A long page is passed on in parts, of which none is large, before it ends; what takes them may end it."""
    (site / "long.html").write_text("% for i in range(n):\n${i} and some more text, é\n% endfor\n")
    renderer = make(site)
    parts: list[bytes] = []
    renderer.stream("long.html", {"n": 10_000}, parts.append)
    assert b"".join(parts) == renderer.render("long.html", {"n": 10_000})
    assert len(parts) > 5
    assert max(map(len, parts)) < 2 * PART

    def refuse(data: bytes) -> None:
        raise BrokenPipeError("the client has gone")

    with pytest.raises(BrokenPipeError):
        renderer.stream("long.html", {"n": 10_000}, refuse)
    assert renderer.render("part.j2", {}) == b"part"


def test_nothing_after_a_failure(site: Path) -> None:
    """Nothing of a page is passed on once its failure is known, not even by the garbage collector."""
    (site / "late.html").write_text("some text\n${1 / 0}")
    parts: list[bytes] = []
    with pytest.raises(TemplateFailed):
        make(site).stream("late.html", {}, parts.append)
    gc.collect()
    assert parts == []


def test_files_are_looked_at_once_for_requests_that_arrive_together(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that arrives after a change sees it, whatever came before; one that is alone always looks."""
    handler = load([str(site)])[MARSHAL]
    seen = []
    for read, text in [(1, "a"), (1, "b"), (2, "c"), (0, "d"), (0, "e"), (2, "f"), (3, "g")]:
        (site / "part.j2").write_text(text)
        monkeypatch.setattr(requests, "read", read)
        seen.append(loads(handler(Packet(MARSHAL, 0, dumps(("part.j2", {})))).payload))
    assert seen == ["a", "a", "c", "d", "e", "f", "g"]


def test_size_of_results(site: Path) -> None:
    """The result cache's size is the memory that it takes, also of pages that are made from many templates."""
    for number in range(500):
        (site / f"{number}.html").touch()
    source = "% for i in map(str, range(500)):\n<%include file='${i}.html'/>\n% endfor\n"
    (site / "many.html").write_text(source)
    renderer = make(site, result_cache=10_000_000, cache_size=1_000)
    renderer.page("many.html", {}, b"compiled")
    gc.collect()
    before = renderer.statistics.size
    tracemalloc.start()
    try:
        for number in range(20):
            renderer.page("many.html", {}, b"%d" % number)
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < renderer.statistics.size - before


def test_statistics(site: Path) -> None:
    """The figures of the result cache can be had; a large page isn't kept, and an ETag is that of the text."""
    renderer = make(site, result_cache=10_000)
    for _ in range(2):
        page = renderer.cached(b"k") or renderer.page("part.j2", {}, b"k")
    assert (renderer.statistics.hits, renderer.statistics.misses, renderer.statistics.pages) == (1, 1, 1)
    assert page.etag == results.Page(b"part").etag != results.Page(b"other").etag
    (site / "part.j2").write_text("x" * 5_000)
    renderer.begin()
    renderer.page("part.j2", {}, b"large")
    assert renderer.cached(b"large") is None
    assert make(site).cached(b"k") is None
    assert make(site).page("part.j2", {}, b"k").body == b"x" * 5_000
    assert make(site).statistics == CacheCounts()
