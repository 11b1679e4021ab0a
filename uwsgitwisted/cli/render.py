"""The command ``uwsgitwisted render``: renders a page from a shell, and looks through template directories."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from uwsgitwisted.blocking import stream
from uwsgitwisted.cli.words import printable
from uwsgitwisted.errors import MisuseError, UwsgiError
from uwsgitwisted.wire.packet import RPC
from uwsgitwisted.wire.rpc import RPC_RAW

if TYPE_CHECKING:
    from uwsgitwisted.worker.templates.renderer import Renderer

#: The most bytes of an argument. JSON as we write it is ASCII.
_LONGEST = 0xFFFF


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
    arguments = _arguments(options.template, variables)
    with stream(options.address, RPC, RPC_RAW, arguments, options.timeout) as page:
        for part in page:
            sys.stdout.buffer.write(part)
            sys.stdout.buffer.flush()
    return 0


def _arguments(template: str, variables: Mapping[str, object]) -> list[str]:
    """Return the call of a renderer's function: long JSON takes several arguments."""
    text = json.dumps(variables) if variables else ""
    return ["render", template, *(text[start : start + _LONGEST] for start in range(0, len(text), _LONGEST))]


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
