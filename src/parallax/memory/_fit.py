"""Planners that take tensors one by one and put each into a gap between those already there."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable

from parallax.memory._packing import UNPACKED, Offsets, Packing, reached_bytes


def greedy_by_size(packing: Packing) -> Offsets:
    """Largest tensor first, into the smallest gap that holds it, else on top of what it conflicts with.

    "Greedy by Size for Offset Calculation" of Pisarchyk and Lee, arXiv:2001.03288, section 5.2. Ties fall to
    the lower tensor. O(T²).
    """
    sizes = packing.sizes
    return place(packing, sorted(packing.items, key=lambda item: (-sizes[item], item)))


def best_fit(packing: Packing, *, below_bytes: int | None = None) -> Offsets | None:
    """In the order in which tensors come to be, each into the smallest gap that holds it. O(T²).

    None, early, if that does not stay below ``below_bytes``.
    """
    packed = frozenset(packing.items)
    order = [tensor for tensor, sign in packing.sweeps[0] if sign > 0 and tensor in packed]
    return _place(packing, order, lowest=False, below_bytes=below_bytes)


def place(packing: Packing, order: Iterable[int], *, lowest: bool = False) -> Offsets:
    """Place tensors in that order, each into the smallest gap that holds it, or the ``lowest`` one.

    A gap is what lies free between the bytes of those already placed that are in conflict with it.
    """
    offsets = _place(packing, order, lowest=lowest, below_bytes=None)
    assert offsets is not None
    return offsets


def _place(packing: Packing, order: Iterable[int], *, lowest: bool, below_bytes: int | None) -> Offsets | None:
    """`place`; None as soon as a tensor does not end below ``below_bytes``."""
    sizes, conflicts = packing.sizes, packing.conflicts
    offsets = [UNPACKED] * len(sizes)
    placed: list[tuple[int, int, int]] = []  # (offset, end, tensor), ascending
    for tensor in order:
        row = conflicts[tensor]
        size = sizes[tensor]
        top = 0
        offset = -1
        least = 0
        for start, end, other in placed:
            if row[other]:
                gap = start - top
                if gap >= size and (offset < 0 or gap < least):
                    offset, least = top, gap
                    if lowest:
                        break
                if end > top:
                    top = end
        if offset < 0:
            offset = top
            if below_bytes is not None and offset + size >= below_bytes:
                return None
        offsets[tensor] = offset
        insort(placed, (offset, offset + size, tensor))
    return offsets


def reordered(packing: Packing, *, target_bytes: int, rounds: int) -> Offsets:
    """Improve an order of placement, from largest first on, by moving to its front what makes the packing high.

    After the hill climbing planner of TVM's unified static memory planner, which swaps at random. Here what ends
    highest goes first, or with it what it rests on, or that alone: the first of these orders not tried before.
    Gaps are tried smallest first and lowest first in turn.

    Args:
        target_bytes: stop when reached: nothing can be better.
        rounds: placements to try at most; each costs O(T²).
    """
    sizes, conflicts = packing.sizes, packing.conflicts
    order = sorted(packing.items, key=lambda item: (-sizes[item], item))
    best = current = place(packing, order)
    best_bytes = current_bytes = reached_bytes(packing, best)
    tried = {tuple(order)}
    for number in range(rounds):
        if best_bytes <= target_bytes:
            break
        highest = [item for item in order if current[item] + sizes[item] == current_bytes]
        floors = {current[item] for item in highest}
        under = [
            item
            for item in order
            if current[item] + sizes[item] in floors and any(conflicts[item][top] for top in highest)
        ]
        for front in (highest, [*highest, *under], under):
            moved = frozenset(front)
            candidate = (*front, *[item for item in order if item not in moved])
            if candidate not in tried:
                break
        else:
            break
        tried.add(candidate)
        order = list(candidate)
        current = place(packing, order, lowest=number % 4 >= 2)
        current_bytes = reached_bytes(packing, current)
        if current_bytes < best_bytes:
            best, best_bytes = current, current_bytes
    return best
