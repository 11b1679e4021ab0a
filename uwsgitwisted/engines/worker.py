"""What runs in a worker process: a node reached over a socketpair.

It is started with the session's socket as file descriptor 3, loads its handlers, answers the front's offer of
a session when it is ready, and then runs one request after another until the front closes the socket. It
imports no Twisted, so that it starts in tens of milliseconds and a handler may use any library that blocks.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from uwsgitwisted.compat.install import configure
from uwsgitwisted.errors import MessageTooLarge, StartupError, UnknownModifier
from uwsgitwisted.wire.failure import describe, encode_failure
from uwsgitwisted.wire.packet import PING, Packet, PacketDecoder, encode_packet
from uwsgitwisted.wire.session import MAX_MESSAGE, RequestReceived, Role, Session, Terms

#: Where the front puts the session's socket.
SOCKET_FD = 3
#: From <linux/prctl.h>: the signal to get when the parent dies.
_PR_SET_PDEATHSIG = 1
_READ_SIZE = 256 * 1024

#: A handler: a packet in, the answer out; it may raise whatever it likes.
Handler = Callable[[Packet], Packet]
#: Handlers by modifier1.
HandlerTable = Mapping[int, Handler]


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """Which handlers a worker runs; it travels to the worker as JSON on its command line.

    :param loader: ``module:function``; calling it with *arguments* gives the table of handlers.
    :param arguments: its keyword arguments, of types that JSON has.
    :param max_message: the largest answer that is passed on, in bytes.
    """

    loader: str
    arguments: dict[str, Any] = field(default_factory=dict)
    max_message: int = MAX_MESSAGE

    def encode(self) -> str:
        """Return the JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> WorkerSpec:
        """Return what :meth:`encode` gave."""
        return cls(**json.loads(text))

    def load(self) -> HandlerTable:
        """Import and call the loader.

        :raises StartupError: if the handlers can't be loaded; its text says why.
        """
        module, _, function = self.loader.partition(":")
        table: HandlerTable = getattr(importlib.import_module(module), function)(**self.arguments)
        return table


def serve(connection: socket.socket, handlers: HandlerTable, node: str, max_message: int) -> None:
    """Answer requests until the other side closes.

    :param connection: blocking; it is closed at the end.
    :param handlers: what answers, by modifier1.
    :param node: this worker's name in the errors that it reports.
    :param max_message: the largest message, in bytes.
    """
    with connection:
        session, data = _accept(connection, node, max_message)
        while data or (data := connection.recv(_READ_SIZE)):
            for event in session.receive(data):
                if isinstance(event, RequestReceived):
                    _run(session, event, handlers, node)
                    while chunk := session.data_to_send():
                        connection.sendall(chunk)
            data = b""


def _accept(connection: socket.socket, node: str, max_message: int) -> tuple[Session, bytes]:
    """Wait for the front's offer, grant the session, and return it with the bytes that came after the offer."""
    decoder = PacketDecoder(count=1)
    packets: list[Packet] = []
    while not packets:
        data = connection.recv(_READ_SIZE)
        if not data:
            raise SystemExit(0)  # the front went away before it began
        packets = decoder.receive(data)
    theirs = Terms.decode(packets[0].payload) or Terms()
    ours = Terms(max_message=max_message, node=node)
    connection.sendall(encode_packet(Packet(PING, 1, ours.encode())))
    return Session(Role.SERVER, ours, theirs), decoder.rest()


def _run(session: Session, request: RequestReceived, handlers: HandlerTable, node: str) -> None:
    handler = handlers.get(request.packet.modifier1)
    if handler is None:
        error = UnknownModifier(f"no handler for modifier1 {request.packet.modifier1}")
        session.send_error(request.id, encode_failure(error))
        return
    try:
        answer = handler(request.packet)
    except (Exception, SystemExit) as raised:  # sys.exit() in a handler ends the request, not the worker
        # Described as the handler's own, so that the Busy of a node that it asked is not taken for ours.
        session.send_error(request.id, encode_failure(describe(raised, node=node)))
        return
    try:
        session.send_answer(request.id, answer)
    except MessageTooLarge as error:
        session.send_error(request.id, encode_failure(error))


def _become_worker() -> None:
    """Leave the front's process group, take signals as a worker should, and don't outlive the front."""
    os.setsid()  # so that the front can kill what a handler started along with its worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        front = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != front:  # it died before the kernel was told
            os.kill(os.getpid(), signal.SIGKILL)


def main(arguments: list[str]) -> None:
    """Run a worker, or with ``--check`` only find out whether its handlers can be loaded.

    :param arguments: ``SPEC NODE WORKER_ID COUNT`` or ``--check SPEC``.
    """
    if arguments[0] == "--check":
        WorkerSpec.decode(arguments[1]).load()
        return
    _become_worker()
    spec = WorkerSpec.decode(arguments[0])
    node, worker_id, count = arguments[1], int(arguments[2]), int(arguments[3])
    configure(worker_id=worker_id, masterpid=os.getppid(), numproc=count)
    handlers = spec.load()
    serve(socket.socket(fileno=SOCKET_FD), handlers, f"{node} worker {worker_id}", spec.max_message)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except StartupError as error:
        sys.exit(f"{error}")
