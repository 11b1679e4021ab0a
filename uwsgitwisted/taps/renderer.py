"""``twistd uwsgi-renderer``."""

from __future__ import annotations

from typing import Any

from twisted.application.service import IService
from twisted.python import usage

from uwsgitwisted.services.listening import is_loopback
from uwsgitwisted.services.renderer import make_renderer
from uwsgitwisted.taps.options import ServerOptions, installed_reactor


class Options(ServerOptions):
    """The options of ``twistd uwsgi-renderer``."""

    synopsis = "[options] --templates DIRECTORY"
    longdesc = (
        "Renders Mako templates for callers that send (name, variables) as a marshalled object (modifier1 33)."
    )
    default_listen = "tcp:3033"

    optParameters: list[list[Any]] = [  # noqa: RUF012 - Twisted's form
        [
            "filters",
            None,
            "",
            "Mako filters for every ${...}, separated by commas, such as h to escape for HTML",
        ],
    ]

    optFlags: list[list[Any]] = [  # noqa: RUF012 - Twisted's form
        ["strict", None, "Raise an error for a name that the caller didn't send"],
        ["debug", None, "Answer web requests for a template that fails with a page that shows its code; only on loopback"],
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self["templates"] = []

    def opt_templates(self, directory: str) -> None:
        """Find templates in this directory; may be given again, and the first directory that has a template wins."""
        self["templates"].append(directory)

    def postOptions(self) -> None:
        """Check that a directory is given."""
        super().postOptions()
        if not self["templates"]:
            raise usage.UsageError("--templates is missing; for example: --templates /srv/templates")
        for description in self.endpoints() if self["debug"] else ():
            if not is_loopback(description):
                raise usage.UsageError(
                    f"--debug shows the code of templates, so it needs loopback only; --listen {description} is more"
                )


def makeService(options: Options) -> IService:
    """Make the service from its options."""
    filters = [name.strip() for name in options["filters"].split(",") if name.strip()]
    return make_renderer(
        installed_reactor(),
        options.settings(),
        options["templates"],
        filters=filters,
        strict=bool(options["strict"]),
        debug=bool(options["debug"]),
    )
