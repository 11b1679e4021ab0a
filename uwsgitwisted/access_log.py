"""The access log: a line for each web request, in the combined format of web servers or as JSON.

A worker writes the lines of the requests that its applications answer, and the front those of the others. Both
append to one file, each line in one write.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

#: The most characters of a value in a line, so that a line is written at once.
_MAX_VALUE = 1_000
#: What would end a line or a quoted value, or a terminal would act on.
_UNSAFE = re.compile(r'[^\x20-\x7e]|["\\]')


@dataclass(frozen=True, slots=True)
class Entry:
    """A web request that was answered.

    :param variables: its variables, as WSGI has them.
    :param status: the answer's status, such as ``200``.
    :param size: how many bytes of the body were sent.
    :param seconds: how long the answer took.
    :param worker: the worker that has answered; 0 for the front.
    :param at: when it was answered, in seconds since the epoch.
    :param further: what the application has added with ``uwsgi.set_logvar``.
    """

    variables: Mapping[str, object]
    status: str
    size: int
    seconds: float
    worker: int
    at: float
    further: Mapping[str, str] = field(default_factory=dict)

    def text(self, name: str) -> str:
        """Return a variable, or an empty text."""
        return str(self.variables.get(name, ""))[:_MAX_VALUE]

    @property
    def uri(self) -> str:
        """The path and the query."""
        if uri := self.text("REQUEST_URI"):
            return uri
        query = self.text("QUERY_STRING")
        return f"{self.text('SCRIPT_NAME')}{self.text('PATH_INFO')}{'?' if query else ''}{query}"


def combined(entry: Entry) -> str:
    """Return the line in the combined format, with two further fields: the seconds and the worker."""
    request = f"{entry.text('REQUEST_METHOD')} {entry.uri} {entry.text('SERVER_PROTOCOL')}"
    return (
        f"{_or_dash(entry.text('REMOTE_ADDR'))} - {_or_dash(entry.text('REMOTE_USER'))} "
        f'[{_local_time(int(entry.at))}] "{_quoted(request)}" {entry.status} {entry.size} '
        f'"{_or_dash(entry.text("HTTP_REFERER"))}" "{_or_dash(entry.text("HTTP_USER_AGENT"))}" '
        f"{entry.seconds:.6f} {entry.worker}"
        + "".join(f' {_quoted(name)}="{_quoted(text)}"' for name, text in _bounded(entry.further))
    )


def as_json(entry: Entry) -> str:
    """Return the line as a JSON object."""
    values = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(entry.at)) + f".{int(entry.at % 1 * 1000):03d}Z",
        "remote_addr": entry.text("REMOTE_ADDR"),
        "remote_user": entry.text("REMOTE_USER"),
        "method": entry.text("REQUEST_METHOD"),
        "uri": entry.uri,
        "protocol": entry.text("SERVER_PROTOCOL"),
        "status": int(entry.status),
        "bytes": entry.size,
        "referer": entry.text("HTTP_REFERER"),
        "user_agent": entry.text("HTTP_USER_AGENT"),
        "seconds": round(entry.seconds, 6),
        "worker": entry.worker,
    }
    if entry.further:
        values["logvars"] = dict(_bounded(entry.further))
    return json.dumps(values)


def _bounded(variables: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield variables, of which all together have at most so many characters as one value may have."""
    left = _MAX_VALUE
    for name, text in variables.items():
        left -= len(name)
        if left < 0:
            return
        yield name, text[:left]
        left -= min(len(text), left)


#: The formats by their names.
FORMATS: Mapping[str, Callable[[Entry], str]] = {"combined": combined, "json": as_json}


class AccessLog:
    """Writes lines to an access log.

    :param descriptor: the file.
    :param form: the name of a format in :data:`FORMATS`.
    """

    def __init__(self, descriptor: int, form: str) -> None:
        self._descriptor = descriptor
        self._format = FORMATS[form]

    def write(self, entry: Entry) -> None:
        """Write a line. If the disk is full, the line is lost, and the request is not."""
        try:
            os.write(self._descriptor, f"{self._format(entry)}\n".encode())
        except OSError:
            return


def open_log(path: str) -> int:
    """Open an access log to append to it; return its descriptor.

    :param path: of a file, which is made if necessary; ``-`` for this process's standard output.
    :raises OSError: if it can't be opened.
    """
    if path == "-":
        return os.dup(1)
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)


@lru_cache(4)
def _local_time(second: int) -> str:
    return time.strftime("%d/%b/%Y:%H:%M:%S %z", time.localtime(second))


def _or_dash(text: str) -> str:
    return _quoted(text) or "-"


def _quoted(text: str) -> str:
    return _UNSAFE.sub(lambda found: f"\\x{ord(found.group()):02x}", text)
