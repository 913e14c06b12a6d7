"""Candidate plans: cuts under both rules, several lane counts and widths, each scheduled and simulated.

Pure but for the model's own shape inference; what is measured afterwards is the tuner's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from parallax.graph import CostModel, OpGraph, node_flops, tensor_bytes
from parallax.model import Model
from parallax.partition import CostRule, FusionGroups, PaperRule, RefinementRule, find_branches, group_fusions
from parallax.partition.candidates import GroupCosts, Partition, by_lanes, by_layers, find_boundaries
from parallax.planner._zeros import WeightZeros
from parallax.profile import estimate_costs
from parallax.schedule import (
    CPU_BACKEND,
    PLAN_FORMAT_VERSION,
    AdaptivePolicy,
    Assignment,
    Plan,
    Provenance,
    Schedule,
    Segment,
    SerialisedPlan,
    Task,
    serialise_for_memory,
    simulate,
    simulate_plan,
)
from parallax.schedule.placement import Machine
from parallax.sparsity import ZeroWorth, priced_costs

# Measured by benchmarks/overhead.py on 2 cores; upper ends, since a plan that relies on less would be fragile.
SEGMENT_OVERHEAD_NS = 8_000
HANDOVER_NS = 15_000
# A boundary tensor leaves the caches and the runtime's blocked layouts, and comes back: per byte, on either side.
# Fitted to traced segments of NASNet (see benchmarks/simulation.py), whose convolutions all have blocked layouts.
CROSSING_NS_PER_BYTE = 0.03

# A segment of several threads finds its pool parked, for a spinning one would take the cores of other lanes.
WIDE_START_NS = 60_000


def host_machine(cores: int) -> Machine:
    """What placements beside a device are simulated on: this processor."""
    return Machine(
        cores=cores,
        handover_ns=HANDOVER_NS,
        segment_overhead_ns=SEGMENT_OVERHEAD_NS,
        wide_start_ns=WIDE_START_NS,
        crossing_ns_per_byte=CROSSING_NS_PER_BYTE,
    )


NO_PROVENANCE = Provenance(
    source="default", whole_ns=None, chosen_ns=None, candidates=(), runtime_version="", machine="", reason=""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A way to run the model: its cut, its schedule and what the simulator makes of it."""

    partition: Partition
    schedule: Schedule
    durations_ns: tuple[int, ...]
    """Predicted, per segment, at the width it was given."""
    simulated_ns: int


