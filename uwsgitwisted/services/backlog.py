"""How many connections wait on a listening socket for somebody to accept them, as Linux says."""

from __future__ import annotations

import os
import socket
import struct
import sys
from typing import NamedTuple


class Backlog(NamedTuple):
    """The connections that wait on a socket.

    :param waiting: how many there are.
    :param limit: how many there may be.
    """

    waiting: int
    limit: int


#: Linux's ``struct tcp_info``; ``tcpi_unacked`` and ``tcpi_sacked`` say it of a listening socket.
_TCP_INFO = struct.Struct("=24xII")
#: The question about a UNIX socket (``man 7 sock_diag``): a head, and a ``struct unix_diag_req``.
_REQUEST = struct.Struct("=IHHII BBHIIIII")
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST = 4, 20, 1
_UDIAG_SHOW_RQLEN, _UNIX_DIAG_RQLEN, _ANY = 0x10, 4, 0xFFFF_FFFF
#: Its answer: a head, a ``struct unix_diag_msg``, and one attribute.
_ANSWER = struct.Struct("=4xH10x 16x HHII")


def read_backlog(listener: socket.socket) -> Backlog | None:
    """Return how many connections wait on a listening socket; None if the system doesn't say."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return _of_unix(listener) if listener.family == socket.AF_UNIX else _of_tcp(listener)
    except (OSError, struct.error):  # the socket is closed, or the kernel is built without this
        return None


def _of_tcp(listener: socket.socket) -> Backlog:
    return Backlog._make(
        _TCP_INFO.unpack(listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))
    )


def _of_unix(listener: socket.socket) -> Backlog | None:
    inode = os.fstat(listener.fileno()).st_ino
    head = (_REQUEST.size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0)
    request = (socket.AF_UNIX, 0, 0, _ANY, inode, _UDIAG_SHOW_RQLEN, _ANY, _ANY)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.setblocking(False)  # it answers within the call
        kernel.send(_REQUEST.pack(*head, *request))
        kind, _, attribute, waiting, limit = _ANSWER.unpack_from(kernel.recv(4096))
    if kind != _SOCK_DIAG_BY_FAMILY or attribute != _UNIX_DIAG_RQLEN:
        return None
    return Backlog(waiting, limit)
