"""Runs a script that imports ``uwsgi``: ``python -m uwsgitwisted.compat [--spooler ADDRESS] script.py ...``."""

from __future__ import annotations

import argparse
import os
import runpy
import sys

from uwsgitwisted.compat import install
from uwsgitwisted.errors import InvalidAddress


def main() -> None:
    """Install the modules, and run the script with its own arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m uwsgitwisted.compat", description="Run a script that imports uWSGI's modules."
    )
    parser.add_argument("--spooler", metavar="ADDRESS", help="the spooler that gets the script's tasks")
    parser.add_argument("script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own")
    given = parser.parse_args()
    try:
        install(given.spooler)
    except InvalidAddress as error:
        parser.error(f"--spooler {error}")
    sys.argv = [given.script, *given.arguments]
    sys.path[0] = os.path.dirname(os.path.abspath(given.script))
    runpy.run_path(given.script, run_name="__main__")


if __name__ == "__main__":
    main()
