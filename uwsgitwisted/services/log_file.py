"""The file to which twistd writes the log of this process."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Any

#: Where twistd writes the log of a daemon that has no other place for it.
_OF_DAEMONS = "twistd.log"


def find_log_file(twistd: Mapping[str, Any] | None) -> str | None:
    """Return the path of the log; empty for the standard output, None if it goes elsewhere.

    :param twistd: the options of twistd itself; None if this process was started in another way.
    """
    if twistd is None:
        return ""
    if twistd.get("logger") or twistd.get("syslog"):
        return None
    path = twistd.get("logfile") or ""
    if not path and not (twistd.get("nodaemon") or twistd.get("debug")):
        path = _OF_DAEMONS
    return "" if path in ("", "-") else os.path.abspath(path)


def log_size(path: str | None) -> int:
    """Return how many bytes the log has; 0 if it is no file.

    :param path: what :func:`find_log_file` has returned.
    """
    if path is None:
        return 0
    try:
        found = os.stat(path) if path else os.fstat(1)
    except OSError:  # it was removed, or this process can't reach it any more
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0
