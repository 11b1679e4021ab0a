"""Files below a directory, as a WSGI application: what ``--static`` mounts beside the others.

A peer chooses the path. So no link is followed that leads out of the directory, and no file is sent whose name,
or that of a directory on the way, begins with a dot.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import string
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import timezone
from email.utils import formatdate, parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import quote

from uwsgitwisted.files import LEADS_OUT, Part, content_type, open_below, parse_range, why_refused
from uwsgitwisted.worker.web.environ import Environ
from uwsgitwisted.worker.web.response import Headers, StartResponse

#: The file that is sent for the path of a directory.
INDEX = "index.html"

_READING = ("GET", "HEAD")
#: The errors that say that there is no such file, or none for us. Others are failures of this system.
_ABSENT = frozenset(
    {
        errno.EACCES,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ENXIO,  # a socket
        LEADS_OUT,
    }
)
_ETAG = re.compile(r'"[^"]*"')
#: The last second that an HTTP date can name; a file may have a later time.
_LAST_SECOND = 253_402_300_799
#: Browsers must not guess another type: a file of a user may be made to look like a page.
_NO_GUESSING = ("X-Content-Type-Options", "nosniff")
#: What may stand in a query.
_IN_QUERY = string.punctuation
_BLOCK = 65_536


class StaticFiles:
    """Sends the files below a directory, and nothing that is outside of it.

    :param directory: the directory; it may be a link itself, and be turned to another release.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request for the file at ``PATH_INFO``."""
        if environ["REQUEST_METHOD"] not in _READING:
            return _refuse(start_response, "405 Method Not Allowed", ("Allow", ", ".join(_READING)))
        url = environ["SCRIPT_NAME"] + environ["PATH_INFO"]
        of_directory = not url or url.endswith("/")
        name = _name(environ["PATH_INFO"]) + (INDEX if of_directory else "")
        if not name:
            return _redirect(start_response, url, environ["QUERY_STRING"])
        descriptor = self._open(name)
        if descriptor is None:
            return _refuse(start_response, "404 Not Found")
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            if stat.S_ISDIR(status.st_mode) and not of_directory:
                return _redirect(start_response, url, environ["QUERY_STRING"])
            return _refuse(start_response, "404 Not Found")
        with ExitStack() as stack:
            file = stack.enter_context(open(descriptor, "rb", buffering=0))
            part = _start(environ, start_response, _Facts.of(status, name))
            if part is None:
                return []
            file.seek(part.start)
            stack.pop_all()
            body: Iterable[bytes] = environ["wsgi.file_wrapper"](file, _BLOCK)
            return body

    def _open(self, name: str) -> int | None:
        """Open a file, and return its descriptor; None if there is none that may be sent."""
        if why_refused(name) is not None or any(part.startswith(".") for part in name.split("/")):
            return None
        try:
            return open_below(self._directory, name)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise


class _Facts(NamedTuple):
    """What HTTP says about a file.

    :param name: its name below the directory.
    :param size: in bytes.
    :param modified: when it was changed last, in seconds since the epoch.
    :param etag: a strong validator. It is made of the size and the time alone, so that nodes with copies agree.
    """

    name: str
    size: int
    modified: int
    etag: str

    @classmethod
    def of(cls, status: os.stat_result, name: str) -> _Facts:
        modified = max(0, min(status.st_mtime_ns // 1_000_000_000, _LAST_SECOND))
        return cls(name, status.st_size, modified, f'"{status.st_mtime_ns:x}-{status.st_size:x}"')

    @property
    def date(self) -> str:
        """When it was changed, as HTTP writes it."""
        return formatdate(self.modified, usegmt=True)


def _start(environ: Environ, start_response: StartResponse, facts: _Facts) -> Part | None:
    """Send the head of an answer, and return the part of the file that follows it; None for nothing."""
    validators = [("Last-Modified", facts.date), ("ETag", facts.etag)]
    if _is_known(environ, facts):
        start_response("304 Not Modified", validators)
        return None
    try:
        asked = _asked_part(environ, facts)
    except ValueError:
        unsatisfied = ("Content-Range", f"bytes */{facts.size}")
        start_response("416 Range Not Satisfiable", [("Content-Type", "text/plain"), unsatisfied, _NO_GUESSING])
        return None
    part = asked or Part(0, facts.size)
    headers: Headers = [
        ("Content-Type", content_type(facts.name)),
        ("Content-Length", str(part.size)),
        ("Accept-Ranges", "bytes"),
        *validators,
        _NO_GUESSING,
    ]
    if asked is not None:
        headers.append(("Content-Range", f"bytes {part.start}-{part.start + part.size - 1}/{facts.size}"))
    start_response("200 OK" if asked is None else "206 Partial Content", headers)
    return None if environ["REQUEST_METHOD"] == "HEAD" else part


def _is_known(environ: Environ, facts: _Facts) -> bool:
    """Whether the client has the file as it is now."""
    known = environ.get("HTTP_IF_NONE_MATCH")
    if known is not None:
        return known.strip() == "*" or facts.etag in _ETAG.findall(known)
    since = _seconds(environ.get("HTTP_IF_MODIFIED_SINCE", ""))
    return since is not None and facts.modified <= since


def _seconds(date: str) -> float | None:
    """Return the seconds since the epoch that a date of HTTP means; None if it is no date."""
    try:
        parsed = parsedate_to_datetime(date)
        return parsed.replace(tzinfo=parsed.tzinfo or timezone.utc).timestamp()
    except (IndexError, OverflowError, TypeError, ValueError):
        return None


def _asked_part(environ: Environ, facts: _Facts) -> Part | None:
    """Return the part of the file that the client asks for; None for the whole.

    :raises ValueError: if the file has no such part.
    """
    asked = environ.get("HTTP_RANGE")
    if asked is None or environ["REQUEST_METHOD"] != "GET":
        return None
    if environ.get("HTTP_IF_RANGE") not in (None, facts.etag, facts.date):
        return None
    return parse_range(asked.encode("latin-1"), facts.size)


def _name(path: str) -> str:
    """Return the name of the file that a path means: its bytes, as the system has them."""
    return os.fsdecode(path.removeprefix("/").encode("latin-1"))


def _redirect(start_response: StartResponse, url: str, query: str) -> list[bytes]:
    """Send the client to the path of a directory with a slash behind it.

    The location is relative. So it is right even if the web server has changed the path, and it never names
    another host.

    :param url: the path without the slash.
    """
    location = f"./{quote(url.rpartition('/')[2], encoding='latin-1')}/"
    if query:
        location += f"?{quote(query, safe=_IN_QUERY, encoding='latin-1')}"
    return _refuse(start_response, "301 Moved Permanently", ("Location", location))


def _refuse(start_response: StartResponse, status: str, *headers: tuple[str, str]) -> list[bytes]:
    """Answer with a status, and its text for people."""
    start_response(status, [("Content-Type", "text/plain"), _NO_GUESSING, *headers])
    return [f"{status}\n".encode()]
