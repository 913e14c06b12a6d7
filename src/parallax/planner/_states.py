"""Plans for other states of the machine: what would be best if a device or the CPU were slower than predicted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from parallax.adapt import CPU_NARROW, CPU_WIDE, HardwareState, ReadyPlan, in_state, nominal_costs_ns
from parallax.graph import CostModel, tensor_bytes
from parallax.model import Model
from parallax.planner._candidates import PlanningContext, host_machine
from parallax.planner._device_model import model_for_devices
from parallax.planner._devices import plan_of_regions
from parallax.planner._request import PlanRequest
from parallax.planner._shared import common_costs, device_studies
from parallax.planner._tables import why_model_stays_whole
from parallax.planner._whole import make_provenance, whole_plan
from parallax.profile import fusion_safe_tensors
from parallax.schedule import Plan
from parallax.schedule.placement import PLACERS, PlacementProblem, find_placement

STATE_PLACERS: Final = ("by-cost", "greedy", "heft", "etf", "chain-dp", "stages")
"""Asked in each state. Moving branches one by one would take seconds per state, for a percent."""


def plans_for_states(request: PlanRequest, first: Plan, states: Sequence[HardwareState]) -> Iterator[ReadyPlan]:
    """The plan in force, and others that are better in some of these states; each once. Takes seconds for large models.

    Others are the whole model on the CPU (on all cores, on half of them, on one), its branches side by side, and for
    each state the best placement that quick placers find for it.

    Args:
        request: that ``first`` was the answer to.
        first: the plan in force.
        states: to find plans for.

    Raises: BackendError: a device cannot tell what it takes, or the runtime refuses the model.
    """
    model, cores = request.model, request.cores
    context = PlanningContext(model, cores=cores, fusion_safe=fusion_safe_tensors(model))
    costs = common_costs(context, [device.backend for device in request.devices.values()])
    seen: set[object] = set()

    def once(found: ReadyPlan) -> Iterator[ReadyPlan]:
        key = _key(found.plan)
        if key not in seen:
            seen.add(key)
            yield found

    whole_ns = {width: sum(costs.node_ns(width)) for width in {1, (cores + 1) // 2, cores}}
    yield from once(ReadyPlan(label="the plan in force", plan=first, cost_ns=_first_costs(first, whole_ns)))
    for width in sorted(whole_ns, reverse=True):
        reason = f"kept ready: the whole model on {width} {'core' if width == 1 else 'cores'} of the CPU"
        plan = whole_plan(model, reason, cores=cores, width=width)
        yield from once(ReadyPlan(label=f"the CPU alone, {width} wide", plan=plan, cost_ns=(whole_ns[width],)))
    split = _best_split(context, costs) if cores > 1 and why_model_stays_whole(model) is None else None
    if split is not None:
        ns = tuple(segment.cost_ns for segment in split.segments)
        yield from once(ReadyPlan(label="branches side by side on the CPU", plan=split, cost_ns=ns))
    computed = model_for_devices(request)
    if computed is not None:
        made = computed.model
        context = PlanningContext(made, cores=cores, fusion_safe=fusion_safe_tensors(made))
        costs = common_costs(context, [device.backend for device in request.devices.values()])
    studies = device_studies(context, request.devices, costs).values()
    costs_of_devices = tuple(study.device_costs for study in studies if study.device_costs is not None)
    if not costs_of_devices:
        return
    problem = PlacementProblem(
        graph=context.graph,
        groups=context.groups,
        devices=costs_of_devices,
        costs=costs,
        machine=host_machine(cores),
    )
    for state in states:
        best = find_placement(in_state(problem, state), [PLACERS[name]() for name in STATE_PLACERS]).best
        if best.plan.is_cpu_only:
            continue
        names = [costs_of_devices[device].device for device in best.regions.device_of]
        plan = plan_of_regions(context, best.plan, names, best.tasks, best.schedule)
        label = f"best where {describe(state)}"
        reason = f"kept ready: {best.plan.counted} on {' and '.join(dict.fromkeys(names))}, {label}"
        plan = replace(plan, provenance=make_provenance("tables", reason, chosen_ns=best.makespan_ns))
        plan = plan if computed is None else computed.plan(plan)
        yield from once(ReadyPlan(label=label, plan=plan, cost_ns=nominal_costs_ns(plan, state)))


def _best_split(context: PlanningContext, costs: CostModel) -> Plan | None:
    """The split that is predicted to be quickest on the CPU alone, if there is one."""
    if costs is not context.costs:  # scaled to those of a device
        fusion_safe = fusion_safe_tensors(context.model)
        context = PlanningContext(context.model, cores=context.cores, costs=costs, fusion_safe=fusion_safe)
    best = context.best
    if best is None or best.partition.is_whole:
        return None
    reason = f"kept ready: {best.partition.label} on the CPU"
    return context.plan(best, make_provenance("tables", reason, chosen_ns=best.simulated_ns))


def expected_input_bytes(model: Model, plan: Plan) -> dict[int, int]:
    """Segment -> bytes of the model's inputs that it reads, of segments that wait for no other.

    {} for a model all of whose inputs have one shape only, so that nothing else can be fed.

    Args:
        model: in the shapes that the plan was made for.
    """
    if not model.shapes:
        return {}
    sizes = {info.name: tensor_bytes(model.graph, info.name) for info in model.graph.inputs}
    return {
        segment.index: sum(sizes.get(name, 0) for name in segment.inputs)
        for segment in plan.segments
        if not segment.predecessors
    }


def describe(state: HardwareState) -> str:
    """A state in words."""
    factors = dict(state.slowdowns)
    narrow, wide = factors.pop(CPU_NARROW, None), factors.pop(CPU_WIDE, None)
    if narrow == wide and narrow is not None:
        factors["the CPU"] = narrow
    else:
        factors |= {name: factor for name, factor in (("one core", narrow), ("all cores", wide)) if factor is not None}
    slow = [f"{name} takes {factor:g} times as long" for name, factor in factors.items() if factor != 1]
    return " and ".join(slow) or "all is as predicted"


def _first_costs(first: Plan, whole_ns: dict[int, int]) -> tuple[int, ...]:
    """Of the plan in force; a whole model's is what was measured, or else predicted, for it."""
    if not first.is_whole:
        return tuple(segment.cost_ns for segment in first.segments)
    width = first.segments[0].width if first.segments else 1
    known = first.provenance.chosen_ns or first.provenance.whole_ns
    return (known or whole_ns.get(width) or min(whole_ns.values()),) * len(first.segments)


def _key(plan: Plan) -> object:
    """Tells plans apart by what they run where, whatever costs and reasons they give."""
    if plan.is_whole:
        return tuple(segment.width for segment in plan.segments)
    segments = tuple((segment.nodes, segment.backend, segment.width, segment.lane) for segment in plan.segments)
    return plan.constants_shapes, segments
