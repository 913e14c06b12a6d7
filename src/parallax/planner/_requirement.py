"""What a plan needs of memory: estimated from sizes of tensors, per shapes of the inputs.

The caller's inputs are the caller's; weights are counted apart. What the runtime takes beyond its tensors, and
does not give back until it is trimmed, is a small amount per session and segment (see `parallax.memory.Budget`), and
the margin of budgets.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from parallax.errors import ConfigError, ModelError
from parallax.graph import OpGraph, TensorInfo, size_expression
from parallax.memory import Effort, MemoryModel, MemoryRequirement, PeakTable, input_symbols, peak_of_schedule
from parallax.model import Model
from parallax.planner._rows import planned_model
from parallax.planner._whole import whole_plan
from parallax.schedule import Plan

FRAGMENTED: Final = 8
"""One in so many bytes is what the runtime's allocator takes beyond those that segments hold inside: small tensors
settle in blocks that large ones left, which then need another."""

SIGNATURES: Final = 64
"""Shapes of inputs for which requirements are remembered."""

Shapes = Mapping[str, Sequence[int]]
"""By name of an input."""


class RequirementEstimator:
    """What runs hold, per shapes of the inputs; the least recently asked for are forgotten. Thread-safe.

    Args:
        plan: what is estimated.
        inputs: types of the model's inputs; only those shapes count that they leave open.
        estimate: returns the requirement for these shapes of inputs.
        known: that for no shapes, where it was estimated before.
    """

    def __init__(
        self,
        plan: Plan,
        inputs: Sequence[TensorInfo],
        estimate: Callable[[Shapes], MemoryRequirement],
        *,
        known: MemoryRequirement | None = None,
    ) -> None:
        self.plan = plan
        self._open = tuple(info.name for info in inputs if not info.is_static)
        self._estimate = estimate
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[tuple[int, ...] | None, ...], MemoryRequirement] = OrderedDict()
        if known is not None:
            self._known[(None,) * len(self._open)] = known

    @property
    def open_inputs(self) -> tuple[str, ...]:
        """Inputs on whose shapes a requirement depends."""
        return self._open

    def requirement(self, shapes: Shapes) -> MemoryRequirement:
        """Return what a run holds whose inputs have these shapes.

        Takes microseconds for shapes seen before, milliseconds for new ones.
        """
        key = tuple([tuple(shapes[name]) if name in shapes else None for name in self._open])
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
                return found
            found = self._known[key] = self._estimate({name: shapes[name] for name in self._open if name in shapes})
            if len(self._known) > SIGNATURES:
                self._known.popitem(last=False)
            return found


def estimate_model(
    model: Model, plan: Plan, *, planned: Shapes | None = None, known: MemoryRequirement | None = None
) -> RequirementEstimator:
    """Return an estimator for a plan whose model is at hand.

    Args:
        model: without ``planned`` shapes, and not rewritten.
        planned: shapes to take where a run's are not known (before the first run).
        known: what a run in these takes, where that was estimated before.
    """
    graph = model.graph
    own = {**plan.own_shapes, **(planned or {})}

    def estimate(shapes: Shapes) -> MemoryRequirement:
        chosen = {**(planned or {}), **shapes}
        open_names = {info.name for info in (*graph.inputs, *graph.overridable) if not info.is_static}
        fixed = {name: tuple(shape) for name, shape in chosen.items() if name in open_names}
        try:
            # With concrete shapes, so that what inference cannot follow symbolically has a size as well.
            shaped = model.with_shapes(fixed) if fixed else model
        except (ConfigError, ModelError):
            return MemoryRequirement.UNKNOWN  # shapes that the model does not take: the run says so in its own words
        if plan.is_rewritten and any(
            tuple(shapes[name]) != tuple(own.get(name, ())) for name in open_names & shapes.keys()
        ):
            # What is rewritten is made for one shape; others run whole, or in a form of their own.
            return estimate_graph(shaped.inferred(), whole_plan(shaped, "other shapes", cores=plan.cores))
        return estimate_graph(planned_model(shaped, plan).inferred(), plan)

    return RequirementEstimator(plan, (*graph.inputs, *graph.overridable), estimate, known=known)


def estimate_graph(graph: OpGraph, plan: Plan) -> MemoryRequirement:
    """Return what a run holds in the shapes that the graph is inferred with; open dimensions count as unknown."""
    if plan.is_whole:
        # Bodies and dead nodes included: a session of the whole model holds it as it came.
        (peak,) = PeakTable(graph, [range(len(graph.nodes))]).bind({})
        fed, fed_known = _read_inputs(graph)
        inside = _allocated(max(0, peak.total_bytes - fed))
        return MemoryRequirement(
            fixed_bytes=0,
            peaks=(inside,),
            wanted_bytes=inside,
            is_known=fed_known and not peak.unknown_tensors,
        )
    # As the executor plans while a run waits: what it reserves is what is counted.
    memory = MemoryModel(plan, graph, place_outputs=False).plan({}, effort=Effort.QUICK)
    outputs = _output_sizes(graph)
    return split_requirement(
        plan,
        arena_bytes=memory.arena.arena_bytes,
        output_bytes=sum(size or 0 for size in outputs),
        peaks=[_allocated(peak.interior_bytes) for peak in memory.peaks],
        is_known=not memory.arena.dynamic
        and None not in outputs
        and not any(peak.unknown_tensors for peak in memory.peaks),
    )


def split_requirement(
    plan: Plan, *, arena_bytes: int, output_bytes: int, peaks: Sequence[int], is_known: bool
) -> MemoryRequirement:
    """Return what a run of a split plan holds, from the parts of its memory."""
    fixed = arena_bytes + output_bytes
    return MemoryRequirement(
        fixed_bytes=fixed,
        peaks=tuple(peaks),
        wanted_bytes=peak_of_schedule(plan, peaks, arena_bytes=fixed),
        is_known=is_known,
    )


def segment_peaks(graph: OpGraph, plan: Plan) -> tuple[int, ...] | None:
    """What each segment of a cut plan allocates inside, in bytes; None where a size is not known."""
    groups = [segment.nodes for segment in plan.segments]
    peaks = PeakTable(graph, groups, kept=[segment.outputs for segment in plan.segments]).bind({})
    if any(peak.unknown_tensors for peak in peaks):
        return None
    return tuple(_allocated(peak.interior_bytes) for peak in peaks)


def with_peaks(plan: Plan, peaks: Sequence[int]) -> Plan:
    """The plan with that for ``peak_bytes`` of its segments."""
    segments = tuple(replace(segment, peak_bytes=peak) for segment, peak in zip(plan.segments, peaks, strict=True))
    return replace(plan, segments=segments)


def inside_bytes(allocated_bytes: int) -> int:
    """The largest peak of tensors for which no more than ``allocated_bytes`` are allocated; not below 0."""
    return max(0, allocated_bytes * FRAGMENTED // (FRAGMENTED + 1))


def output_bytes(graph: OpGraph) -> int:
    """What a graph's outputs take, as far as it is known."""
    return sum(size or 0 for size in _output_sizes(graph))


def _output_sizes(graph: OpGraph) -> list[int | None]:
    return [_size(info, graph) for info in (graph.tensors.get(name) for name in graph.output_names)]


def _allocated(peak_bytes: int) -> int:
    return peak_bytes + peak_bytes // FRAGMENTED


def _read_inputs(graph: OpGraph) -> tuple[int, bool]:
    """Bytes of the inputs that nodes read, which a peak counts, and whether all are known."""
    read = {name for node in graph.nodes for name in (*node.inputs, *node.captures)}
    sizes = [_size(info, graph) for info in (*graph.inputs, *graph.overridable) if info.name in read]
    return sum(size or 0 for size in sizes), None not in sizes


def _size(info: TensorInfo | None, graph: OpGraph) -> int | None:
    expression = None if info is None else size_expression(info, symbols=input_symbols(graph))
    return None if expression is None else expression.bytes({})
