"""Plans that share a model between an accelerator and the processor: what is proposed, and what is taken unmeasured.

What a device takes becomes regions by cost (`parallax.partition.find_regions`) and runs beside the processor's part
(`parallax.schedule.placement.find_placement`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from parallax.backends import Backend, DeviceKind, measure_speed
from parallax.errors import BackendError
from parallax.graph import Capability, CostModel, OpGraph, Price, Work
from parallax.memory import device_requirement, restrict_to_memory, show_bytes
from parallax.model import Model, RowSplit
from parallax.partition import group_fusions
from parallax.partition.candidates import Cause, DraftSegment, assemble
from parallax.partition.regions import DeviceCosts, Pricing, RegionPlan, RegionRule, estimate_device_costs, find_regions
from parallax.planner._candidates import (
    HANDOVER_NS,
    NO_PROVENANCE,
    SEGMENT_OVERHEAD_NS,
    PlanningContext,
    Proposal,
    build_plan,
    host_machine,
)
from parallax.planner._lowering import BodyPlanner
from parallax.profile import fusion_safe_tensors, product_flops
from parallax.schedule import (
    CPU_BACKEND,
    AdaptivePolicy,
    Assignment,
    Crossings,
    Granularity,
    Plan,
    Provenance,
    RegionTasks,
    Schedule,
    region_tasks,
    simulate,
)
from parallax.schedule.placement import (
    Coexecution,
    PlacementProblem,
    Placer,
    Rank,
    default_placers,
    find_placement,
    quickest,
    row_parts,
    rows_elsewhere,
)

logger = logging.getLogger(__name__)


def with_price(backend: Backend, *, width: int) -> Backend:
    """The backend, priced by a handful of probes where it has no figures of its own.

    Raises: BackendError if it cannot run them.
    """
    if backend.price(Work(operators=())) is None:
        return backend.with_speed(measure_speed(backend, width=width))
    return backend


def scaled_costs(context: PlanningContext, backend: Backend) -> CostModel:
    """The context's costs; those from tables at this machine's speed where the device's prices depend on it."""
    costs = context.costs
    host_flops = backend.host_flops if costs.source == "tables" else None
    return costs if host_flops is None else costs.times(product_flops(context.cores) / host_flops)


def placement_problem(
    context: PlanningContext,
    costs_of_devices: Sequence[DeviceCosts],
    costs: CostModel,
    *,
    split: RowSplit | None = None,
    sides: Mapping[str, int] | None = None,
) -> PlacementProblem:
    """The question that placers are asked about a context's model.

    Args:
        costs_of_devices: of the devices.
        costs: of the processor.
        split: how the context's model was split by rows, if it was.
        sides: of such a model, tensor -> device that would make it if nothing was split; others are the processor's.
    """
    graph, groups = context.graph, context.groups
    here = context.zero_worths.get(CPU_BACKEND)
    return PlacementProblem(
        graph=graph,
        groups=groups,
        devices=tuple(costs_of_devices),
        costs=costs,
        machine=host_machine(context.cores),
        row_parts={} if split is None else row_parts(graph, groups, split.parts),
        rows_elsewhere=None if split is None or sides is None else rows_elsewhere(graph, groups, split.parts, sides),
        zeros=context.weight_zeros,
        zero_worth={} if here is None else here.saved_shares(node.op_type for node in graph.nodes),
    )


def sides_of(context: PlanningContext, found: Coexecution) -> dict[str, int]:
    """Tensors that a placement of a context's model has devices make, each with its device."""
    placed = found.best.regions.placed(len(context.groups))
    sides: dict[str, int] = {}
    for node in context.graph.nodes:
        device = placed[context.groups.group_of[node.index]]
        if device is not None:
            sides.update(dict.fromkeys(filter(None, node.outputs), device))
    return sides


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """A plan with regions on a device, and what it was predicted to take."""

    label: str
    plan: Plan
    simulated_ns: int


