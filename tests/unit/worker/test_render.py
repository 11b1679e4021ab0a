"""Templates by name: requests, the names in a template, and that no name leads out of the directories."""

from __future__ import annotations

import builtins
import gc
import json
import keyword
import os
import socket
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

import mako.codegen
import mako.runtime
import mako.template
import pytest
from mako.codegen import RESERVED_NAMES
from mako.template import Template

from uwsgitwisted.errors import MisuseError, StartupError, UnsafeObject, UwsgiError
from uwsgitwisted.files import open_below
from uwsgitwisted.wire.objects import dumps, loads
from uwsgitwisted.wire.packet import MARSHAL, RPC, Packet
from uwsgitwisted.worker.handlers.render import load, read_page
from uwsgitwisted.worker.templates import directories as directories_module
from uwsgitwisted.worker.templates.errors import NoTemplate, TemplateFailed, TemplateMissing, TemplateRefused
from uwsgitwisted.worker.templates.mako_engine import RESERVED, MakoTemplates
from uwsgitwisted.worker.templates.renderer import Renderer, RenderSettings
from uwsgitwisted.worker.templates.variables import VariableNames

#: What Mako gives a meaning, as far as a variable of that name would disturb it.
MAKOS_OWN = [
    *("context", "loop", "UNDEFINED", "STOP_RENDERING", "self", "local", "parent", "next"),
    *("caller", "capture", "pageargs", "attributes", "buffer", "callable_", "tmpl"),
    *("filters", "hasattr", "runtime", "str", "__M_writer", "__M_locals", "__M_loop", "__debug__"),
]
#: A page that uses what Mako has to offer.
EVERYTHING = """<%inherit file="base.txt"/><%namespace name="parts" file="parts.txt"/>
<%def name="one(x)">[${x}]</%def><%def name="filtered()" filter="trim"> y </%def>
<%def name="buffered()" buffered="True">b</%def><%block name="part">part ${title}</%block>
% for i in [1, 2]:
${loop.index} ${i}
% endfor
${one(1)}${filtered()}${buffered()}${title | h}${title | u}${title | n, trim}${str(title)}
<%include file="included.txt"/><%call expr="parts.wrap()">body ${title}</%call><%parts:wrap>more</%parts:wrap>
<%
    again = title
%>
${again} ${capture(one, 3)} ${hasattr(again, "upper")} ${attributes["title"]}
"""
#: Every name that a variable could have and that Mako, Python or this page uses.
EVERY_NAME = sorted(
    {*MAKOS_OWN, *RESERVED_NAMES, *dir(builtins), *dir(mako.runtime), *dir(mako.codegen), *dir(mako.template)}
    | {"title", "args", "data", "kwargs", "ns", "decode", "unicode", "cache", "x", "again", "i", "one", "parts"}
    | {"_mako_inherit", "_mako_get_namespace", "render_body", "render_one", "h", "u", "n", "trim", "as_unicode"}
)
EXAMPLES = Path(__file__).parents[3] / "examples" / "mako_cluster" / "templates"
SECRET = "the secret"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return a template directory, beside which lies a file that must never be seen."""
    directory = tmp_path / "site"
    (directory / "sub").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text(SECRET)
    (directory / "page.txt").write_text("Hello ${attributes['name']}!")
    (directory / "sub" / "deep.txt").write_text("deep")
    return directory


class Pages:
    """A renderer, each page of which is a request."""

    def __init__(self, *directories: Path, **options: Any) -> None:
        self.renderer = Renderer(RenderSettings([str(directory) for directory in directories], **options))

    def render(self, name: str, variables: Mapping[Any, object]) -> str:
        self.renderer.begin()
        return self.renderer.render(name, variables).decode()


renderer = Pages


def render(site: Path, template: str, **variables: object) -> str:
    return renderer(site).render(template, variables)


def call(handler: Callable[[Packet], Packet], message: object) -> object:
    return loads(handler(Packet(MARSHAL, 0, dumps(message))).payload)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of templates, in the order in which they are compiled from now on."""
    names: list[str] = []

    translate = MakoTemplates.translate

    def record(self: MakoTemplates, name: str, source: bytes) -> CodeType:
        names.append(name)
        return translate(self, name, source)

    monkeypatch.setattr(MakoTemplates, "translate", record)
    return names


# -- the handler table


def test_answer(site: Path) -> None:
    """A request's answer is the marshalled text, with the modifier2 of the request."""
    table = load([str(site)])
    assert list(table) == [MARSHAL, RPC]
    request = Packet(MARSHAL, 7, dumps(("page.txt", {"name": "Ann"})))
    assert table[MARSHAL](request) == Packet(MARSHAL, 7, dumps("Hello Ann!"))


def test_arguments_travel_as_json(site: Path) -> None:
    """The arguments survive the worker's command line."""
    (site / "escaped.html").write_text("${attributes['x']}|${attributes['x'] | n}")
    arguments = {
        "directories": [str(site)],
        "filters": ["h"],
        "strict": True,
        "cache_size": 3,
    }
    handler = load(**json.loads(json.dumps(arguments)))[MARSHAL]
    assert call(handler, ("escaped.html", {"x": "<b>"})) == "&lt;b&gt;|<b>"


