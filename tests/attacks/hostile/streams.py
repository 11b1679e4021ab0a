"""Hostile behaviours towards streamed answers of a session: clients that take little of them, or nothing."""

from __future__ import annotations

import contextlib
import struct
import time

from tests.attacks.hostile import frames
from tests.attacks.hostile.peer import Peer, drain
from uwsgitwisted.wire.frame import WINDOW
from uwsgitwisted.wire.vars import encode_vars

#: How many bytes a page has: so few that no worker waits for the client.
_PAGE = 200_000


def _page(identifier: int) -> bytes:
    """Return the request of a page that is a stream."""
    query = f"size={_PAGE}&as=generator"
    block = encode_vars({"REQUEST_METHOD": "GET", "PATH_INFO": "/size", "QUERY_STRING": query})
    return frames.message(identifier, block, (0, 0))


def _grant(identifier: int, size: int) -> bytes:
    return frames.frame(WINDOW, struct.pack("<II", identifier, size))


def untaken(peer: Peer, until: float) -> None:
    """Ask for 30 pages, and grant nothing of them."""
    session = peer.session(window=1)
    session.sendall(b"".join(map(_page, range(30))))
    drain(session, min(until, time.monotonic() + 0.3))
    peer.keep(session)


def trickled(peer: Peer, until: float) -> None:
    """Take 10 pages byte by byte."""
    with peer.session(window=1) as session:
        session.sendall(b"".join(map(_page, range(10))))
        grants = b"".join(_grant(identifier, 1) for identifier in range(10))
        for _ in range(20):
            session.sendall(grants * 20)
            drain(session, min(until, time.monotonic() + 0.02))


def overgranted(peer: Peer, until: float) -> None:
    """Grant more of a page than a number holds, and of pages that don't exist."""
    for identifier in (1, 7):
        with contextlib.suppress(OSError), peer.session(window=100_000) as session:
            session.sendall(_page(1) + _grant(identifier, 0xFFFFFFFF) * 2)
            drain(session, min(until, time.monotonic() + 0.2))


def cancelled(peer: Peer, until: float) -> None:
    """Ask for pages and cancel them, at once or in their middle."""
    with peer.session(window=10_000) as session:
        for identifier in range(60):
            session.sendall(_page(identifier))
            if identifier % 2:
                drain(session, min(until, time.monotonic() + 0.005))
            session.sendall(frames.cancel(identifier))
