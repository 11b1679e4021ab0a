"""Compares a renderer with Mako in one process: ``python -m benchmarks.render``.

The page has a loop of 20 items, an include and a def. ``processes:2`` renders it for one caller, with 50
requests in flight, and all share the cores. Mako's own lookup also caches the compiled template.
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path

from benchmarks.harness import Contender, Relation, Scale, Table, compare, main
from benchmarks.processes import Server, Servers
from uwsgitwisted.worker.templates.directories import SETTLED_AFTER

_TEMPLATES = {
    "page.html": """\
<%def name="row(number, item)"><li>${number}: ${item}</li></%def>\\
<html><head><title>${title}</title></head><body>
<%include file="header.html"/>
% for item in items:
${row(loop.index, item)}
% endfor
</body></html>
""",
    "header.html": "<h1>${title}</h1><p>Hello ${user}.</p>\n",
}
#: Seconds after which one look at a file's status is enough, as for the files of a site.
_SETTLED = SETTLED_AFTER / 10**9 + 0.1


def _write(directory: Path) -> None:
    directory.mkdir()
    for name, text in _TEMPLATES.items():
        (directory / name).write_text(text)
    time.sleep(_SETTLED)


def run(scale: Scale) -> list[Table]:
    """Run the comparison."""
    with Servers() as servers:
        directory = servers.directory / "templates"
        _write(directory)

        @cache
        def renderer(*options: str) -> Server:
            return servers.renderer(directory, *options)

        def ours(*options: str, pages: int = 1) -> float:
            return servers.drive("render:client", renderer(*options).port, scale.seconds, pages)[0]

        def local(driver: str) -> float:
            return servers.drive(f"render:{driver}", 0, scale.seconds, directory)[0]

        contenders = [
            Contender("Mako's cached `TemplateLookup`, one process", lambda: local("lookup")),
            Contender("ours, a session", ours, "0.8 or more"),
            Contender("ours, `--no-reload`", lambda: ours("--no-reload"), "1 or more"),
            Contender("ours, 100 pages in a request", lambda: ours(pages=100), "1.3 or more"),
            Contender("ours, `--result-cache 10M`", lambda: ours("--result-cache", "10M"), "3 or more"),
            Contender("our handler alone, one process", lambda: local("handler")),
        ]
        title = "A page: a loop of 20 items, an include, a def"
        table = compare(title, "pages/s", contenders, scale.rounds, Relation.PEER_FIRST)
        original = compare(
            "The same page, as old code renders it",
            "pages/s",
            [
                Contender("ours, a session", ours),
                Contender(
                    "`Template(filename=...)` at each call, one process", lambda: local("anew"), "20 or more"
                ),
            ],
            scale.rounds,
        )
        return [table, original]


if __name__ == "__main__":
    main(__doc__, run)