@pytest.mark.parametrize("directories", [[], ["no/such/directory"]])
def test_no_directory(directories: list[str]) -> None:
    """Without a directory, the renderer doesn't start."""
    with pytest.raises(StartupError, match="directory"):
        load(directories)


def test_file_as_directory(site: Path) -> None:
    """A file is no template directory."""
    with pytest.raises(StartupError, match=r"page\.txt: there is no such directory"):
        load([str(site), str(site / "page.txt")])


def test_cache_too_small(site: Path) -> None:
    """A cache that holds nothing is refused."""
    with pytest.raises(StartupError, match="at least"):
        load([str(site)], cache_size=0)


def test_no_twisted() -> None:
    """A worker that renders doesn't load Twisted."""
    code = "import sys, uwsgitwisted.worker.handlers.render; sys.exit('twisted' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- requests


@pytest.mark.parametrize(
    "message",
    [
        ("page.txt", {"name": "Zoë"}),
        ["page.txt", {"name": "Zoë"}],
        (b"page.txt", {b"name": "Zoë"}),
        (b"page.txt", {b"name": "Zoë", b"\xff": 1, 2: 3}),
    ],
)
def test_request_forms(site: Path, message: object) -> None:
    """A pair may be a list, and its name and keys may be the bytes that Python 2 makes of text."""
    assert call(load([str(site)])[MARSHAL], message) == "Hello Zoë!"


def test_odd_keys_are_kept() -> None:
    """Keys that are no text stay in attributes as they are."""
    _, variables = read_page(("page.txt", {b"\xff": 1, 2: 3, b"a": 4}))
    assert variables == {b"\xff": 1, 2: 3, "a": 4}


def test_no_variables(site: Path) -> None:
    """None stands for no variables."""
    (site / "empty.txt").write_text("${len(attributes)}")
    assert call(load([str(site)])[MARSHAL], ("empty.txt", None)) == "0"


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("page.txt", r"is the pair \(name, variables\).*not a str"),
        (None, "not a NoneType"),
        (("page.txt",), "not a tuple of 1"),
        (["page.txt", {}, {}], "not a list of 3"),
        ({"page.txt": {}}, "not a dict of 1"),
        (("page.txt", [("name", "Ann")]), "variables are a dict, or None for none, not a list of 1"),
        (("page.txt", "name"), "variables are a dict"),
        ((3, {}), "name is a int; send text"),
        ((b"\xff", {}), "not UTF-8"),
    ],
)
def test_request_misuse(site: Path, message: object, text: str) -> None:
    """Anything but a pair of a name and a dict is refused; the error says what to send instead."""
    with pytest.raises(MisuseError, match=text):
        call(load([str(site)])[MARSHAL], message)


def test_request_not_marshalled(site: Path) -> None:
    """Bytes that are not a marshalled object are refused before anything is rendered."""
    with pytest.raises(UnsafeObject):
        load([str(site)])[MARSHAL](Packet(MARSHAL, 0, b"page.txt"))


# -- what a template sees


def test_same_text_as_a_handwritten_handler(site: Path) -> None:
    """The text is the same as in old uWSGI code, including newlines, encoding and lack of escaping."""
    source = (
        "## a comment\n<%page/>\\\n${attributes['x']}\r\n% for n in attributes['list']:\n  ${n}é\n% endfor\n\n"
    )
    (site / "same.txt").write_bytes(source.encode())
    variables = {"x": "<b>&", "list": [1, None, 2.5, b"raw"]}
    expected = Template(filename=str(site / "same.txt")).render(attributes=variables)
    assert render(site, "same.txt", **variables) == expected


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("é".encode(), "é"),
        (b"\xef\xbb\xbf\xc3\xa9", "é"),
        (b"## -*- coding: latin-1 -*-\n\xe9", "é"),
        (b"", ""),
    ],
)
def test_encodings(site: Path, source: bytes, text: str) -> None:
    """Templates are UTF-8, with or without a byte order mark, unless their first line says otherwise."""
    (site / "encoded.txt").write_bytes(source)
    assert render(site, "encoded.txt") == text


def test_variables_by_name(site: Path) -> None:
    """A variable is also available by its name."""
    (site / "names.txt").write_text("${title} ${attributes['title']} ${größe}")
    assert render(site, "names.txt", title="T", größe=3) == "T T 3"


