"""Disjoint sets."""

from __future__ import annotations


class UnionFind:
    """Disjoint sets over 0..size-1, each led by its smallest member, so that no result depends on the order of calls.

    Paths are halved on the way (Tarjan and van Leeuwen 1984): O(log n) per call, amortised.
    """

    __slots__ = ("_parent",)

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def __len__(self) -> int:
        return len(self._parent)

    def find(self, item: int) -> int:
        """The leader of the set that ``item`` is in."""
        parent = self._parent
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def union(self, one: int, other: int) -> None:
        """Make one set of those that hold ``one`` and ``other``."""
        one, other = self.find(one), self.find(other)
        if one < other:
            self._parent[other] = one
        elif other < one:
            self._parent[one] = other
