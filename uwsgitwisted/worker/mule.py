"""A mule: a process beside the workers that gets messages and signals, or runs a program of its own.

The front starts it as it does a worker, and replaces it when it ends. It has loaded what the workers load, and
answers no request.
"""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import socket
import threading

from uwsgitwisted.worker.compat.install import run_post_fork_hooks
from uwsgitwisted.worker.compat.shared import call
from uwsgitwisted.worker.compat.signals import serve_mule
from uwsgitwisted.worker.worker import READ_SIZE, Worker


def run_mule(worker: Worker, connection: socket.socket, program: str) -> None:
    """Serve as a mule until the front ends it.

    :param worker: what negotiates with the front.
    :param connection: the session's socket, which the front closes to end the mule.
    :param program: what to run: a file ``NAME.py``, a module, or ``module:callable``; empty for nothing but
        messages and signals.
    """
    worker.negotiate()
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    call("mule_become")  # its predecessor may still be ending
    run_post_fork_hooks()
    if program:
        run_program(program)
    else:
        serve_mule()


def run_program(program: str) -> None:
    """Run a mule's own program, until it returns."""
    module, _, function = program.partition(":")
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    elif function:
        getattr(importlib.import_module(module), function)()
    else:
        importlib.import_module(module)


def _end_with(connection: socket.socket) -> None:
    """End this process when the front closes the socket; a handler of SIGTERM may clean up first."""
    while connection.recv(READ_SIZE):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
