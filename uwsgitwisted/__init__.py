"""The uwsgi cluster protocol for Twisted.

:class:`Client` and :class:`Cluster` are for Twisted programs, :mod:`uwsgitwisted.blocking` for plain scripts.
The errors that they raise are in :mod:`uwsgitwisted.errors`. A name is imported when it is first used, so that
neither a script nor a worker process pays for what it doesn't use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uwsgitwisted import blocking, errors
    from uwsgitwisted.address import Address, AddressLike, parse_address
    from uwsgitwisted.client import Client
    from uwsgitwisted.cluster import Cluster
    from uwsgitwisted.errors import UwsgiError
    from uwsgitwisted.wire.tasks import TaskStatus

__version__ = "0.1.0"

__all__ = [
    "Address",
    "AddressLike",
    "Client",
    "Cluster",
    "TaskStatus",
    "UwsgiError",
    "__version__",
    "blocking",
    "errors",
    "parse_address",
]

#: The modules of the names above; a module that is one of them has none.
_HOMES = {
    "Address": "address",
    "AddressLike": "address",
    "Client": "client",
    "Cluster": "cluster",
    "TaskStatus": "wire.tasks",
    "UwsgiError": "errors",
    "parse_address": "address",
}


def __getattr__(name: str) -> object:
    """Import a public name (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    if name not in _HOMES:
        return importlib.import_module(f"{__name__}.{name}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
