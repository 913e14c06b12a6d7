"""Candidate partitions: the units of a graph grouped into segments, and the simple ways to do it.

A partition is a proposal. It says what to cut, how wide each piece would run and why; which proposal
becomes the plan is decided by simulation and measurement elsewhere.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from parallax.errors import ConfigError, InternalError
from parallax.graph import Dag, OpGraph
from parallax.partition._branches import Branch, BranchGraph, find_branches
from parallax.partition._refine import BranchLoad, LayerDecision, RefinementRule

if TYPE_CHECKING:
    from parallax.partition._units import UnitGraph


class Cause(enum.Enum):
    """Why a group of units is a segment."""

    WHOLE = "the whole model: no split was asked for or promised a gain"
    SERIAL = "runs by itself on all cores: nothing beside it promised a gain"
    PARALLEL = "runs beside others on its own lane: faster than one after the other"
    ALONE = "part of a parallel section during which nothing else runs: all cores"
    BRANCH = "a branch its layer's rule chose to run beside the others"
    WEIGHT = "split so that its weights can be read while the one before it runs"
    MEMORY = "a slice of the rows, computed by itself so that a run holds less at once"
    DEVICE = "a region that an accelerator runs in one launch"
    BESIDE = "the processor's part of a model that it shares with an accelerator"
    FORCED = "split regardless of cost"


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftSegment:
    """A proposed segment. Durations in ns; a figure nobody predicted is None."""

    units: tuple[int, ...]
    """Ascending, never empty."""
    width: int
    """Threads it would use."""
    cause: Cause
    lane: int | None = None
    start_ns: int | None = None
    end_ns: int | None = None
    """Its place in the predicted timeline of a run, from 0."""
    serial_ns: int | None = None
    parallel_ns: int | None = None
    """The two times compared when it was cut, both for the whole section of the graph that was decided at once:
    one after the other on all cores, and side by side."""

    @property
    def reason(self) -> str:
        """The cause with the figures compared, for people."""
        if self.serial_ns is None or self.parallel_ns is None:
            return self.cause.value
        return (
            f"{self.cause.value} ({self.parallel_ns / 1e3:.1f} us side by side, {self.serial_ns / 1e3:.1f} us serially)"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A graph cut into segments: each unit in exactly one, indices a topological order, so each convex."""

    label: str
    """Names the candidate for people, parameters included."""
    segments: tuple[DraftSegment, ...]
    dag: Dag
    """Edges between segments."""
    lanes: int
    """Lanes it was made for."""
    predicted_ns: int | None = None
    """The end of the predicted timeline."""
    whole_ns: int | None = None
    """The predicted time of the whole graph, for comparison."""
    decisions: tuple[LayerDecision, ...] = ()
    """Where it was cut by layers, the rule's answer for each layer."""

    @property
    def is_whole(self) -> bool:
        """Whether there is nothing to schedule: at most one segment."""
        return len(self.segments) <= 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """The nodes of a segment and the tensors that cross it."""

    nodes: tuple[int, ...]
    """Ascending; a replicated constant is in every segment that reads it."""
    inputs: tuple[str, ...]
    """Tensors of other segments, inputs of the model and overridable initializers it reads, in order of first use."""
    outputs: tuple[str, ...]
    """Tensors that other segments read or the model returns, in order of production."""


def assemble(
    units: UnitGraph,
    segments: Sequence[DraftSegment],
    *,
    label: str,
    lanes: int,
    predicted_ns: int | None = None,
    whole_ns: int | None = None,
    decisions: tuple[LayerDecision, ...] = (),
) -> Partition:
    """Join segments, given in a topological order, to a partition. O(V + E).

    Raises: InternalError if they are not in a topological order or do not cover the units once.
    """
    segment_of = [-1] * len(units)
    for index, segment in enumerate(segments):
        for unit in segment.units:
            if segment_of[unit] >= 0:
                raise InternalError(f"unit {unit} is in segments {segment_of[unit]} and {index} of '{label}'")
            segment_of[unit] = index
    if -1 in segment_of:
        raise InternalError(f"unit {segment_of.index(-1)} is in no segment of '{label}'")
    return Partition(
        label=label,
        segments=tuple(segments),
        dag=units.dag.quotient(segment_of, len(segments)),
        lanes=lanes,
        predicted_ns=predicted_ns,
        whole_ns=whole_ns,
        decisions=decisions,
    )


def in_one_segment(units: UnitGraph, *, width: int = 1, cost_wide: Sequence[int] | None = None) -> Partition:
    """Everything in one segment: the baseline. With unit costs (ns) at that width, its time is their sum."""
    total = None if cost_wide is None else sum(cost_wide)
    segments = (
        [
            DraftSegment(
                units=tuple(range(len(units))),
                width=width,
                cause=Cause.WHOLE,
                start_ns=None if total is None else 0,
                end_ns=total,
            )
        ]
        if len(units)
        else []
    )
    return assemble(units, segments, label="whole model", lanes=1, predicted_ns=total, whole_ns=total)