@pytest.mark.parametrize(
    "key",
    sorted(
        {*MAKOS_OWN, *RESERVED_NAMES, *keyword.kwlist, "with space", "1st", "", "a.b", "template", "lookup"}
    ),
)
def test_any_key_renders(site: Path, key: str) -> None:
    """Every key is reachable through attributes, and none disturbs Mako's own names."""
    (site / "base.txt").write_text("[${self.body()}|${next.uri}|${self.part()}]")
    (site / "heir.txt").write_text(
        "<%inherit file='base.txt'/><%def name='part()'>${capture(lambda: context.write('part'))}</%def>"
        "${local.uri} ${parent.uri} <%include file='sub/deep.txt'/>\\\n"
        "% for value in attributes.values():\n ${loop.index} ${value}\\\n% endfor\n"
        "<%self:wrap>called</%self:wrap><%def name='wrap()'> ${caller.body()}</%def>"
    )
    text = "[heir.txt base.txt deep 0 value called|heir.txt|part]"
    assert renderer(site).render("heir.txt", {key: "value"}) == text


@pytest.mark.parametrize(
    "key", [*MAKOS_OWN, *RESERVED_NAMES, "class", "None", "with space", "1st", "", 3, b"\xff"]
)
def test_names_in_attributes_only(key: object) -> None:
    """A variable never takes the place of something of Mako's, and no name is made up for one that has none."""
    variables = {key: "value", "free": 1}
    assert VariableNames(RESERVED).select(variables) == {"attributes": variables, "free": 1}


def test_attributes_stays_the_dict(site: Path) -> None:
    """A variable that is called attributes is found in the dict of that name."""
    (site / "own.txt").write_text("${attributes['attributes']}")
    assert render(site, "own.txt", attributes="mine") == "mine"


@pytest.mark.parametrize("key", sorted(name for name in vars(builtins) if name.isidentifier()))
def test_builtins_may_be_variables(site: Path, key: str) -> None:
    """A variable called as a builtin of Python is no trouble to a template that doesn't use that name."""
    assert renderer(site).render("page.txt", {"name": "Ann", key: "value"}) == "Hello Ann!"


def test_page_arguments(site: Path) -> None:
    """Variables are the arguments that a page declares."""
    (site / "page.txt").write_text("<%page args='x, y=2'/>${x} ${y}")
    assert render(site, "page.txt", x=1) == "1 2"


@pytest.mark.parametrize(("strict", "text"), [(False, "Undefined"), (True, "'missing' is not defined")])
def test_undefined(site: Path, strict: bool, text: str) -> None:
    """A name that the caller didn't send raises when it is rendered."""
    (site / "undefined.txt").write_text("\n${missing}")
    with pytest.raises(TemplateFailed, match=f"NameError: {text}"):
        renderer(site, strict=strict).render("undefined.txt", {})


def test_strict_undefined(site: Path) -> None:
    """With strict_undefined, such a name raises even when it is only tested."""
    (site / "undefined.txt").write_text("${'set' if missing else 'not set'}")
    assert render(site, "undefined.txt") == "not set"
    with pytest.raises(TemplateFailed, match="'missing' is not defined"):
        renderer(site, strict=True).render("undefined.txt", {})


def test_filters(site: Path) -> None:
    """A filter can be applied to everything, such as the one that decodes what Python 2 sends."""
    assert renderer(site, filters=["decode.utf8"]).render("page.txt", {"name": "Zoë".encode()}) == "Hello Zoë!"
    assert renderer(site, filters=["h"]).render("page.txt", {"name": "<"}) == "Hello &lt;!"
    assert render(site, "page.txt", name="<") == "Hello <!"


def test_text_is_plain_str(site: Path) -> None:
    """An escaped text is a str, not one of its subclasses, which can't travel."""
    (site / "one.html").write_text("${x}")
    assert type(renderer(site, filters=["h"]).render("one.html", {"x": "<"})) is str


@pytest.mark.parametrize("filters", [[], ["h"]], ids=["unfiltered", "escaped"])
@pytest.mark.parametrize("strict", [False, True], ids=["lenient", "strict"])
def test_any_name(site: Path, filters: list[str], strict: bool) -> None:
    """A variable may have any name, and breaks no page."""
    (site / "everything.txt").write_text(EVERYTHING)
    (site / "base.txt").write_text("<${self.body()}${next.body()}${title}>")
    (site / "parts.txt").write_text('<%def name="wrap()">(${caller.body()})</%def>')
    (site / "included.txt").write_text("included ${title}")
    pages = renderer(site, filters=filters, strict=strict)
    text = pages.render("everything.txt", {"title": "T"})
    assert "part T" in text
    for name in EVERY_NAME:
        assert pages.render("everything.txt", {name: "some text", "title": "T"}) == text, name


# -- names that are refused

REFUSED_EVERYWHERE = [
    "//page.txt",
    "//etc/passwd",
    "sub//deep.txt",
    "sub/",
    "page.txt/",
    "sub\\deep.txt",
    "..\\outside\\secret.txt",
    "page.txt\0",
    "page.txt\0.html",
    "page.txt\n",
    "\x7fpage.txt",
    "page\u2028.txt",
    "\ud800.txt",
    "\x85",
    "../outside/secret.txt",
    "sub/../../outside/secret.txt",
    "..",
]
REFUSED_AT_THE_DOOR = [
    "",
    "/",
    "/page.txt",
    "/etc/passwd",
    "./page.txt",
    "sub/./deep.txt",
    "sub/../page.txt",
    "sub/..",
    ".",
]


