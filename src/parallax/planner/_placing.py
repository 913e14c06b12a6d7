"""Plans for a model that may run on accelerators beside the CPU: which device gets what of it."""

from __future__ import annotations

from dataclasses import replace

from parallax.backends import Backend, open_backend
from parallax.errors import BackendError, ConfigError, ParallaxError
from parallax.model import Model
from parallax.planner._candidates import PlanningContext
from parallax.planner._choices import is_kept_whole, is_split_forced
from parallax.planner._devices import DeviceBodyPlanner, DeviceStudy, held_bytes
from parallax.planner._lowering import lower_bodies
from parallax.planner._request import PlanRequest
from parallax.planner._rows import can_share_rows
from parallax.planner._shared import plan_shared
from parallax.planner._tables import DEFAULT_MIN_GAIN, forced_body_plan, forced_plan
from parallax.planner._whole import fed_in_full, make_provenance, whole_plan
from parallax.profile import Cache, fusion_safe_tensors
from parallax.schedule import CPU_BACKEND, Plan
from parallax.schedule.placement import Placer
from parallax.sparsity import kept_worths


def plan_on_devices(request: PlanRequest) -> Plan:
    """The plan by prices: regions that pay, in bodies too, or none.

    Raises: BackendError if a device cannot tell what it takes.
    """
    model = request.model
    plan, chosen = _placed(request)
    if not request.plans_bodies or is_kept_whole(request) or plan.rows_permille is not None:
        return plan
    device = request.devices[chosen or next(iter(request.devices))]
    forced = is_split_forced(request)
    budget_bytes = device.budget_bytes
    if budget_bytes is not None:
        budget_bytes = max(1, budget_bytes - held_bytes(model.inferred(), plan, device.backend.info.name))
    planner = DeviceBodyPlanner(
        device.backend, forced=forced, otherwise=forced_body_plan if forced else _whole_body, budget_bytes=budget_bytes
    )
    return lower_bodies(model, plan, plan_body=planner, min_gain=_least_gain(request))


def plan_whole_on(name: str, model: Model, *, cores: int, backend: Backend | None = None) -> tuple[Plan | None, str]:
    """The plan that gives the whole model to a backend; or None, and why not.

    A provider of ONNX Runtime's may leave a part of it to the CPU: then that is its own, greedy placement.

    Raises: ConfigError if there is no such backend here.
    """
    if model.why_whole is not None:
        return None, model.why_whole
    if model.graph.overridable:
        return None, "the model has initializers that a run may override, which it would build in"
    try:
        asked = open_backend(name) if backend is None else backend
        answer = asked.capability(model)
    except ConfigError:
        raise
    except ParallaxError as error:
        return None, str(error)
    refused = answer.refused
    if refused and not (answer.taken and asked.info.leaves_rest_to_cpu):
        first = refused[0]
        return None, (
            f"does not take {len(refused)} of {len(model.graph.nodes)} operators, the first of them "
            f"{model.graph.nodes[first.node].op_type}: {first.detail}"
        )
    part = f"{len(answer.taken)} of {len(model.graph.nodes)} operators" if refused else "the whole model"
    plan = fed_in_full(whole_plan(model, f"{part} on {name}", cores=cores), model)
    return replace(plan, segments=(replace(plan.segments[0], backend=name),)), ""


def plan_whole_within(study: DeviceStudy, name: str, model: Model, *, cores: int) -> tuple[Plan | None, str]:
    """`plan_whole_on` for a device that may not hold all of it."""
    lack = study.why_not_whole
    return (None, lack) if lack else plan_whole_on(name, model, cores=cores, backend=study.backend)


def _least_gain(request: PlanRequest) -> float:
    """The fraction of the latency that a split must be predicted to save."""
    if is_split_forced(request):
        return 0.0
    return DEFAULT_MIN_GAIN if request.min_gain is None else request.min_gain


