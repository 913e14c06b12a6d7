"""What one run of a session needs while it goes on: estimated from sizes of tensors, per shapes of the inputs.

The caller's inputs are the caller's; weights are counted apart. What the runtime takes beyond its tensors, and
does not give back until it is trimmed, is a small amount per session (`RUNTIME_BYTES`) and segment (`SEGMENT_BYTES`),
and the margin of budgets.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from parallax.errors import ConfigError, ModelError
from parallax.graph import OpGraph, TensorInfo, size_expression
from parallax.memory import Effort, MemoryOutline, PeakTable, input_symbols, peak_of_schedule
from parallax.model import Model
from parallax.schedule import Plan

RUNTIME_BYTES: Final = 2 << 20
"""Of one session: the first block of the runtime's arena and buffers of its threads."""

SEGMENT_BYTES: Final = 16 << 10
"""Of each segment: what the runtime and the bindings keep for its next call."""

FRAGMENTED: Final = 8
"""One in so many bytes is what the runtime's allocator takes beyond those that segments hold inside: small tensors
settle in blocks that large ones left, which then need another."""

SIGNATURES: Final = 64
"""Shapes of inputs whose needs are remembered."""

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunNeed:
    """What one run holds at once, in bytes."""

    fixed_bytes: int
    """All along: the arena of tensors between segments, and outputs."""
    peaks: tuple[int, ...]
    """Per segment, what it adds to that while it runs."""
    wanted_bytes: int
    """At most, with as much running at once as the plan allows."""
    is_known: bool = True
    """False: sizes of some tensors are not known beforehand, so that this is but what is known."""

    @property
    def least_bytes(self) -> int:
        """With one segment at a time."""
        return self.fixed_bytes + max(self.peaks, default=0)


UNKNOWN_NEED: Final = RunNeed(fixed_bytes=0, peaks=(), wanted_bytes=0, is_known=False)


class Estimator:
    """Needs per shapes of the inputs; the least recently asked for are forgotten. Thread-safe.

    Args:
        plan: what is estimated.
        inputs: types of the model's inputs; only those shapes count that they leave open.
        estimate: the need for these shapes of inputs.
    """

    def __init__(self, plan: Plan, inputs: Sequence[TensorInfo], estimate: Callable[[Shapes], RunNeed]) -> None:
        self.plan = plan
        self._open = tuple(info.name for info in inputs if not info.is_static)
        self._estimate = estimate
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[tuple[int, ...] | None, ...], RunNeed] = OrderedDict()

    @property
    def open_inputs(self) -> tuple[str, ...]:
        """Inputs on whose shapes a need depends."""
        return self._open

    def need(self, shapes: Shapes) -> RunNeed:
        """Of a run with inputs of these shapes. Microseconds for shapes seen before, milliseconds for new ones."""
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


def estimate_model(model: Model, plan: Plan, *, planned: Shapes | None = None) -> Estimator:
    """For a plan whose model is at hand.

    Args:
        model: without ``planned`` shapes.
        planned: shapes to take where a run's are not known (before the first run).
    """
    graph = model.graph

    def estimate(shapes: Shapes) -> RunNeed:
        chosen = {**(planned or {}), **shapes}
        open_names = {info.name for info in (*graph.inputs, *graph.overridable) if not info.is_static}
        fixed = {name: tuple(shape) for name, shape in chosen.items() if name in open_names}
        try:
            # With concrete shapes, so that what inference cannot follow symbolically has a size as well.
            shaped = model.with_shapes(fixed) if fixed else model
        except (ConfigError, ModelError):
            return UNKNOWN_NEED  # shapes that the model does not take: the run says so in its own words
        return estimate_graph(shaped.inferred(), plan)

    return Estimator(plan, (*graph.inputs, *graph.overridable), estimate)


def estimate_graph(graph: OpGraph, plan: Plan) -> RunNeed:
    """For the shapes that the graph is inferred with; dimensions that are open count as unknown."""
    if plan.is_uncut:
        # Bodies and dead nodes included: an uncut session holds the model as it came.
        (peak,) = PeakTable(graph, [range(len(graph.nodes))]).bind({})
        fed, fed_known = _read_inputs(graph)
        inside = _allocated(max(0, peak.total_bytes - fed))
        return RunNeed(
            fixed_bytes=0,
            peaks=(inside,),
            wanted_bytes=inside,
            is_known=fed_known and not peak.unknown_tensors,
        )
    # As the executor plans while a run waits: what it reserves is what is counted.
    memory = MemoryOutline(plan, graph, place_outputs=False).plan({}, effort=Effort.QUICK)
    outputs = [_size(info, graph) for info in (graph.tensors.get(name) for name in graph.output_names)]
    return cut_need(
        plan,
        arena_bytes=memory.arena.arena_bytes,
        output_bytes=sum(size or 0 for size in outputs),
        peaks=[_allocated(peak.interior_bytes) for peak in memory.peaks],
        is_known=not memory.arena.dynamic
        and None not in outputs
        and not any(peak.unknown_tensors for peak in memory.peaks),
    )


def cut_need(plan: Plan, *, arena_bytes: int, output_bytes: int, peaks: Sequence[int], is_known: bool) -> RunNeed:
    """From the parts of a cut plan's memory."""
    fixed = arena_bytes + output_bytes
    return RunNeed(
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


def dispatcher_budget(plan: Plan, need: RunNeed, granted_bytes: int) -> int | None:
    """What segments may hold inside at the same time in a run that was granted so much, in terms of the plan's own
    peaks, which are those of the shapes it was planned for.

    The dispatcher adds up the plan's peaks; what a run of other shapes holds is at most so many times that as the
    segment holds that grew most. Where needs are not known, one segment at a time: 0. None: no limit.
    """
    if not need.is_known:
        return 0
    if granted_bytes >= need.wanted_bytes:
        return None
    running_bytes = max(0, granted_bytes - need.fixed_bytes)
    pairs = zip(plan.segments, need.peaks, strict=True)
    return min((running_bytes * segment.peak_bytes // peak for segment, peak in pairs if peak), default=None)


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