@pytest.mark.parametrize("name", REFUSED_EVERYWHERE + REFUSED_AT_THE_DOOR)
def test_refused_names(site: Path, name: str) -> None:
    """A name that isn't plain is refused, whether or not the file exists, and no path is revealed."""
    with pytest.raises(TemplateRefused) as caught:
        render(site, name)
    assert "is refused" in str(caught.value)
    assert caught.value.name == name
    assert str(site) not in str(caught.value)


TAGS = {
    "include": "<%include file=\"${attributes['n']}\"/>",
    "inherit": "<%inherit file=\"${context['attributes']['n']}\"/>",
    "namespace": "<%namespace name='ns' file=\"${context['attributes']['n']}\"/>${ns.body()}",
    "get_namespace": "${local.get_namespace(attributes['n']).body()}",
    "include_file": "<% self.include_file(attributes['n']) %>",
    "get_template": "${local.get_template(attributes['n']).render()}",
    "lookup": "${context.lookup.get_template(attributes['n']).render()}",
    "relative lookup": "${context.lookup.get_template(attributes['n'], 'page.txt').render()}",
}


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("name", [*REFUSED_EVERYWHERE, "", "/", "/../outside/secret.txt", "link/secret.txt", 3])
def test_refused_names_in_templates(site: Path, tag: str, name: object) -> None:
    """Every way in which a template reaches another one goes through the same check."""
    (site / "link").symlink_to(site.parent / "outside")
    (site / "dynamic.txt").write_text(TAGS[tag])
    with pytest.raises(TemplateRefused):
        render(site, "dynamic.txt", n=name)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize(
    "name", ["sub/deep.txt", "/sub/deep.txt", "./sub/deep.txt", "sub/../sub/deep.txt", b"sub/deep.txt"]
)
def test_names_in_templates(site: Path, tag: str, name: object) -> None:
    """A template names another as Mako has it; '/' is the template directory."""
    (site / "dynamic.txt").write_text(TAGS[tag])
    assert "deep" in render(site, "dynamic.txt", n=name)


def test_names_are_relative_to_the_template(site: Path) -> None:
    """A template in a directory reaches its neighbours and those above, up to the template directory."""
    (site / "sub" / "near.txt").write_text("<%include file='deep.txt'/> <%include file='../page.txt'/>")
    (site / "sub" / "far.txt").write_text("<%include file='../../outside/secret.txt'/>")
    assert render(site, "sub/near.txt", name="Ann") == "deep Hello Ann!"
    with pytest.raises(
        TemplateRefused, match=r"'\.\.' leads out of the template directory.*'sub/far\.txt', line 1"
    ):
        render(site, "sub/far.txt")


def test_refusal_tells_where(site: Path) -> None:
    """If a template names a refused or missing one, the error has the template and its line."""
    (site / "outer.txt").write_text("\n\n<%include file='inner.txt'/>")
    with pytest.raises(
        TemplateMissing, match=r"no template 'inner\.txt'.*; template 'outer\.txt', line 3 asks"
    ):
        render(site, "outer.txt")
    (site / "inner.txt").write_text("\n<%include file='a//b'/>")
    with pytest.raises(
        TemplateRefused, match=r"'a//b' is refused.*; template 'inner\.txt', line 2 asks"
    ) as caught:
        render(site, "outer.txt")
    assert caught.value.name == "a//b"


def test_has_template(site: Path) -> None:
    """Templates may check whether another one exists."""
    (site / "asks.txt").write_text("${context.lookup.has_template(n)}")
    names = ("page.txt", "nothing.txt", "../outside/secret.txt")
    assert [render(site, "asks.txt", n=name) for name in names] == ["True", "False", "False"]


# -- symbolic links, and other files that are not regular ones


@pytest.mark.parametrize(
    ("link", "target", "name"),
    [
        ("link.txt", "../outside/secret.txt", "link.txt"),
        ("link.txt", "{outside}/secret.txt", "link.txt"),
        ("link.txt", "/dev/null", "link.txt"),
        ("link.txt", "../nothing.txt", "link.txt"),
        ("link", "../outside", "link/secret.txt"),
        ("link", "{outside}", "link/secret.txt"),
        ("link", "{outside}", "link/nothing.txt"),
        ("sub/link", "../../outside", "sub/link/secret.txt"),
        ("link", "..", "link/outside/secret.txt"),
        ("link", "/", "link/etc/passwd"),
        ("link", "../site-2", "link/page.txt"),
    ],
)
def test_links_that_lead_out(site: Path, link: str, target: str, name: str) -> None:
    """A symbolic link to something outside is refused, be it a file's or a directory's."""
    (site.parent / "site-2").mkdir()  # begins as the directory's own name does
    (site.parent / "site-2" / "page.txt").write_text(SECRET)
    (site / link).symlink_to(target.format(outside=site.parent / "outside"))
    with pytest.raises(TemplateRefused, match="a symbolic link leads out of the template directory") as caught:
        render(site, name)
    assert str(site.parent) not in str(caught.value)


