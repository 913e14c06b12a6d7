"""What a plan's runs take, beside what its segments take one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from parallax.graph import OpGraph
from parallax.memory._arena import ALIGNMENT_BYTES, Effort, plan_arena
from parallax.memory._budget import peak_of_schedule
from parallax.memory._lifetimes import Lifetimes, dispatch_order, find_lifetimes
from parallax.memory._memory_model import MemoryModel
from parallax.memory._packing import aligned
from parallax.memory._protocols import PlanLike

PEAK_RATIO: Final = 1.10
"""What a parallel run may take without being asked, as a multiple of what its segments take one after the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReport:
    """Bytes that a run holds between and inside segments, for one shape signature.

    Inputs and outputs of the model are the caller's, weights are there before and after: neither is in it.
    """

    segments: int
    tensors: int
    """Boundary tensors."""
    unknown_tensors: int
    """Tensors of unknown size, counted as 0. One that passes between segments is one for each of them."""
    naive_bytes: int
    """The boundary tensors if nothing were shared."""
    arena_bytes: int
    """What they take."""
    lower_bound_bytes: int
    """What any arena must take: see `ArenaPlan`."""
    interior_bytes: int
    """The most that one segment holds inside while it runs."""
    parallel_peak_bytes: int
    """The arena, and the most that segments running at once can hold inside, within ``admission_bytes``."""
    sequential_arena_bytes: int
    """The arena if one lane ran the segments one after the other, by priority."""
    sequential_peak_bytes: int
    """That arena, and the most that one segment holds inside."""
    admission_bytes: int | None
    """The dispatcher's ``budget_bytes`` with which the parallel peak stays within `PEAK_RATIO` of the sequential one;
    None (no limit) where that cannot be kept even if one segment runs at a time."""

    @property
    def arena_ratio(self) -> float:
        """The arena as a multiple of its lower bound."""
        return self.arena_bytes / self.lower_bound_bytes if self.lower_bound_bytes else 1.0

    @property
    def peak_ratio(self) -> float:
        """The parallel peak as a multiple of the sequential one."""
        return self.parallel_peak_bytes / self.sequential_peak_bytes if self.sequential_peak_bytes else 1.0


def report_memory(
    plan: PlanLike,
    graph: OpGraph,
    dims: Mapping[str, int] | None = None,
    *,
    effort: Effort = Effort.THOROUGH,
    ratio: float = PEAK_RATIO,
) -> MemoryReport:
    """Plan the memory of a plan as an engine does that hands outputs to its caller, and compare.

    Args:
        plan: a plan that `verify_plan` accepts.
        graph: the graph it was made for, with inferred types.
        dims: the dimensions of the inputs (`bind_dims`); what they do not determine is unknown.
        effort: for the arenas; `Effort.QUICK` is what a first run with new shapes gets.
        ratio: in place of `PEAK_RATIO`.

    Raises: InternalError as `find_lifetimes`.
    """
    memory_model = MemoryModel(plan, graph, place_outputs=False)
    memory = memory_model.plan(dims or {}, effort=effort)
    arena = memory.arena
    interiors = [peak.interior_bytes for peak in memory.peaks]
    interior = max(interiors, default=0)
    sizes = list(memory_model.sizes(dims or {}).values())
    one_by_one = find_lifetimes(plan, graph.output_names, place_outputs=False, order=dispatch_order(plan))
    sequential = plan_arena(one_by_one, sizes, effort=effort).arena_bytes
    room = int(ratio * (sequential + interior)) - arena.arena_bytes
    admission = room if room >= interior else None
    return MemoryReport(
        segments=len(plan.segments),
        tensors=len(memory_model.lifetimes),
        unknown_tensors=sum(peak.unknown_tensors for peak in memory.peaks),
        naive_bytes=arena.naive_bytes,
        arena_bytes=arena.arena_bytes,
        lower_bound_bytes=arena.lower_bound_bytes,
        interior_bytes=interior,
        parallel_peak_bytes=peak_of_schedule(plan, interiors, arena_bytes=arena.arena_bytes, budget_bytes=admission),
        sequential_arena_bytes=sequential,
        sequential_peak_bytes=sequential + interior,
        admission_bytes=admission,
    )


def sequential_orders(plan: PlanLike) -> tuple[tuple[int, ...], ...]:
    """Orders in which the segments may run one after the other: by priority, and by index."""
    return tuple(dict.fromkeys((dispatch_order(plan), tuple(range(len(plan.segments))))))


def peak_of_sequence(lifetimes: Lifetimes, sizes: Sequence[int | None], order: Sequence[int]) -> int:
    """The most bytes of boundary tensors alive at once if segments run one by one in that order. O(uses).

    Sizes are rounded up to the alignment of arenas, unknown ones count as 0.
    """
    padded = [0 if size is None else aligned(size, ALIGNMENT_BYTES) for size in sizes]
    made: list[list[int]] = [[] for _ in order]
    read: list[list[int]] = [[] for _ in order]
    for tensor, users in enumerate(lifetimes.uses):
        made[users[0]].append(tensor)
        if not lifetimes.to_the_end[tensor]:
            for user in users:
                read[user].append(tensor)
    left = [len(users) for users in lifetimes.uses]
    alive = peak = 0
    for segment in order:
        alive += sum([padded[tensor] for tensor in made[segment]])
        peak = max(peak, alive)
        for tensor in read[segment]:
            left[tensor] -= 1
            if not left[tensor]:
                alive -= padded[tensor]
    return peak
