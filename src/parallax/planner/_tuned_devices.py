"""What tuning measures of devices: each one's own placement, regions by cost, rows shared, and what a placer makes."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from parallax.errors import BackendError, ParallaxError
from parallax.graph import CostModel
from parallax.model import Model
from parallax.planner._candidates import PlanningContext
from parallax.planner._device_model import DeviceModel, model_for_devices
from parallax.planner._devices import DevicePlan, DeviceStudy, sides_of, with_price
from parallax.planner._placing import plan_whole_within
from parallax.planner._request import PlanDevice, PlanRequest, Progress
from parallax.planner._rows import can_share_rows, in_rows_shapes, open_shapes
from parallax.planner._shared import plan_shared, search_shared_rows
from parallax.schedule.placement import Placer, RowsAndRegions

logger = logging.getLogger(__name__)


def all_device_plans(
    request: PlanRequest,
    context: PlanningContext,
    measure: Callable[..., CostModel],
    progress: Progress,
    shapes: Mapping[str, tuple[int, ...]],
) -> Iterator[tuple[str, DevicePlan | None, str]]:
    """What to measure of each device, and of all together where a placer is to share the model: (name, plan or None,
    why there is none). ``shapes``: of what is fed."""
    computed = model_for_devices(request, shapes)
    if computed is not None:
        try:
            context = PlanningContext(computed.model, cores=context.cores, costs=measure(computed.model))
        except BackendError as error:
            logger.warning("constants are left in the graph: %s", error)
            computed = None
    shared = request.shares_rows and can_share_rows(request.model, shapes)
    for name, device in request.devices.items():
        progress(f"compile for {name}", 0, 1)
        for made, note in _device_plans(name, device, context, request.model):
            yield name, _of_original(made, computed), note
        if shared:
            tell = functools.partial(progress, f"share rows with {name}")
            by_rows = _shared_rows(name, device, context, shapes, cost=measure, progress=tell)
            if by_rows is not None:
                yield name, _of_original(by_rows, computed), ""
    if request.placer is not None and request.devices:
        placed, note = _placed_plan(request.placer, request, context, measure, shapes if shared else None)
        yield request.policy, _of_original(placed, computed), note


def _of_original(made: DevicePlan | None, computed: DeviceModel | None) -> DevicePlan | None:
    """A plan of the model with its constants computed, as one of the model; others as they are."""
    if made is None or computed is None or made.plan.structure_digest == computed.original.structure_digest:
        return made
    return replace(made, plan=computed.plan(made.plan))


def _placed_plan(
    placer: Placer,
    request: PlanRequest,
    context: PlanningContext,
    measure: Callable[[Model], CostModel],
    shapes: Mapping[str, tuple[int, ...]] | None,
) -> tuple[DevicePlan | None, str]:
    """What a placer makes of all devices together; or None, and why not. ``shapes``: of what is fed, where it may split
    the model by rows."""
    stated = {} if shapes is None else open_shapes(context.model, shapes)
    try:
        devices = {
            name: replace(device, backend=with_price(device.backend, width=context.cores))
            for name, device in request.devices.items()
        }
        shared = plan_shared(
            _context_in(context, stated),
            devices,
            placer,
            name=request.policy,
            shares_rows=shapes is not None,
            cost=measure,
        )
    except BackendError as error:
        logger.warning("%s places nothing: %s", request.policy, error)
        return None, str(error)
    if shared.plan is None:
        return None, shared.reason
    plan = replace(shared.plan, structure_digest=context.model.structure_digest)
    if plan.rows_permille is not None:
        plan = replace(plan, rows_shapes=tuple(stated.items()))
    return DevicePlan(label=f"placed by {request.policy}", plan=plan, simulated_ns=shared.chosen_ns), ""


def _device_plans(
    name: str, device: PlanDevice, context: PlanningContext, original: Model
) -> list[tuple[DevicePlan | None, str]]:
    """What to measure of one device: its own greedy placement, and regions by cost; or None, and why there is none.

    Args:
        original: what a real device is given whole, where the context's model is that with its constants computed.
    """
    found: list[tuple[DevicePlan | None, str]] = []
    try:
        study = DeviceStudy(context, with_price(device.backend, width=context.cores), budget_bytes=device.budget_bytes)
        if device.backend.info.is_emulated:
            # It computes with the processor's kernels, so that what it does not take cannot be left to itself.
            greedy = study.greedy
        else:
            plan, why = plan_whole_within(study, name, original, cores=context.cores)
            greedy = None if plan is None else DevicePlan(label=f"whole model, {name}", plan=plan, simulated_ns=0)
            if greedy is None:
                found.append((None, why))
        plans = [greedy, study.best, study.in_sequence]
        for made in plans:
            if made is not None and all(other is None or other.plan != made.plan for other, _ in found):
                found.append((made, ""))
        if study.best is None:
            found.append((None, study.reason))
    except ParallaxError as error:
        logger.warning("%s is left out: %s", name, error)
        found.append((None, str(error)))
    return found


def _shared_rows(
    name: str,
    device: PlanDevice,
    context: PlanningContext,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    cost: Callable[[Model], CostModel],
    progress: Callable[[int, int], None],
) -> DevicePlan | None:
    """The best plan in which rows of single operators are shared by device and processor; None where none is to be had.

    So even what follows one another in the model runs side by side (see `parallax.model.split_rows`), and branches that
    gain more as they are stay whole (see `parallax.planner._row_search`). The best few of what is searched at divided
    costs are costed and simulated.

    Args:
        shapes: of what is fed, to split the model in.
        cost: measures a model.
    """
    model = context.model
    stated = open_shapes(model, shapes)
    best: DevicePlan | None = None
    try:
        priced = with_price(device.backend, width=context.cores)
        whole = _context_in(context, stated)
        placer = RowsAndRegions()
        alone = DeviceStudy(whole, priced, budget_bytes=device.budget_bytes).placed((placer,))
        if alone is None:
            return None
        sides = sides_of(whole, alone)
        devices = {name: replace(device, backend=priced)}
        found = search_shared_rows(whole, devices, alone, evaluations=placer.evaluations)
        tried = () if found is None else found.candidates
        for number, rows in enumerate(tried):
            progress(number, len(tried))
            made = rows.split.model
            own = PlanningContext(made, cores=context.cores, costs=cost(made))
            placed = DeviceStudy(own, priced, split=rows.split, sides=sides, budget_bytes=device.budget_bytes).best
            if placed is not None and (best is None or placed.simulated_ns < best.simulated_ns):
                # It is a plan for the model as it is, which is split when the plan is compiled.
                plan = replace(
                    placed.plan,
                    structure_digest=model.structure_digest,
                    rows_permille=rows.permille,
                    rows_whole=rows.whole,
                    rows_shapes=tuple(stated.items()),
                )
                label = f"rows shared with {name}, {rows.permille / 10:g}% of them there"
                label += f", {len(rows.whole)} layers left whole" if rows.whole else ""
                best = replace(placed, label=label, plan=plan)
    except ParallaxError as error:
        logger.warning("rows are not shared with %s: %s", name, error)
    return best


def _context_in(context: PlanningContext, shapes: Mapping[str, tuple[int, ...]]) -> PlanningContext:
    """The same question about the model with these shapes of inputs that it leaves open; costs are those measured."""
    if not shapes:
        return context
    return PlanningContext(in_rows_shapes(context.model, shapes), cores=context.cores, costs=context.costs)