class DeviceStudy:
    """What one device could do for one model. Properties are computed on first use.

    Args:
        context: of the model, in its planned shapes.
        backend: the device.
        costs: of the processor; by default the context's.
        split: how the context's model was split by rows, if it was.
        sides: of such a model, the tensors that the device would make if nothing was split.
        budget_bytes: what the device may hold of the model; None: as much as it likes.
    """

    def __init__(
        self,
        context: PlanningContext,
        backend: Backend,
        costs: CostModel | None = None,
        *,
        split: RowSplit | None = None,
        sides: Mapping[str, int] | None = None,
        budget_bytes: int | None = None,
    ) -> None:
        self.context = context
        self.budget_bytes = budget_bytes
        self._split = split
        self._sides = sides
        self.backend = backend
        self.name = backend.info.name
        self.costs = scaled_costs(context, backend) if costs is None else costs
        self._cores = context.cores
        self._machine = host_machine(self._cores)

    @property
    def cpu_ns(self) -> int:
        """Predicted time of the model on the CPU alone."""
        return min(sum(self.costs.node_ns(width)) for width in {1, self._cores})

    @cached_property
    def capability(self) -> Capability:
        """What it takes. Raises: BackendError if it cannot tell."""
        return self.backend.capability(self.context.model)

    @cached_property
    def device_costs(self) -> DeviceCosts | None:
        """With prices, for what it has room for; None where it has no prices."""
        return self._device_costs(self.backend)

    @property
    def why_not_whole(self) -> str | None:
        """Why its memory does not do for all that it takes, or None."""
        if self.budget_bytes is None:
            return None
        need = device_requirement(self.context.graph, self.capability.taken).total_bytes
        if need <= self.budget_bytes:
            return None
        return f"needs {show_bytes(need)} of its memory, where {show_bytes(self.budget_bytes)} are allowed"

    @cached_property
    def coexecution(self) -> Coexecution | None:
        """The best placement found beside the processor; None where the device has no prices."""
        if self.device_costs is None:
            return None
        return self.placed(default_placers(len(self.context.groups)))

    def placed(
        self, placers: Sequence[Placer], *, rank: Rank = quickest, cores: int | None = None
    ) -> Coexecution | None:
        """The best of what these placers propose; None where the device has no prices.

        Args:
            rank: what makes one placement better than another.
            cores: of the CPU's, that are used; None: all.
        """
        if self.device_costs is None:
            return None
        problem = placement_problem(
            self.context, (self.device_costs,), self.costs, split=self._split, sides=self._sides
        )
        return find_placement(on_cores(problem, self._cores if cores is None else cores), placers, rank=rank)

    def placed_by(self, rank: Rank, *, cores: int) -> DevicePlan | None:
        """The best placement by another rank than time, on so many cores; None where it leaves nothing to the device,
        or that has no prices."""
        found = self.placed(default_placers(len(self.context.groups)), rank=rank, cores=cores)
        return None if found is None else self._best_of(found)

    def _best_of(self, found: Coexecution) -> DevicePlan | None:
        best = found.best
        if best.plan.is_cpu_only:
            return None
        plan = self._plan(best.plan, best.tasks, best.schedule)
        return DevicePlan(label=f"regions on {self.name}", plan=plan, simulated_ns=best.makespan_ns)

    @property
    def runs_beside(self) -> bool:
        """Whether it computes while the CPU does: what computes on the same cores has nothing to run beside."""
        return self.backend.info.kind is not DeviceKind.CPU

    @cached_property
    def regions_in_sequence(self) -> RegionPlan | None:
        """The regions that pay where nothing runs side by side; None where the device has no prices."""
        if self.device_costs is None:
            return None
        return find_regions(self.context.graph, self.context.groups, self.device_costs, join_siblings=True)

    @property
    def regions(self) -> RegionPlan | None:
        """The regions to show: of `best`, or those in sequence where nothing runs beside; None without prices."""
        if not self.runs_beside:
            return self.regions_in_sequence
        return None if self.coexecution is None else self.coexecution.best.plan

    def regions_by_rule(self, rule: RegionRule) -> RegionPlan | None:
        """What another rule gives the device, node by node as runtimes place, whatever the CPU fuses; None where the
        device has no prices."""
        if self.device_costs is None:
            return None
        nodes = group_fusions(self.context.graph, may_cross=self.context.model.can_split_at)
        return find_regions(self.context.graph, nodes, self.device_costs, rule=rule)

    @cached_property
    def best(self) -> DevicePlan | None:
        """The best placement as a plan; None where the processor alone is best, or nothing can be priced."""
        return None if self.coexecution is None else self._best_of(self.coexecution)

    @property
    def in_sequence(self) -> DevicePlan | None:
        """The regions that pay where nothing runs side by side; None where none does."""
        regions = self.regions_in_sequence
        if regions is None or regions.is_cpu_only:
            return None
        return self._sequential(f"regions on {self.name}, one after the other", regions)

    @property
    def greedy(self) -> DevicePlan | None:
        """Place all that it takes on the device, the rest on the processor, one after the other, as today's runtimes
        do."""
        regions = self._all_regions
        return None if regions.is_cpu_only else self._sequential(f"greedy on {self.name}", regions)

    @property
    def forced(self) -> DevicePlan | None:
        """Place all that it takes on the device, and the rest in branches, whether that gains or not; for tests."""
        regions = self._all_regions
        if regions.is_cpu_only:
            return None
        tasks = self._tasks(regions, Granularity.BRANCHES)
        policy = AdaptivePolicy(handover_ns=HANDOVER_NS, segment_overhead_ns=SEGMENT_OVERHEAD_NS)
        schedule = policy.assign(tasks.tasks, cores=self._cores, lanes=self._cores + 1)
        return self._made(f"all that {self.name} takes", regions, tasks, schedule)

    @property
    def reason(self) -> str:
        """What was compared, for people."""
        found = self.coexecution
        if found is None:
            return f"{self.name} has no prices: tune=True measures what it is worth"
        figures = (
            f"{found.cpu_only_ns / 1e6:.3f} ms on the CPU alone, {found.greedy_ns / 1e6:.3f} ms with all that "
            f"{self.name} takes and one thing after the other"
        )
        if found.best.plan.is_cpu_only:
            within = "" if self.budget_bytes is None else f" in {show_bytes(self.budget_bytes)} of its memory"
            return f"nothing runs on {self.name}: no region gains anything{within} ({figures})"
        chosen = found.best.plan
        need = device_requirement(self.context.graph, {node for region in chosen.regions for node in region.nodes})
        return (
            f"{chosen.counted} on {self.name} beside the CPU: {found.best.makespan_ns / 1e6:.3f} ms predicted, "
            f"{figures}; they hold {show_bytes(need.total_bytes)} there"
            + ("" if self.budget_bytes is None else f", of {show_bytes(self.budget_bytes)} allowed")
        )

    def _device_costs(self, pricing: Pricing) -> DeviceCosts | None:
        graph, costs = self.context.graph, self.costs.node_ns(self._cores)
        device_costs = estimate_device_costs(graph, self.capability, pricing, cpu_ns=costs)
        factors = self.context.zero_factors(self.name)
        if device_costs is not None and factors is not None:
            priced = tuple(round(ns * factor) for ns, factor in zip(device_costs.device_ns, factors, strict=True))
            device_costs = replace(device_costs, device_ns=priced)
        if device_costs is None or self.budget_bytes is None:
            return device_costs
        return restrict_to_memory(graph, self.context.groups, device_costs, self.budget_bytes)

    @cached_property
    def any_device_costs(self) -> DeviceCosts:
        """The `device_costs`; where none are known, all is free: for what costs do not decide."""
        device_costs = self.device_costs
        if device_costs is None:
            device_costs = self._device_costs(_Unpriced())
            assert device_costs is not None
        return device_costs

    @cached_property
    def _all_regions(self) -> RegionPlan:
        return find_regions(self.context.graph, self.context.groups, self.any_device_costs, rule=RegionRule.GREEDY)

    @cached_property
    def _crossings(self) -> Crossings:
        return Crossings(self.context.graph, self.context.groups, self._machine.crossing_ns_per_byte)

    def _tasks(self, regions: RegionPlan, granularity: Granularity) -> RegionTasks:
        widths = sorted({1, self._cores})
        return region_tasks(
            self.context.groups,
            regions,
            self.costs,
            widths=widths,
            granularity=granularity,
            crossings=self._crossings,
            wide_start_ns=self._machine.wide_start_ns,
        )

    def _sequential(self, label: str, regions: RegionPlan) -> DevicePlan:
        tasks = self._tasks(regions, Granularity.COARSE)
        schedule = Schedule(
            policy="sequential",
            cores=self._cores,
            lanes=1,
            assignments=tuple(
                Assignment(
                    segment=index,
                    width=self._cores if region is None else 0,
                    priority=-index,
                    lane=None if region is None else 0,
                )
                for index, region in enumerate(tasks.region_of)
            ),
            backfill=False,
        )
        return self._made(label, regions, tasks, schedule)

    def _made(self, label: str, regions: RegionPlan, tasks: RegionTasks, schedule: Schedule) -> DevicePlan:
        run = simulate(tasks.tasks, schedule, handover_ns=HANDOVER_NS, segment_overhead_ns=SEGMENT_OVERHEAD_NS)
        return DevicePlan(label=label, plan=self._plan(regions, tasks, schedule), simulated_ns=run.makespan_ns)

    def _plan(self, regions: RegionPlan, tasks: RegionTasks, schedule: Schedule) -> Plan:
        names = [self.name] * len(regions.regions)
        return plan_of_regions(self.context, regions, names, tasks, schedule)


