"""A model on an emulated phone: what the policies that are compared make of it, as plans and as simulated times."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from _common import ORIGIN

from parallax.backends.emulated._backend import EmulatedBackend
from parallax.graph import CostModel, Dag, OpGraph, Verdict, tensor_bytes
from parallax.model import Model, RowSplit
from parallax.partition import FusionGroups, group_fusions
from parallax.partition.candidates import Cause, DraftSegment, Partition, find_boundaries
from parallax.partition.regions import (
    DeviceCosts,
    RegionPlacer,
    RegionPlan,
    RegionRule,
    estimate_device_costs,
    find_regions,
)
from parallax.partition.regions._hosted import hosted_tensors
from parallax.partition.regions._verify import verify_regions
from parallax.planner._devices import on_cores
from parallax.planner._row_search import search_rows
from parallax.schedule import (
    CPU_BACKEND,
    PLAN_FORMAT_VERSION,
    Assignment,
    Granularity,
    Plan,
    RegionTasks,
    Schedule,
    Segment,
    Task,
    region_tasks,
    simulate,
)
from parallax.schedule._heft import HeftPolicy
from parallax.schedule.placement import (
    Coexecution,
    Machine,
    PlacementProblem,
    Placer,
    Rank,
    RowsAndRegions,
    ShardRows,
    default_placers,
    find_placement,
    quickest,
    row_parts,
    rows_elsewhere,
)

DEFAULT_PARTITIONS = {"tflite-gpu": 1, "nnapi": 3}
"""Fragments that TensorFlow Lite delegates unless told otherwise, the largest first: ``max_delegated_partitions`` in
``delegates/gpu/delegate_options.cc``, ``max_number_delegated_partitions`` in ``delegates/nnapi/nnapi_delegate.h``."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A model, a device, and the processor beside it."""

    model: Model
    graph: OpGraph
    groups: FusionGroups
    costs: CostModel
    backend: EmulatedBackend
    device_costs: DeviceCosts
    machine: Machine

    @classmethod
    def of(cls, model: Model, costs: CostModel, backend: EmulatedBackend, machine: Machine) -> Study:
        graph = model.inferred()
        device_costs = estimate_device_costs(
            graph, backend.capability(model), backend, cpu_ns=costs.node_ns(machine.cores)
        )
        assert device_costs is not None  # a profile prices everything
        return cls(
            model=model,
            graph=graph,
            groups=group_fusions(graph, may_cross=model.can_split_at),
            costs=costs,
            backend=backend,
            device_costs=device_costs,
            machine=machine,
        )

    def size(self, name: str) -> int:
        """Bytes of a tensor."""
        return tensor_bytes(self.graph, name)

    def moving_ns(self, names: Sequence[str]) -> int:
        """Time to move tensors between host and device."""
        return sum(self.device_costs.transfer.ns(self.size(name)) for name in names)

    def regions(self, rule: RegionRule) -> RegionPlan:
        plan = find_regions(self.graph, self.groups, self.device_costs, rule=rule)
        verify_regions(self.graph, self.groups, self.device_costs, plan)
        return plan

    def largest(self, plan: RegionPlan, count: int) -> RegionPlan:
        """Only the regions with the most nodes."""
        kept = sorted(
            sorted(plan.regions, key=lambda region: -len(region.nodes))[:count], key=lambda region: region.index
        )
        return RegionPlacer(self.graph, self.groups, self.device_costs).place(
            regions=[region.groups for region in kept]
        )

    def hosted_ns(self, plan: RegionPlan) -> int:
        """The plan in sequence, with every tensor of every region moved through the host's memory."""
        hosted = sum(self.moving_ns(names) for names in hosted_tensors(self.graph, plan))
        return plan.chosen_ns - sum(region.transfer_ns for region in plan.regions) + hosted

    def folded(self, plan: RegionPlan) -> frozenset[int]:
        """Nodes that are computed when the model is loaded."""
        return frozenset(verdict.node for verdict in plan.verdicts if verdict.verdict is Verdict.FOLDED)

    def coexecution(
        self,
        *,
        flips: int,
        split: RowSplit | None = None,
        sides: Mapping[str, int] | None = None,
        rank: Rank = quickest,
        cores: int | None = None,
    ) -> Coexecution:
        """What the default placers find.

        Args:
            sides: of a model that was split, see `rows_elsewhere`.
            rank: what makes one placement better than another.
            cores: of the machine's, that are used; by default all.
        """
        placers = default_placers(len(self.groups), moves=flips)
        problem = on_cores(self.problem(split, sides), self.machine.cores if cores is None else cores)
        found = find_placement(problem, placers, rank=rank)
        verify_regions(self.graph, self.groups, problem.devices[0], found.best.plan)
        return found

    def placed(
        self, placers: Sequence[Placer], split: RowSplit | None = None, sides: Mapping[str, int] | None = None
    ) -> Coexecution:
        return find_placement(self.problem(split, sides), placers)

    def problem(self, split: RowSplit | None = None, sides: Mapping[str, int] | None = None) -> PlacementProblem:
        graph, groups = self.graph, self.groups
        return PlacementProblem(
            graph=graph,
            groups=groups,
            devices=(self.device_costs,),
            costs=self.costs,
            machine=self.machine,
            row_parts={} if split is None else row_parts(graph, groups, split.parts),
            rows_elsewhere=None
            if split is None or sides is None
            else rows_elsewhere(graph, groups, split.parts, sides),
        )

    def sequential(self, plan: RegionPlan) -> tuple[RegionTasks, Schedule]:
        """One thing after the other, on all cores or on the device."""
        tasks = region_tasks(
            self.groups, plan, self.costs, widths=sorted({1, self.machine.cores}), granularity=Granularity.COARSE
        )
        schedule = Schedule(
            policy="sequential",
            cores=self.machine.cores,
            lanes=1,
            assignments=tuple(
                Assignment(
                    segment=index,
                    width=self.machine.cores if region is None else 0,
                    priority=-index,
                    lane=0,
                )
                for index, region in enumerate(tasks.region_of)
            ),
            backfill=False,
        )
        return tasks, schedule

    def heft(self, plan: RegionPlan) -> tuple[RegionTasks, Schedule, int]:
        """HEFT decides for each region whether it runs on the device; the processor is one lane. And its makespan."""
        cores = self.machine.cores
        made = region_tasks(
            self.groups, plan, self.costs, widths=sorted({1, cores}), granularity=Granularity.COARSE, allow_both=True
        )
        graph, groups = self.graph, self.groups
        task_of: dict[int, int] = {
            node: task
            for task, inside in enumerate(made.groups)
            for node in groups.nodes_of(inside)
            if node not in groups.replicated
        }
        transfers: dict[tuple[int, int], int] = {}
        fixed = [0] * len(made.tasks)
        names = {name: producer for name, producer in graph.producers.items() if producer in task_of}
        for info in graph.inputs:
            names[info.name] = -1
        for name, producer in names.items():
            readers = dict.fromkeys(task_of[node] for node in graph.consumers.get(name, ()) if node in task_of)
            moved = self.moving_ns([name])
            if producer < 0:
                for reader in list(readers)[:1]:
                    fixed[reader] += moved
                continue
            home = task_of[producer]
            if name in graph.output_names:
                fixed[home] += moved
            for reader in [task for task in readers if task != home][:1]:
                transfers[home, reader] = transfers.get((home, reader), 0) + moved
        tasks: list[Task] = []
        for task, region in zip(made.tasks, made.region_of, strict=True):
            if region is not None:
                compute = plan.regions[region].compute_ns + self.device_costs.launch_ns + fixed[task.index]
                task = dataclasses.replace(task, cost_ns=((0, compute), *task.cost_ns[1:]))
            tasks.append(task)
        policy = HeftPolicy(transfer_ns=transfers)
        schedule = policy.assign(tasks, cores=cores, lanes=2)
        run = simulate(
            tasks,
            schedule,
            handover_ns=self.machine.handover_ns,
            segment_overhead_ns=self.machine.segment_overhead_ns,
            cost_ns=policy.charged_ns(tasks, schedule),
        )
        return dataclasses.replace(made, tasks=tuple(tasks)), schedule, run.makespan_ns

    def plan(self, tasks: RegionTasks, schedule: Schedule) -> Plan:
        """What an engine can compile: what has width 0 is the device's."""
        drafts = tuple(
            DraftSegment(groups=inside, width=assignment.width, cause=Cause.FORCED)
            for inside, assignment in zip(tasks.groups, schedule.assignments, strict=True)
        )
        dag = Dag.from_predecessors([task.predecessors for task in tasks.tasks])
        partition = Partition(label="", segments=drafts, dag=dag, lanes=schedule.lanes)
        boundaries = find_boundaries(self.graph, self.groups, partition)
        read = {name for boundary in boundaries for name in boundary.inputs}
        unread = tuple(info.name for info in self.graph.inputs if info.name not in read)
        segments = []
        for task, boundary, assignment in zip(tasks.tasks, boundaries, schedule.assignments, strict=True):
            segments.append(
                Segment(
                    index=task.index,
                    name=f"segment_{task.index}",
                    nodes=boundary.nodes,
                    inputs=boundary.inputs + (unread if task.index == 0 else ()),
                    outputs=boundary.outputs,
                    predecessors=task.predecessors,
                    width=assignment.width,
                    priority=assignment.priority,
                    lane=assignment.lane,
                    cost_ns=dict(task.cost_ns)[assignment.width],
                    backend=CPU_BACKEND if assignment.width else self.backend.info.name,
                    reason="",
                )
            )
        return Plan(
            format_version=PLAN_FORMAT_VERSION,
            structure_digest=self.model.structure_digest,
            policy=schedule.policy,
            cores=schedule.cores,
            lanes=schedule.lanes,
            backfill=schedule.backfill,
            segments=tuple(segments),
            provenance=ORIGIN,
        )


