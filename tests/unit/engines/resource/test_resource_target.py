"""What ``--resource`` may name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from klein import Klein
from twisted.web.resource import IResource

from uwsgitwisted.engines.resource.target import load_resource
from uwsgitwisted.errors import StartupError

SOURCE = """
from klein import Klein
from twisted.web.resource import Resource

class Page(Resource):
    isLeaf = True

class Shop(Resource):
    def resource(self):
        raise TypeError("it is something else")

class Needy(Resource):
    def __init__(self, database):
        super().__init__()

page = Page()
app = Klein()
number = 5
an_app = lambda: app
a_page = lambda: page
broken = lambda: 1 / 0
a_number = lambda: number
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module of resources in the current directory."""
    (tmp_path / "some_site.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("some_site", None)


@pytest.mark.parametrize("name", ["page", "Page", "a_page", "app", "an_app", "Shop"])
def test_found(name: str) -> None:
    """A resource, a Klein application, and a class or a function that gives one."""
    resource = load_resource(f"some_site.{name}")
    assert IResource.providedBy(resource)
    assert type(resource).__name__ == {"app": "KleinResource", "an_app": "KleinResource", "Shop": "Shop"}.get(
        name, "Page"
    )


def test_colon() -> None:
    """A colon may be before the name, as in the names of WSGI applications."""
    assert load_resource("some_site:page") is sys.modules["some_site"].page


def test_klein_as_it_is_made() -> None:
    """Klein still has its resource in a method of that name."""
    assert IResource.providedBy(Klein().resource())


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("some_site", "write 'package.module.Class'"),
        ("some_site.page()", "write 'package.module.Class'"),
        ("", "write 'package.module.Class'"),
        ("some_site.nothing", "has no 'nothing'"),
        ("some_site.number", "gives no twisted.web resource"),
        ("some_site.a_number", "gives no twisted.web resource"),
        ("some_site.Needy", "TypeError: .*database"),
        ("some_site.broken", "ZeroDivisionError: division by zero"),
        ("no_site.page", "there is no handler module 'no_site'"),
    ],
)
def test_refused(target: str, text: str) -> None:
    """Anything else is refused, and the error says why."""
    with pytest.raises(StartupError, match=text):
        load_resource(target)
