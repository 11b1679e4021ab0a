"""A coverage plugin: saves what was measured before a process ends itself by a signal.

Twisted's services end so after a SIGTERM or SIGINT (``_exitWithSignal`` in twisted.application.app), past
everything that coverage has a hook for. Pyproject.toml names it; coverage loads it in each process.
"""

from __future__ import annotations

import os

from coverage import Coverage
from coverage.plugin_support import Plugins
from coverage.types import TConfigurable


def coverage_init(registry: Plugins, options: TConfigurable) -> None:
    """Have :func:`os.kill` save first, where a process is about to kill itself."""
    original = os.kill

    def kill(process: int, number: int, /) -> None:
        measuring = Coverage.current()
        if process == os.getpid() and measuring is not None:
            measuring.stop()
            measuring.save()
        original(process, number)

    os.kill = kill
