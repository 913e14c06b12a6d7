"""Candidate partitions: the fusion groups of a graph grouped into segments, and the simple ways to do it.

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
    from parallax.partition._fusion_groups import FusionGroups


class Cause(enum.Enum):
    """Why a set of fusion groups is a segment."""

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

    groups: tuple[int, ...]
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
    """A graph cut into segments: each group in exactly one, indices a topological order, so each convex."""

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
    groups: FusionGroups,
    segments: Sequence[DraftSegment],
    *,
    label: str,
    lanes: int,
    predicted_ns: int | None = None,
    whole_ns: int | None = None,
    decisions: tuple[LayerDecision, ...] = (),
) -> Partition:
    """Join segments, given in a topological order, to a partition. O(V + E).

    Raises: InternalError if they are not in a topological order or do not cover the groups once.
    """
    segment_of = [-1] * len(groups)
    for index, segment in enumerate(segments):
        for group in segment.groups:
            if segment_of[group] >= 0:
                raise InternalError(f"group {group} is in segments {segment_of[group]} and {index} of '{label}'")
            segment_of[group] = index
    if -1 in segment_of:
        raise InternalError(f"group {segment_of.index(-1)} is in no segment of '{label}'")
    return Partition(
        label=label,
        segments=tuple(segments),
        dag=groups.dag.quotient(segment_of, len(segments)),
        lanes=lanes,
        predicted_ns=predicted_ns,
        whole_ns=whole_ns,
        decisions=decisions,
    )


def in_one_segment(groups: FusionGroups, *, width: int = 1, cost_wide: Sequence[int] | None = None) -> Partition:
    """Everything in one segment: the baseline. With the groups' costs (ns) at that width, its time is their sum."""
    total = None if cost_wide is None else sum(cost_wide)
    segments = (
        [
            DraftSegment(
                groups=tuple(range(len(groups))),
                width=width,
                cause=Cause.WHOLE,
                start_ns=None if total is None else 0,
                end_ns=total,
            )
        ]
        if len(groups)
        else []
    )
    return assemble(groups, segments, label="whole model", lanes=1, predicted_ns=total, whole_ns=total)


