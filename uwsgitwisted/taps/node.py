"""``twistd uwsgi-node``."""

from __future__ import annotations

from typing import Any

from twisted.application.service import IService

from uwsgitwisted.services.node import make_node
from uwsgitwisted.taps.options import ServerOptions, installed_reactor


class Options(ServerOptions):
    """The options of ``twistd uwsgi-node``."""

    synopsis = "[options] --handler MODULE"
    longdesc = (
        "Answers marshalled objects (modifier1 33) with the function that the handler module sets as "
        "uwsgi.message_manager_marshal."
    )
    default_listen = "tcp:3033"

    optParameters: list[list[Any]] = [  # noqa: RUF012 - Twisted's form
        ["handler", None, None, "The module that handles requests, as an import statement names it"],
    ]

    def postOptions(self) -> None:
        """Check that a handler is given."""
        super().postOptions()
        self.require("handler", "my_server")


def makeService(options: Options) -> IService:
    """Make the service from its options."""
    return make_node(installed_reactor(), options.settings(), options["handler"])
