"""Mako's code is made cheaper to run, and its pages stay the same."""

from __future__ import annotations

from pathlib import Path

import mako.runtime
import pytest
from mako.lookup import TemplateLookup
from mako.runtime import CallerStack, Context

from uwsgitwisted.worker.templates.renderer import Renderer, RenderSettings

VARIABLES = {"title": "T", "items": ["a", "b"], "x": "from outside", "name": "given"}
FILES = {
    "base.txt": "<%def name='part()'>base</%def>[${self.body()}|${next.body()}|${self.part()}]",
    "parts.txt": "<%def name='wrap()'>(${caller.body()})</%def><%def name='own(x)'>own ${x} ${title}</%def>",
    "included.txt": "<%page args='x=1, y=2'/>${x} ${y} ${title} ${sorted(pageargs)}",
    "star.txt": "<%page args='*more, **rest'/>${more} ${sorted(rest)}",
    "heir.txt": "<%inherit file='base.txt'/><%def name='part()'>heir</%def>${title}",
}
PAGES = {
    "arguments only": (
        "<%def name='row(n, x)'>${n}: ${x}</%def>\n% for x in items:\n${row(loop.index, x)}\n% endfor"
    ),
    "a variable of the request": "<%def name='row()'>${title}</%def>${row()}",
    "a variable assigned beside": "<%def name='row()'>${again} ${title}</%def><% again = title * 2 %>${row()}",
    "assigned over one of the request": "<%def name='row()'>${title}</%def><% title = 'new' %>${row()}",
    "an argument of the page": "<%page args='name, z=3'/><%def name='row()'>${name} ${z}</%def>${row()}",
    "page arguments": "<%def name='row()'>${sorted(pageargs)}</%def>${row()}",
    "a test of a name": "<%def name='row()'>${'again' in context.keys()}</%def><% again = 1 %>${row()}",
    "eval": "<%def name='row()'>${eval('context.get(\"again\")')}</%def><% again = 5 %>${row()}",
    "the context itself": "<%def name='row()'>${(lambda c: c['again'])(context)}</%def><% again = 6 %>${row()}",
    "a computed name": "<%def name='row(n)'>${context.get(n)}</%def><% again = 7 %>${row('again')}",
    "a default": "<%def name='row()'>${context.get('missing', 8)}</%def><% again = 1 %>${row()}",
    "defs that call": "<%def name='a()'>${b()} ${again}</%def><%def name='b()'>b</%def><% again = 9 %>${a()}",
    "nested": "<%def name='a(x)'><%def name='b()'>${x} ${title}</%def>${b()}</%def><% again = 1 %>${a(2)}",
    "buffered": (
        "<%def name='a()' buffered='True'>b</%def><%def name='c()' filter='trim'> d </%def>${a()}${c()}"
    ),
    "captured": "<%def name='a(x)'>${x}</%def>${capture(a, 3)}<%def name='b()'>${capture(a, 4)}</%def>${b()}",
    "decorated": (
        "<%! d = lambda f: lambda context, *a: f(*a) or '!' %>"
        "<%def name='a(x)' decorator='d'>${x}</%def>${a(1)}"
    ),
    "called with content": (
        "<%def name='a()'><${caller.body()}></%def><%call expr='a()'>in ${title}</%call>${a.__name__}"
    ),
    "called twice with content": "<%def name='a()'><${caller.body()}></%def><%call expr='a() + a()'>x</%call>",
    "content in content": (
        "<%def name='a()'>a${caller.body()}${b()}</%def><%def name='b()'>b</%def>"
        "<%self:a>1<%self:a>2${b()}</%self:a>3</%self:a>"
    ),
    "a call without content in one with": (
        "<%def name='a()'>${caller.body()} ${b()} ${bool(caller)}</%def><%def name='b()'>${bool(caller)}</%def>"
        "<%self:a>x</%self:a>${b()}"
    ),
    "a namespace": "<%namespace name='parts' file='parts.txt'/><%parts:wrap>x</%parts:wrap>${parts.own(1)}",
    "a block": "<%block name='b'>block ${title}</%block> <%block>x ${title}</%block>",
    "an inherited page": (
        "<%inherit file='base.txt'/><%def name='part()'>${title}</%def>body <%include file='heir.txt'/>"
    ),
    "included": "<%include file='included.txt'/> <%include file='included.txt' args='y=5'/>",
    "included in a def": "<%def name='a(x)'><%include file='included.txt'/> ${x}</%def><% y = 9 %>${a(1)}",
    "included with a star": "<% more = (1, 2); rest = 3 %><%include file='star.txt' args='q=1'/>",
    "an exception": (
        "<%def name='a(x)'>half ${x}${1 / 0}</%def>\n"
        "% try:\n${a(1)}\n% except ZeroDivisionError:\ncaught\n% endtry"
    ),
    "a frame after an exception": (
        "<%def name='a()'>${1 / 0}</%def><%def name='b()'>${bool(caller)}</%def>\\\n% try:\n"
        "<%self:a>x</%self:a>\n% except ZeroDivisionError:\n${b()}\n% endtry"
    ),
    "a name that is taken": "<%! render_a = 1 %><%def name='a()'>a</%def>${a()} ${render_a.__name__}",
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the templates that others use."""
    path = tmp_path_factory.mktemp("site")
    for name, text in FILES.items():
        (path / name).write_text(text)
    return path


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
@pytest.mark.parametrize("source", PAGES.values(), ids=PAGES)
def test_same_as_mako(directory: Path, source: str, strict: bool) -> None:
    """A page is what Mako itself makes of the template, whatever of Mako it uses."""
    (directory / "page.txt").write_text(source)
    lookup = TemplateLookup([str(directory)], strict_undefined=strict, filesystem_checks=True)
    expected = lookup.get_template("page.txt").render(**VARIABLES, attributes=VARIABLES)
    renderer = Renderer(RenderSettings([str(directory)], strict=strict))
    assert renderer.render("page.txt", VARIABLES).decode() == expected


@pytest.mark.parametrize(
    ("page", "copies"),
    [
        ("arguments only", 0),
        ("a variable of the request", 0),
        ("buffered", 0),
        ("a variable assigned beside", 1),
        ("assigned over one of the request", 1),
        ("page arguments", 1),
        ("eval", 1),
        ("the context itself", 1),
        ("a computed name", 1),
    ],
)
def test_copies(directory: Path, monkeypatch: pytest.MonkeyPatch, page: str, copies: int) -> None:
    """A def gets a copy of the context only if it could see the difference."""
    made = []
    copy = Context._copy
    monkeypatch.setattr(Context, "_copy", lambda self: made.append(self) or copy(self))
    (directory / "page.txt").write_text(PAGES[page])
    Renderer(RenderSettings([str(directory)])).render("page.txt", VARIABLES)
    assert len(made) == copies


def test_no_calls(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defs and includes call nothing of Mako's that costs more than it does."""

    def fail(*_: object) -> None:
        raise AssertionError("called")

    monkeypatch.setattr(CallerStack, "_push_frame", fail)
    monkeypatch.setattr(CallerStack, "_pop_frame", fail)
    monkeypatch.setattr(mako.runtime, "_kwargs_for_include", fail)
    (directory / "page.txt").write_text(PAGES["included in a def"] + PAGES["buffered"].replace("a()", "d()"))
    assert Renderer(RenderSettings([str(directory)])).render("page.txt", VARIABLES)
