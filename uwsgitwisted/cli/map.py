"""The command ``uwsgitwisted map``: lines of JSON in, answers of a cluster out."""

from __future__ import annotations

import json
import os
import stat
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from uwsgitwisted.blocking.cluster import Cluster
from uwsgitwisted.cli.words import printable
from uwsgitwisted.errors import MisuseError, UwsgiError
from uwsgitwisted.planner.piece import Result
from uwsgitwisted.planner.progress import NodeProgress, Progress
from uwsgitwisted.spool.records import for_json


def map_lines(options: Namespace) -> int:
    """Have a cluster answer each line of the standard input; the status is 0 if all lines were answered."""
    cluster = Cluster(options.nodes)
    failed = 0
    last: list[Progress] = []

    def note(progress: Progress) -> None:
        last[:] = [progress]

    with _output(options.resume) as (output, done):
        items = make_items(sys.stdin.buffer, done)
        results = cluster.as_completed(
            options.modifier1,
            options.modifier2,
            items,
            options.timeout,
            idempotent=options.idempotent,
            on_progress=note,
            progress=sys.stderr.isatty() and not options.quiet,
        )
        try:
            for result in results:
                print(json.dumps(_row(items.line_of(result.index), result)), file=output, flush=True)
                failed += result.error is not None
        finally:
            if last and not options.quiet:
                _show(last[0])
    return 1 if failed else 0


class Items:
    """The items: a line of JSON each. Blank lines are skipped.

    :param source: where they are read, one by one.
    :param done: the numbers of the lines that are answered already.
    """

    def __init__(self, source: IO[bytes], done: set[int]) -> None:
        self._source = source
        self._done = done
        #: The numbers of the lines in flight, by the indices of their items.
        self._lines: dict[int, int] = {}
        self._taken = 0

    def __iter__(self) -> Iterator[object]:
        for number, line in self._wanted():
            try:
                item = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UwsgiError(f"line {number} is not JSON: {error}") from error
            self._lines[self._taken] = number
            self._taken += 1
            yield item

    def _wanted(self) -> Iterator[tuple[int, bytes]]:
        for number, line in enumerate(self._source, 1):
            if line.strip() and number not in self._done:
                yield number, line

    def line_of(self, index: int) -> int:
        """Return the number of an item's line, counted from 1, and forget it."""
        return self._lines.pop(index)


class CountedItems(Items):
    """The items of a file, whose number is known from the start."""

    def __init__(self, source: IO[bytes], done: set[int]) -> None:
        super().__init__(source, done)
        begin = source.tell()
        self._count = sum(1 for _ in self._wanted())
        source.seek(begin)

    def __len__(self) -> int:
        return self._count


def make_items(source: IO[bytes], done: set[int]) -> Items:
    """Make the items of a file, or of a pipe."""
    try:
        regular = stat.S_ISREG(os.fstat(source.fileno()).st_mode)
    except OSError:  # not a file of the system
        regular = False
    return CountedItems(source, done) if regular else Items(source, done)


@contextmanager
def _output(path: str | None) -> Iterator[tuple[IO[str], set[int]]]:
    """Yield where to write answers, and the numbers of the lines that are answered there already."""
    if path is None:
        yield sys.stdout, set()
        return
    with open(path, "a+b") as file:
        file.seek(0)
        done, end = _read_answers(path, file)
        file.truncate(end)  # a line that an interrupted command has written in part
    with open(path, "a", encoding="utf-8") as output:
        yield output, done


def _read_answers(path: str, file: IO[bytes]) -> tuple[set[int], int]:
    """Return the numbers of the lines that are answered, and where the last complete answer ends."""
    done: set[int] = set()
    end = 0
    for number, text in enumerate(file, 1):
        if not text.endswith(b"\n"):
            break
        end += len(text)
        try:
            row = json.loads(text)
            line = int(row["line"])
        except (ValueError, TypeError, KeyError) as error:
            raise MisuseError(
                f"{path}: line {number} is no answer of this command; nothing was changed"
            ) from error
        if "error" not in row:
            done.add(line)
    return done, end


def _row(line: int, result: Result) -> dict[str, Any]:
    row = {"line": line, "node": str(result.node), "seconds": round(result.seconds, 6)}
    error = result.error
    if error is None:
        return for_json({**row, "result": result.value})
    text = error.text if isinstance(error, UwsgiError) else str(error)
    return {**row, "error": type(error).__name__, "text": text}


def _show(progress: Progress) -> None:
    """Print a table of the nodes on the standard error."""
    rows = [("NODE", "DONE", "PER SECOND", "FAILURES", "")]
    rows += [_cells(node) for node in sorted(progress.nodes, key=lambda node: -node.done)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for name, *cells in rows:
        numbers = "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        print(printable(f"{name:<{widths[0]}}  {numbers}".rstrip()), file=sys.stderr)
    failed = f", {progress.failed:,} failed" if progress.failed else ""
    print(f"{progress.done:,} answered{failed}, in {progress.elapsed:.1f} s", file=sys.stderr)


def _cells(node: NodeProgress) -> tuple[str, str, str, str, str]:
    speed = f"{node.speed:,.1f}" if node.speed else "-"
    return str(node.node), f"{node.done:,}", speed, f"{node.failures:,}", "left out" if node.left_out else ""
