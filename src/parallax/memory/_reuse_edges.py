"""Bytes handed on between branches: which segments must wait so that a plan's tensors fit a given arena.

Any two branches may run together as far as dependencies go, so none may have the other's bytes. If in the
predicted timeline the one is over before the other begins, an edge makes that a promise, and costs nothing as long
as the prediction holds. Few edges do: only those between tensors that end up in the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from parallax.memory._fit import reordered, shuffled
from parallax.memory._lifetimes import Lifetimes
from parallax.memory._packing import UNPACKED, Offsets, Packing, reached_bytes

_ORDERED: Final = 1 << 62
"""Stands for the pause between tensors that dependencies keep apart."""

_PAUSES: Final = (4, 10, 40)
"""Bytes pass on without new constraints where that fits; else after a pause of at least one such part of the run; else
at once. The longer the pause, the less a run that strays from the prediction has to wait."""

_ROUNDS: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseEdges:
    """The edges that make all tensors fit."""

    edges: tuple[tuple[int, int], ...]
    """(a segment, one that must wait for it), in the order of those that wait. None follows from others."""
    arena_bytes: int
    """What the tensors then take."""
    placement: tuple[str, ...]
    """The tensors by their offset: placed in this order, lowest gap first, they take no more."""


def find_reuse_edges(
    lifetimes: Lifetimes,
    sizes: Sequence[int],
    spans: Sequence[tuple[int, int]],
    predecessors: Sequence[Sequence[int]],
    *,
    order: Sequence[int],
    limit_bytes: int,
) -> ReuseEdges | None:
    """Fit the tensors into ``limit_bytes`` by letting some have the bytes of others that are over, in this timeline.

    All edges agree with ``order``, so a plan can never deadlock by them. With them, `find_lifetimes` knows these
    tensors to be apart, and `plan_arena` can find this packing.

    After "saturation reduction" by arcs between lifetimes in S.-A.-A. Touati, Register Saturation in Superscalar and
    VLIW Codes (CC 2001), with offsets instead of registers. O(tensors²), a few times.

    Args:
        lifetimes: of the plan without the edges.
        sizes: bytes per tensor, multiples of the alignment, 0 where unknown.
        spans: per segment its (start, end) in the predicted timeline.
        predecessors: per segment.
        order: the segments by their start in the timeline; a topological order.
        limit_bytes: for the arena.

    Returns: None where no packing was found.
    """
    items = [tensor for tensor, size in enumerate(sizes) if size]
    if not items:
        return ReuseEdges(edges=(), arena_bytes=0, placement=())
    place = [0] * len(order)
    for position, segment in enumerate(order):
        place[segment] = position
    pauses = _pauses(lifetimes, spans, place)
    length = max(end for _, end in spans)
    levels = [_ORDERED, *(max(1, length // part) for part in _PAUSES), 0]
    neighbours = [_lists(pauses < level) for level in levels]
    best: ReuseEdges | None = None
    for offsets in _packings(lifetimes, sizes, spans, items, neighbours, pauses, limit_bytes):
        edges = _edges(lifetimes, sizes, spans, predecessors, offsets, order)
        if best is None or len(edges) < len(best.edges):
            best = ReuseEdges(
                edges=edges,
                arena_bytes=max(offsets[item] + sizes[item] for item in items),
                placement=tuple(lifetimes.tensors[item] for item in sorted(items, key=offsets.__getitem__)),
            )
        if not edges:
            break
    return best


def _pauses(lifetimes: Lifetimes, spans: Sequence[tuple[int, int]], place: Sequence[int]) -> npt.NDArray[np.int64]:
    """Per pair of tensors the time between their lives; negative where they overlap, or an edge would lead backward."""
    begin = np.array([spans[segment][0] for segment in lifetimes.producers], dtype=np.int64)
    end = np.array([max(spans[user][1] for user in users) for users in lifetimes.uses], dtype=np.int64)
    made = np.array([place[segment] for segment in lifetimes.producers], dtype=np.int64)
    last = np.array([max(place[user] for user in users) for users in lifetimes.uses], dtype=np.int64)
    pause: npt.NDArray[np.int64] = begin[None, :] - end[:, None]
    pause[last[:, None] >= made[None, :]] = -1
    pause[np.array(lifetimes.to_the_end, dtype=np.bool_), :] = -1
    pause = np.maximum(pause, pause.T)
    ordered = np.frombuffer(b"".join(lifetimes.conflicts), dtype=np.uint8).reshape(pause.shape) == 0
    pause[ordered] = _ORDERED
    return pause


def _lists(conflicts: npt.NDArray[np.bool_]) -> list[list[int]]:
    return [row.nonzero()[0].tolist() for row in conflicts]


def _packings(
    lifetimes: Lifetimes,
    sizes: Sequence[int],
    spans: Sequence[tuple[int, int]],
    items: Sequence[int],
    neighbours: Sequence[Sequence[Sequence[int]]],
    pauses: npt.NDArray[np.int64],
    limit_bytes: int,
) -> Iterator[Offsets]:
    """Packings within the limit, of those with the fewest constraints; more of them only where none was found."""
    begin = [spans[segment][0] for segment in lifetimes.producers]
    life = [max(spans[user][1] for user in users) - begin[item] for item, users in enumerate(lifetimes.uses)]
    keys: tuple[Callable[[int], tuple[int, ...]], ...] = (
        lambda item: (-sizes[item], item),
        lambda item: (begin[item], -sizes[item], item),
        lambda item: (-sizes[item] * life[item], item),
    )
    orders = [sorted(items, key=key) for key in keys]
    for first in range(len(neighbours)):
        found = False
        for order in orders:
            offsets = _place_within(sizes, order, neighbours[first:], limit_bytes)
            if offsets is not None:
                found = True
                yield offsets
        if found:
            return
    # At once, wherever the timeline allows; and a search over orders.
    packing = Packing(
        sizes=sizes,
        items=items,
        conflicts=[row.tobytes() for row in pauses < 0],
        neighbours=neighbours[-1],
        sweeps=(),
    )
    offsets = reordered(packing, target_bytes=limit_bytes, rounds=_ROUNDS)
    if reached_bytes(packing, offsets) > limit_bytes:
        offsets = shuffled(packing, offsets, target_bytes=limit_bytes, rounds=_ROUNDS)
    if reached_bytes(packing, offsets) <= limit_bytes:
        yield offsets


def _place_within(
    sizes: Sequence[int], order: Sequence[int], neighbours: Sequence[Sequence[Sequence[int]]], limit_bytes: int
) -> Offsets | None:
    """Each tensor in the smallest gap, by the first of the lists of conflicts with which it stays in the limit."""
    spans: list[tuple[int, int] | None] = [None] * len(sizes)
    for tensor in order:
        size = sizes[tensor]
        offset = -1
        for lists in neighbours:
            taken = [span for other in lists[tensor] if (span := spans[other])]
            taken.sort()
            top = least = 0
            offset = -1
            for start, end in taken:
                gap = start - top
                if gap >= size and (offset < 0 or gap < least):
                    offset, least = top, gap
                if end > top:
                    top = end
            if offset < 0:
                offset = top
            if offset + size <= limit_bytes:
                break
        else:
            return None
        spans[tensor] = (offset, offset + size)
    return [UNPACKED if span is None else span[0] for span in spans]


def _edges(
    lifetimes: Lifetimes,
    sizes: Sequence[int],
    spans: Sequence[tuple[int, int]],
    predecessors: Sequence[Sequence[int]],
    offsets: Offsets,
    order: Sequence[int],
) -> tuple[tuple[int, int], ...]:
    """The edges that keep apart in every execution what shares bytes, less those that follow from others."""
    made: list[list[int]] = [[] for _ in predecessors]
    for tensor, producer in enumerate(lifetimes.producers):
        if offsets[tensor] != UNPACKED:
            made[producer].append(tensor)
    above: dict[int, int] = {}  # bit set of what a segment waits for; those before it in the order have one
    edges: list[tuple[int, int]] = []
    for segment in order:
        mask = 0
        for other in predecessors[segment]:
            mask |= above[other] | 1 << other
        awaited: set[int] = set()
        for tensor in made[segment]:
            low, high = offsets[tensor], offsets[tensor] + sizes[tensor]
            for other in lifetimes.neighbours[tensor]:
                # What is produced later gives way to this one, and waits for it in its turn.
                if (
                    lifetimes.producers[other] in above
                    and offsets[other] != UNPACKED
                    and offsets[other] < high
                    and low < offsets[other] + sizes[other]
                ):
                    awaited.update(lifetimes.uses[other])
        # Latest first: it is likeliest to bring others with it.
        for other in sorted(awaited, key=lambda user: (-spans[user][1], -user)):
            if not mask >> other & 1:
                edges.append((other, segment))
                mask |= above[other] | 1 << other
        above[segment] = mask
    return tuple(edges)
