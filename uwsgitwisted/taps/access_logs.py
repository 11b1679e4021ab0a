"""The options of an access log, which the node and the router share."""

from __future__ import annotations

from typing import Any

from uwsgitwisted.access_log import FORMATS


def _format(text: str) -> str:
    if text not in FORMATS:
        raise ValueError(f"there are {', '.join(FORMATS)}")
    return text


#: Rows of ``optParameters``.
ACCESS_LOG: list[list[Any]] = [
    ["access-log", None, None, "Where to write a line for each web request: a path, or - for the standard output"],
    ["access-log-format", None, "combined", f"The format of those lines: {' or '.join(FORMATS)}", _format],
]  # fmt: skip