def on_cores(problem: PlacementProblem, cores: int) -> PlacementProblem:
    """The same problem where only so many of the processor's cores are used."""
    if cores == problem.machine.cores:
        return problem
    cpu_ns = problem.costs.node_ns(cores)
    return replace(
        problem,
        machine=replace(problem.machine, cores=cores),
        devices=tuple(replace(device_costs, cpu_ns=cpu_ns) for device_costs in problem.devices),
    )


def plan_of_regions(
    context: PlanningContext, regions: RegionPlan, names: Sequence[str], tasks: RegionTasks, schedule: Schedule
) -> Plan:
    """The plan for regions that were placed and scheduled, without its provenance.

    Args:
        names: per region, of the device's backend.
    """
    drafts = []
    delegated: dict[int, tuple[str, str]] = {}
    for index, (inside, number) in enumerate(zip(tasks.groups, tasks.region_of, strict=True)):
        cause = Cause.BESIDE if number is None else Cause.DEVICE
        drafts.append(DraftSegment(groups=inside, width=schedule.assignments[index].width, cause=cause))
        if number is not None:
            region = regions.regions[number]
            delegated[index] = (
                names[number],
                f"{cause.value}: {region.device_ns / 1e3:.1f} us there, launch and transfers included, "
                f"{region.cpu_ns / 1e3:.1f} us on the CPU",
            )
    label = f"regions on {' and '.join(dict.fromkeys(names))}"
    partition = assemble(context.groups, drafts, label=label, lanes=schedule.lanes)
    durations = tuple(
        dict(task.cost_ns)[assignment.width] for task, assignment in zip(tasks.tasks, schedule.assignments, strict=True)
    )
    proposal = Proposal(partition=partition, schedule=schedule, durations_ns=durations, simulated_ns=0)
    return build_plan(
        context.model,
        context.graph,
        context.groups,
        proposal,
        NO_PROVENANCE,
        cores=context.cores,
        delegated=delegated,
    )


