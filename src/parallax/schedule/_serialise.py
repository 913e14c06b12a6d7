"""Parallel plans that take hardly more memory than sequential ones: a few edges where branches would pile up tensors.

A run's memory is its arena, reserved for all boundary tensors that could be alive at once in any execution, and what
running segments hold inside. Branches that may run together keep their bytes apart, however unlikely that they
do. `serialise_for_memory` predicts a timeline within a limit and makes promises of what it needs of it: where
one tensor is to have the bytes of another, its segment waits for those that use that one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from parallax.graph import OpGraph
from parallax.memory import (
    ALIGNMENT_BYTES,
    PEAK_RATIO,
    Effort,
    Lifetimes,
    MemoryModel,
    find_lifetimes,
    find_reuse_edges,
    find_serialisation_edges,
    peak_of_schedule,
    peak_of_sequence,
    plan_arena,
    sequential_orders,
)
from parallax.schedule._plan import Plan
from parallax.schedule._simulate import SimulatedRun, simulate
from parallax.schedule._tasks import Assignment, Schedule, Task
from parallax.schedule._timeline import timeline_within

MAX_TENSORS: Final = 500
"""Plans with more boundary tensors stay as they are: the search is quadratic, and planning must not wait for it."""

MAX_SLOWDOWN: Final = 0.10
"""What less memory may cost at most, as a share of the predicted time."""

_EQUAL_TIME: Final = 0.01
"""Predictions no further apart count as the same; then the smaller arena wins."""

_LIMITS: Final = 5
"""Limits to try at most."""

_NOMINAL_DIM: Final = 64
"""Taken for dimensions that nobody has fixed, where they do not lead a tensor (then they are batches, and 1): only
proportions between tensors matter."""

_TIGHTENED: Final = (1.0, 0.96, 0.92)
"""Shares of a limit to try a timeline with: a packing may waste the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SerialisedPlan:
    """A plan within its memory, and what that took. Bytes and ns are predictions for the dimensions planned for."""

    plan: Plan
    """With the edges among its predecessors, and, where all dimensions are known, what each segment holds inside as its
    ``peak_bytes``. Where there are edges, segments are numbered by their predicted start."""
    edges: tuple[tuple[int, int], ...]
    """(a segment, one that now waits for it)."""
    makespan_before_ns: int | None = None
    makespan_ns: int | None = None
    """Simulated, admission included. None, as all figures, where nothing was compared."""
    sequential_bytes: int | None = None
    """Peak of the segments one after the other."""
    before_bytes: int | None = None
    """Peak of the plan as it was."""
    peak_bytes: int | None = None
    """Peak of the plan as it is now, with admission limited as `MemoryReport.admission_bytes` says."""


def serialise_for_memory(
    plan: Plan,
    graph: OpGraph,
    *,
    dims: Mapping[str, int] | None = None,
    ratio: float = PEAK_RATIO,
    max_slowdown: float = MAX_SLOWDOWN,
    handover_ns: int = 0,
    segment_overhead_ns: int = 0,
) -> SerialisedPlan:
    """Let segments wait for others where that keeps a parallel run within ``ratio`` of a sequential one.

    The peaks compared are those of `report_memory`; a limit is kept if the plan then takes at most ``max_slowdown``
    longer in the simulator. Where none can be kept, the plan stays as it is (a budget can still narrow it).

    1. Limits for the arena are tried, the least first: ``ratio`` of the sequential arena; what is left beside all that
       may run at once; what is left beside the largest segment.
    2. For each, a timeline that never holds more (`timeline_within`), and the edges that its packing needs
       (`find_reuse_edges`).
    3. The simulator runs the result, with admission limited to what the arena leaves.

    Args:
        plan: a plan that `verify_plan` accepts.
        graph: the graph it was made for, with inferred types.
        dims: the dimensions to plan for; others are taken to be alike.
        ratio: limit of the peak as a multiple of the sequential one, at least 1.
        max_slowdown: share of the predicted time.
        handover_ns: see `simulate`.
        segment_overhead_ns: see `simulate`.

    Returns: the plan; unchanged but for its ``peak_bytes`` where it is within the limit anyway; as it is, with nothing
        compared, where it is whole or has more than `MAX_TENSORS` boundary tensors. A plan of one lane gives up
        backfill, which it has no use for: then its order, and with it its arena, is known.
    """
    if plan.lanes == 1:
        return SerialisedPlan(plan=replace(plan, backfill=False), edges=())
    if plan.is_whole or sum(len(segment.outputs) for segment in plan.segments) > MAX_TENSORS:
        return SerialisedPlan(plan=plan, edges=())
    return _Search(plan, graph, dims or {}, ratio, handover_ns, segment_overhead_ns).run(max_slowdown)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """One way to run, judged."""

    plan: Plan
    edges: tuple[tuple[int, int], ...]
    makespan_ns: int
    arena_bytes: int
    own_bytes: int
    """Of the arena if this plan's segments run one by one, by priority."""
    least_bytes: int
    """The same in the better of the orders by priority and by index."""
    peak_bytes: int


