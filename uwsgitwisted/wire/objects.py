"""Python objects as marshal bytes. Untrusted bytes are checked before C's ``marshal`` sees them.

It reads the versions 0 to 4 of the format, which every Python since 2.5 writes, and writes version 2, which all
of those read. The allowed types are None, bool, int, float, complex, str, bytes, tuple, list, dict, set and
frozenset. A ``str`` of Python 2 becomes bytes, whether it was interned or not.

Loading takes time linear in the bytes: dict keys and set members that were chosen to collide are refused; see
:mod:`~uwsgitwisted.wire.key_check`. Callers limit the number of bytes.
"""

from __future__ import annotations

import marshal
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from uwsgitwisted.errors import UnencodableMessage, UnsafeObject
from uwsgitwisted.wire.marshal_check import MAX_DEPTH, MAX_SHARED, OVERRUN, overrun, walk

__all__ = ["MAX_DEPTH", "MAX_SET_DEPTH", "MAX_SHARED", "VERSION", "dumps", "loads", "loads_plain"]

#: The version that we write: the newest one without references, which Python 2.5 and all later versions read.
VERSION: Final = 2
#: How many nested sets ``dumps`` writes. From 3.11 on, C's ``dumps`` writes each member of a set twice, to sort
#: them, so that each enclosing set doubles the time. It has no limit to the depth either, and crashes in the
#: end.
MAX_SET_DEPTH: Final = 5


def loads(data: bytes, *, depth_limit: int = MAX_DEPTH, shared_limit: int = MAX_SHARED) -> object:
    """Return the value in *data*.

    :param data: one marshalled value, of any version up to 4, and nothing after it.
    :param depth_limit: how deep containers may be nested.
    :param shared_limit: how many bytes references may add to the value, as if it were written without them.
    :raises UnsafeObject: if the bytes are malformed, have any other than the allowed types, or have keys that
        were chosen to collide.
    """
    return _load(data, depth_limit, shared_limit)


def loads_plain(data: bytes) -> object:
    """Return the value in *data*, for a service that loads it in its own process.

    It refuses everything that may be slow to load for its size: references, sets, and containers as keys.

    :raises UnsafeObject: as :func:`loads`, and for one of these.
    """
    return _load(data, MAX_DEPTH, 0, plain=True)


def _load(data: bytes, depth_limit: int, shared_limit: int, *, plain: bool = False) -> object:
    try:
        checked = walk(data, depth_limit, shared_limit, plain=plain)
    except OVERRUN:
        raise overrun(data) from None
    try:
        value: object = marshal.loads(checked)  # noqa: S302 - checked
    except (TypeError, ValueError, MemoryError) as error:
        raise UnsafeObject(f"marshalled bytes refused by Python: {str(error) or 'out of memory'}") from error
    return value


_ATOMS: Final = frozenset({type(None), bool, int, float, complex, str, bytes})
_SETS: Final = frozenset({set, frozenset})
_CONTAINERS: Final = _SETS | {list, tuple, dict}
_ALLOWED: Final = _ATOMS | _CONTAINERS

#: With more containers than this at one depth, it pays to remove duplicates. Until then, a list that contains
#: itself twice doubles at each depth.
_MANY: Final = 16
#: Up to this many members of a container, it is faster to check each than to check all of them together first.
_FEW: Final = 4
#: The depth of the quick check; each level may double its time if a value contains itself twice.
_SHALLOW: Final = 8


def dumps(value: Any) -> bytes:
    """Return *value* as marshal bytes of version 2.

    The types must match exactly. An instance of a subclass, such as a named tuple, an ``IntEnum`` or an
    ``OrderedDict``, is refused, since the other end would get another type. So is an object that C would write
    as bytes because it has a buffer: a ``bytearray``, or a NumPy float. :func:`loads` accepts everything that
    passes here, unless the keys of a dict or the members of a set collide by the thousand; well-meant ones
    don't.

    :raises UnencodableMessage: if a value in it is not of an allowed type, is nested deeper than ``MAX_DEPTH``
        or within itself, or is a set within ``MAX_SET_DEPTH`` sets; the text says what, and where in the value.
    """
    if not _is_shallow_and_plain(value) and not _is_plain(value):
        obstacle = _find_obstacle(value)
        if obstacle:
            raise UnencodableMessage(obstacle)
    try:
        return marshal.dumps(value, VERSION)
    except ValueError as error:
        raise UnencodableMessage(f"marshal can't write the value: {error}") from error
    except MemoryError as error:
        # From 3.11 on, this is also raised for set members with equal bytes and no order: complex NaNs.
        raise UnencodableMessage("marshal can't write the value: no memory, or NaNs in a set") from error


