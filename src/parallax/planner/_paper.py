"""Plans as the Parallax paper makes them, whatever they gain: a baseline for our own.

The pieces are those that other plans are made of (regions, branches, layers, arenas); here they are put together as
arXiv 2512.11532 does, and nothing is judged.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from parallax.errors import BackendError
from parallax.graph import CostModel, OpGraph, Rejection, Verdict
from parallax.machine import free_memory_bytes
from parallax.memory import show_bytes
from parallax.model import Model
from parallax.partition.regions import DeviceCosts, RegionPlan, TransferCost
from parallax.planner._candidates import PlanningContext, host_machine
from parallax.planner._devices import DeviceStudy, held_bytes, plan_of_regions
from parallax.planner._lowering import lower_bodies
from parallax.planner._request import PlanDevice, PlanRequest
from parallax.planner._tables import why_model_stays_whole
from parallax.planner._whole import make_provenance, whole_plan
from parallax.profile import fusion_safe_tensors
from parallax.schedule import PAPER_POLICY, Plan
from parallax.schedule.placement import LayeredRun, PaperPolicy, PlacementProblem, run_by_layers

logger = logging.getLogger(__name__)


def plan_as_the_paper(request: PlanRequest, policy: PaperPolicy) -> Plan:
    """The plan that the paper's system would run, bodies of control flow included.

    The paper knows one accelerator: of several devices the first is used.

    Raises: BackendError if the device cannot tell what it takes.
    """
    model, cores = request.model, request.cores
    obstacle = why_model_stays_whole(model)
    if obstacle is not None:
        return whole_plan(model, obstacle, cores=cores)
    device = next(iter(request.devices.values()), None)
    free_bytes = free_memory_bytes() if policy.free_bytes is None else policy.free_bytes
    planner = _PaperPlanner(policy, device, free_bytes=free_bytes)
    plan = planner(model, cores=cores)
    if not request.plans_bodies:
        return plan
    if device is not None and device.budget_bytes is not None:
        held = held_bytes(model.inferred(), plan, device.backend.info.name)
        device = replace(device, budget_bytes=max(1, device.budget_bytes - held))
        planner = _PaperPlanner(policy, device, free_bytes=free_bytes)
    return lower_bodies(model, plan, plan_body=_BodyPlanner(planner), min_gain=0, as_barriers=True)


class _PaperPlanner:
    """Plans one graph, a model's or a body's, for the CPU and a device, if there is one."""

    def __init__(self, policy: PaperPolicy, device: PlanDevice | None, *, free_bytes: int) -> None:
        self._policy = policy
        self._device = device
        self._free_bytes = free_bytes

    def without_device(self) -> _PaperPlanner:
        """The same for the CPU alone."""
        return _PaperPlanner(self._policy, None, free_bytes=self._free_bytes)

    def __call__(self, model: Model, *, cores: int) -> Plan:
        """A plan for at most ``cores`` cores. Raises: BackendError if the device cannot tell what it takes."""
        threads = min(cores, self._policy.max_threads)
        obstacle = why_model_stays_whole(model)
        if obstacle is not None:
            return whole_plan(model, obstacle, cores=cores, width=threads)
        try:
            fusion_safe = fusion_safe_tensors(model)
        except BackendError as error:
            return whole_plan(model, f"the runtime refuses the model: {error}", cores=cores, width=threads)
        context = PlanningContext(model, cores=cores, fusion_safe=fusion_safe)
        study = None
        if self._device is not None:
            study = DeviceStudy(context, self._device.backend, budget_bytes=self._device.budget_bytes)
        costs = context.costs if study is None else study.costs
        problem = PlacementProblem(
            graph=context.graph,
            groups=context.groups,
            devices=(_no_device(context.graph, costs.node_ns(cores)) if study is None else study.any_device_costs,),
            costs=costs,
            machine=host_machine(cores),
        )
        regions = self._policy.regions(problem)
        budget_bytes = int(self._free_bytes * (1 - self._policy.margin))
        made = run_by_layers(problem, regions, self._policy, budget_bytes=budget_bytes)
        cpu_ns = _cpu_ns(costs, cores)
        provenance = make_provenance(
            "forced",
            self._reason(None if study is None else study.name, regions, made, budget_bytes),
            whole_ns=cpu_ns,
            chosen_ns=made.run.makespan_ns,
        )
        if len(made.tasks.tasks) <= 1 and not regions.regions:
            whole = whole_plan(model, provenance.reason, cores=cores, width=threads, provenance=provenance)
            return replace(whole, policy=PAPER_POLICY)
        names = [] if study is None else [study.name] * len(regions.regions)
        plan = plan_of_regions(context, regions, names, made.tasks, made.schedule)
        segments = tuple(
            replace(
                segment,
                # All of the step before, whether it made anything that this one reads or not.
                predecessors=tuple(sorted({*segment.predecessors, *task.predecessors})),
                reason=f"{reason}; {segment.reason}" if segment.width == 0 else reason,
            )
            for segment, task, reason in zip(plan.segments, made.tasks.tasks, made.reasons, strict=True)
        )
        return replace(plan, segments=segments, provenance=provenance)

    def _reason(self, device: str | None, regions: RegionPlan, made: LayeredRun, budget_bytes: int) -> str:
        """What was done, for people."""
        policy = self._policy
        parts = [f"{PAPER_POLICY} is a baseline: it is run as the paper would, whether that gains or not"]
        if device is not None:
            parts.append(
                f"{len(regions.regions)} of {regions.before.fragments} fragments on {device} (N >= {policy.min_nodes}, "
                f"F >= {policy.min_macs:g}, B/F <= {policy.max_bytes_per_mac:g})"
            )
        sides = "no layer runs side by side"
        if made.parallel_layers:
            sides = (
                f"{made.parallel_layers} of {made.layers} layers run up to {made.most_branches} branches side by side"
            )
        parts.append(sides)
        parts.append(f"within {show_bytes(budget_bytes)} ({policy.margin:.0%} of what is free stays free)")
        if made.left_out:
            parts.append(f"{made.left_out} branches run one by one because of that")
        return "; ".join(parts)


class _BodyPlanner:
    """Plans bodies as models are planned, and without the device those that it cannot tell anything of."""

    def __init__(self, planner: _PaperPlanner) -> None:
        self._planner = planner

    def __call__(self, body: Model, *, cores: int) -> Plan:
        """See `parallax.planner._lowering.BodyPlanner`."""
        try:
            return self._planner(body, cores=cores)
        except BackendError as error:
            logger.info("a body is planned for the CPU alone: %s", error)
            return self._planner.without_device()(body, cores=cores)


def _cpu_ns(costs: CostModel, cores: int) -> int:
    """Predicted time of the model on the CPU alone."""
    return min(sum(costs.node_ns(width)) for width in {1, cores})


def _no_device(graph: OpGraph, cpu_ns: tuple[int, ...]) -> DeviceCosts:
    """What no device takes: nothing."""
    refusal = Rejection(verdict=Verdict.UNSUPPORTED_OPERATOR, detail="there is no device")
    size = len(graph.nodes)
    return DeviceCosts(
        device="no device",
        declined=(refusal,) * size,
        device_ns=(0,) * size,
        cpu_ns=cpu_ns,
        flops=(0,) * size,
        launch_ns=0,
        transfer=TransferCost(),
    )