@dataclass(frozen=True, kw_only=True)
class Split:
    """The best way to share rows that was found: within chains, with regions elsewhere."""

    share: float
    whole: int
    """Layers that stay whole."""
    split: RowSplit
    sides: Mapping[str, int]
    """Tensors that the device would make if nothing was split."""
    study: Study
    found: Coexecution
    everywhere_ns: int
    """Where all is split that can be, at the best of the shares, and no region elsewhere is proposed."""


def best_split(study: Study, costs_of: Callable[[RowSplit], CostModel], alone: Coexecution) -> Split | None:
    """What ``policy="rows-and-regions"`` finds. ``alone``: the best placement of the model as it is."""
    placed = alone.best.regions.placed(len(study.groups))
    sides = {
        name: device
        for node in study.graph.nodes
        for name in node.outputs
        if (device := placed[study.groups.group_of[node.index]]) is not None
    }

    def of(split: RowSplit) -> Study:
        return Study.of(split.model, costs_of(split), study.backend, study.machine)

    def judge(split: RowSplit) -> int:
        return of(split).placed((ShardRows(),), split, sides).best.makespan_ns

    searched = search_rows(
        study.model,
        balanced=study.device_costs.balanced_share,
        cpu_ns=study.device_costs.cpu_ns,
        judge=judge,
        evaluations=RowsAndRegions().evaluations,
    )
    if searched is None:
        return None
    best, everywhere = searched.best, searched.everywhere
    own = of(best.split)
    return Split(
        share=best.permille / 1000,
        whole=len(best.whole),
        split=best.split,
        sides=sides,
        study=own,
        found=own.coexecution(flips=0, split=best.split, sides=sides),
        everywhere_ns=of(everywhere.split).coexecution(flips=0, split=everywhere.split).best.makespan_ns,
    )
