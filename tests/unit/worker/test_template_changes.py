"""The first request after a file has changed shows the new text, whatever the change."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from uwsgitwisted.worker.templates import directories as directories_module
from uwsgitwisted.worker.templates.errors import TemplateMissing
from uwsgitwisted.worker.templates.renderer import Renderer, RenderSettings

#: How many edits one run makes.
EDITS = 60
PAGES = {
    "mako": (
        "page.html",
        '<%inherit file="base.html"/>[<%include file="part.html"/>|<%include file="link.html"/>]',
    ),
    "jinja2": (
        "page.j2",
        '{% extends "base.html" %}{% block body %}[{% include "part.html" %}|'
        '{% include "link.html" %}]{% endblock %}',
    ),
}
BASES = {"mako": "{}(${{self.body()}})", "jinja2": "{}({{% block body %}}{{% endblock %}})"}


class Site:
    """Two template directories, and what can happen to them.

    :param root: where they are made.
    :param engine: the engine of the templates.
    :param chance: what is chosen by.
    """

    def __init__(self, root: Path, engine: str, chance: random.Random) -> None:
        self._chance = chance
        self._base = BASES[engine]
        self.page, source = PAGES[engine]
        self.theme, self.site = root / "theme", root / "site"
        self._outside = root / "old"
        for directory in (self.theme, self.site, self._outside):
            directory.mkdir()
        (self.site / "sub").mkdir()
        (self.site / self.page).write_text(source)
        (self.site / "link.html").symlink_to("sub/one.html")
        for name in ("base.html", "part.html", "sub/one.html", "sub/two.html"):
            (self.site / name).write_text(self._text(name))
        self.edits: list[Callable[[Path], None]] = [
            *(self.write, self.replace, self.touch, self.set_back),
            *(self.theme_it, self.turn_link, self.swap_directory),
        ]

    def edit(self) -> str:
        """Make an edit; return what it was."""
        edit = self._chance.choice(self.edits)
        name = self._chance.choice(["base.html", "part.html", "sub/one.html", "sub/two.html"])
        edit(self.site / name)
        return f"{edit.__name__} {name}"

    def expected(self) -> str:
        """Return the page, as the files are now."""
        base, part, link = (self._read(name) for name in ("base.html", "part.html", "link.html"))
        return f"{base.partition('(')[0]}([{part}|{link}])"

    def _read(self, name: str) -> str:
        themed = self.theme / name
        return (themed if themed.exists() else self.site / name).read_text()

    def _text(self, name: str) -> str:
        text = self._chance.choice(["a", "b", "c", "longer", "longest of all"])
        return self._base.format(text) if name.endswith("base.html") else text

    def write(self, path: Path) -> None:
        """Write a file anew, in place; the clock of the file system has gone on since the last change."""
        before = path.stat().st_ctime_ns
        text = self._text(path.name)
        while path.stat().st_ctime_ns == before:
            path.write_text(text)

    def replace(self, path: Path) -> None:
        """Put a new file in the place of one, perhaps with its time."""
        status = path.stat()
        new = path.with_name("new")
        new.write_text(self._text(path.name))
        if self._chance.random() < 0.5:
            os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
        new.replace(path)

    def touch(self, path: Path) -> None:
        """Set a file's time."""
        time = self._chance.randrange(10**9)
        os.utime(path, (time, time))

    def set_back(self, path: Path) -> None:
        """Write a file anew, and set its time back to what it was."""
        status = path.stat()
        self.write(path)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def theme_it(self, path: Path) -> None:
        """Put a file of that name in the first directory, or take it away."""
        themed = self.theme / path.name
        if themed.exists():
            themed.unlink()
        else:
            themed.write_text(self._text(path.name))

    def turn_link(self, path: Path) -> None:
        """Turn the link to another file."""
        link = self.site / "link.html"
        link.unlink()
        targets = ["sub/one.html", "sub/two.html", "part.html", str(self.site / "sub/two.html")]
        link.symlink_to(self._chance.choice(targets))

    def swap_directory(self, path: Path) -> None:
        """Put another directory in the place of one."""
        sub, old = self.site / "sub", self._outside / str(self._chance.random())
        new = self.site / "new"
        new.mkdir()
        for name in ("one.html", "two.html"):
            (new / name).write_text(self._text(name))
        sub.rename(old)
        new.rename(sub)


@pytest.mark.parametrize("engine", PAGES)
@pytest.mark.parametrize("cached", [0, 1 << 20], ids=["", "results"])
@pytest.mark.parametrize("settled", [False, True], ids=["young", "settled"])
def test_any_change_is_seen(
    tmp_path: Path, engine: str, cached: int, settled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files, links and directories are edited at random; each request shows what is there when it begins."""
    if settled:  # judge files by their status alone, as those are that weren't changed just now
        monkeypatch.setattr(directories_module, "SETTLED_AFTER", -(10**18))
    seed = random.randrange(10**9)
    site = Site(tmp_path, engine, random.Random(seed))
    settings = RenderSettings(
        [str(site.theme), str(site.site)], engines={".html": engine}, result_cache=cached, cache_size=3
    )
    renderer = Renderer(settings)
    for number in range(EDITS):
        edit = site.edit()
        for _ in range(2):  # the second one may come from a cache
            renderer.begin()
            page = renderer.cached(b"key") or renderer.page(site.page, {}, b"key")
            assert page.body.decode() == site.expected(), f"seed {seed}, edit {number}: {edit}"
    assert (renderer.statistics.hits > EDITS // 2) == bool(cached)


def test_missing_and_back(tmp_path: Path) -> None:
    """A page that includes a deleted file fails, and is back with the file, whatever is cached."""
    (tmp_path / "page.html").write_text('<%include file="part.html"/>')
    renderer = Renderer(RenderSettings([str(tmp_path)], result_cache=1 << 20))
    for text in ("one", "two"):
        (tmp_path / "part.html").write_text(text)
        renderer.begin()
        assert renderer.cached(b"key") is None
        assert renderer.page("page.html", {}, b"key").body == text.encode()
        (tmp_path / "part.html").unlink()
        renderer.begin()
        assert renderer.cached(b"key") is None
        with pytest.raises(TemplateMissing, match="asks for it"):
            renderer.page("page.html", {}, b"key")
