"""The option ``--static``, which the node and the router share."""

from __future__ import annotations

import os

from twisted.python import usage

from uwsgitwisted.taps.options import ServiceOptions, convert


class StaticOptions(ServiceOptions):
    """The options of a service that sends files: ``self["static"]`` has the directories by their paths.

    A path begins with ``/`` and doesn't end with it; the root is empty.
    """

    def __init__(self) -> None:
        super().__init__()
        self["static"] = {}

    def opt_static(self, mapping: str) -> None:
        """Send the files below a directory for the paths below a path: /static=/srv/static; may be given again."""
        path, directory = convert("static", _parse, mapping)
        if path in self["static"]:
            raise usage.UsageError(f"--static {mapping}: another directory is at {path or '/'}")
        self["static"][path] = directory


def _parse(text: str) -> tuple[str, str]:
    """Parse ``/path=DIRECTORY``."""
    path, _, directory = text.partition("=")
    if not path.startswith("/") or not directory:
        raise ValueError("write /path=DIRECTORY, for example --static /static=/srv/static")
    if not os.path.isdir(directory):
        raise ValueError(f"{directory} is no directory")
    # Not the real path: the directory may be a link, which is turned to another release.
    return path.rstrip("/"), os.path.abspath(directory)
