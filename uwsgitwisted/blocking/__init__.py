"""Blocking calls for plain scripts: uWSGI's original ones, RPC, and calls for tasks.

They block until the answer or the timeout, and raise the errors of :mod:`uwsgitwisted.errors`. They need no
Twisted and leave nothing running, so they work in any process: a script, a thread, a forked worker, gunicorn,
Celery or a real uWSGI. Between calls, each thread caches a session with each of our own nodes. In the thread of
a running reactor the calls raise an error; use :class:`uwsgitwisted.client.Client` there, which returns
Deferreds.

    from uwsgitwisted.blocking import enqueue, wait

    task = enqueue(("10.0.0.5", 3034), {"to": "ann@example.com"})
    print(wait(("10.0.0.5", 3034), task, timeout=60).result)
"""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING

from uwsgitwisted.blocking.calls import (
    close,
    declare_plain,
    ping,
    rpc,
    send_message,
    send_multi_uwsgi_message,
    send_uwsgi_message,
    spool,
    stream,
)
from uwsgitwisted.blocking.tasks import cancel, enqueue, enqueue_many, status, wait
from uwsgitwisted.wire.tasks import TaskStatus

if _TYPE_CHECKING:
    from uwsgitwisted.blocking.cluster import Cluster
    from uwsgitwisted.blocking.executor import ClusterExecutor

__all__ = [
    "Cluster",
    "ClusterExecutor",
    "TaskStatus",
    "cancel",
    "close",
    "declare_plain",
    "enqueue",
    "enqueue_many",
    "ping",
    "rpc",
    "send_message",
    "send_multi_uwsgi_message",
    "send_uwsgi_message",
    "spool",
    "status",
    "stream",
    "wait",
]

#: What a worker process doesn't pay for, since most don't use it.
_HOMES = {"Cluster": "cluster", "ClusterExecutor": "executor"}


def __getattr__(name: str) -> object:
    """Import a name when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
