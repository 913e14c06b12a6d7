"""Plans of arenas: every planner is asked, the best answer wins, and says how good it is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple

from parallax._record import dataclass
from parallax.errors import InternalError
from parallax.memory._branch_arenas import branch_arenas
from parallax.memory._exact import exact
from parallax.memory._fit import best_fit, greedy_by_size, place, reordered, shuffled
from parallax.memory._lifetimes import Lifetimes
from parallax.memory._packing import Offsets, Packing, aligned, antichain_bound, clique_bound, reached_bytes

ALIGNMENT_BYTES: Final = 64
"""A cache line, and the widest vector register."""

_EXACT_TENSORS: Final = 12
_EXACT_NODES: Final = 20_000
_ANTICHAIN_TENSORS: Final = 500
_ROUNDS: Final = 200
_MOVES: Final = 600
_ROUNDS_CONFLICTS: Final = 1_000_000
"""Conflicts that all rounds of one planner together may look at."""


class Effort(Enum):
    """How long to look for a smaller arena. Counted, never timed: the outcome is reproducible."""

    QUICK = "quick"
    """While a run waits: the global planners and the orders that were given, until one reaches the lower bound."""
    THOROUGH = "thorough"
    """Once, when a model is compiled: all planners, the exact one for few tensors, a tighter lower bound."""


class ArenaLayout(Enum):
    """Whose bytes an arena holds."""

    SHARED = "shared"
    """All tensors lie in one, wherever they take the least: the smallest of what the planners find."""
    PER_BRANCH = "per branch"
    """Each branch has an arena of its own, which hands over what is free to later ones: the paper's."""


