"""Plans in which one placer shares a model between the CPU and several devices at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from parallax.backends import Backend
from parallax.graph import CostModel, OpGraph
from parallax.model import Model, RowSplit, split_rows
from parallax.partition.regions import DeviceCosts
from parallax.planner._candidates import PlanningContext
from parallax.planner._devices import (
    DeviceStudy,
    on_cores,
    placement_problem,
    plan_of_regions,
    scaled_costs,
    sides_of,
)
from parallax.planner._request import PlanDevice
from parallax.planner._row_costs import context_of_rows
from parallax.planner._row_search import FoundRows, TriedRows, search_rows
from parallax.profile import fusion_safe_tensors
from parallax.schedule import Plan
from parallax.schedule.placement import (
    Coexecution,
    PlacementProblem,
    Placer,
    Rank,
    ShardRows,
    find_placement,
    quickest,
)


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
    rank: Callable[[OpGraph, Sequence[str]], Rank] | None = None,
    busy_cores: int | None = None,
) -> SharedPlan:
    """The best of what a placer proposes for all devices together, and of the CPU alone.

    A placer with a method ``rows_share(balanced)`` is asked about the model split by rows: so much of them in the first
    part, given the share with which the first device and the CPU would end together. For one with ``rows_evaluations``,
    so many splits are tried: shares, and layers that stay whole; then it is asked about the best few of them, and about
    the model as it is.

    Args:
        context: of the model, in its planned shapes.
        devices: by the names they were asked for; those without prices are left out.
        name: of the placer.
        shares_rows: whether the model may be split by rows.
        cost: of the CPU for a model that was split; None: from tables.
        rank: given the graph that is placed and the devices' backends, what makes one placement better than another;
            None: time.
        busy_cores: of the CPU's, how many the plan may keep busy; None: all of the context's.

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
        if study.device_costs is None
    ]
    if len(unpriced) == len(studies):
        return SharedPlan(plan=None, devices=(), cpu_ns=cpu_ns, chosen_ns=cpu_ns, reason="; ".join(unpriced))

    def find(of: PlanningContext, on: Mapping[str, DeviceStudy], rows: _Rows | None = None) -> _Placed:
        """The best placement of a context's model, and how it ranks."""
        problem = _problem(of, on) if rows is None else _problem(of, on, rows.split, rows.sides)
        names = [study.name for study in on.values() if study.device_costs is not None]
        by = quickest if rank is None else rank(of.graph, names)
        cores = of.cores if busy_cores is None else busy_cores
        found = find_placement(on_cores(problem, cores), (placer,), rank=by)
        return _Placed(standing=by(found.best), context=of, studies=on, found=found, rows=rows)

    def find_split(rows: _Rows) -> _Placed:
        made = rows.split.model
        of = PlanningContext(
            made,
            cores=context.cores,
            costs=None if cost is None else cost(made),
            fusion_safe=fusion_safe_tensors(made) if cost is None else None,
            zero_worths=context.zero_worths,
        )
        return find(of, device_studies(of, devices, common_costs(of, backends), split=rows.split), rows)

    placed: list[_Placed] = []
    splits: list[_Rows] = []
    evaluations = getattr(placer, "rows_evaluations", None) if shares_rows else None
    if evaluations is not None:
        placed.append(find(context, studies))
        alone = placed[0].found
        searched = search_shared_rows(context, devices, alone, evaluations=evaluations)
        if searched is not None:
            splits = [_Rows.of(tried, sides_of(context, alone)) for tried in searched.candidates]
    elif shares_rows:
        splits = _rows_for(placer, context, studies)
    placed += [find_split(rows) for rows in splits] or ([] if placed else [find(context, studies)])
    whole, chosen = context, min(placed, key=lambda each: each.standing)
    context, studies, found, rows = chosen.context, dict(chosen.studies), chosen.found, chosen.rows
    priced = [asked for asked, study in studies.items() if study.device_costs is not None]
    best = found.best
    figures = f"{cpu_ns / 1e6:.3f} ms on the CPU alone"
    if best.plan.is_cpu_only:
        reason = f"nothing runs on {' and '.join(priced)}: nothing that {name} proposes gains anything ({figures})"
        return SharedPlan(
            plan=None,
            devices=(),
            cpu_ns=cpu_ns,
            chosen_ns=best.makespan_ns,
            reason="; ".join((reason, *unpriced)),
            found=found,
        )
    of_region = [priced[device] for device in best.regions.device_of]
    names = [studies[asked].name for asked in of_region]
    plan = plan_of_regions(context, best.plan, names, best.tasks, best.schedule)
    if rows is not None:
        # It is a plan for the model as it is, which is split when the plan is compiled.
        plan = replace(
            plan,
            structure_digest=whole.model.structure_digest,
            rows_permille=rows.permille,
            rows_whole=rows.whole,
        )
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
class _Rows:
    """A model split by rows."""

    split: RowSplit
    permille: int
    whole: tuple[str, ...] = ()
    sides: Mapping[str, int] | None = None

    @classmethod
    def of(cls, tried: TriedRows, sides: Mapping[str, int]) -> _Rows:
        return cls(split=tried.split, permille=tried.permille, whole=tried.whole, sides=sides)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placed:
    """The best placement of a model, as it is or split by rows."""

    standing: tuple[float, ...]
    """How it ranks: less is better."""
    context: PlanningContext
    studies: Mapping[str, DeviceStudy]
    found: Coexecution
    rows: _Rows | None


