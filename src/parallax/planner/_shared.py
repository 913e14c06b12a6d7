"""Plans in which one placer shares a model between the CPU and several devices at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from parallax.backends import Backend
from parallax.graph import CostModel
from parallax.model import Model, RowSplit, split_rows
from parallax.planner._candidates import PlanningContext, host_machine
from parallax.planner._devices import DeviceStudy, plan_of_regions, scaled_costs
from parallax.planner._request import PlanDevice
from parallax.profile import surviving_tensors
from parallax.schedule import CPU_BACKEND, Plan
from parallax.schedule.placement import Coexecution, PlacementProblem, Placer, find_placement, row_parts


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
    context: PlanningContext,
    devices: Mapping[str, PlanDevice],
    placer: Placer,
    *,
    name: str,
    shares_rows: bool = True,
    cost: Callable[[Model], CostModel] | None = None,
) -> SharedPlan:
    """The best of what a placer proposes for all devices together, and of the CPU alone.

    A placer with a method ``rows_share(balanced)`` is asked about the model split by rows: so much of them in the first
    part, given the share with which the first device and the CPU would end together.

    Args:
        context: of the model, in its planned shapes.
        devices: by the names they were asked for; those without prices are left out.
        name: of the placer.
        shares_rows: whether the model may be split by rows.
        cost: of the CPU for a model that was split; None: from tables.

    Raises:
        BackendError: a device cannot tell what it takes.
        ConfigError: the placer proposes what is no placement.
    """
    backends = [device.backend for device in devices.values()]
    studies = device_studies(context, devices, common_costs(context, backends))
    cpu_ns = next(iter(studies.values())).cpu_ns
    unpriced = [
        f"{asked} has no prices: tune=True measures what it is worth"
        for asked, study in studies.items()
        if study.offer is None
    ]
    if len(unpriced) == len(studies):
        return SharedPlan(plan=None, devices=(), cpu_ns=cpu_ns, chosen_ns=cpu_ns, reason="; ".join(unpriced))
    split = _split_for(placer, context, studies) if shares_rows else None
    if split is not None:
        made = split.split.model
        costs = None if cost is None else cost(made)
        survivors = surviving_tensors(made) if cost is None else None
        worths = context.zero_worths
        context = PlanningContext(made, cores=context.cores, costs=costs, survivors=survivors, zero_worths=worths)
        studies = device_studies(context, devices, common_costs(context, backends), split=split.split)
    offers = {asked: study.offer for asked, study in studies.items() if study.offer is not None}
    here = context.zero_worths.get(CPU_BACKEND)
    problem = PlacementProblem(
        graph=context.graph,
        groups=context.units,
        devices=tuple(offers.values()),
        costs=next(iter(studies.values())).costs,
        machine=host_machine(context.cores),
        row_parts={} if split is None else row_parts(context.graph, context.units, split.split.parts),
        zeros=context.weight_zeros,
        zero_worth={} if here is None else here.saved_shares(node.op_type for node in context.graph.nodes),
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
    names = [studies[asked].name for asked in of_region]
    plan = plan_of_regions(context, best.plan, names, best.tasks, best.schedule)
    if split is not None:
        # It is a plan for the model as it is, which is split when the plan is compiled.
        plan = replace(plan, structure_digest=split.structure_digest, rows_permille=split.permille)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Split:
    """A model split by rows, and of which one."""

    split: RowSplit
    permille: int
    structure_digest: str


def _split_for(placer: Placer, context: PlanningContext, studies: Mapping[str, DeviceStudy]) -> _Split | None:
    """The model split as a placer asks for; None where it does not, or there are no rows to split."""
    rows_share = getattr(placer, "rows_share", None)
    if not callable(rows_share):
        return None
    offer = next(study.offer for study in studies.values() if study.offer is not None)
    permille = min(max(round(1000 * rows_share(offer.balanced_share)), 1), 999)
    split = split_rows(context.model, permille / 1000)
    if split is None:
        return None
    return _Split(split=split, permille=permille, structure_digest=context.model.structure_digest)


def device_studies(
    context: PlanningContext, devices: Mapping[str, PlanDevice], costs: CostModel, *, split: RowSplit | None = None
) -> dict[str, DeviceStudy]:
    """A study of each device, by the name it was asked for. ``split``: how the context's model was split by rows."""
    return {
        asked: DeviceStudy(context, device.backend, costs, split=split, room_bytes=device.room_bytes)
        for asked, device in devices.items()
    }


def common_costs(context: PlanningContext, backends: Sequence[Backend]) -> CostModel:
    """The CPU's costs that the prices of all these devices are compared with: scaled, where one of them asks for it."""
    scaled = [scaled_costs(context, backend) for backend in backends]
    return next((costs for costs in scaled if costs is not context.costs), context.costs)