def every_unit(units: UnitGraph, *, max_segments: int | None = None, lanes: int = 1) -> Partition:
    """The finest cut: each unit a segment. With a limit, runs of consecutive units of nearly equal length.

    A run of a topological order only has edges to later runs, so the limit needs no further check.
    """
    count = len(units) if max_segments is None else min(max_segments, len(units))
    if count < 1 and len(units):
        raise ConfigError(f"max_segments is {max_segments}", fix="allow at least one segment")
    bounds = [index * len(units) // count for index in range(count + 1)] if count else [0]
    segments = [
        DraftSegment(units=tuple(range(low, high)), width=1, cause=Cause.FORCED)
        for low, high in itertools.pairwise(bounds)
    ]
    label = "every unit" if max_segments is None else f"every unit, at most {max_segments} segments"
    return assemble(units, segments, label=label, lanes=lanes)


def by_branches(units: UnitGraph, *, lanes: int = 1) -> Partition:
    """Each branch a segment, whatever it costs: a forced cut along the paper's branches."""
    found = find_branches(units.dag, control_flow=units.control_flow)
    segments = [DraftSegment(units=branch.nodes, width=1, cause=Cause.FORCED) for branch in found.branches]
    return assemble(units, segments, label="every branch", lanes=lanes)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCosts:
    """What each unit costs: ns on one lane and on all cores, FLOPs. Indexed by unit."""

    narrow_ns: tuple[int, ...]
    wide_ns: tuple[int, ...]
    flops: tuple[int, ...]
    narrow_width: int = 1
    wide_width: int = 1
    """Threads of a lane, and of the whole machine."""


def load_layers(
    units: UnitGraph, found: BranchGraph, costs: UnitCosts, *, regions: frozenset[int] = frozenset()
) -> tuple[tuple[BranchLoad, ...], ...]:
    """For each layer what a refinement rule may know of its branches. ``regions`` are units that are one. O(V)."""
    return tuple(
        tuple(_load(units, found.branches[branch], costs, regions) for branch in layer) for layer in found.layers
    )


def _load(units: UnitGraph, branch: Branch, costs: UnitCosts, regions: frozenset[int]) -> BranchLoad:
    members = branch.nodes
    replicated = units.replicated
    nodes = sum(len(units.units[unit]) for unit in members)
    if replicated:
        nodes -= sum(node in replicated for unit in members for node in units.units[unit])
    return BranchLoad(
        branch=branch.index,
        nodes=nodes,
        flops=sum([costs.flops[unit] for unit in members]),
        narrow_ns=sum([costs.narrow_ns[unit] for unit in members]),
        wide_ns=sum([costs.wide_ns[unit] for unit in members]),
        is_region=members[0] in regions,
    )


def by_layers(
    units: UnitGraph,
    costs: UnitCosts,
    rule: RefinementRule,
    *,
    label: str,
    lanes: int,
    branches: BranchGraph | None = None,
) -> Partition:
    """The branches a rule chooses become segments, everything else as few serial segments as possible. O(V + E).

    Each unit has a *stage*: the most runs of serial units on a path to it, its own run included. Serial
    units of one stage are one segment. Fewer are impossible, for the runs along one path are kept apart by
    the branches between them; and none of it makes a cycle, for an edge never leads to a lower stage, and
    within a stage only from serial units to branches and among branches.

    ``branches`` are those of the unit graph, for callers that try several rules.
    """
    found = find_branches(units.dag, control_flow=units.control_flow) if branches is None else branches
    none: frozenset[int] = frozenset()
    decisions = tuple(
        rule.decide(index, [_load(units, found.branches[branch], costs, none) for branch in layer])
        for index, layer in enumerate(found.layers)
        if len(layer) > 1
    )
    chosen = [False] * len(found.branches)
    for decision in decisions:
        for index in decision.parallel:
            chosen[index] = True
    if not any(chosen):
        whole = in_one_segment(units, width=costs.wide_width, cost_wide=costs.wide_ns)
        return dataclasses.replace(whole, label=label, lanes=lanes, decisions=decisions)

    stage = [0] * len(units)
    serial: dict[int, list[int]] = {}
    is_chosen = [chosen[branch] for branch in found.branch_of]
    for unit, preds in enumerate(units.dag.predecessors):
        level = 0 if is_chosen[unit] else 1
        for pred in preds:
            level = max(level, stage[pred] + (is_chosen[pred] and not is_chosen[unit]))
        stage[unit] = level
        if not is_chosen[unit]:
            serial.setdefault(level, []).append(unit)
    drafts: list[tuple[tuple[int, int, int], DraftSegment]] = []
    for level, members in serial.items():
        segment = DraftSegment(units=tuple(members), width=costs.wide_width, cause=Cause.SERIAL)
        drafts.append(((level, 0, 0), segment))
    for branch in found.branches:
        if chosen[branch.index]:
            segment = DraftSegment(units=branch.nodes, width=costs.narrow_width, cause=Cause.BRANCH)
            drafts.append(((stage[branch.nodes[0]], 1, branch.index), segment))
    drafts.sort(key=lambda draft: draft[0])
    return assemble(
        units,
        [segment for _, segment in drafts],
        label=label,
        lanes=lanes,
        whole_ns=sum(costs.wide_ns),
        decisions=decisions,
    )


def find_boundaries(graph: OpGraph, units: UnitGraph, partition: Partition) -> tuple[Boundary, ...]:
    """The nodes and boundary tensors of each segment, as an engine needs them. O(V + E)."""
    nodes = [units.nodes_of(segment.units) for segment in partition.segments]
    homes: list[set[int]] = [set() for _ in graph.nodes]
    for segment, members in enumerate(nodes):
        for index in members:
            homes[index].add(segment)
    overridable = {info.name for info in graph.overridable}
    inputs: list[dict[str, None]] = [{} for _ in nodes]
    crossing = set(graph.output_names)
    for segment, members in enumerate(nodes):
        for index in members:
            node = graph.nodes[index]
            for name in (*node.inputs, *node.captures):
                producer = graph.producers.get(name)
                if producer is None:
                    if name and (name in overridable or name not in graph.initializers):
                        inputs[segment][name] = None
                elif segment not in homes[producer]:
                    inputs[segment][name] = None
                    crossing.add(name)
    return tuple(
        Boundary(
            nodes=members,
            inputs=tuple(inputs[segment]),
            outputs=tuple(name for index in members for name in graph.nodes[index].outputs if name in crossing),
        )
        for segment, members in enumerate(nodes)
    )


def verify_partition(units: UnitGraph, segments: Partition | Iterable[Sequence[int]]) -> None:
    """Judge of a partition, from the unit graph alone. O(V + E).

    Each unit must be in exactly one segment, and no edge may lead to an earlier segment. That makes the
    segment graph acyclic and its indices a topological order; and a path that left a segment and came
    back would need an edge to an earlier one, so each segment is convex.

    Raises: InternalError naming the unit, edge or segment at fault.
    """
    groups = [tuple(segment.units) for segment in segments.segments] if isinstance(segments, Partition) else segments
    home: dict[int, int] = {}
    count = 0
    for index, members in enumerate(groups):
        count += 1
        if not members:
            raise InternalError(f"segment {index} is empty")
        if list(members) != sorted(members):
            raise InternalError(f"segment {index} is not in ascending order: {members}")
        for unit in members:
            if unit in home:
                raise InternalError(f"unit {unit} is in segments {home[unit]} and {index}")
            home[unit] = index
    if set(home) != set(range(len(units.units))):
        strays = sorted(set(home) ^ set(range(len(units.units))))
        raise InternalError(f"units missing from the segments, or unknown ones in them: {strays[:5]}")
    edges: set[tuple[int, int]] = set()
    for head, preds in enumerate(units.dag.predecessors):
        for tail in preds:
            if home[tail] > home[head]:
                raise InternalError(f"edge {tail} -> {head} leads back, from segment {home[tail]} to {home[head]}")
            if home[tail] < home[head]:
                edges.add((home[tail], home[head]))
    if not isinstance(segments, Partition):
        return
    stated = {(tail, head) for head, preds in enumerate(segments.dag.predecessors) for tail in preds}
    if edges != stated or len(segments.dag) != count:
        raise InternalError(f"segment edges differ from the unit graph's: {sorted(edges ^ stated)[:3]}")
    for index, segment in enumerate(segments.segments):
        if segment.width < 1 or (segment.lane is not None and not 0 <= segment.lane < segments.lanes):
            raise InternalError(f"segment {index} has width {segment.width} on lane {segment.lane} of {segments.lanes}")
        if (segment.start_ns is None) != (segment.end_ns is None):
            raise InternalError(f"segment {index} has a start or an end but not both")
        if segment.start_ns is None or segment.end_ns is None:
            continue
        if not 0 <= segment.start_ns <= segment.end_ns:
            raise InternalError(f"segment {index} runs from {segment.start_ns} to {segment.end_ns} ns")
        for pred in segments.dag.predecessors[index]:
            done = segments.segments[pred].end_ns
            if done is not None and done > segment.start_ns:
                raise InternalError(f"segment {index} starts before segment {pred}, which it needs, is done")