def _is_shallow_and_plain(value: object, depth: int = _SHALLOW) -> bool:
    """Return whether *value* is plain and shallow, without sets in sets, as nearly every value is.

    It takes half the time of :func:`_is_plain`.

    :param depth: how many further levels of containers there may be.
    """
    kind = type(value)
    members: Any
    if kind is dict:
        if not _ATOMS.issuperset(map(type, value)):  # type: ignore[call-overload]
            return False
        members = value.values()  # type: ignore[attr-defined]
    elif kind is list or kind is tuple:
        members = value
    elif kind in _SETS:
        return depth > 0 and _ATOMS.issuperset(map(type, value))  # type: ignore[call-overload]
    else:
        return kind in _ATOMS
    if len(members) > _FEW and _ATOMS.issuperset(map(type, members)):
        return depth > 0
    if depth <= 0:
        return False
    depth -= 1
    for member in members:
        if type(member) not in _ATOMS and not _is_shallow_and_plain(member, depth):
            return False
    return True


def _is_plain(value: object) -> bool:
    """Return whether *value* can be written for certain; if not, :func:`_find_obstacle` looks closer.

    It protects C's ``dumps``, which deeply nested sets can crash. It handles all containers of one depth
    together, each once, and collects the types of all their members at C speed.
    """
    members: list[Any] = [value]
    kinds: set[type] = {type(value)}
    depths_with_sets = 0
    for _ in range(MAX_DEPTH):
        if not kinds <= _CONTAINERS:
            return False
        if kinds & _SETS:
            depths_with_sets += 1
        containers = [member for member in members if type(member) in _CONTAINERS]
        if len(containers) > _MANY:
            containers = list({id(container): container for container in containers}.values())
        members = []
        for container in containers:
            members += container
            if type(container) is dict:
                members += container.values()
        kinds = set(map(type, members)) - _ATOMS
        if not kinds:
            return depths_with_sets <= MAX_SET_DEPTH
    return False


class _Place(NamedTuple):
    """Where in a value something is."""

    value: object
    parent: _Place | None = None
    step: str = ""  # the way from the parent; {} stands for the key
    key: object = None
    depth: int = 1
    sets: int = 0  # how many sets enclose it

    def obstacle(self) -> str:
        """Return why the value itself, without its members, can't be written; '' if it can."""
        kind = type(self.value)
        if kind not in _ALLOWED:
            return f"its type, {kind.__module__}.{kind.__qualname__}, is not one that can be sent"
        if kind in _CONTAINERS and self.depth > MAX_DEPTH:
            return f"it is nested deeper than {MAX_DEPTH} levels, or within itself"
        if kind in _SETS and self.sets == MAX_SET_DEPTH:
            return f"it is a set within {MAX_SET_DEPTH} sets"
        return ""

    def members(self) -> Iterator[_Place]:
        """Yield the places of the value's members."""
        value = self.value
        depth = self.depth + 1
        sets = self.sets + (type(value) in _SETS)
        if isinstance(value, dict):
            for key, member in value.items():
                yield _Place(key, self, " (a key)", None, depth, sets)
                yield _Place(member, self, "[{}]", key, depth, sets)
        elif isinstance(value, (list, tuple)):
            for index, member in enumerate(value):
                yield _Place(member, self, "[{}]", index, depth, sets)
        elif isinstance(value, (set, frozenset)):
            for member in value:
                yield _Place(member, self, " (a member)", None, depth, sets)

    def path(self) -> str:
        """Return the path to the value from the outermost one, such as ``[1]['key']``; cut if it is long."""
        steps: list[str] = []
        place: _Place | None = self
        while place:
            steps.append(place.step.format(_short_repr(place.key)))
            place = place.parent
        path = "".join(reversed(steps)).lstrip()
        return path if len(path) <= 100 else path[:100] + "..."


def _short_repr(key: object) -> str:
    """Return a short text that identifies *key*. Python refuses to print a very large int."""
    if isinstance(key, (str, bytes)):
        return repr(key[:30])
    if isinstance(key, float) or (isinstance(key, int) and key.bit_length() < 64):
        return repr(key)
    return f"<{type(key).__name__}>"


def _find_obstacle(value: object) -> str:
    """Return why *value* can't be written, and where in it the obstacle is; '' if there is none."""
    pending: list[Iterator[_Place]] = [iter([_Place(value)])]
    while pending:
        place = next(pending[-1], None)
        if place is None:
            pending.pop()
            continue
        obstacle = place.obstacle()
        if obstacle:
            return f"the value at {place.path()}: {obstacle}" if place.parent else f"the value: {obstacle}"
        pending.append(place.members())
    return ""
