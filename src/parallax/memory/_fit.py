"""Planners that take tensors one by one and put each into a gap between those already there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from parallax.memory._packing import UNPACKED, Offsets, Packing, reached_bytes

_MOVES_OF_ANY: Final = 3
"""One random move in that many takes any tensor; the others take one that ends highest."""


def greedy_by_size(packing: Packing) -> Offsets:
    """Largest tensor first, into the smallest gap that holds it, else on top of what it conflicts with.

    "Greedy by Size for Offset Calculation" of Pisarchyk and Lee, arXiv:2001.03288, section 5.2. Ties fall to
    the lower tensor. O(T + conflicts).
    """
    sizes = packing.sizes
    return place(packing, sorted(packing.items, key=lambda item: (-sizes[item], item)))


def best_fit(packing: Packing, *, below_bytes: int | None = None) -> Offsets | None:
    """In the order in which tensors come to be, each into the smallest gap that holds it. O(T + conflicts).

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
    sizes, neighbours = packing.sizes, packing.neighbours
    spans: list[tuple[int, int] | None] = [None] * len(sizes)
    for tensor in order:
        size = sizes[tensor]
        # Only what is in conflict with it can be in its way; for plans that are nearly a sequence that is little.
        taken = [span for other in neighbours[tensor] if (span := spans[other])]
        taken.sort()
        top = 0
        offset = -1
        least = 0
        for start, end in taken:
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
        spans[tensor] = (offset, offset + size)
    return [UNPACKED if span is None else span[0] for span in spans]


def reordered(packing: Packing, *, target_bytes: int, rounds: int) -> Offsets:
    """Improve an order of placement, from largest first on, by moving to its front what makes the packing high.

    After the hill climbing planner of TVM's unified static memory planner, which swaps at random. Here what ends
    highest goes first, or with it what it rests on, or that alone: the first of these orders not tried before.
    Gaps are tried smallest first and lowest first in turn.

    Args:
        target_bytes: stop when reached: nothing can be better.
        rounds: placements to try at most; each costs O(conflicts).
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


def shuffled(packing: Packing, start: Offsets, *, target_bytes: int, rounds: int, seed: int = 0) -> Offsets:
    """Improve a packing by random moves in its order of placement: what is no higher than before is kept.

    Hill climbing over plateaus, with moves of one tensor to an earlier place, most often of one that ends highest.
    Never higher than ``start``: placing in order of offsets, lowest gap first, lets every tensor lie where it
    lay or lower. The same for the same arguments.

    Args:
        start: a packing that keeps conflicting tensors apart.
        target_bytes: stop when reached.
        rounds: placements to try at most; each costs O(conflicts).
        seed: of the moves.
    """
    numbers = _numbers(seed)
    sizes = packing.sizes
    order = order_of(packing, start)
    if not order:
        return start
    best = current = place(packing, order, lowest=True)
    best_bytes = current_bytes = reached_bytes(packing, best)
    for number in range(rounds):
        if best_bytes <= target_bytes:
            break
        candidate = order.copy()
        movable: Sequence[int] = range(len(order))
        if next(numbers) % _MOVES_OF_ANY:
            movable = [at for at in movable if current[order[at]] + sizes[order[at]] == current_bytes]
        at = movable[next(numbers) % len(movable)]
        candidate.insert(next(numbers) % (at + 1), candidate.pop(at))
        offsets = _place(packing, candidate, lowest=number % 2 == 0, below_bytes=current_bytes + 1)
        if offsets is not None:
            order, current, current_bytes = candidate, offsets, reached_bytes(packing, offsets)
            if current_bytes < best_bytes:
                best, best_bytes = current, current_bytes
    return best


def order_of(packing: Packing, offsets: Offsets) -> list[int]:
    """The order that `place`, lowest gap first, turns into these offsets or lower ones."""
    return sorted(packing.items, key=lambda item: (offsets[item], item))


def _numbers(seed: int) -> Iterator[int]:
    """Pseudo-random integers from 0 to 2³¹ - 1: the linear congruential generator of Knuth's MMIX, upper bits."""
    state = seed
    while True:
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        yield state >> 33
