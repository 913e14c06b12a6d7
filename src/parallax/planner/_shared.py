"""Plans in which one placer shares a model between the CPU and several devices at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from parallax.backends import Backend
from parallax.graph import CostModel
from parallax.planner._candidates import PlanningContext, host_machine
from parallax.planner._devices import DeviceStudy, plan_of_regions, scaled_costs
from parallax.planner._request import PlanDevice
from parallax.schedule import Plan
from parallax.schedule.placement import Coexecution, PlacementProblem, Placer, find_placement


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPlan:
    """What a placer made of a model."""

    plan: Plan | None
    """Without its provenance; None where the CPU alone is best."""
    devices: tuple[str, ...]
    """Names that the devices were asked for by, of those that the plan uses."""
    cpu_ns: int
    """Predicted time on the CPU alone, one node after the other."""
    chosen_ns: int
    """Predicted time of the plan; that of the CPU alone, branches side by side, where that is best."""
    reason: str
    """What was compared, for people."""
    found: Coexecution | None = None
    """All that was simulated; None where no device has prices."""


def plan_shared(
    context: PlanningContext, devices: Mapping[str, PlanDevice], placer: Placer, *, name: str
) -> SharedPlan:
    """The best of what a placer proposes for all devices together, and of the CPU alone.

    Args:
        context: of the model, in its planned shapes.
        devices: by the names they were asked for; those without prices are left out.
        name: of the placer.

    Raises:
        BackendError: a device cannot tell what it takes.
        ConfigError: the placer proposes what is no placement.
    """
    costs = _common_costs(context, [device.backend for device in devices.values()])
    studies = {
        asked: DeviceStudy(context, device.backend, costs, room_bytes=device.room_bytes)
        for asked, device in devices.items()
    }
    offers = {asked: study.offer for asked, study in studies.items() if study.offer is not None}
    cpu_ns = next(iter(studies.values())).cpu_ns
    unpriced = [
        f"{asked} has no prices: tune=True measures what it is worth" for asked in studies if asked not in offers
    ]
    if not offers:
        return SharedPlan(plan=None, devices=(), cpu_ns=cpu_ns, chosen_ns=cpu_ns, reason="; ".join(unpriced))
    problem = PlacementProblem(
        graph=context.graph,
        groups=context.units,
        devices=tuple(offers.values()),
        costs=costs,
        machine=host_machine(context.cores),
    )
    found = find_placement(problem, (placer,))
    best = found.best
    figures = f"{cpu_ns / 1e6:.3f} ms on the CPU alone"
    if best.plan.is_cpu_only:
        reason = f"nothing runs on {' and '.join(offers)}: nothing that {name} proposes gains anything ({figures})"
        return SharedPlan(
            plan=None,
            devices=(),
            cpu_ns=cpu_ns,
            chosen_ns=best.makespan_ns,
            reason="; ".join((reason, *unpriced)),
            found=found,
        )
    of_region = [list(offers)[device] for device in best.regions.device_of]
    backends = [studies[asked].name for asked in of_region]
    plan = plan_of_regions(context, best.plan, backends, best.tasks, best.schedule)
    used = tuple(dict.fromkeys(of_region))
    reason = (
        f"{best.plan.counted} on {' and '.join(used)} beside the CPU, as {name} places them: "
        f"{best.makespan_ns / 1e6:.3f} ms predicted, {figures}"
    )
    return SharedPlan(
        plan=plan,
        devices=used,
        cpu_ns=cpu_ns,
        chosen_ns=best.makespan_ns,
        reason="; ".join((reason, *unpriced)),
        found=found,
    )


def _common_costs(context: PlanningContext, backends: Sequence[Backend]) -> CostModel:
    """The CPU's costs that the prices of all these devices are compared with: scaled, where one of them asks for it."""
    scaled = [scaled_costs(context, backend) for backend in backends]
    return next((costs for costs in scaled if costs is not context.costs), context.costs)
