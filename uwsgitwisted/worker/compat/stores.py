"""uWSGI's caches, its queue and its metrics: the ``cache_*``, ``queue_*`` and ``metric_*`` functions.

As there, a key or a value is bytes or text, what comes back is bytes, and what can't be stored gives None.
"""

from __future__ import annotations

from uwsgitwisted.errors import MessageTooLarge, MisuseError
from uwsgitwisted.shared.ring import QueueLimits
from uwsgitwisted.wire.calls import decode_number
from uwsgitwisted.worker.compat.shared import call

_Text = str | bytes

#: How many slots the queue has.
queue_size = QueueLimits().slots


def _bytes(value: _Text) -> bytes:
    """Return a key or a value as bytes.

    :raises TypeError: if it is neither bytes nor text, as in uWSGI.
    """
    if isinstance(value, str):
        return value.encode()
    return bytes(memoryview(value))


def _first(items: tuple[bytes, ...]) -> bytes | None:
    return items[0] if items else None


def _number(items: tuple[bytes, ...]) -> int:
    return decode_number(items[0])


def _done(name: str, *arguments: bytes | int) -> bool | None:
    """Call what stores something; return True, or None if there was no room."""
    try:
        return bool(call(name, *arguments)) or None
    except MessageTooLarge:
        return None


def cache_get(key: _Text, cache: _Text = "") -> bytes | None:
    """Return the value of *key*; None if there is none."""
    return _first(call("cache_get", _bytes(key), _bytes(cache)))


def cache_set(key: _Text, value: _Text, expires: int = 0, cache: _Text = "") -> bool | None:
    """Set the value of a key that has none; return True, or None if it has one or there is no room.

    :param expires: after so many seconds it is gone; 0 for never.
    """
    return _done("cache_set", _bytes(key), _bytes(value), int(expires), _bytes(cache))


def cache_update(key: _Text, value: _Text, expires: int = 0, cache: _Text = "") -> bool | None:
    """Set the value of a key; return True, or None if there is no room."""
    return _done("cache_update", _bytes(key), _bytes(value), int(expires), _bytes(cache))


def cache_del(key: _Text, cache: _Text = "") -> bool | None:
    """Remove a key; return True, or None if it wasn't there."""
    return _done("cache_del", _bytes(key), _bytes(cache))


def cache_exists(key: _Text, cache: _Text = "") -> bool | None:
    """Return True if there is a value, else None."""
    return bool(call("cache_get", _bytes(key), _bytes(cache))) or None


def cache_clear(cache: _Text = "") -> bool | None:
    """Remove all keys, and return True."""
    return _done("cache_clear", _bytes(cache))


def cache_keys(cache: _Text = "") -> list[bytes]:
    """Return all keys."""
    return list(call("cache_keys", _bytes(cache)))


def cache_num(key: _Text, cache: _Text = "") -> int:
    """Return the number that a value is; 0 if there is none."""
    return _number(call("cache_num", _bytes(key), _bytes(cache)))


def cache_inc(key: _Text, value: int = 1, expires: int = 0, cache: _Text = "") -> bool | None:
    """Add to a number; return True, or None if there is no room."""
    return _done("cache_calculate", b"inc", _bytes(key), value, int(expires), _bytes(cache))


def cache_dec(key: _Text, value: int = 1, expires: int = 0, cache: _Text = "") -> bool | None:
    """Subtract from a number; return True, or None if there is no room."""
    return _done("cache_calculate", b"dec", _bytes(key), value, int(expires), _bytes(cache))


def cache_mul(key: _Text, value: int = 2, expires: int = 0, cache: _Text = "") -> bool | None:
    """Multiply a number; return True, or None if there is no room."""
    return _done("cache_calculate", b"mul", _bytes(key), value, int(expires), _bytes(cache))


def cache_div(key: _Text, value: int = 2, expires: int = 0, cache: _Text = "") -> bool | None:
    """Divide a number; return True, or None if there is no room."""
    return _done("cache_calculate", b"div", _bytes(key), value, int(expires), _bytes(cache))


def queue_push(item: _Text) -> bool | None:
    """Add an item, in place of the oldest one if the queue is full; return True, or None if it is too large."""
    return _done("queue_push", _bytes(item))


def queue_pull() -> bytes | None:
    """Remove and return the oldest item; None if there is none."""
    return _first(call("queue_pull"))


def queue_pop() -> bytes | None:
    """Remove and return the newest item; None if there is none."""
    return _first(call("queue_pop"))


def queue_get(slot: int) -> bytes | None:
    """Return the item in a slot; None if there is none."""
    return _first(call("queue_get", slot))


def queue_set(slot: int, item: _Text) -> bool | None:
    """Put an item into a slot; return True, or None if that is not possible."""
    return _done("queue_set", slot, _bytes(item))


def queue_last(number: int = 0) -> bytes | list[bytes | None] | None:
    """Return the newest item; with a *number*, a list of so many slots' items, the newest first."""
    items: list[bytes | None] = [item or None for item in call("queue_last", number or 1)]
    return items if number else items[0]


def queue_slot() -> int:
    """Return the slot of the next item."""
    return _number(call("queue_slot"))


def queue_pull_slot() -> int:
    """Return the slot of the oldest item."""
    return _number(call("queue_pull_slot"))


def metric_get(name: _Text) -> int:
    """Return a metric's number; 0 if nothing has changed it."""
    return _number(call("metric_get", _bytes(name)))


def _change(change: bytes, name: _Text, value: int) -> bool | None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise MisuseError(f"a metric is an integer, not {type(value).__name__}")
    return _done("metric_change", change, _bytes(name), value)


def metric_set(name: _Text, value: int) -> bool | None:
    """Set a metric."""
    return _change(b"set", name, value)


def metric_inc(name: _Text, value: int = 1) -> bool | None:
    """Add to a metric."""
    return _change(b"inc", name, value)


def metric_dec(name: _Text, value: int = 1) -> bool | None:
    """Subtract from a metric."""
    return _change(b"dec", name, value)


def metric_mul(name: _Text, value: int = 1) -> bool | None:
    """Multiply a metric."""
    return _change(b"mul", name, value)


def metric_div(name: _Text, value: int = 1) -> bool | None:
    """Divide a metric; return None if *value* is 0."""
    return _change(b"div", name, value)


def metric_set_max(name: _Text, value: int) -> bool | None:
    """Set a metric, if *value* is larger."""
    return _change(b"set_max", name, value)


def metric_set_min(name: _Text, value: int) -> bool | None:
    """Set a metric, if *value* is smaller."""
    return _change(b"set_min", name, value)
