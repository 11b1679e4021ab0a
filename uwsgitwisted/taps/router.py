"""``twistd uwsgi-router``."""

from __future__ import annotations

from typing import Any

from twisted.application.service import IService

from uwsgitwisted.access import parse_network
from uwsgitwisted.address import Address, parse_address
from uwsgitwisted.router.shared import RouterSettings
from uwsgitwisted.router.static import StaticFiles
from uwsgitwisted.services.listening import check_endpoint, has_tls
from uwsgitwisted.services.router import RouterOptions, RouterService
from uwsgitwisted.taps.access_logs import ACCESS_LOG
from uwsgitwisted.taps.options import convert, converted, count, installed_reactor, size
from uwsgitwisted.taps.static import StaticOptions
from uwsgitwisted.timeouts import parse_timeout

_REQUESTS = RouterSettings()
_LIMITS = _REQUESTS.limits
_SERVICE = RouterOptions(listen=(), nodes=())


def _check_http(description: str) -> None:
    check_endpoint(description)
    if has_tls(description):
        raise ValueError(f"for TLS, write --https {description}")


def _check_https(description: str) -> None:
    check_endpoint(description)
    if not has_tls(description):
        raise ValueError("it has no TLS; for example: --https ssl:8443:privateKey=key.pem:certKey=cert.pem")


def _parse_nodes(text: str) -> list[Address]:
    """Parse addresses with commas between them."""
    return [parse_address(part.strip()) for part in text.split(",")]


class Options(StaticOptions):
    """The options of ``twistd uwsgi-router``."""

    synopsis = "[options] --nodes HOST:PORT,HOST:PORT"
    longdesc = (
        "Takes HTTP requests and sends each to the uwsgi server that has the fewest: nodes of this package, or "
        "uWSGI itself."
    )
    default_listen = "tcp:8080"

    optParameters: list[list[Any]] = converted(
        ["timeout", "t", _REQUESTS.timeout, "Seconds for which a node may neither take any of a request nor send any of its answer", parse_timeout],
        ["max-in-flight", None, _SERVICE.max_in_flight, "How many requests a node may have at once; further ones wait, and clients take turns", count],
        ["connect-timeout", None, _SERVICE.connect_timeout, "Seconds for connecting to a node", parse_timeout],
        ["drain-timeout", None, _SERVICE.drain_timeout, "Seconds that requests in flight get to finish when the service is stopped", parse_timeout],
        ["max-body", None, _REQUESTS.max_body, "The largest body of a request: bytes, or a number with K, M or G", size],
        ["buffer-body", None, _REQUESTS.buffer_body, "The largest body that reaches a node only when all of it has come, so that slow clients keep no worker busy; chunked ones always do: bytes, or a number with K, M or G", size],
        ["max-spooled", None, _REQUESTS.max_spooled, "How many bytes of bodies are kept in temporary files for all clients together; one may have as many as are free", size],
        ["max-connections", None, _LIMITS.max_connections, "How many connections may be open at once; a new one beyond them evicts the longest idle one", count],
        ["max-connections-per-peer", None, None, "How many of them may come from one address, or one IPv6 /64 (default: three quarters)", count],
        ["header-timeout", None, _LIMITS.header_timeout, "Seconds that a client gets to send the head of a request", parse_timeout],
        ["body-timeout", None, _LIMITS.body_timeout, "Seconds that a client gets for each 64 KB of the body", parse_timeout],
        ["write-timeout", None, _LIMITS.write_timeout, "Seconds for which a client may leave the next piece of its answer, up to 128 KB, unread", parse_timeout],
        ["idle-timeout", None, _LIMITS.idle_timeout, "Seconds that a connection stays open for another request", parse_timeout],
        *ACCESS_LOG,
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self["nodes"] = []
        self["trust"] = []

    def opt_http(self, description: str) -> None:
        """Take HTTP requests on this Twisted endpoint, such as tcp:8080; may be given again.

        Without interface=, it listens on loopback only, unless --allow names who may connect.
        """
        convert("http", _check_http, description)
        self["listen"].append(description)

    def opt_https(self, description: str) -> None:
        """Take HTTPS requests on this endpoint, such as ssl:8443:privateKey=key.pem:certKey=cert.pem; may be given again."""
        convert("https", _check_https, description)
        self["listen"].append(description)

    def opt_nodes(self, addresses: str) -> None:
        """Send requests to the nodes at these addresses, such as 10.0.0.5:3031,/run/node.sock; may be given again."""
        self["nodes"] += convert("nodes", _parse_nodes, addresses)

    def opt_trust(self, network: str) -> None:
        """Believe the X-Forwarded headers of proxies in this network; may be given again."""
        self["trust"].append(convert("trust", parse_network, network))

    def postOptions(self) -> None:
        """Check that there are nodes."""
        super().postOptions()
        self.require("nodes", "10.0.0.5:3031,10.0.0.6:3031")

    def service_options(self) -> RouterOptions:
        """Make the service's options."""
        return RouterOptions(
            listen=self.endpoints(),
            nodes=tuple(self["nodes"]),
            max_in_flight=self["max-in-flight"],
            connect_timeout=self["connect-timeout"],
            drain_timeout=self["drain-timeout"],
            access_log=self["access-log"] or "",
            access_log_format=self["access-log-format"],
            requests=RouterSettings(
                timeout=self["timeout"],
                max_body=self["max-body"],
                buffer_body=self["buffer-body"],
                max_spooled=self["max-spooled"],
                static=tuple(StaticFiles(*each) for each in self["static"].items()),
                networks=self.networks(),
                trusted=tuple(self["trust"]),
                limits=self.limits(),
            ),
        )


def makeService(options: Options) -> IService:
    """Make the service from its options."""
    return RouterService(installed_reactor(), options.service_options())