def every_group(groups: FusionGroups, *, max_segments: int | None = None, lanes: int = 1) -> Partition:
    """The finest cut: each group a segment. With a limit, runs of consecutive groups of nearly equal length.

    A run of a topological order only has edges to later runs, so the limit needs no further check.
    """
    count = len(groups) if max_segments is None else min(max_segments, len(groups))
    if count < 1 and len(groups):
        raise ConfigError(f"max_segments is {max_segments}", fix="allow at least one segment")
    bounds = [index * len(groups) // count for index in range(count + 1)] if count else [0]
    segments = [
        DraftSegment(groups=tuple(range(low, high)), width=1, cause=Cause.FORCED)
        for low, high in itertools.pairwise(bounds)
    ]
    label = "every group" if max_segments is None else f"every group, at most {max_segments} segments"
    return assemble(groups, segments, label=label, lanes=lanes)


def by_branches(groups: FusionGroups, *, lanes: int = 1) -> Partition:
    """Each branch a segment, whatever it costs: a forced cut along the paper's branches."""
    found = find_branches(groups.dag, control_flow=groups.control_flow)
    segments = [DraftSegment(groups=branch.nodes, width=1, cause=Cause.FORCED) for branch in found.branches]
    return assemble(groups, segments, label="every branch", lanes=lanes)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCosts:
    """What each group costs: ns on one lane and on all cores, FLOPs. Indexed by group."""

    narrow_ns: tuple[int, ...]
    wide_ns: tuple[int, ...]
    flops: tuple[int, ...]
    narrow_width: int = 1
    wide_width: int = 1
    """Threads of a lane, and of the whole machine."""


def load_layers(
    groups: FusionGroups, found: BranchGraph, costs: GroupCosts, *, regions: frozenset[int] = frozenset()
) -> tuple[tuple[BranchLoad, ...], ...]:
    """For each layer what a refinement rule may know of its branches. ``regions`` are groups that are one. O(V)."""
    return tuple(
        tuple(_load(groups, found.branches[branch], costs, regions) for branch in layer) for layer in found.layers
    )


def _load(groups: FusionGroups, branch: Branch, costs: GroupCosts, regions: frozenset[int]) -> BranchLoad:
    members = branch.nodes
    replicated = groups.replicated
    nodes = sum(len(groups.members[group]) for group in members)
    if replicated:
        nodes -= sum(node in replicated for group in members for node in groups.members[group])
    return BranchLoad(
        branch=branch.index,
        nodes=nodes,
        flops=sum([costs.flops[group] for group in members]),
        narrow_ns=sum([costs.narrow_ns[group] for group in members]),
        wide_ns=sum([costs.wide_ns[group] for group in members]),
        is_region=members[0] in regions,
    )


def by_layers(
    groups: FusionGroups,
    costs: GroupCosts,
    rule: RefinementRule,
    *,
    label: str,
    lanes: int,
    branches: BranchGraph | None = None,
) -> Partition:
    """The branches a rule chooses become segments, everything else as few serial segments as possible. O(V + E).

    Each group has a *stage*: the most runs of serial groups on a path to it, its own run included. Serial
    groups of one stage are one segment. Fewer are impossible, for the runs along one path are kept apart by
    the branches between them; and none of it makes a cycle, for an edge never leads to a lower stage, and
    within a stage only from serial groups to branches and among branches.

    ``branches`` are those of the graph of fusion groups, for callers that try several rules.
    """
    found = find_branches(groups.dag, control_flow=groups.control_flow) if branches is None else branches
    none: frozenset[int] = frozenset()
    decisions = tuple(
        rule.decide(index, [_load(groups, found.branches[branch], costs, none) for branch in layer])
        for index, layer in enumerate(found.layers)
        if len(layer) > 1
    )
    chosen = [False] * len(found.branches)
    for decision in decisions:
        for index in decision.parallel:
            chosen[index] = True
    if not any(chosen):
        whole = in_one_segment(groups, width=costs.wide_width, cost_wide=costs.wide_ns)
        return dataclasses.replace(whole, label=label, lanes=lanes, decisions=decisions)

    stage = [0] * len(groups)
    serial: dict[int, list[int]] = {}
    is_chosen = [chosen[branch] for branch in found.branch_of]
    for group, preds in enumerate(groups.dag.predecessors):
        level = 0 if is_chosen[group] else 1
        for pred in preds:
            level = max(level, stage[pred] + (is_chosen[pred] and not is_chosen[group]))
        stage[group] = level
        if not is_chosen[group]:
            serial.setdefault(level, []).append(group)
    drafts: list[tuple[tuple[int, int, int], DraftSegment]] = []
    for level, members in serial.items():
        segment = DraftSegment(groups=tuple(members), width=costs.wide_width, cause=Cause.SERIAL)
        drafts.append(((level, 0, 0), segment))
    for branch in found.branches:
        if chosen[branch.index]:
            segment = DraftSegment(groups=branch.nodes, width=costs.narrow_width, cause=Cause.BRANCH)
            drafts.append(((stage[branch.nodes[0]], 1, branch.index), segment))
    drafts.sort(key=lambda draft: draft[0])
    return assemble(
        groups,
        [segment for _, segment in drafts],
        label=label,
        lanes=lanes,
        whole_ns=sum(costs.wide_ns),
        decisions=decisions,
    )


def find_boundaries(graph: OpGraph, groups: FusionGroups, partition: Partition) -> tuple[Boundary, ...]:
    """The nodes and boundary tensors of each segment, as an engine needs them. O(V + E)."""
    nodes = [groups.nodes_of(segment.groups) for segment in partition.segments]
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


def verify_partition(groups: FusionGroups, segments: Partition | Iterable[Sequence[int]]) -> None:
    """Judge of a partition, from the graph of fusion groups alone. O(V + E).

    Each group must be in exactly one segment, and no edge may lead to an earlier segment. That makes the
    segment graph acyclic and its indices a topological order; and a path that left a segment and came
    back would need an edge to an earlier one, so each segment is convex.

    Raises: InternalError naming the group, edge or segment at fault.
    """
    parts = [tuple(segment.groups) for segment in segments.segments] if isinstance(segments, Partition) else segments
    home: dict[int, int] = {}
    count = 0
    for index, members in enumerate(parts):
        count += 1
        if not members:
            raise InternalError(f"segment {index} is empty")
        if list(members) != sorted(members):
            raise InternalError(f"segment {index} is not in ascending order: {members}")
        for group in members:
            if group in home:
                raise InternalError(f"group {group} is in segments {home[group]} and {index}")
            home[group] = index
    if set(home) != set(range(len(groups.members))):
        strays = sorted(set(home) ^ set(range(len(groups.members))))
        raise InternalError(f"groups missing from the segments, or unknown ones in them: {strays[:5]}")
    edges: set[tuple[int, int]] = set()
    for head, preds in enumerate(groups.dag.predecessors):
        for tail in preds:
            if home[tail] > home[head]:
                raise InternalError(f"edge {tail} -> {head} leads back, from segment {home[tail]} to {home[head]}")
            if home[tail] < home[head]:
                edges.add((home[tail], home[head]))
    if not isinstance(segments, Partition):
        return
    stated = {(tail, head) for head, preds in enumerate(segments.dag.predecessors) for tail in preds}
    if edges != stated or len(segments.dag) != count:
        raise InternalError(f"segment edges differ from those between fusion groups: {sorted(edges ^ stated)[:3]}")
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
