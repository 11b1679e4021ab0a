"""Checks an installed wheel: run by the Python it is installed for, away from the repository.

python check_wheel.py REPOSITORY
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

#: A command line for each service, with values for the options that only it has.
COMMANDS = {
    "node": ["--handler", "my_server", "--listen", "tcp:3033", "--engine", "processes:2", "--timeout", "5"],
    "renderer": ["--templates", "/srv/templates", "--filters", "h", "--strict", "--allow", "10.0.0.0/8"],
    "spooler": ["--spool", "sqlite:spool.sqlite", "--handler", "my_tasks", "--max-attempts", "3", "--text"],
}


def main() -> None:
    """Import what was installed and parse a command line for each service."""
    package = importlib.import_module("uwsgitwisted")
    place = Path(str(package.__file__)).resolve()
    if place.is_relative_to(Path(sys.argv[1]).resolve()):
        sys.exit(f"this is the repository's package, not the wheel's: {place}")
    if not place.with_name("py.typed").is_file():
        sys.exit("the wheel has no py.typed")
    for name, arguments in COMMANDS.items():
        options = importlib.import_module(f"uwsgitwisted.taps.{name}").Options()
        options.parseOptions(arguments)
        print(f"uwsgi-{name}: options parse")


if __name__ == "__main__":
    main()
