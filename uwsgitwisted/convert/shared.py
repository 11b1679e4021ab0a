"""Converts the options for what a node's processes share, its statistics and its announcement."""

from __future__ import annotations

from uwsgitwisted.convert.endpoints import endpoint
from uwsgitwisted.convert.plan import Plan, RefusedValue, number

#: The size of a block of a cache's, in bytes, if an option doesn't say.
_BLOCK = 65_536
#: The names for the number of items in ``cache2``, its parts with a counterpart, and those without effect here.
_ITEMS = ("items", "maxitems", "max_items")
_CACHE = {*_ITEMS, "name", "blocksize", "blocks", "purge_lru"}
_WITHOUT_EFFECT = {"hash", "hashsize", "hash_size", "keysize", "key_size", "lastmod", "lazy_expire", "bitmap"}
_WITHOUT_EFFECT |= {"sweep_on_full", "ignore_full", "math_initial"}


def _node(plan: Plan, *words: str) -> None:
    """Add options to the node that may be given several times."""
    plan.lists.setdefault("node options", []).extend(words)


def pairs(value: str) -> dict[str, str]:
    """Parse ``key=value,key=value``."""
    return dict(pair.strip().partition("=")[::2] for pair in value.split(","))


def cache(plan: Plan, value: str) -> None:
    """Give the node the cache of ``cache = ITEMS``."""
    items = number(value)
    _node(plan, "--cache", f"items={items},size={int(items) * _BLOCK}")


def cache2(plan: Plan, value: str) -> None:
    """Give the node a cache.

    :raises RefusedValue: if the cache would be stored, or sent to others.
    """
    given = pairs(value)
    if others := given.keys() - _CACHE - _WITHOUT_EFFECT:
        raise RefusedValue(f"a node's cache has no {', '.join(sorted(others))}: use Redis or memcached")
    items = int(number(next((given[name] for name in _ITEMS if name in given), "0")))
    blocks = int(number(given.get("blocks", "0"))) or items
    size = blocks * int(number(given.get("blocksize", str(_BLOCK))))
    if not items:
        raise RefusedValue("it has a number of items, such as name=sessions,items=1000")
    text = f"name={given.get('name', 'default')},items={items},size={size}"
    _node(plan, "--cache", text + (",purge_lru=1" if given.get("purge_lru", "0") not in ("0", "") else ""))


def mule(plan: Plan, value: str) -> None:
    """Give the node a mule that runs a program, or as many as the value says, or one."""
    if value.isdecimal() or value in ("", "true"):
        count = int(value) if value.isdecimal() else 1
        plan.options["node"]["--mules"] = str(int(plan.options["node"].get("--mules") or 0) + count)
    else:
        _node(plan, "--mule", value)


def stats(plan: Plan, value: str) -> None:
    """Have the node give its statistics at an address."""
    plan.lists.setdefault("stats", []).append(endpoint(plan, value))
    plan.lists.setdefault("stats addresses", []).append(value)


def subscribe(plan: Plan, value: str) -> None:
    """Announce the node to a router: ``ROUTER:KEY``.

    :raises RefusedValue: if it has another form.
    """
    router, _, key = value.partition(",")[0].rpartition(":")
    if not router or not key or "=" in value or "," in value:
        raise RefusedValue("write ROUTER:KEY, such as 10.0.0.1:2626:example.com")
    _node(plan, "--subscribe", f"{router},{key}")


def subscribe2(plan: Plan, value: str) -> None:
    """Announce the node to a router: ``server=ROUTER,key=KEY,addr=ADDRESS``.

    :raises RefusedValue: if it has more parts.
    """
    given = pairs(value)
    if not {"server", "key"} <= given.keys() <= {"server", "key", "addr"}:
        raise RefusedValue("only server=, key= and addr= are possible, and the first two are needed")
    _node(plan, "--subscribe", ",".join(given[name] for name in ("server", "key", "addr") if name in given))