@pytest.mark.parametrize(
    ("link", "target", "name"),
    [
        ("link.txt", "sub/deep.txt", "link.txt"),
        ("link.txt", "{site}/sub/deep.txt", "link.txt"),
        ("link", "sub", "link/deep.txt"),
        ("sub/link", "../sub", "sub/link/link/link/deep.txt"),
        ("link", ".", "link/link/sub/deep.txt"),
        ("link", "../site", "link/sub/deep.txt"),
    ],
)
def test_links_that_stay_inside(site: Path, link: str, target: str, name: str) -> None:
    """A symbolic link to something inside is followed."""
    (site / link).symlink_to(target.format(site=site))
    assert render(site, name) == "deep"


def test_chain_of_links_that_leads_out(site: Path) -> None:
    """A link to a link is judged by its end."""
    (site / "one.txt").symlink_to("two.txt")
    (site / "two.txt").symlink_to("sub/three.txt")
    (site / "sub" / "three.txt").symlink_to("../../outside/secret.txt")
    with pytest.raises(TemplateRefused):
        render(site, "one.txt")


def test_link_that_leads_out_and_back(site: Path) -> None:
    """A link by way of the outside that ends inside is one that stays inside."""
    (site.parent / "outside" / "back").symlink_to(site / "sub")
    (site / "link").symlink_to("../outside/back")
    assert render(site, "link/deep.txt") == "deep"


def test_loop_of_links(site: Path) -> None:
    """Links that lead nowhere are an error of their own."""
    (site / "loop.txt").symlink_to("loop.txt")
    with pytest.raises(TemplateMissing, match=r"'loop\.txt' can't be opened: Too many levels"):
        render(site, "loop.txt")


def test_directory_that_is_a_link(site: Path) -> None:
    """The template directory itself may be a link, and be turned to another release."""
    current = site.parent / "current"
    current.symlink_to("site")
    (current / "link.txt").symlink_to("sub/deep.txt")
    rendering = renderer(current)
    assert rendering.render("link.txt", {}) == "deep"
    release = site.parent / "release"
    release.mkdir()
    (release / "link.txt").write_text("new")
    current.unlink()
    current.symlink_to("release")
    assert rendering.render("link.txt", {}) == "new"


def test_link_turned_outside_later(site: Path) -> None:
    """A link is checked again at every request."""
    link = site / "link.txt"
    link.symlink_to("sub/deep.txt")
    rendering = renderer(site)
    assert rendering.render("link.txt", {}) == "deep"
    link.unlink()
    link.symlink_to("../outside/secret.txt")
    with pytest.raises(TemplateRefused):
        rendering.render("link.txt", {})


@pytest.mark.parametrize("swapped", ["sub", "sub/deep.txt"])
def test_link_swapped_in_after_the_check(site: Path, swapped: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that is put in place between the check and the opening isn't followed."""
    (site / "link.txt").symlink_to("sub/deep.txt")
    (site.parent / "outside" / "deep.txt").write_text(SECRET)
    commonpath = os.path.commonpath

    def swap(paths: tuple[str, str]) -> str:
        common = commonpath(paths)
        (site / swapped).rename(site / "moved")
        (site / swapped).symlink_to(site.parent / "outside" / Path(swapped).name.replace("sub", ""))
        return common

    monkeypatch.setattr(os.path, "commonpath", swap)
    with pytest.raises(NoTemplate):
        render(site, "link.txt")
    assert (site / swapped).is_symlink()


def test_only_regular_files(site: Path) -> None:
    """Directories, pipes and sockets are refused, without waiting for a pipe."""
    os.mkfifo(site / "pipe")
    (site / "self").symlink_to(".")
    for name in ("sub", "pipe", "self"):
        with pytest.raises(TemplateRefused, match="not a regular file"):
            render(site, name)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(site / "socket"))
        with pytest.raises(NoTemplate):
            render(site, "socket")


def test_descriptors_are_closed(site: Path) -> None:
    """Neither a rendering nor a refusal leaves a file open."""
    (site / "link.txt").symlink_to("../outside/secret.txt")
    rendering = renderer(site)

    def descriptors() -> int:
        return len(os.listdir("/dev/fd"))

    before = descriptors()
    for _ in range(3):
        rendering.render("sub/deep.txt", {})
        for name in ("link.txt", "sub", "sub/nothing.txt", "page.txt/x"):
            with pytest.raises(NoTemplate):
                rendering.render(name, {})
    assert descriptors() == before


def test_directory_that_may_only_be_passed_through(site: Path) -> None:
    """A file below is found by name, and opened for reading only."""
    descriptor = open_below(str(site), "sub/deep.txt")
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(descriptor, b"x")
    finally:
        os.close(descriptor)


# -- missing ones, several directories