class PlanningContext:
    """What all candidate plans of one model on one machine share. Properties are computed on first use."""

    def __init__(
        self,
        model: Model,
        *,
        cores: int,
        costs: CostModel | None = None,
        fusion_safe: frozenset[str] | None = None,
        zero_worths: Mapping[str, ZeroWorth] | None = None,
    ) -> None:
        """``costs``: default from tables. ``fusion_safe``: default those of the costs; None allows every cut.
        ``zero_worths``: what backends were measured to make of zeros, by name; they change prices, but no costs that
        are given: measured ones are those of the model's own weights."""
        self.model = model
        self._fusion_safe = fusion_safe
        self.cores = cores
        self.zero_worths = zero_worths or {}
        self._measured = costs
        self._group_ns: dict[int, tuple[int, ...]] = {}
        self._crossing: dict[str, int] = {}
        self._plans: dict[int, tuple[Proposal, SerialisedPlan]] = {}

    @cached_property
    def graph(self) -> OpGraph:
        return self.model.inferred()

    @cached_property
    def costs(self) -> CostModel:
        if self._measured is not None:
            return self._measured
        return priced_costs(estimate_costs(self.graph, cores=self.cores), self.zero_factors(CPU_BACKEND))

    @cached_property
    def weight_zeros(self) -> WeightZeros:
        """Share of exact zeros per weight, counted when it is asked for."""
        return WeightZeros(self.model)

    def zero_factors(self, backend: str) -> tuple[float, ...] | None:
        """What a backend's price of each node is multiplied by for the zeros of its weights; None: nothing."""
        worth = self.zero_worths.get(backend)
        return None if worth is None else worth.node_factors(self.graph, self.weight_zeros)

    @property
    def known_fusion_safe(self) -> frozenset[str] | None:
        """Tensors at which the model may be cut without undoing a fusion; None where nobody asked."""
        return self.costs.fusion_safe if self._fusion_safe is None else self._fusion_safe

    @cached_property
    def groups(self) -> FusionGroups:
        return group_fusions(self.graph, fusion_safe=self.known_fusion_safe, may_cross=self.model.can_split_at)

    @cached_property
    def group_costs(self) -> GroupCosts:
        flops = [node_flops(self.graph, node) or 0 for node in self.graph.nodes]
        return GroupCosts(
            narrow_ns=self.group_ns(1),
            wide_ns=self.group_ns(self.cores),
            flops=self.groups.group_costs(flops),
            narrow_width=1,
            wide_width=self.cores,
        )

    def group_ns(self, width: int) -> tuple[int, ...]:
        """Cost of each group at ``width`` threads."""
        known = self._group_ns.get(width)
        if known is None:
            known = self._group_ns[width] = self.groups.group_costs(self.costs.node_ns(width))
        return known

    @cached_property
    def whole_ns(self) -> int:
        """Predicted latency of the whole model at its best width."""
        return min(sum(self.costs.node_ns(width)) for width in {1, self.cores})

    def propose(self, partition: Partition) -> Proposal:
        """Schedule a partition and predict its makespan, in the policy's order or in the one it was drafted in."""
        tasks = self.tasks(partition)
        # The partition has decided each segment's width; what is left to the policy are order and lanes.
        decided = {index: segment.width for index, segment in enumerate(partition.segments)}
        policy = AdaptivePolicy(widths=decided, handover_ns=HANDOVER_NS, segment_overhead_ns=SEGMENT_OVERHEAD_NS)
        proposals = [self._simulated(partition, tasks, policy.assign(tasks, cores=self.cores, lanes=partition.lanes))]
        if all(segment.start_ns is not None for segment in partition.segments):
            proposals.append(self._simulated(partition, tasks, self._as_drafted(partition)))
        return min(proposals, key=lambda proposal: proposal.simulated_ns)

    def _as_drafted(self, partition: Partition) -> Schedule:
        """The order and lanes of the timeline that the partition was cut from."""
        return Schedule(
            policy="adaptive",
            cores=self.cores,
            lanes=partition.lanes,
            assignments=tuple(
                Assignment(
                    segment=index,
                    width=segment.width,
                    priority=-(segment.start_ns or 0),
                    lane=segment.lane,
                )
                for index, segment in enumerate(partition.segments)
            ),
        )

    def _simulated(self, partition: Partition, tasks: tuple[Task, ...], schedule: Schedule) -> Proposal:
        run = simulate(tasks, schedule, handover_ns=HANDOVER_NS, segment_overhead_ns=SEGMENT_OVERHEAD_NS)
        return Proposal(
            partition=partition,
            schedule=schedule,
            durations_ns=tuple(
                dict(task.cost_ns)[assignment.width]
                for task, assignment in zip(tasks, schedule.assignments, strict=True)
            ),
            simulated_ns=run.makespan_ns,
        )

    def tasks(self, partition: Partition) -> tuple[Task, ...]:
        """The segments as a policy sees them, with the summed costs of their groups and of crossing their boundary."""
        boundaries = find_boundaries(self.graph, self.groups, partition)
        tasks = []
        for index, (segment, boundary) in enumerate(zip(partition.segments, boundaries, strict=True)):
            crossing = sum(self._crossing_ns(name) for name in (*boundary.inputs, *boundary.outputs))
            costs = []
            for width in sorted({1, segment.width, self.cores}):
                group_ns = self.group_ns(width)
                costs.append((width, crossing + sum(group_ns[group] for group in segment.groups)))
            tasks.append(Task(index=index, predecessors=partition.dag.predecessors[index], cost_ns=tuple(costs)))
        return tuple(tasks)

    def _crossing_ns(self, name: str) -> int:
        """What one side of a cut pays for a tensor that crosses it; a dimension that is not known counts as 1."""
        known = self._crossing.get(name)
        if known is None:
            known = self._crossing[name] = round(tensor_bytes(self.graph, name) * CROSSING_NS_PER_BYTE)
        return known

    def resimulate(self, proposal: Proposal, durations_ns: Sequence[int], *, contention: float = 1.0) -> Proposal:
        """The proposal with the time it takes if the segments of its `plan` take these times (traced).

        ``contention``: see `simulate`; 1 where the times are those of segments beside each other.
        """
        run = simulate_plan(
            self.serialised(proposal).plan,
            handover_ns=HANDOVER_NS,
            segment_overhead_ns=SEGMENT_OVERHEAD_NS,
            contention=contention,
            cost_ns=durations_ns,
        )
        return replace(proposal, simulated_ns=run.makespan_ns)

    def candidates(self) -> tuple[Proposal, ...]:
        """Cuts under both rules and several lane counts, best predicted first; whole models left out."""
        found: dict[tuple[tuple[int, tuple[int, ...]], ...], Proposal] = {}
        for partition in self._partitions():
            if partition.is_whole:
                continue
            key = tuple((segment.width, segment.groups) for segment in partition.segments)
            proposal = self.propose(partition)
            if key not in found or proposal.simulated_ns < found[key].simulated_ns:
                found[key] = proposal
        return tuple(sorted(found.values(), key=lambda proposal: (proposal.simulated_ns, proposal.partition.label)))

    @cached_property
    def best(self) -> Proposal | None:
        """The candidate that is predicted to be quickest, or None where there is none."""
        return next(iter(self.candidates()), None)

    def _partitions(self) -> Iterator[Partition]:
        cores, groups = self.cores, self.groups
        if cores < 2:
            return
        for lanes in sorted({lanes for lanes in (2, 3, 4, cores) if lanes <= cores}):
            # Lanes of one thread leave cores idle where there are few of them: try sharing all cores out, too.
            for width in sorted({1, cores // lanes}):
                yield by_lanes(
                    groups,
                    cost_narrow=self.group_ns(width),
                    cost_wide=self.group_ns(cores),
                    narrow_width=width,
                    wide_width=cores,
                    lanes=lanes,
                    handover_ns=HANDOVER_NS,
                    segment_overhead_ns=SEGMENT_OVERHEAD_NS,
                )
        branches = find_branches(groups.dag, control_flow=groups.control_flow)
        if branches.max_branches < 2:
            return
        by_cost = CostRule(lanes=cores, handover_ns=HANDOVER_NS, segment_overhead_ns=SEGMENT_OVERHEAD_NS)
        rules: dict[str, RefinementRule] = {
            "layers, cost rule": by_cost,
            "layers, paper rule": PaperRule(),
            "layers, paper rule without outliers": PaperRule(drop_outliers=True),
        }
        for label, rule in rules.items():
            yield by_layers(groups, self.group_costs, rule, label=label, lanes=cores, branches=branches)

    def plan(self, proposal: Proposal, provenance: Provenance) -> Plan:
        """The plan that a proposal stands for, within the memory of a sequential one. It may number segments anew."""
        return replace(self.serialised(proposal).plan, provenance=provenance)

    def serialised(self, proposal: Proposal) -> SerialisedPlan:
        """The plan, without its provenance, and what keeping its memory small took."""
        known = self._plans.get(id(proposal))
        if known is None:
            plan = build_plan(self.model, self.graph, self.groups, proposal, NO_PROVENANCE, cores=self.cores)
            made = serialise_for_memory(
                plan, self.graph, handover_ns=HANDOVER_NS, segment_overhead_ns=SEGMENT_OVERHEAD_NS
            )
            known = self._plans[id(proposal)] = proposal, made  # held, so that its id stays its own
        return known[1]


def build_plan(
    model: Model,
    graph: OpGraph,
    groups: FusionGroups,
    proposal: Proposal,
    provenance: Provenance,
    *,
    cores: int,
    delegated: Mapping[int, tuple[str, str]] | None = None,
) -> Plan:
    """Join cut, boundaries and schedule.

    Args:
        delegated: segment -> the backend that runs it, and why; the others run on the CPU.
    """
    elsewhere = delegated or {}
    partition, schedule = proposal.partition, proposal.schedule
    boundaries = find_boundaries(graph, groups, partition)
    read = {name for boundary in boundaries for name in boundary.inputs}
    # Inputs that no node reads still belong to the model: the first segment carries them.
    unread = tuple(info.name for info in (*graph.inputs, *graph.overridable) if info.name not in read)
    segments: list[Segment] = []
    for index, (draft, boundary, assignment) in enumerate(
        zip(partition.segments, boundaries, schedule.assignments, strict=True)
    ):
        backend, reason = elsewhere.get(index, (CPU_BACKEND, draft.reason))
        segments.append(
            Segment(
                index=index,
                name=f"segment_{index}",
                nodes=boundary.nodes,
                inputs=boundary.inputs + (unread if index == 0 else ()),
                outputs=boundary.outputs,
                predecessors=partition.dag.predecessors[index],
                width=assignment.width,
                priority=assignment.priority,
                lane=assignment.lane,
                cost_ns=proposal.durations_ns[index],
                backend=backend,
                reason=reason,
            )
        )
    return Plan(
        format_version=PLAN_FORMAT_VERSION,
        structure_digest=model.structure_digest,
        policy=schedule.policy,
        cores=cores,
        lanes=schedule.lanes,
        backfill=schedule.backfill,
        segments=tuple(segments),
        provenance=provenance,
    )
