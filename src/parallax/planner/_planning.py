"""From a request to a plan: forced, remembered, tuned, from tables, or whole.

The order in which these are tried, and the reason for what was chosen, is all that this module adds to
partition and schedule: both do the work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from parallax.graph import OpGraph
from parallax.model import Model
from parallax.planner._choices import is_kept_whole, is_split_forced, is_unasked, is_yardstick
from parallax.planner._default_policy import ONE_CORE
from parallax.planner._device_model import DeviceModel, model_for_devices, uses_devices
from parallax.planner._kept import remembered_plan
from parallax.planner._lowering import lower_bodies
from parallax.planner._placing import plan_on_devices
from parallax.planner._request import PlannedModel, PlanRequest
from parallax.planner._rows import planned_model
from parallax.planner._small import small_at_sight
from parallax.planner._tables import (
    forced_body_plan,
    forced_plan,
    least_share,
    plan_from_tables,
    why_model_stays_whole,
)
from parallax.planner._whole import whole_plan
from parallax.schedule import Plan


def plan_model(request: PlanRequest) -> PlannedModel:
    """The plan to run the model with.

    Tried in this order: what the model does not allow, what the caller demands (``policy``, ``split``, ``tune``), what
    tuning found earlier on this machine, what the tables promise.

    Raises:
        BackendError: a device cannot tell what it takes.
        ConfigError: the model does not run on the feeds that it is to be tuned with.
    """
    plan = find_plan(request)
    return PlannedModel(plan=plan, model=planned_model(request.model, plan))


def find_plan(request: PlanRequest) -> Plan:
    """The plan alone; see `plan_model`."""
    if request.objective in Plan.ENERGY_OBJECTIVES and not _is_measured(request):
        from parallax.planner._by_energy import plan_by_energy  # few sessions ask for it

        is_open = request.split == "auto" and request.min_gain is None and not is_kept_whole(request)
        kept = remembered_plan(request) if is_open else None
        return kept or plan_by_energy(replace(request, tune=False), _plan_by_time)
    return _find_by_time(request, remembered_plan)


def _is_measured(request: PlanRequest) -> bool:
    """Whether tuning compares plans of the model, and not just its numbers of threads."""
    is_whole = not request.devices and is_kept_whole(request)
    return request.tune and not is_whole and why_model_stays_whole(request.model) is None


def _plan_by_time(request: PlanRequest) -> Plan:
    """What tables and prices say, whatever tuning kept."""
    return _find_by_time(request, lambda _: None)


def _find_by_time(request: PlanRequest, kept: Callable[[PlanRequest], Plan | None]) -> Plan:
    """The plan by time, or by joules where those are measured. ``kept``: what tuning found earlier, if that counts."""
    model, cores = request.model, request.cores
    if is_yardstick(request.policy):
        return _plan_of_yardstick(request)
    if is_unasked(request) and not request.devices:
        return kept(request) or _plan_unasked(model, cores=cores)
    obstacle = why_model_stays_whole(model)
    if request.devices and obstacle is None:
        return _plan_with_devices(request, kept)
    if is_kept_whole(request):
        asked = 'split="never" keeps the model whole'
        obstacle = asked if request.split == "never" else 'policy="sequential" keeps the model whole, as split="never"'
    if obstacle is not None:
        return whole_plan(model, obstacle, cores=cores)
    if is_split_forced(request):
        plan = forced_plan(model, cores=cores)
        return lower_bodies(model, plan, plan_body=forced_body_plan, min_gain=0) if request.plans_bodies else plan
    if request.tune:
        from parallax.planner._tuning import tune  # measuring is a tuned session's cost, importing too

        return tune(request)
    return kept(request) or _plan_by_gain(request)


def _plan_of_yardstick(request: PlanRequest) -> Plan:
    """The plan of a policy that nothing is compared with."""
    from parallax.planner._paper import plan_as_the_paper  # few sessions ask for it
    from parallax.planner._placers import open_placer
    from parallax.schedule.placement import PaperPolicy

    policy = open_placer(request.policy) if request.placer is None else request.placer
    assert isinstance(policy, PaperPolicy)  # there is no other
    return plan_as_the_paper(request, policy)


def _plan_with_devices(request: PlanRequest, kept: Callable[[PlanRequest], Plan | None]) -> Plan:
    """The plan for a model that may run on accelerators beside the CPU. ``kept``: as in `_find_by_time`."""
    if request.tune:
        from parallax.planner._tuning import tune

        return tune(request)
    if request.min_gain is None and request.split == "auto" and request.policy == "adaptive":
        earlier = kept(request)
        if earlier is not None:
            return earlier
    computed = model_for_devices(request)
    return plan_on_devices(request) if computed is None else _plan_computed(request, computed)


def _plan_computed(request: PlanRequest, computed: DeviceModel) -> Plan:
    """The plan for the model with its constants computed, where a device has a part of it; else one for it as it is."""
    plan = plan_on_devices(replace(request, model=computed.model))
    if plan.is_whole:
        provenance = plan.provenance
        return whole_plan(request.model, provenance.reason, cores=request.cores, provenance=provenance)
    if not uses_devices(plan):
        return plan_on_devices(request)
    if len(plan.segments) == 1 and not any(device.backend.info.is_emulated for device in request.devices.values()):
        # A real device that takes the model whole computes its constants itself, for all shapes that it takes.
        whole = plan_on_devices(request)
        if len(whole.segments) == 1:
            return whole
    return computed.plan(plan)


def _plan_unasked(model: Model, *, cores: int) -> Plan:
    """The default policy's plan. Only for a model that may gain clearly is the graph built, let alone its types
    inferred: the rest opens as quickly as the runtime opens it."""
    obstacle: str | None
    if cores < 2:
        obstacle = ONE_CORE
    else:
        obstacle = small_at_sight(model.survey, cores=cores)
        if obstacle is None:
            obstacle = why_model_stays_whole(model)
    if obstacle is not None:
        return whole_plan(model, obstacle, cores=cores)
    # Without a device, all that a body can gain is work side by side, and looking for that delays opening: on demand.
    return plan_from_tables(model, cores=cores)


def _plan_by_gain(request: PlanRequest) -> Plan:
    """The plan by tables where the caller named the least gain."""
    assert request.min_gain is not None  # else the default policy was asked
    model, cores, min_gain = request.model, request.cores, request.min_gain
    plan = plan_from_tables(model, cores=cores, min_gain=min_gain)
    if not request.plans_bodies or cores < 2 or not any(node.bodies for node in model.graph.nodes):
        return plan

    def plan_body(body: Model, *, cores: int) -> Plan:
        obstacle = why_model_stays_whole(body)
        if obstacle is not None:
            return whole_plan(body, obstacle, cores=cores)
        return plan_from_tables(body, cores=cores, min_gain=min_gain)

    def promises(body: OpGraph) -> bool:
        return least_share(body, cores=cores) <= 1 - min_gain

    return lower_bodies(model, plan, plan_body=plan_body, min_gain=min_gain, promises=promises)
