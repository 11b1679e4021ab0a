"""The option of services whose workers handle uWSGI's signals."""

from __future__ import annotations

from twisted.python import usage

from uwsgitwisted.access import parse_network
from uwsgitwisted.taps.options import ServerOptions, convert


class SignalOptions(ServerOptions):
    """The options of a service whose peers may raise signals."""

    def __init__(self) -> None:
        super().__init__()
        self["signals-from"] = []

    def opt_signals_from(self, network: str) -> None:
        """Let peers of this network raise signals, such as 10.0.0.0/8; may be given again.

        Without it, nobody may: a signal runs a function of the handler module, perhaps in every worker.
        """
        self["signals-from"].append(convert("signals-from", parse_network, network))

    def postOptions(self) -> None:
        """Refuse the option where no workers handle signals."""
        super().postOptions()
        if self["signals-from"] and not self["engine"].startswith("processes"):
            raise usage.UsageError(f"--engine {self['engine']}: signals need --engine processes:N")
