"""Measures idle sessions on one node, and an active one beside them: ``python -m benchmarks.idle [--quick]``.

The sessions belong to this process. Both it and the node need a file descriptor for each session.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import statistics

from benchmarks.harness import Relation, Row, Scale, Table, main
from benchmarks.processes import HOST, Server, Servers
from uwsgitwisted.wire.packet import Packet, PacketDecoder
from uwsgitwisted.wire.terms import Terms, decode_grant, encode_offer

#: File descriptors that a process needs for other purposes.
_OTHERS = 100


def _descriptors(wanted: int) -> int:
    """Raise the soft limit of file descriptors, which children inherit; return how many sessions it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OTHERS
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else min(wanted, soft - _OTHERS)


def _open_session(port: int) -> socket.socket:
    sock = socket.create_connection((HOST, port), 10)
    sock.sendall(encode_offer(Terms()))
    decoder = PacketDecoder(count=1)
    packets: list[Packet] = []
    while not packets:
        data = sock.recv(4_096)
        if not data:
            raise ConnectionError("the node closed a connection instead of granting a session")
        packets = decoder.receive(data)
    if decode_grant(packets[0]) is None:
        raise ConnectionError("the node granted no session")
    return sock


class _Observer:
    """Sends small requests one after another, and measures them."""

    def __init__(self, servers: Servers, node: Server, scale: Scale) -> None:
        self._servers = servers
        self._node = node
        self._scale = scale

    def row(self, name: str, wanted: str = "") -> Row:
        """Return the median times, one per round, in milliseconds."""
        samples = [
            statistics.median(self._servers.drive("latency:call", self._node.port, self._scale.seconds))
            for _ in range(self._scale.rounds)
        ]
        return Row(name, wanted, samples)


def run(scale: Scale) -> list[Table]:
    """Measure before the sessions are open, while they are, and afterwards."""
    number = _descriptors(scale.sessions)
    with Servers() as servers, contextlib.ExitStack() as sessions:
        connections = str(scale.sessions + _OTHERS)
        limits = ("--max-connections", connections, "--max-connections-per-peer", connections)
        node = servers.node("reactor", *limits)
        observer = _Observer(servers, node, scale)
        latency = Table("A small call, `blocking`, engine `reactor`", "ms", Relation.PEER_FIRST)
        latency.rows.append(observer.row("no other session"))
        before = node.memory
        for _ in range(number):
            sessions.enter_context(_open_session(node.port))
        each = (node.memory - before) / 1024 / number
        latency.rows.append(observer.row(f"{number:,} idle sessions", "1.5 or less"))
        sessions.close()
        latency.rows.append(observer.row("after they were closed"))
    memory = Table(f"Memory of the node for each of {number:,} idle sessions", "KiB", Relation.NONE)
    memory.rows.append(Row("ours", "under 8", [each]))
    if number < scale.sessions:
        memory.left_out.append(
            f"{scale.sessions - number:,} sessions: raise the hard limit of file descriptors (ulimit -Hn)"
        )
    return [memory, latency]


if __name__ == "__main__":
    main(__doc__, run)
