"""``uwsgitwisted convert``: prints what replaces a configuration of uWSGI."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator

from uwsgitwisted.cli.words import printable
from uwsgitwisted.convert.configuration import read_configuration
from uwsgitwisted.convert.conversion import Conversion, convert
from uwsgitwisted.convert.outcomes import Outcome

#: The exit status if an option is refused.
_INCOMPLETE = 1


def run_convert(options: Namespace) -> int:
    """Convert the configuration that *options* name, and print the result.

    :return: 0, or 1 if something was refused.
    """
    settings = read_configuration(options.file, options.directory)
    conversion = convert(settings, options.file, options.directory)
    lines = [json.dumps(_document(conversion))] if options.json else _lines(conversion)
    for line in lines:
        print(printable(line, keep="\n"))
    return 0 if conversion.is_complete else _INCOMPLETE


def _document(conversion: Conversion) -> dict[str, object]:
    return {
        "commands": [
            {"command": each.line, "environment": each.environment, "directory": each.directory}
            for each in conversion.commands
        ],
        "units": conversion.units,
        "nginx": conversion.nginx,
        "cron": conversion.cron,
        "options": [
            {
                "option": row.setting.key,
                "value": row.setting.value,
                "place": str(row.setting.place),
                "outcome": row.outcome.value,
                "text": row.text,
            }
            for row in conversion.rows
        ],
        "problems": conversion.problems,
        "notes": conversion.notes,
    }


def _lines(conversion: Conversion) -> Iterator[str]:
    """Yield the report, in which all that isn't part of a file or a command is a comment."""
    yield "# What becomes of each option"
    for row in conversion.rows:
        yield f"#   {row.setting.key} = {row.setting.value}  ({row.setting.place})"
        yield f"#       {row.outcome.value}: {row.text}"
    refused = [f"{row.setting.key}: {row.text}" for row in conversion.rows if row.outcome is Outcome.REFUSED]
    yield from _list("What is left to do", [*refused, *conversion.problems])
    yield from _list("Where defaults differ", conversion.notes)
    for command in conversion.commands:
        yield f"\n# {command.name}"
        yield command.shell(*conversion.identity)
    for name, text in conversion.units.items():
        yield f"\n# /etc/systemd/system/{name}\n{text.rstrip()}"
    if conversion.nginx:
        yield f"\n# nginx, such as /etc/nginx/conf.d/application.conf\n{conversion.nginx.rstrip()}"
    if conversion.cron:
        yield "\n# crontab, of the user who runs the application"
        yield from conversion.cron


def _list(title: str, texts: list[str]) -> Iterator[str]:
    if texts:
        yield f"\n# {title}"
        yield from (f"#   {text}" for text in texts)
