"""The command ``uwsgitwisted render``: what it looks through, what it asks, and its exit status."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.commands import Said, run_command  # noqa: F401 - a fixture
from uwsgitwisted.cli.parser import make_parser

Run = Callable[..., Said]


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    """Give a directory with two good templates and a broken one."""
    directory = tmp_path / "templates"
    (directory / "sub").mkdir(parents=True)
    (directory / "base.html").write_text("<h1>${title}</h1>${self.body()}")
    page = "<%inherit file='/base.html'/><%def name='side()'>s</%def>\n${user}<%include file='../base.html'/>"
    (directory / "sub" / "page.html").write_text(page)
    (directory / "broken.html").write_text("\n\n${1 +}")
    return directory


def test_check(run: Run, templates: Path) -> None:
    """It says what is broken and where, with status 1; without that, the status is 0."""
    said = run("render", "--check", str(templates))
    assert said.status == 1
    (line,) = said.out.splitlines()
    assert line.startswith("template 'broken.html', line 3: ")
    assert said.err == "templates: 3, broken: 1\n"
    (row,) = run("render", "--check", str(templates), "--json").rows
    assert (row["template"], row["line"]) == ("broken.html", 3)
    (templates / "broken.html").unlink()
    said = run("render", "--check", str(templates))
    assert (said.status, said.out) == (0, "")


def test_list(run: Run, templates: Path) -> None:
    """Each template has its parents, what it uses, its parts and its variables."""
    said = run("render", "--list", str(templates), "--json")
    assert said.status == 1
    assert "template 'broken.html', line 3" in said.err
    base, page = said.rows
    assert base == {"template": "base.html", "parents": [], "uses": [], "parts": [], "variables": ["title"]}
    assert (page["template"], page["parents"], page["parts"]) == ("sub/page.html", ["/base.html"], ["side"])
    assert page["uses"] == ["../base.html"]
    assert "user" in page["variables"]
    text = run("render", "--list", str(templates)).out
    assert "base.html\n  variables: title\n" in text
    assert "  parents: /base.html\n" in text


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("127.0.0.1:9",),
        ("127.0.0.1:9", "page.html", "name"),
        ("127.0.0.1:9", "page.html", "=x"),
        ("127.0.0.1:9", "page.html", "--check", "/tmp"),
        ("--list", "/tmp", "--engine-for", "x=none"),
    ],
)
def test_misuse(run: Run, arguments: tuple[str, ...]) -> None:
    """What makes no sense has status 2."""
    assert run("render", *arguments).status == 2


def test_no_directory(run: Run, tmp_path: Path) -> None:
    """A directory that isn't there has status 1."""
    said = run("render", "--check", str(tmp_path / "none"))
    assert said.status == 1
    assert "there is no such directory" in said.err


@pytest.mark.parametrize("given", ["{", "[1]", json.dumps("text")])
def test_standard_input(run: Run, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    """What is given there must be a JSON object."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(given))
    said = run("render", "127.0.0.1:9", "page.html")
    assert said.status == 2
    assert "the standard input is not" in said.err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    """The help of render speaks of what it waits for."""
    with pytest.raises(SystemExit):
        make_parser().parse_args(["render", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "how long to wait for the page to begin, and then for each part of it" in said
    assert "spooler" not in said
