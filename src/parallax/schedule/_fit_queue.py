"""A priority queue that answers "the first of those that fit" in logarithmic time."""

from __future__ import annotations

from typing import Final

EMPTY: Final = 1 << 64
"""Stands for an empty place: larger than any peak and any limit."""


class FitQueue:
    """Places 0 to ``places - 1`` in order of precedence, each empty or holding a size in bytes.

    A complete binary tree in a list: node i has the children 2i and 2i + 1 and holds the smaller of their
    values, so the leftmost leaf within a limit is found by one walk down. `put` and `first_fitting` are
    O(log places).
    """

    __slots__ = ("_leaves", "_low")

    def __init__(self, places: int) -> None:
        self._leaves = 1 << max(0, places - 1).bit_length()
        self._low = [EMPTY] * (2 * self._leaves)

    @property
    def smallest(self) -> int:
        """Smallest size held, or `EMPTY`."""
        return self._low[1]

    @property
    def held(self) -> tuple[int, ...]:
        """The places that are not empty, in order."""
        return tuple(place for place, size in enumerate(self._low[self._leaves :]) if size != EMPTY)

    def put(self, place: int, size: int) -> None:
        """Let ``place`` hold ``size`` bytes, or nothing (`EMPTY`)."""
        low = self._low
        node = self._leaves + place
        low[node] = size
        while node > 1:
            node >>= 1
            left, right = low[2 * node], low[2 * node + 1]
            smaller = left if left < right else right
            if low[node] == smaller:
                break
            low[node] = smaller

    def first_fitting(self, limit: int) -> int:
        """The first place that holds at most ``limit`` bytes, or -1."""
        low, leaves = self._low, self._leaves
        if low[1] > limit:
            return -1
        node = 1
        while node < leaves:
            node *= 2
            if low[node] > limit:
                node += 1
        return node - leaves
