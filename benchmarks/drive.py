"""Runs one driver and prints its figures: ``python -m benchmarks.drive MODULE:FUNCTION PORT SECONDS ...``.

A real uWSGI runs this file too, so it imports only the standard library.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> None:
    """Run the driver that *arguments* name."""
    driver, port, seconds, *others = arguments
    module, _, function = driver.partition(":")
    drive = getattr(importlib.import_module(f"benchmarks.drivers.{module}"), function)
    figures = drive(int(port), float(seconds), *others)
    print(f"\nresult {json.dumps(figures if isinstance(figures, list) else [figures])}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