@pytest.mark.parametrize(
    "name", ["nothing.txt", "nothing/at/all.txt", "page.txt/x", "x" * 300, "sub/" * 2000 + "x"]
)
def test_missing(site: Path, name: str) -> None:
    """A missing template is reported by its name alone, shortened if it is long."""
    with pytest.raises(TemplateMissing) as caught:
        render(site, name)
    assert name[:200] in str(caught.value)
    assert len(str(caught.value)) < 350
    assert str(site) not in str(caught.value)
    assert isinstance(caught.value, MisuseError)


def test_unreadable(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that the worker may not read is reported with its name and the reason."""

    def refuse(directory: str, name: str) -> int:
        raise PermissionError(13, "Permission denied", f"{directory}/{name}")

    monkeypatch.setattr(directories_module, "open_below", refuse)
    with pytest.raises(TemplateMissing) as caught:
        render(site, "page.txt")
    assert str(caught.value) == "the template 'page.txt' can't be opened: Permission denied"


def test_directories_in_order(site: Path) -> None:
    """The first directory that has the file wins, for included ones too; a missing directory has none."""
    theme = site.parent / "theme"
    theme.mkdir()
    (theme / "footer.txt").write_text("themed")
    (site / "footer.txt").write_text("plain")
    (site / "whole.txt").write_text("<%include file='footer.txt'/>")
    gone = site.parent / "gone"
    gone.mkdir()
    pages = renderer(gone, theme, site)
    gone.rmdir()
    assert pages.render("whole.txt", {}) == "themed"
    assert renderer(site, theme).render("whole.txt", {}) == "plain"


# -- changes


def settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have files judged by their status alone, as those are that weren't changed just now."""
    monkeypatch.setattr(directories_module, "SETTLED_AFTER", -(10**18))


def test_compiled_once(site: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that doesn't change is compiled once, and not even read again when it is old enough."""
    rendering = renderer(site)
    for _ in range(3):
        rendering.render("sub/deep.txt", {})
    assert compiled == ["sub/deep.txt"]
    settle(monkeypatch)
    rendering.render("sub/deep.txt", {})
    read: list[str] = []
    monkeypatch.setattr(directories_module, "open_below", lambda _, name: read.append(name))
    assert rendering.render("sub/deep.txt", {}) == "deep"
    assert read == []


@pytest.mark.parametrize("seconds", [-1000, 1000])
def test_changed_time(site: Path, seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of another time is another file, older ones too, as a restored backup is."""
    settle(monkeypatch)
    path = site / "sub" / "deep.txt"
    rendering = renderer(site)
    assert rendering.render("sub/deep.txt", {}) == "deep"
    now = path.stat().st_mtime
    path.write_text("seen")
    os.utime(path, (now + seconds, now + seconds))
    assert rendering.render("sub/deep.txt", {}) == "seen"


def test_changed_size(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of another size is another file, whatever its time."""
    settle(monkeypatch)
    path = site / "sub" / "deep.txt"
    rendering = renderer(site)
    rendering.render("sub/deep.txt", {})
    status = path.stat()
    path.write_text("longer")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert rendering.render("sub/deep.txt", {}) == "longer"


def test_changed_file(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file put in the place of another, with its size and its time, is seen."""
    settle(monkeypatch)
    path = site / "sub" / "deep.txt"
    rendering = renderer(site)
    rendering.render("sub/deep.txt", {})
    status = path.stat()
    (site / "new").write_text("swap")
    os.utime(site / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
    (site / "new").replace(path)
    assert rendering.render("sub/deep.txt", {}) == "swap"


@pytest.mark.parametrize("field", ["st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns"])
def test_what_tells_files_apart(field: str) -> None:
    """Each of these alone tells that a file has changed; the time of the last reading doesn't."""
    status = {"st_dev": 1, "st_ino": 1, "st_size": 1, "st_mtime_ns": 1, "st_ctime_ns": 1, "st_atime_ns": 1}

    def stamp(**changes: int) -> object:
        return directories_module.Stamp.of(SimpleNamespace(**{**status, **changes}))  # type: ignore[arg-type]

    assert stamp(**{field: 2}) != stamp()
    assert stamp(st_atime_ns=2) == stamp()


def test_changed_at_once(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was changed just now is read again, even if nothing in its status has changed."""
    monkeypatch.setattr(
        directories_module.Stamp, "of", lambda status: directories_module.Stamp(1, 1, 1, 1, 10**30)
    )
    path = site / "sub" / "deep.txt"
    rendering = renderer(site)
    assert rendering.render("sub/deep.txt", {}) == "deep"
    path.write_text("seen")
    assert rendering.render("sub/deep.txt", {}) == "seen"


def test_touched(site: Path, compiled: list[str]) -> None:
    """A file with a new time and the old content isn't compiled again."""
    rendering = renderer(site)
    rendering.render("sub/deep.txt", {})
    os.utime(site / "sub" / "deep.txt", (1, 1))
    assert rendering.render("sub/deep.txt", {}) == "deep"
    assert compiled == ["sub/deep.txt"]


def test_deleted(site: Path) -> None:
    """A template that was deleted is gone, and is found when it comes back."""
    path = site / "sub" / "deep.txt"
    rendering = renderer(site)
    rendering.render("sub/deep.txt", {})
    path.unlink()
    with pytest.raises(TemplateMissing):
        rendering.render("sub/deep.txt", {})
    path.write_text("back")
    assert rendering.render("sub/deep.txt", {}) == "back"


def test_changed_parts(site: Path) -> None:
    """A change of an inherited or included file, or of a namespace, is seen in the page."""
    (site / "base.txt").write_text("base(${next.body()})")
    (site / "defs.txt").write_text("<%def name='f()'>def</%def>")
    (site / "whole.txt").write_text(
        "<%inherit file='base.txt'/><%namespace name='d' file='defs.txt'/>"
        "${d.f()} <%include file='sub/deep.txt'/>"
    )
    rendering = renderer(site)
    assert rendering.render("whole.txt", {}) == "base(def deep)"
    (site / "base.txt").write_text("new(${next.body()})")
    (site / "defs.txt").write_text("<%def name='f()'>newer</%def>")
    (site / "sub" / "deep.txt").write_text("deeper")
    assert rendering.render("whole.txt", {}) == "new(newer deeper)"


@pytest.mark.parametrize("reload", [False, True])
@pytest.mark.parametrize("settled", [False, True])
def test_cache_is_bounded(
    site: Path, compiled: list[str], settled: bool, reload: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The templates that were used last are kept, whether or not their files are looked at."""
    if settled:
        monkeypatch.setattr(directories_module, "SETTLED_AFTER", -(10**18))
    for name in "abc":
        (site / name).write_text(name)
    rendering = renderer(site, cache_size=2, reload=reload)
    for name in "abacab":
        assert rendering.render(name, {}) == name
    assert compiled == ["a", "b", "c", "b"]


def test_long_names_are_not_kept(site: Path) -> None:
    """A name with many directories, which a caller chose, takes no memory once its page is rendered."""
    (site / "any.txt").write_text("<%include file='${file}'/>")
    rendering = renderer(site)
    rendering.render("any.txt", {"file": "page.txt", "name": "Ann"})
    tracemalloc.start()
    try:
        for number in range(10):
            name = "./" * 50_000 + "x/../" * number + "page.txt"
            assert rendering.render("any.txt", {"file": name, "name": "Ann"}) == "Hello Ann!"
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 200_000


def test_nothing_is_written(site: Path) -> None:
    """Rendering leaves the directory as it was."""
    before = sorted(site.rglob("*"))
    render(site, "sub/deep.txt")
    assert sorted(site.rglob("*")) == before


# -- broken ones


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("\n\n${1 +}", r"template 'broken\.txt', line 3: \(SyntaxError\) invalid syntax"),
        ("\n% for x in y:\n", r"template 'broken\.txt', line 2: Unterminated control keyword: 'for'$"),
        ("\n<%nothing/>", r"template 'broken\.txt', line 2: No such tag: 'nothing'$"),
        ("<% loop = 1 %>", r"template 'broken\.txt': NameConflictError: Reserved words"),
        ("\n\n<%! import no_such_module %>", r"template 'broken\.txt'.*: ModuleNotFoundError: No module named"),
    ],
)
def test_broken_by_an_edit(site: Path, source: str, text: str) -> None:
    """A template that can't be compiled is reported with its line, alone or included, and works once fixed."""
    (site / "outer.txt").write_text("<%include file='broken.txt'/>")
    (site / "broken.txt").write_text("fine")
    rendering = renderer(site)
    assert rendering.render("outer.txt", {}) == "fine"
    (site / "broken.txt").write_text(source)
    for name in ("broken.txt", "outer.txt", "broken.txt"):
        with pytest.raises(TemplateFailed, match=text) as caught:
            rendering.render(name, {})
        assert caught.value.name == "broken.txt"
        assert caught.value.__cause__ is not caught.value
        assert str(site) not in str(caught.value)
    (site / "broken.txt").write_text("mended")
    assert rendering.render("outer.txt", {}) == "mended"


def test_undecodable(site: Path) -> None:
    """A template in another encoding than it declares is reported by name."""
    (site / "latin.txt").write_bytes(b"\n\xe9")
    with pytest.raises(
        TemplateFailed, match=r"template 'latin\.txt': Unicode decode operation of encoding 'utf-8'"
    ):
        render(site, "latin.txt")


@pytest.mark.parametrize(
    ("source", "line", "text"),
    [
        ("\n\n${attributes['nothing']}\n", 3, "KeyError: 'nothing'"),
        ("a\n% for x in [1, 0]:\n${x}\n${1 // x}\n% endfor\n", 4, "ZeroDivisionError: "),
        ("<%\n  a = 1\n  b = a + 'x'\n%>", 3, "TypeError: "),
        ("\n<%def name='f()'>\n${int('x')}</%def>\n\n${f()}", 3, "ValueError: "),
    ],
)
def test_raised(site: Path, source: str, line: int, text: str) -> None:
    """An exception in a template is reported with the template and its line, even if it is included."""
    (site / "raises.txt").write_text(source)
    (site / "outer.txt").write_text("\n\n\n\n\n\n<%include file='raises.txt'/>")
    for name in ("raises.txt", "outer.txt"):
        with pytest.raises(TemplateFailed) as caught:
            render(site, name)
        assert str(caught.value).startswith(f"template 'raises.txt', line {line}: {text}")
        assert (caught.value.name, caught.value.line) == ("raises.txt", line)
        assert caught.value.__cause__ is not None


def test_lines_of_templates_with_like_names(site: Path) -> None:
    """Templates whose names differ in their punctuation only aren't taken for each other."""
    (site / "a-b.txt").write_text("\n\n${1 // 0}")
    (site / "a_b.txt").write_text("${1 // 0}")
    rendering = renderer(site)
    for name, line in [("a-b.txt", 3), ("a_b.txt", 1), ("a-b.txt", 3)]:
        with pytest.raises(TemplateFailed) as caught:
            rendering.render(name, {})
        assert (caught.value.name, caught.value.line) == (name, line)


def test_no_text(site: Path) -> None:
    """What is written and isn't text is an error in its line."""
    (site / "number.txt").write_text("\n${3 | n}")
    with pytest.raises(TemplateFailed, match=r"^template 'number\.txt', line 2: TypeError: "):
        render(site, "number.txt")


def test_includes_itself(site: Path) -> None:
    """A template that includes itself for ever is an error like any other."""
    (site / "endless.txt").write_text("\n<%include file='endless.txt'/>")
    with pytest.raises(TemplateFailed, match=r"template 'endless\.txt', line 2: RecursionError"):
        render(site, "endless.txt")


def test_template_that_exits(site: Path) -> None:
    """SystemExit passes through to the engine."""
    (site / "exits.txt").write_text("<% raise SystemExit(3) %>")
    with pytest.raises(SystemExit):
        render(site, "exits.txt")


# -- threads


def test_two_threads(site: Path) -> None:
    """Threads render with one renderer at once, each with its own variables, while the files change."""
    (site / "base.txt").write_text("[${next.body()}]")
    (site / "whole.txt").write_text("<%inherit file='base.txt'/>${capture(lambda: context.write(str(x)))}")
    rendering = renderer(site, cache_size=1)
    barrier = threading.Barrier(3)
    failures: list[object] = []

    def work(number: int) -> None:
        barrier.wait()
        for turn in range(100):
            text = rendering.render("whole.txt", {"x": (number, turn)})
            if text not in (f"[({number}, {turn})]", f"<({number}, {turn})>"):
                failures.append(text)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    barrier.wait()
    (site / "new.txt").write_text("<${next.body()}>")
    (site / "new.txt").replace(site / "base.txt")
    for thread in threads:
        thread.join()
    assert failures == []
    assert rendering.render("whole.txt", {"x": 1}) == "<1>"


def test_one_thread_compiles(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a thread compiles, others wait for its result."""
    templates = Renderer(RenderSettings([str(site)])).templates
    entered: list[bool] = []
    translate = MakoTemplates.translate

    def watch(self: MakoTemplates, name: str, source: bytes) -> CodeType:
        other = threading.Thread(target=lambda: entered.append(templates._lock.acquire(blocking=False)))
        other.start()
        other.join()
        return translate(self, name, source)

    monkeypatch.setattr(MakoTemplates, "translate", watch)
    templates.find("page.txt")
    assert entered == [False]


# -- the example

FIBONACCI = {"fib_sequence": [0, 1, 1, 2, 3, 5, 8, 13, 21, 34], "whattimeisit": "Mon Jan  1 12:00:00 2024"}


def test_example_text() -> None:
    """The example's text is what a handler written by hand gives."""
    text = render(EXAMPLES, "mytemplate.txt", **FIBONACCI)
    assert text == Template(filename=str(EXAMPLES / "mytemplate.txt")).render(attributes=FIBONACCI)
    assert "It is Mon Jan  1 12:00:00 2024 where you are." in text
    assert "F(9) = 34    1.619048 times the one before\n\n10 numbers, 88 in all.\n" in text


def test_example_page() -> None:
    """The example's page inherits its frame and escapes what it shows."""
    text = render(EXAMPLES, "page.html", fib_sequence=[0, "<b>"], whattimeisit="noon & later")
    assert text.startswith("<!DOCTYPE html>\n")
    assert "<title>The Fibonacci sequence</title>" in text
    assert "<td>1</td><td>&lt;b&gt;</td>" in text
    assert "<footer>noon &amp; later</footer>" in text


def test_text_of_python2(tmp_path: Path) -> None:
    """With an encoding, templates get the text of Python 2 callers; without one, the error names the option."""
    (tmp_path / "a.txt").write_text("Dear ${'Ms ' + name}")
    request = Packet(33, 0, dumps((b"a.txt", {b"name": b"A"})))
    assert load([str(tmp_path)], python2="utf-8")[33](request).payload == dumps("Dear Ms A")
    with pytest.raises(UwsgiError, match="--python2 utf-8"):
        load([str(tmp_path)])[33](request)