class _Search:
    """What all limits tried for one plan share."""

    def __init__(
        self,
        plan: Plan,
        graph: OpGraph,
        dims: Mapping[str, int],
        ratio: float,
        handover_ns: int,
        segment_overhead_ns: int,
    ) -> None:
        memory_model = MemoryModel(plan, graph, place_outputs=False)
        nominal = {**_nominal_dims(graph, memory_model.symbols), **dims}
        self.is_exact = all(name in dims for name in memory_model.symbols)
        self.interior = [peak.interior_bytes for peak in memory_model.peaks(nominal)]
        self.plan = replace(
            plan,
            segments=tuple(
                replace(segment, peak_bytes=interior)
                for segment, interior in zip(plan.segments, self.interior, strict=True)
            ),
        )
        self.outputs = graph.output_names
        self.lifetimes: Lifetimes = memory_model.lifetimes
        self.size_of = {
            name: -(-(size or 0) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
            for name, size in memory_model.sizes(nominal).items()
        }
        self.ratio = ratio
        self.handover_ns = handover_ns
        self.segment_overhead_ns = segment_overhead_ns
        self.largest = max(self.interior, default=0)
        self.orders = list(sequential_orders(plan))
        self.trials: dict[tuple[int, int], _Trial | None] = {}

    def run(self, max_slowdown: float) -> SerialisedPlan:
        """See `serialise_for_memory`."""
        before = self._judge(self.plan, is_admitted=False)
        if self._is_within(before, before.least_bytes):
            if before.arena_bytes <= self.ratio * before.least_bytes:
                return self._result(before)
            # No need; but what costs nothing is taken.
            trial = self._try(
                int(self.ratio * before.least_bytes), int(self.ratio * (before.least_bytes + self.largest))
            )
            if trial is None or trial.makespan_ns > before.makespan_ns * (1 + _EQUAL_TIME):
                return self._result(before)
            judged = self._judge(trial.plan, trial.edges)
            is_better = self._is_within(judged, judged.least_bytes) and judged.arena_bytes < before.arena_bytes
            return self._result(judged if is_better else before, before)
        # The strict reference is the better of two sequential orders; the other, the order one lane would follow.
        for strict in (True, False):
            trial = self._least_time(before, is_strict=strict)
            if trial is not None and trial.makespan_ns <= before.makespan_ns * (1 + max_slowdown):
                return self._result(trial, before)
            if trial is not None and trial.least_bytes == trial.own_bytes == before.own_bytes:
                break  # the same limits again
        return self._result(self._judge(self.plan), before)

    def _least_time(self, before: _Trial, *, is_strict: bool) -> _Trial | None:
        """The quickest of several limits; of those alike the least."""
        sequential = before.least_bytes if is_strict else before.own_bytes
        total = int(self.ratio * (sequential + self.largest))
        together = peak_of_schedule(self.plan, self.interior, arena_bytes=0)
        limits = {int(self.ratio * sequential), total - together, total - self.largest}
        # The least of all leaves the most to the inside of segments; it asks for the most edges, so it comes last.
        pending = [*sorted(limit for limit in limits if limit >= sequential), sequential]
        tried: list[int] = []
        kept: list[_Trial] = []
        while pending and len(tried) < _LIMITS:
            limit = pending.pop(0)
            if any(abs(limit - other) * 100 < other for other in tried):
                continue
            tried.append(limit)
            trial = self._try(limit, total)
            if trial is None:
                continue
            reached = trial.least_bytes if is_strict else trial.own_bytes
            if not self._is_within(trial, reached):
                # The edges brought a sequential order that takes less; that is what counts then.
                pending.insert(0, int(self.ratio * reached))
                total = min(total, int(self.ratio * (reached + self.largest)))
            else:
                kept.append(trial)
        while kept:
            best = kept[0]
            for trial in kept:
                if trial.makespan_ns < best.makespan_ns * (1 - _EQUAL_TIME):
                    best = trial
            # An engine does not know the packing that the edges were made for; what it finds counts.
            judged = self._judge(best.plan, best.edges)
            if self._is_within(judged, judged.least_bytes if is_strict else judged.own_bytes):
                return judged
            kept.remove(best)
        return None

    def _is_within(self, trial: _Trial, sequential_bytes: int) -> bool:
        return trial.peak_bytes <= self.ratio * (sequential_bytes + self.largest)

    def _try(self, limit: int, total: int) -> _Trial | None:
        """The plan with its arena within a limit, and its peak, if possible, within another."""
        if (limit, total) not in self.trials:
            self.trials[limit, total] = self._within(limit, total)
        return self.trials[limit, total]

    def _within(self, limit: int, total: int) -> _Trial | None:
        sizes = self._sizes(self.lifetimes)
        peaks = [(peak_of_sequence(self.lifetimes, sizes, order), order) for order in self.orders]
        _, order = min(peaks)
        for share in _TIGHTENED:
            spans = timeline_within(
                self.plan,
                self.lifetimes,
                sizes,
                limit_bytes=int(limit * share),
                interior_bytes=self.interior,
                interior_limit_bytes=max(self.largest, total - limit),
                order=order,
                handover_ns=self.handover_ns,
                segment_overhead_ns=self.segment_overhead_ns,
            )
            if spans is None:
                return None
            by_start = sorted(range(len(spans)), key=lambda segment: (*spans[segment], segment))
            found = find_reuse_edges(
                self.lifetimes,
                sizes,
                spans,
                [segment.predecessors for segment in self.plan.segments],
                order=by_start,
                limit_bytes=limit,
            )
            if found is None:
                continue
            self.orders.append(tuple(by_start))
            plan, edges = _with_edges(self.plan, found.edges, order=by_start)
            # Bytes inside segments: what the dispatcher's admission would keep apart, edges do without it.
            apart = find_serialisation_edges(
                plan,
                [segment.peak_bytes for segment in plan.segments],
                [spans[segment] for segment in by_start],
                limit_bytes=max(self.largest, total - found.arena_bytes),
            )
            if apart:
                plan, _ = _with_edges(plan, apart)
                edges += apart
            return self._judge(plan, edges, placement=found.placement)
        return None

    def _judge(
        self,
        plan: Plan,
        edges: tuple[tuple[int, int], ...] = (),
        *,
        placement: Sequence[str] | None = None,
        is_admitted: bool = True,
    ) -> _Trial:
        """What a plan takes, in bytes and in time.

        Args:
            placement: names of the tensors in an order in which they are known to fit; None: as an engine would plan.
            is_admitted: running segments hold together what the ratio leaves, if it leaves enough for one.
        """
        lifetimes = find_lifetimes(plan, self.outputs, place_outputs=False) if edges else self.lifetimes
        sizes = self._sizes(lifetimes)
        peaks = [peak_of_sequence(lifetimes, sizes, order) for order in sequential_orders(plan)]
        orders: list[tuple[int, ...]] = []
        if placement is not None:
            number_of = {name: number for number, name in enumerate(lifetimes.tensors)}
            orders.append(tuple(number_of[name] for name in placement))
        arena = plan_arena(lifetimes, sizes, effort=Effort.QUICK, orders=orders)
        if placement is None and arena.arena_bytes > max(arena.lower_bound_bytes, int(self.ratio * min(peaks))):
            arena = plan_arena(lifetimes, sizes)
        budget = None
        if is_admitted:
            budget = int(self.ratio * (min(peaks) + self.largest)) - arena.arena_bytes
            if budget < self.largest:
                budget = None  # the ratio cannot be kept
        interior = [segment.peak_bytes for segment in plan.segments]
        return _Trial(
            plan=plan,
            edges=edges,
            makespan_ns=self._makespan_ns(plan, budget),
            arena_bytes=arena.arena_bytes,
            own_bytes=peaks[0],
            least_bytes=min(peaks),
            peak_bytes=peak_of_schedule(plan, interior, arena_bytes=arena.arena_bytes, budget_bytes=budget),
        )

    def _sizes(self, lifetimes: Lifetimes) -> list[int]:
        """Per tensor, aligned."""
        return [self.size_of[name] for name in lifetimes.tensors]

    def _makespan_ns(self, plan: Plan, budget_bytes: int | None) -> int:
        return simulate_plan(
            plan,
            handover_ns=self.handover_ns,
            segment_overhead_ns=self.segment_overhead_ns,
            budget_bytes=budget_bytes,
        ).makespan_ns

    def _result(self, trial: _Trial, before: _Trial | None = None) -> SerialisedPlan:
        before = before or trial
        plan = trial.plan
        if not self.is_exact:  # right in proportion, wrong in bytes
            plan = replace(plan, segments=tuple(replace(segment, peak_bytes=0) for segment in plan.segments))
        return SerialisedPlan(
            plan=plan,
            edges=trial.edges,
            makespan_before_ns=before.makespan_ns,
            makespan_ns=trial.makespan_ns,
            sequential_bytes=trial.own_bytes + self.largest,
            before_bytes=before.peak_bytes,
            peak_bytes=trial.peak_bytes,
        )


def _nominal_dims(graph: OpGraph, symbols: Sequence[str]) -> dict[str, int]:
    """A value for each dimension that sizes depend on (see `MemoryModel.symbols`)."""
    leading = set()
    for info in (*graph.inputs, *graph.overridable, *graph.tensors.values()):
        if info.shape is not None and len(info.shape) > 1 and not isinstance(info.shape[0], int):
            leading.add(info.shape[0] or f"?{info.name}:0")
    return {symbol: 1 if symbol in leading else _NOMINAL_DIM for symbol in symbols}


def _with_edges(
    plan: Plan, edges: Sequence[tuple[int, int]], *, order: Sequence[int] | None = None
) -> tuple[Plan, tuple[tuple[int, int], ...]]:
    """The plan with more predecessors, and why; with ``order``, renumbered."""
    order = range(len(plan.segments)) if order is None else order
    index_of = {segment: index for index, segment in enumerate(order)}
    added: dict[int, list[int]] = {}
    for before, after in edges:
        added.setdefault(after, []).append(before)
    segments = []
    for index, old in enumerate(order):
        segment = plan.segments[old]
        waits = sorted(index_of[other] for other in added.get(old, ()))
        reason = segment.reason
        if waits:
            reason += f"; waits for {', '.join(map(_name, waits))} to save memory"
        segments.append(
            replace(
                segment,
                index=index,
                name=segment.name if index == old else _name(index),
                predecessors=tuple(sorted((*(index_of[other] for other in segment.predecessors), *waits))),
                reason=reason,
            )
        )
    renumbered = tuple((index_of[before], index_of[after]) for before, after in edges)
    return replace(plan, segments=tuple(segments)), renumbered


def _name(index: int) -> str:
    return f"segment_{index}"


def simulate_plan(
    plan: Plan,
    *,
    handover_ns: int = 0,
    segment_overhead_ns: int = 0,
    contention: float = 1.0,
    budget_bytes: int | None = None,
    cost_ns: Sequence[int] | None = None,
) -> SimulatedRun:
    """Run a plan on a virtual clock: `simulate` of its segments as they stand.

    Args:
        cost_ns: duration of each segment in place of the plan's own.
    """
    tasks = [
        Task(
            index=segment.index,
            predecessors=segment.predecessors,
            cost_ns=((1, segment.cost_ns),),
            peak_bytes=segment.peak_bytes,
        )
        for segment in plan.segments
    ]
    schedule = Schedule(
        policy=plan.policy,
        cores=plan.cores,
        lanes=plan.lanes,
        assignments=tuple(
            Assignment(segment=segment.index, width=segment.width, priority=segment.priority, lane=segment.lane)
            for segment in plan.segments
        ),
        backfill=plan.backfill,
    )
    return simulate(
        tasks,
        schedule,
        handover_ns=handover_ns,
        segment_overhead_ns=segment_overhead_ns,
        contention=contention,
        budget_bytes=budget_bytes,
        cost_ns=[segment.cost_ns for segment in plan.segments] if cost_ns is None else cost_ns,
    )
