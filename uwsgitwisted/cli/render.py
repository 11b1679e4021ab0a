"""The command ``uwsgitwisted render``: renders a page from a shell, and looks through template directories."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from uwsgitwisted.blocking import send_message
from uwsgitwisted.cli.words import printable
from uwsgitwisted.errors import MisuseError, ProtocolError, UwsgiError
from uwsgitwisted.wire.packet import MARSHAL

if TYPE_CHECKING:
    from uwsgitwisted.worker.templates.renderer import Renderer

_MODIFIER2 = 0


def render(options: Namespace) -> int:
    """Render a page, or do what ``--check`` or ``--list`` asks for; return the exit status."""
    if options.check or options.list:
        if options.address:
            raise MisuseError("--check and --list look at directories; they take no address")
        renderer = _renderer(options)
        return _check(renderer, options) if options.check else _list(renderer, options)
    if not options.address or not options.template:
        raise MisuseError("name the renderer's address and a template, or use --check or --list")
    variables = dict(_pair(text) for text in options.variables) or _given()
    page = send_message(options.address, MARSHAL, _MODIFIER2, (options.template, variables), options.timeout)
    if isinstance(page, str):
        page = page.encode("utf-8", "surrogatepass")
    if not isinstance(page, bytes):
        raise ProtocolError("the answer is no page; is this a renderer?", address=options.address)
    sys.stdout.buffer.write(page)
    sys.stdout.buffer.flush()
    return 0


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise MisuseError(f"{text!r} is not key=value")
    return key, value


def _given() -> dict[str, object]:
    """Return the variables that are on the standard input as JSON, unless that is a terminal."""
    text = "" if sys.stdin.isatty() else sys.stdin.read()
    if not text.strip():
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MisuseError(f"the standard input is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise MisuseError("the standard input is not a JSON object")
    return value


def _renderer(options: Namespace) -> Renderer:
    # Imported late: it imports the template engines, which take time.
    from uwsgitwisted.worker.templates.engines import parse_engine_for
    from uwsgitwisted.worker.templates.renderer import Renderer, RenderSettings

    try:
        engines = dict(parse_engine_for(text) for text in options.engine_for)
    except ValueError as error:
        raise MisuseError(f"--engine-for: {error}") from error
    directories = [*(options.check or ()), *(options.list or ())]
    return Renderer(
        RenderSettings(directories, imports=options.imports, encoding=options.encoding, engines=engines)
    )


def _check(renderer: Renderer, options: Namespace) -> int:
    """Compile all templates; print those that are broken, and where."""
    broken = renderer.check()
    for error in broken:
        text = " ".join(printable(str(error)).split())
        print(json.dumps({"error": text, **_place(error)}) if options.json else text)
    if not options.json:
        print(f"templates: {len(renderer.names())}, broken: {len(broken)}", file=sys.stderr)
    return 1 if broken else 0


def _place(error: Exception) -> dict[str, object]:
    return {"template": getattr(error, "name", ""), "line": getattr(error, "line", 0)}


def _list(renderer: Renderer, options: Namespace) -> int:
    """Print what each template consists of."""
    status = 0
    for name in renderer.names():
        try:
            parts = dict(_outline(renderer, name))
        except UwsgiError as error:
            print(printable(str(error)), file=sys.stderr)
            status = 1
            continue
        if options.json:
            print(json.dumps({"template": name, **parts}))
            continue
        print(printable(name))
        for title, values in parts.items():
            if values:
                print(printable(f"  {title}: {', '.join(values)}"))
    return status


def _outline(renderer: Renderer, name: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    outline = renderer.outline(name)
    yield "parents", outline.parents
    yield "uses", outline.uses
    yield "parts", outline.parts
    yield "variables", outline.variables
