"""Shows the progress of a map: a bar in a terminal or a notebook, drawn by rich, or else lines."""

from __future__ import annotations

import sys
from typing import Any, Protocol, TextIO

from uwsgitwisted.planner.progress import Progress

#: Seconds between two lines, where there is no bar.
LINE_INTERVAL = 5.0


class Display(Protocol):
    """Shows the progress."""

    def update(self, progress: Progress) -> None:
        """Show how far the map is."""

    def close(self) -> None:
        """Leave the last state on the screen."""


def make_display() -> Display:
    """Make the display that the standard error allows."""
    try:
        from rich.console import Console

        console = Console(stderr=True)
        if console.is_terminal or console.is_jupyter:
            return _Bar(console)
    except ImportError:
        pass
    return Lines(sys.stderr)


def describe(progress: Progress) -> str:
    """Return the progress as a line of text."""
    total = "" if progress.total is None else f" of {progress.total:,}"
    failed = f", {progress.failed:,} failed" if progress.failed else ""
    left = "" if progress.remaining is None else f", {progress.remaining:.0f} s left"
    well = sum(not node.left_out for node in progress.nodes)
    return (
        f"{progress.done:,}{total} done{failed}, {progress.rate:,.1f}/s{left}, "
        f"{well} of {len(progress.nodes)} nodes"
    )


class Lines:
    """Writes a line every few seconds, and at the end."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._next = 0.0
        self._last: Progress | None = None

    def update(self, progress: Progress) -> None:
        """Write a line if it is time."""
        self._last = progress
        if progress.elapsed >= self._next:
            self._next = progress.elapsed + LINE_INTERVAL
            self._write(progress)

    def close(self) -> None:
        """Write the last line."""
        if self._last is not None:
            self._write(self._last)
            self._last = None

    def _write(self, progress: Progress) -> None:
        print(describe(progress), file=self._output, flush=True)


class _Bar:
    """A bar that rich draws. It starts no thread."""

    def __init__(self, console: Any) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (BarColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=console, auto_refresh=False)
        self._task = self._bar.add_task("", total=None)
        self._bar.start()

    def update(self, progress: Progress) -> None:
        """Draw the bar."""
        over = progress.done + progress.failed
        self._bar.update(self._task, completed=over, total=progress.total, description=describe(progress))
        self._bar.refresh()

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.stop()