def held_bytes(graph: OpGraph, plan: Plan, device: str) -> int:
    """What a plan's segments on a device hold of its memory.

    Args:
        graph: with types, of the model that the plan is for.
    """
    nodes = {node for segment in plan.segments if segment.backend == device for node in segment.nodes}
    return device_requirement(graph, nodes).total_bytes


class DeviceBodyPlanner:
    """Plans bodies of control flow for a device: see `parallax.planner._lowering.BodyPlanner`.

    Args:
        backend: the device.
        budget_bytes: what all bodies together may hold there; None: as much as they like.
        forced: whether all that it takes is to run there.
        otherwise: plans what gains nothing there.
    """

    def __init__(
        self, backend: Backend, *, forced: bool, otherwise: BodyPlanner, budget_bytes: int | None = None
    ) -> None:
        self._backend = backend
        self._budget_bytes = budget_bytes
        self._forced = forced
        self._otherwise = otherwise

    def __call__(self, body: Model, *, cores: int) -> Plan:
        """A plan for at most ``cores`` cores beside the device."""
        if len(body.graph.nodes) < 2:
            return self._otherwise(body, cores=cores)
        try:
            fusion_safe = fusion_safe_tensors(body)
            context = PlanningContext(body, cores=cores, fusion_safe=fusion_safe)
            study = DeviceStudy(context, self._backend, budget_bytes=self._budget_bytes)
            found = study.forced if self._forced else study.best
        except BackendError as error:
            logger.info("a body stays off %s: %s", self._backend.info.name, error)
            return self._otherwise(body, cores=cores)
        if found is None:
            return self._otherwise(body, cores=cores)
        if self._budget_bytes is not None:
            held = held_bytes(context.graph, found.plan, self._backend.info.name)
            self._budget_bytes = max(1, self._budget_bytes - held)
        provenance = Provenance(
            source="forced" if self._forced else "tables",
            whole_ns=study.cpu_ns,
            chosen_ns=found.simulated_ns,
            candidates=(),
            runtime_version="",
            machine="",
            reason=study.reason,
        )
        return replace(found.plan, provenance=provenance)


class _Unpriced:
    """Nothing is known of the costs."""

    def price(self, work: Work) -> Price:
        return Price(launch_ns=0, compute_ns=0, transfer_ns=0)

    def transfer_ns(self, size_bytes: int) -> int:
        return 0