class ArenaSlot(NamedTuple):
    """Where a tensor lives."""

    tensor: str
    offset: int
    """From the arena's start, a multiple of the alignment."""
    size_bytes: int
    """Of the tensor itself, unpadded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaPlan:
    """Describes one arena for the boundary tensors of one run: lower_bound_bytes <= arena_bytes <= naive_bytes."""

    planner: str
    """Which of the planners made it."""
    slots: tuple[ArenaSlot, ...]
    """By producer, then by position among its outputs."""
    dynamic: tuple[str, ...]
    """Tensors of unknown size: no slot. Each lives in a growable arena of its branch, where it disturbs no other."""
    arena_bytes: int
    naive_bytes: int
    """What it would take if nothing were shared: the sum of the aligned sizes."""
    lower_bound_bytes: int
    """No arena can be smaller: the aligned sizes of tensors of which any two may be alive at once (see
    `plan_arena`). The smallest possible arena may lie above it."""
    is_optimal: bool
    """Proven: it reaches the lower bound, or the exact planner has seen all alternatives."""
    alignment_bytes: int = ALIGNMENT_BYTES


def plan_arena(
    lifetimes: Lifetimes,
    sizes: Sequence[int | None],
    *,
    effort: Effort = Effort.THOROUGH,
    alignment_bytes: int = ALIGNMENT_BYTES,
    orders: Sequence[Sequence[int]] = (),
    layout: ArenaLayout = ArenaLayout.SHARED,
) -> ArenaPlan:
    """Give every tensor an offset so that tensors that may be alive at once never share bytes.

    Planners, in order; at equal size the earlier wins: ``greedy_by_size`` and ``best_fit`` (global offsets);
    ``remembered`` (the ``orders`` given); with `Effort.THOROUGH` also ``branch_arenas`` (the paper's arena per branch),
    ``exact`` (branch and bound for up to 12 tensors) and, where that gives up or there are more, ``reordered`` and
    ``shuffled`` (placement orders improved step by step, by rule and at random from a fixed seed). Whichever reaches
    the lower bound ends the search.

    The lower bound is the heaviest set found of tensors that conflict pairwise: all of them need bytes of their
    own. `Effort.QUICK` extends a few by whatever fits; `Effort.THOROUGH` finds the heaviest there is
    (a maximum antichain, by a flow) where tensors are not too many. With a fixed order both are exact.

    Args:
        lifetimes: of the tensors.
        sizes: bytes per tensor, in the order of ``lifetimes.tensors``; None for what is not known. A tensor
            of no bytes gets offset 0.
        alignment_bytes: a power of two.
        orders: orders in which to place the tensors, lowest gap first; each names every tensor once. What
            `placement_order` makes of a good plan for other sizes is one.
        layout: with `ArenaLayout.PER_BRANCH` only ``branch_arenas`` is asked, whatever the effort and the orders.

    Returns: a plan that `verify_arena_plan` accepts; the same for the same arguments, always.

    Raises: InternalError for sizes that do not match the tensors, or a negative one.
    """
    if len(sizes) != len(lifetimes) or any(size is not None and size < 0 for size in sizes):
        raise InternalError(f"sizes {list(sizes)[:20]} for {len(lifetimes)} tensors")
    padded = [0 if size is None else aligned(size, alignment_bytes) for size in sizes]
    packing = Packing(
        sizes=padded,
        items=[tensor for tensor, size in enumerate(padded) if size],
        conflicts=lifetimes.conflicts,
        neighbours=lifetimes.neighbours,
        sweeps=lifetimes.sweeps,
    )
    if layout is ArenaLayout.PER_BRANCH:
        planner, offsets = "branch_arenas", branch_arenas(packing, lifetimes)
        bound = clique_bound(packing)
        is_optimal = reached_bytes(packing, offsets) == bound
    else:
        planner, offsets, bound, is_optimal = _pack(packing, lifetimes, effort, orders)
    return ArenaPlan(
        planner=planner,
        slots=tuple(
            [
                ArenaSlot(name, offset if size else 0, size)
                for name, offset, size in zip(lifetimes.tensors, offsets, sizes, strict=True)
                if size is not None
            ]
        ),
        dynamic=tuple([name for name, size in zip(lifetimes.tensors, sizes, strict=True) if size is None]),
        arena_bytes=reached_bytes(packing, offsets),
        naive_bytes=packing.naive_bytes,
        lower_bound_bytes=bound,
        is_optimal=is_optimal,
        alignment_bytes=alignment_bytes,
    )


def placement_order(arena: ArenaPlan, lifetimes: Lifetimes) -> tuple[int, ...]:
    """The order of placement that gives this arena again, or a smaller one: for `plan_arena` of other sizes.

    Tensors without a slot come last.
    """
    offset_of = {slot.tensor: slot.offset for slot in arena.slots}
    offsets = [offset_of.get(name, sys.maxsize) for name in lifetimes.tensors]
    return tuple(sorted(range(len(offsets)), key=lambda tensor: (offsets[tensor], tensor)))


def _pack(
    packing: Packing, lifetimes: Lifetimes, effort: Effort, orders: Sequence[Sequence[int]]
) -> tuple[str, Offsets, int, bool]:
    """The best planner's name and offsets, the lower bound, and whether nothing smaller exists."""
    count = len(packing.items)
    planner, best = "greedy_by_size", greedy_by_size(packing)
    best_bytes = reached_bytes(packing, best)
    bound = clique_bound(packing, enough_bytes=best_bytes)
    if best_bytes > bound and effort is Effort.THOROUGH and count <= _ANTICHAIN_TENSORS:
        bound = antichain_bound(packing)

    def consider(name: str, offsets: Offsets | None) -> None:
        nonlocal planner, best, best_bytes
        if offsets is None:
            return
        reached = reached_bytes(packing, offsets)
        if reached < best_bytes:
            planner, best, best_bytes = name, offsets, reached

    if best_bytes > bound:
        consider("best_fit", best_fit(packing, below_bytes=best_bytes))
    for order in orders:
        if best_bytes > bound:
            consider("remembered", place(packing, [item for item in order if packing.sizes[item]], lowest=True))
    if best_bytes > bound and effort is Effort.THOROUGH:
        consider("branch_arenas", branch_arenas(packing, lifetimes))
    is_complete = False
    if effort is Effort.THOROUGH:
        if best_bytes > bound and count <= _EXACT_TENSORS:
            offsets, is_complete = exact(packing, best, lower_bound_bytes=bound, node_limit=_EXACT_NODES)
            consider("exact", offsets)
        if best_bytes > bound and not is_complete:
            rounds = _ROUNDS_CONFLICTS // max(1, sum([len(packing.neighbours[item]) for item in packing.items]))
            consider("reordered", reordered(packing, target_bytes=bound, rounds=min(_ROUNDS, rounds)))
            if best_bytes > bound:
                consider("shuffled", shuffled(packing, best, target_bytes=bound, rounds=min(_MOVES, rounds)))
    return planner, best, bound, is_complete or best_bytes == bound
