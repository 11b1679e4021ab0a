"""All hostile behaviours, by name. A new one is a function ``(peer, until)`` and an entry here.

A behaviour takes about a second, and no longer than until the time that it is given. What it sends is little
beside what a service takes from a good peer. An ``OSError`` ends it: the service may close a hostile peer's
connections.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.attacks.hostile import connections, floods, http, queues, streams, web
from tests.attacks.hostile.connections import Behaviour

_ALL = ("node", "renderer", "spooler")


class Entry(NamedTuple):
    """A behaviour in the table.

    :param run: does it.
    :param kinds: which services it is for.
    :param alone: whether only one peer does it. Whoever may run handlers may keep every worker busy for as long
        as ``--timeout`` allows. No limit of the service can tell that from honest work.
    :param lasts: whether what it leaves behind takes a minute to go. A short run leaves it out.
    """

    run: Behaviour
    kinds: tuple[str, ...] = _ALL
    alone: bool = False
    lasts: bool = False


_NODE, _SPOOLER, _RENDERER, _ROUTER = ("node",), ("spooler",), ("renderer",), ("router",)
_WEB = (*_NODE, *_RENDERER)
#: What needs no session, and no object.
_EACH = (*_ALL, *_ROUTER)

BEHAVIOURS: dict[str, Entry] = {
    "slow header": Entry(connections.slow_header),
    "slow body": Entry(connections.slow_body),
    "never reading": Entry(connections.never_read),
    "half-closing": Entry(connections.half_close),
    "resets in each state": Entry(connections.resets),
    "junk": Entry(connections.junk, _EACH),
    "garbage": Entry(connections.garbage, _EACH),
    "huge counts": Entry(connections.huge_counts),
    "more behind a request": Entry(connections.more_behind),
    "connection flood": Entry(connections.connection_flood, _EACH),
    "idle sessions": Entry(connections.idle_sessions),
    "descriptor flood": Entry(connections.descriptor_flood, _EACH),
    "colliding objects": Entry(floods.collisions),
    "tree objects": Entry(floods.tree_objects),
    "ping flood": Entry(floods.ping_flood),
    "unfinished messages": Entry(floods.unfinished),
    "large requests": Entry(floods.large_requests),
    "unknown cancels": Entry(floods.unknown_cancels),
    "cancelled requests": Entry(floods.cancelled_requests),
    "small pieces": Entry(floods.small_pieces),
    "hostile variables": Entry(floods.hostile_variables, _RENDERER),
    "looping handler": Entry(floods.looping_handler, _NODE, alone=True),
    "memory-hungry handler": Entry(floods.hungry_handler, _NODE, alone=True),
    "slow web packets": Entry(web.slow_packets, _WEB),
    "slow web bodies": Entry(web.slow_bodies, _WEB),
    "slow web uploads": Entry(web.slow_uploads, _WEB),
    "lying web lengths": Entry(web.lying_lengths, _WEB),
    "lying web variables": Entry(web.lying_variables, _WEB),
    "endless web bodies": Entry(web.endless_body, _WEB),
    "cut web bodies": Entry(web.cut_bodies, _WEB),
    "unread web pages": Entry(web.unread_pages, _NODE),
    "left web pages": Entry(web.left_pages, _NODE),
    "untaken streams": Entry(streams.untaken, _NODE),
    "trickled streams": Entry(streams.trickled, _NODE),
    "overgranted streams": Entry(streams.overgranted, _NODE),
    "cancelled streams": Entry(streams.cancelled, _NODE),
    "slow HTTP heads": Entry(http.slow_heads, _ROUTER),
    "slow HTTP bodies": Entry(http.slow_bodies, _ROUTER),
    "endless HTTP chunks": Entry(http.endless_chunks, _ROUTER),
    "lying HTTP requests": Entry(http.lies, _ROUTER),
    "HTTP pipelines": Entry(http.pipelines, _ROUTER),
    "unread HTTP pages": Entry(http.unread_pages, _ROUTER),
    "left HTTP requests": Entry(http.left_requests, _ROUTER),
    "plain waits": Entry(queues.plain_waits, _SPOOLER, lasts=True),
    "status flood": Entry(queues.status_flood, _SPOOLER),
    "empty batches": Entry(queues.empty_batches, _SPOOLER),
    "waiters": Entry(queues.waiters, _SPOOLER),
    "large results": Entry(queues.large_results, _SPOOLER),
    "colliding results": Entry(queues.colliding_results, _SPOOLER),
    "queue names": Entry(queues.queue_names, _SPOOLER),
    "broken tasks": Entry(queues.broken_tasks, _SPOOLER),
    "hostile tasks": Entry(queues.hostile_tasks, _SPOOLER, alone=True),
}


def behaviours_for(kind: str, seconds: float, *, first: bool, only: list[str]) -> list[str]:
    """Return the names of the behaviours towards a service.

    :param kind: of the service.
    :param seconds: how long the attack lasts.
    :param first: whether it is the first peer that asks, which alone does those that are for one.
    :param only: the names to choose from; empty for all.
    """
    return [
        name
        for name, entry in BEHAVIOURS.items()
        if kind in entry.kinds
        and (first or not entry.alone)
        and (name in only if only else seconds >= 60 or not entry.lasts)
    ]
