"""Plans for bodies of control flow, to be measured beside the plans without."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from parallax.errors import ParallaxError
from parallax.graph import OpGraph
from parallax.model import Model
from parallax.planner._devices import DeviceBodyPlanner, held_bytes, with_price
from parallax.planner._lowering import BodyPlanner, lower_bodies
from parallax.planner._request import PlanRequest
from parallax.planner._rows import planned_model
from parallax.planner._tables import least_share, plan_from_tables, why_model_stays_whole
from parallax.planner._whole import whole_plan
from parallax.schedule import Plan

logger = logging.getLogger(__name__)

LEAST_GAIN = 0.02
"""What is measured need not promise more than this share of the latency: predictions of bodies are rough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BasePlan:
    """A plan whose bodies are still the runtime's."""

    label: str
    plan: Plan
    device: str | None = None
    """The device that it shares the model with, by the name it was asked for."""


def plans_with_bodies(request: PlanRequest, bases: Sequence[BasePlan]) -> Iterator[tuple[str, Plan]]:
    """These plans with those bodies planned that promise a gain, each with a label; those without any are left out.

    Bodies are planned as without tuning: for the cores by tables, for a device by its prices.
    """
    model = request.model
    if not request.plans_bodies or not any(node.bodies for node in model.graph.nodes):
        return
    for base in bases:
        if base.plan.rows_permille is not None:
            continue
        try:
            planned = _with_bodies(request, base)
        except ParallaxError as error:
            logger.warning("bodies of control flow are not planned in %r: %s", base.label, error)
            continue
        if any(segment.bodies for segment in planned.segments):
            yield f"{base.label}, bodies planned", planned


def _with_bodies(request: PlanRequest, base: BasePlan) -> Plan:
    """The plan with its bodies planned. Raises: BackendError if the runtime or a device refuses one."""
    model, plan = planned_model(request.model, base.plan), base.plan
    gain = LEAST_GAIN if request.min_gain is None else request.min_gain

    def on_cores(body: Model, *, cores: int) -> Plan:
        obstacle = why_model_stays_whole(body)
        if obstacle is not None:
            return whole_plan(body, obstacle, cores=cores)
        return plan_from_tables(body, cores=cores, min_gain=gain)

    def promises(body: OpGraph) -> bool:
        return least_share(body, cores=request.cores) <= 1 - gain

    if base.device is None:
        return lower_bodies(model, plan, plan_body=on_cores, min_gain=gain, promises=promises)
    device = request.devices[base.device]
    budget_bytes = device.budget_bytes
    if budget_bytes is not None:
        budget_bytes = max(1, budget_bytes - held_bytes(model.inferred(), plan, device.backend.info.name))
    planner: BodyPlanner = DeviceBodyPlanner(
        with_price(device.backend, width=request.cores), forced=False, otherwise=on_cores, budget_bytes=budget_bytes
    )
    return lower_bodies(model, plan, plan_body=planner, min_gain=gain)
