"""The endpoint that connects to an address."""

from __future__ import annotations

from typing import Any

from twisted.internet.endpoints import HostnameEndpoint, clientFromString
from twisted.internet.interfaces import IStreamClientEndpoint

from uwsgitwisted.address import Address
from uwsgitwisted.errors import InvalidAddress


def make_endpoint(reactor: Any, address: Address) -> IStreamClientEndpoint:
    """Make the endpoint that connects to *address*.

    :raises InvalidAddress: if that is not possible.
    """
    if address.kind == "tcp" and not address.options:
        return HostnameEndpoint(reactor, address.host, address.port)
    try:
        endpoint: IStreamClientEndpoint = clientFromString(reactor, address.description)
    except (ImportError, NameError) as error:  # Twisted raises them where pyOpenSSL isn't installed
        raise InvalidAddress("TLS needs more: install uwsgitwisted[tls]") from error
    except (ValueError, TypeError, OSError) as error:
        raise InvalidAddress(f"not an address that can be connected to: {error}") from error
    return endpoint
