"""Plans for other states of the machine: what would be best if a device or the CPU were slower than predicted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from parallax.adapt import CPU_NARROW, CPU_WIDE, HardwareState, calm_costs_ns, in_state, predict_ns
from parallax.planner._candidates import HANDOVER_NS, SEGMENT_OVERHEAD_NS, PlanningContext, host_machine
from parallax.planner._devices import DeviceStudy, plan_of_regions, scaled_costs
from parallax.planner._request import PlanRequest
from parallax.planner._whole import make_provenance, uncut_plan
from parallax.profile import surviving_tensors
from parallax.schedule import Plan
from parallax.schedule.placement import PLACERS, PlacementProblem, find_placement

_PLACERS: Final = ("by-cost", "greedy", "heft")
"""Asked in each state. Moving branches one by one would take seconds per state, for a percent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatePlan:
    """A plan that is best in some state of the machine."""

    label: str
    """How it was found, for people."""
    plan: Plan
    cost_ns: tuple[int, ...]
    """What each segment takes when all is calm."""

    def predict_ns(self, state: HardwareState) -> int:
        """What a run takes in a state."""
        return predict_ns(
            self.plan,
            state,
            handover_ns=HANDOVER_NS,
            segment_overhead_ns=SEGMENT_OVERHEAD_NS if len(self.plan.segments) > 1 else 0,
            cost_ns=self.cost_ns,
        )


def plans_for_states(request: PlanRequest, first: Plan, states: Sequence[HardwareState]) -> Iterator[StatePlan]:
    """The plan in force, and others that are better in some of these states; each once. Takes seconds for large models.

    Others are the whole model on the CPU, on all cores and on one, and for each state the best placement that quick
    placers find for it.

    Args:
        request: that ``first`` was the answer to.
        first: the plan in force.
        states: to find plans for.

    Raises: BackendError: a device cannot tell what it takes, or the runtime refuses the model.
    """
    model, cores = request.model, request.cores
    context = PlanningContext(model, cores=cores, survivors=surviving_tensors(model))
    costs = context.costs
    for device in request.devices.values():
        scaled = scaled_costs(context, device.backend)
        if scaled is not context.costs:
            costs = scaled
            break
    seen: set[object] = set()

    def once(found: StatePlan) -> Iterator[StatePlan]:
        key = _key(found.plan)
        if key not in seen:
            seen.add(key)
            yield found

    whole_ns = {width: sum(costs.node_ns(width)) for width in {1, cores}}
    yield from once(StatePlan(label="the plan in force", plan=first, cost_ns=_first_costs(first, whole_ns)))
    for width in sorted(whole_ns, reverse=True):
        reason = f"kept ready: the whole model on {width} {'core' if width == 1 else 'cores'} of the CPU"
        plan = uncut_plan(model, reason, cores=cores, width=width)
        yield from once(StatePlan(label=f"the CPU alone, {width} wide", plan=plan, cost_ns=(whole_ns[width],)))
    studies = [
        DeviceStudy(context, device.backend, costs, room_bytes=device.room_bytes) for device in request.devices.values()
    ]
    offers = [(study.name, study.offer) for study in studies if study.offer is not None]
    if not offers:
        return
    problem = PlacementProblem(
        graph=context.graph,
        groups=context.units,
        devices=tuple(offer for _, offer in offers if offer is not None),
        costs=costs,
        machine=host_machine(cores),
    )
    for state in states:
        best = find_placement(in_state(problem, state), [PLACERS[name]() for name in _PLACERS]).best
        if best.plan.is_cpu_only:
            continue
        names = [offers[device][0] for device in best.regions.device_of]
        plan = plan_of_regions(context, best.plan, names, best.tasks, best.schedule)
        label = f"best where {describe(state)}"
        reason = f"kept ready: {best.plan.counted} on {' and '.join(dict.fromkeys(names))}, {label}"
        plan = replace(plan, provenance=make_provenance("tables", reason, chosen_ns=best.makespan_ns))
        yield from once(StatePlan(label=label, plan=plan, cost_ns=calm_costs_ns(plan, state)))


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
    if not first.is_uncut:
        return tuple(segment.cost_ns for segment in first.segments)
    width = first.segments[0].width if first.segments else 1
    known = first.provenance.chosen_ns or first.provenance.uncut_ns
    return (known or whole_ns.get(width) or min(whole_ns.values()),) * len(first.segments)


def _key(plan: Plan) -> object:
    """Tells plans apart by what they run where, whatever costs and reasons they give."""
    if plan.is_uncut:
        return tuple(segment.width for segment in plan.segments)
    return tuple((segment.nodes, segment.backend, segment.width, segment.lane) for segment in plan.segments)