def _placed(request: PlanRequest) -> tuple[Plan, str | None]:
    """The plan by prices, and the device it shares the model with."""
    model, cores = request.model, request.cores
    try:
        fusion_safe = fusion_safe_tensors(model)
    except BackendError as error:
        return whole_plan(model, f"the runtime refuses the model: {error}", cores=cores), None
    backends = {device.backend.info.name: device.backend for device in request.devices.values()}
    worths = kept_worths(Cache(request.cache_dir), {CPU_BACKEND: open_backend(CPU_BACKEND), **backends})
    context = PlanningContext(model, cores=cores, fusion_safe=fusion_safe, zero_worths=worths)
    if request.placer is not None and request.split == "auto" and not is_split_forced(request):
        return _placed_by(request.placer, request, context)
    reasons = []
    for name, device in request.devices.items():
        study = DeviceStudy(context, device.backend, budget_bytes=device.budget_bytes)
        if request.split == "never":
            alone, why = _whole_if_it_gains(study, name, model, cores=cores)
            if alone is not None:
                return alone, name
            reasons.append(why)
            continue
        if is_split_forced(request):
            forced = study.forced
            if forced is not None:
                reason = f'all that {name} takes runs there because split="always" asks for it'
                return replace(forced.plan, provenance=make_provenance("forced", reason)), name
            reasons.append(f"{name} takes nothing of this model")
            continue
        if study.device_costs is None:
            whole, why = plan_whole_within(study, name, model, cores=cores)
            if whole is not None:
                return whole, name
            reasons.append(f"{name} {why}; tune=True measures what parts of it are worth")
            continue
        found = study.in_sequence if request.policy == "sequential" else study.best
        if found is None:
            reasons.append(study.reason)
            continue
        cpu_ns = study.cpu_ns
        gain = 1 - found.simulated_ns / max(1, cpu_ns)
        least = _least_gain(request)
        if gain >= least:
            reason = f"{study.reason}; {gain:.0%} less latency than the CPU alone"
            provenance = make_provenance("tables", reason, whole_ns=cpu_ns, chosen_ns=found.simulated_ns)
            return replace(found.plan, provenance=provenance), name
        reasons.append(f"{study.reason}; that is {gain:.0%} less latency, {least:.0%} is asked for")
    if is_split_forced(request):
        return forced_plan(model, cores=cores), None
    return whole_plan(model, "; ".join(reasons), cores=cores), None


def _placed_by(placer: Placer, request: PlanRequest, context: PlanningContext) -> tuple[Plan, str | None]:
    """The plan that a placer makes of all devices together, and the first device it uses."""
    shared = plan_shared(
        context,
        request.devices,
        placer,
        name=request.policy,
        shares_rows=request.shares_rows and can_share_rows(request.model),
    )
    gain, least = 1 - shared.chosen_ns / max(1, shared.cpu_ns), _least_gain(request)
    reason = shared.reason
    if shared.plan is not None:
        if gain >= least:
            reason = f"{reason}; {gain:.0%} less latency than the CPU alone"
            provenance = make_provenance("tables", reason, whole_ns=shared.cpu_ns, chosen_ns=shared.chosen_ns)
            return replace(shared.plan, provenance=provenance), shared.devices[0]
        reason = f"{reason}; that is {gain:.0%} less latency, {least:.0%} is asked for"
    return whole_plan(request.model, reason, cores=request.cores), None


def _whole_if_it_gains(study: DeviceStudy, name: str, model: Model, *, cores: int) -> tuple[Plan | None, str]:
    """The plan that gives the whole model to a device, unless prices say that the CPU is quicker; or None, and why."""
    plan, why = plan_whole_within(study, name, model, cores=cores)
    if plan is None:
        return None, f'{name} {why}, and split="never" leaves it no part of the model'
    there = None if study.device_costs is None else study.greedy
    if there is None:
        return plan, ""
    cpu_ns = study.cpu_ns
    compared = f"{there.simulated_ns / 1e6:.3f} ms predicted, {cpu_ns / 1e6:.3f} ms on the CPU alone"
    if there.simulated_ns >= cpu_ns:
        return None, f"the whole model does not gain on {name}: {compared}"
    reason = f"{plan.provenance.reason}: {compared}"
    return replace(
        plan, provenance=make_provenance("tables", reason, whole_ns=cpu_ns, chosen_ns=there.simulated_ns)
    ), ""


def _whole_body(body: Model, *, cores: int) -> Plan:
    return whole_plan(body, "no part of it gains anything", cores=cores)