def _rows_for(placer: Placer, context: PlanningContext, studies: Mapping[str, DeviceStudy]) -> list[_Rows]:
    """The model split as a placer asks for; none where it does not, or there are no rows to split."""
    rows_share = getattr(placer, "rows_share", None)
    if not callable(rows_share):
        return []
    permille = min(max(round(1000 * rows_share(_first_priced(studies).balanced_share)), 1), 999)
    split = split_rows(context.model, permille / 1000)
    return [] if split is None else [_Rows(split=split, permille=permille)]


def search_shared_rows(
    context: PlanningContext, devices: Mapping[str, PlanDevice], alone: Coexecution, *, evaluations: int
) -> FoundRows | None:
    """Which rows of which layers the first device with prices and the CPU should share; None where there are none.

    Costs of models that are split follow from those of the context, and each is placed in a few ways: what is best
    deserves a closer look.

    Args:
        alone: the best placement of the context's model, where what stays whole would run.
        evaluations: splits that are tried, at most.
    """
    backends = [device.backend for device in devices.values()]
    sides = sides_of(context, alone)
    device_costs = _first_priced(device_studies(context, devices, common_costs(context, backends)))

    def judge(split: RowSplit) -> int:
        own = context_of_rows(context, split)
        studies = device_studies(own, devices, common_costs(own, backends), split=split)
        return find_placement(_problem(own, studies, split, sides), (ShardRows(),)).best.makespan_ns

    return search_rows(
        context.model,
        balanced=device_costs.balanced_share,
        cpu_ns=device_costs.cpu_ns,
        judge=judge,
        evaluations=evaluations,
    )


def _problem(
    context: PlanningContext,
    studies: Mapping[str, DeviceStudy],
    split: RowSplit | None = None,
    sides: Mapping[str, int] | None = None,
) -> PlacementProblem:
    costs_of_devices = [study.device_costs for study in studies.values() if study.device_costs is not None]
    return placement_problem(context, costs_of_devices, next(iter(studies.values())).costs, split=split, sides=sides)


def _first_priced(studies: Mapping[str, DeviceStudy]) -> DeviceCosts:
    return next(study.device_costs for study in studies.values() if study.device_costs is not None)


def device_studies(
    context: PlanningContext, devices: Mapping[str, PlanDevice], costs: CostModel, *, split: RowSplit | None = None
) -> dict[str, DeviceStudy]:
    """A study of each device, by the name it was asked for. ``split``: how the context's model was split by rows."""
    return {
        asked: DeviceStudy(context, device.backend, costs, split=split, budget_bytes=device.budget_bytes)
        for asked, device in devices.items()
    }


def common_costs(context: PlanningContext, backends: Sequence[Backend]) -> CostModel:
    """The CPU's costs that the prices of all these devices are compared with: scaled, where one of them asks for it."""
    scaled = [scaled_costs(context, backend) for backend in backends]
    return next((costs for costs in scaled if costs is not context.costs), context.costs)
