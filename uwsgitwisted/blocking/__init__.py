"""The calls for plain scripts: uWSGI's original ones, and those for tasks.

They block, keep their timeouts and raise our errors. They need no Twisted and leave nothing running, so they
work in any process: a script, a thread, a forked worker, gunicorn, Celery or a real uWSGI. Each thread keeps a
session with each of our own nodes between its calls. In the thread of a running reactor they refuse; there,
:class:`uwsgitwisted.client.Client` does the same with Deferreds.

    from uwsgitwisted.blocking import enqueue, wait

    task = enqueue(("10.0.0.5", 3034), {"to": "ann@example.com"})
    print(wait(("10.0.0.5", 3034), task, timeout=60).result)
"""

from uwsgitwisted.blocking.calls import (
    close,
    declare_plain,
    ping,
    send_message,
    send_multi_uwsgi_message,
    send_uwsgi_message,
    spool,
)
from uwsgitwisted.blocking.tasks import cancel, enqueue, enqueue_many, status, wait
from uwsgitwisted.wire.tasks import TaskStatus

__all__ = [
    "TaskStatus",
    "cancel",
    "close",
    "declare_plain",
    "enqueue",
    "enqueue_many",
    "ping",
    "send_message",
    "send_multi_uwsgi_message",
    "send_uwsgi_message",
    "spool",
    "status",
    "wait",
]
