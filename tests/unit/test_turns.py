"""A queue in which groups take turns."""

from __future__ import annotations

from typing import NamedTuple

from uwsgitwisted.turns import Turns


class Item(NamedTuple):
    group: str
    number: int


def fill(*names: str) -> tuple[Turns[Item], list[Item]]:
    turns: Turns[Item] = Turns()
    items = [Item(name[0], int(name[1])) for name in names]
    for item in items:
        turns.append(item)
    return turns, items


def drained(turns: Turns[Item]) -> str:
    """Take all items, and return their names."""
    return " ".join(f"{item.group}{item.number}" for item in (turns.pop() for _ in range(turns.length)))


def test_turns() -> None:
    """Each group is next with its first item, however many the others have."""
    turns, _ = fill("a1", "a2", "a3", "b1", "c1", "b2")
    assert (turns.length, turns.count("a"), turns.count("x")) == (6, 3, 0)
    assert drained(turns) == "a1 b1 c1 a2 b2 a3"
    assert not turns.length


def test_discard() -> None:
    """An item that is removed is not taken; only one that waits can be removed."""
    turns, items = fill("a1", "b1", "b2")
    assert turns.discard(items[0])
    assert not turns.discard(items[0])
    assert not turns.discard(Item("b", 9))
    assert turns.discard(items[1])
    assert drained(turns) == "b2"


def test_put_back() -> None:
    """Items that are returned are next, in their order."""
    turns, _ = fill("a1", "a2", "b1")
    taken = [turns.pop(), turns.pop()]
    turns.put_back(taken)
    assert drained(turns) == "a1 b1 a2"
