"""From a model and its options to a plan: forced, remembered, tuned, from tables, or uncut.

The order in which these are tried, and the reason for what was chosen, is all that this module adds to
partition and schedule: both do the work.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from parallax.backends import Backend, open_backend
from parallax.engine import Executor, compile_plan
from parallax.errors import BackendError, ConfigError, ParallaxError, PlanError
from parallax.graph import OpGraph
from parallax.model import Model, split_rows
from parallax.partition import (
    by_branches,
)
from parallax.profile import Cache, estimate_costs, machine_fingerprint, surviving_tensors
from parallax.schedule import (
    CPU_BACKEND,
    PLAN_FORMAT_VERSION,
    Plan,
    verify_plan,
)
from parallax.session._backends import backend_tables, backend_versions, wanted_backends
from parallax.session._candidates import PlanningContext, Proposal
from parallax.session._default_policy import DENSE, DENSE_ELEMENTS, KNOWN_DOMAINS, ONE_CORE, PRECOMPILED, SCALABLE
from parallax.session._devices import DeviceBodyPlanner, DeviceStudy, held_bytes
from parallax.session._feeds import is_feedable
from parallax.session._given_options import why_given_options_stay_whole
from parallax.session._keywords import check_calibration_names
from parallax.session._lifting import lift_bodies
from parallax.session._options import PlanningOptions
from parallax.session._providers import open_devices
from parallax.session._remembered import may_be_remembered, note_remembered
from parallax.session._runtime_options import lean_options, runtime_options
from parallax.session._small import LEAST_SAVING_NS, longest_path_ns, small_at_sight, small_by_costs
from parallax.session._source import in_memory_if_small
from parallax.session._whole import is_unasked, make_provenance, session_cores, uncut_plan

logger = logging.getLogger(__name__)

DEFAULT_MIN_GAIN = 0.15
"""Without measurement the tables must promise this much: they are right about orders, not percents."""


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
    plan = uncut_plan(model, f"{part} on {name}", cores=cores)
    return replace(plan, segments=(replace(plan.segments[0], backend=name),)), ""


def plan_whole_within(study: DeviceStudy, name: str, model: Model, *, cores: int) -> tuple[Plan | None, str]:
    """`plan_whole_on` for a device that may not hold all of it."""
    lack = study.why_not_whole
    return (None, lack) if lack else plan_whole_on(name, model, cores=cores, backend=study.backend)


def choose_plan(
    model: Model, options: PlanningOptions, session_options: Any, fit: Callable[[Model, Plan], Plan]
) -> tuple[Plan, Executor | None]:
    """The plan for one session, and its executor if the model is cut.

    ``model`` is without the shapes of the options. Tried in this order: what the model does not allow,
    what the caller demands (``policy``, ``split``, ``tune``), what tuning found earlier on this
    machine, what the tables promise. ``fit`` makes it fit the memory: given the model in its planned shapes and the
    plan, it returns that plan with peaks, or another.
    """
    # Shapes are for planning alone: segments made from the model as it is go on accepting others.
    shaped = model if options.shapes is None else model.with_shapes(options.shapes)
    check_calibration_names(options.calibration, model)
    obstacle = _why_options_stay_whole(model, shaped, options, session_options)
    if obstacle is not None:
        cores = session_cores(options, session_options)
        return fit(shaped, uncut_plan(model, obstacle, cores=cores)), None
    opened = open_devices(options.devices)
    found = find_plan(shaped, options, session_options, opened, lifts=True)
    split = planned_model(shaped, found)
    plan = fit(split, found)
    if plan.is_uncut:
        return plan, None
    parts = in_memory_if_small(model if plan.rows_permille is None else split)
    inherited = runtime_options(session_options)
    expected = {**feed_shapes(options.calibration or {}), **(options.shapes or {})}
    planned = graph_for_backends(parts, plan, expected)
    if options.budget_bytes is not None:
        inherited = lean_options(inherited)
    elif session_options is None and not all(info.is_static for info in model.graph.inputs):
        # A memory pattern is one block for all that a segment makes in a run of these shapes, which no other shapes'
        # block fits into: the allocator would come to hold one for each of the larger shapes.
        inherited = replace(inherited, enable_mem_pattern=False)
    try:
        executor = compile_plan(
            parts,
            plan,
            inherited,
            backends=opened,
            planned=planned,
            faults=options.faults,
        )
        return plan, executor
    except ParallaxError as error:
        if all(segment.backend == CPU_BACKEND for segment in plan.segments):
            raise
        # It could when the plan was measured; what it was installed for is not worth failing over.
        logger.warning("a backend cannot do its part of the plan, so the CPU does it all: %s", error)
        return uncut_plan(model, f"a backend failed to compile its part: {error}", cores=plan.cores), None


def planned_model(model: Model, plan: Plan) -> Model:
    """The model whose nodes a plan speaks of: split by rows, where it says so.

    Raises: PlanError if it cannot be split so.
    """
    if plan.rows_permille is None:
        return model
    split = split_rows(model, plan.rows_permille / 1000)
    if split is None:
        raise PlanError(
            f"the plan is for {plan.rows_permille} thousandths of the rows, and the model has none to split",
            fix="make the plan again",
        )
    return split.model


def may_share_rows(model: Model, options: PlanningOptions) -> bool:
    """Whether plans for the model split by rows are of use: it is split in fixed shapes, and budgets and shapes for
    planning alone are judged by the model as it is."""
    return (
        options.budget_bytes is None
        and options.shapes is None
        and all(info.is_static for info in (*model.graph.inputs, *model.graph.overridable))
    )


def feed_shapes(feeds: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """By name, what arrays would be fed in."""
    return {name: np.shape(fed) for name, fed in feeds.items()}


def graph_for_backends(model: Model, plan: Plan, expected: Mapping[str, tuple[int, ...]]) -> OpGraph | None:
    """The graph in the shapes that most runs should bring, for backends to prepare for; None if the plan has none.

    Raises: ConfigError if the model does not allow these shapes.
    """
    if all(segment.backend == CPU_BACKEND for segment in plan.segments):
        return None
    inputs = {info.name for info in model.graph.inputs}
    return model.with_shapes({name: shape for name, shape in expected.items() if name in inputs}).inferred()


def find_plan(
    model: Model,
    options: PlanningOptions,
    session_options: Any,
    devices: Mapping[str, Backend] | None = None,
    *,
    lifts: bool = False,
) -> Plan:
    """The plan alone, for a model in its planned shapes; see `choose_plan`.

    Args:
        devices: those of the options, opened.
        lifts: bodies may get plans too.
    """
    cores = session_cores(options, session_options)
    if is_unasked(options) and not devices:
        kept = remembered_plan(model, options, session_options, cores=cores)
        return kept or _plan_unasked(model, cores=cores)
    obstacle = why_model_stays_whole(model)
    if devices and obstacle is None:
        return plan_with_devices(model, options, session_options, devices, cores=cores, lifts=lifts)
    if options.is_kept_whole:
        asked = 'split="never" keeps the model whole'
        obstacle = asked if options.split == "never" else 'policy="sequential" keeps the model whole, as split="never"'
    if obstacle is not None:
        return uncut_plan(model, obstacle, cores=cores)
    if options.is_split_forced:
        plan = forced_plan(model, cores=cores)
        return lift_bodies(model, plan, plan_body=_forced_body_plan, min_gain=0) if lifts else plan
    if options.tune:
        from parallax.session._tuning import tune  # measuring is a tuned session's cost, importing too

        return tune(model, options, session_options, cores=cores)
    kept = remembered_plan(model, options, session_options, cores=cores)
    return kept or _plan_by_gain(model, options, cores=cores, lifts=lifts)


def plan_with_devices(
    model: Model,
    options: PlanningOptions,
    session_options: Any,
    devices: Mapping[str, Backend],
    *,
    cores: int,
    lifts: bool,
) -> Plan:
    """The plan for a model that may run on accelerators beside the CPU: regions that pay, in bodies too, or none.

    Raises: BackendError if a device cannot tell what it takes.
    """
    if options.tune:
        from parallax.session._tuning import tune

        return tune(model, options, session_options, cores=cores, devices=devices)
    if options.min_gain is None and options.split == "auto" and options.policy != "sequential":
        kept = remembered_plan(model, options, session_options, cores=cores)
        if kept is not None:
            return kept
    plan, chosen = _placed(model, options, devices, cores=cores)
    if not lifts or options.is_kept_whole:
        return plan
    name = chosen or next(iter(devices))
    forced = options.is_split_forced
    room = device_rooms(options).get(name)
    if room is not None:
        room = max(1, room - held_bytes(model.inferred(), plan, devices[name].info.name))
    planner = DeviceBodyPlanner(
        devices[name], forced=forced, otherwise=_forced_body_plan if forced else _uncut_body, room_bytes=room
    )
    return lift_bodies(model, plan, plan_body=planner, min_gain=_least_gain(options))


def _least_gain(options: PlanningOptions) -> float:
    """The fraction of the latency that a split must be predicted to save."""
    if options.is_split_forced:
        return 0.0
    return DEFAULT_MIN_GAIN if options.min_gain is None else options.min_gain


def _placed(
    model: Model, options: PlanningOptions, devices: Mapping[str, Backend], *, cores: int
) -> tuple[Plan, str | None]:
    """The plan by prices, and the device it shares the model with."""
    try:
        survivors = surviving_tensors(model)
    except BackendError as error:
        return uncut_plan(model, f"the runtime refuses the model: {error}", cores=cores), None
    context = PlanningContext(model, cores=cores, survivors=survivors)
    reasons = []
    rooms = device_rooms(options)
    for name, backend in devices.items():
        study = DeviceStudy(context, backend, room_bytes=rooms.get(name))
        if options.split == "never":
            alone, why = _whole_if_it_gains(study, name, model, cores=cores)
            if alone is not None:
                return alone, name
            reasons.append(why)
            continue
        if options.is_split_forced:
            forced = study.forced
            if forced is not None:
                reason = f'all that {name} takes runs there because split="always" asks for it'
                return replace(forced.plan, provenance=make_provenance("forced", reason)), name
            reasons.append(f"{name} takes nothing of this model")
            continue
        if study.offer is None:
            whole, why = plan_whole_within(study, name, model, cores=cores)
            if whole is not None:
                return whole, name
            reasons.append(f"{name} {why}; tune=True measures what parts of it are worth")
            continue
        found = study.in_sequence if options.policy == "sequential" else study.best
        if found is None:
            reasons.append(study.reason)
            continue
        cpu_ns = study.cpu_ns
        gain = 1 - found.simulated_ns / max(1, cpu_ns)
        least = _least_gain(options)
        if gain >= least:
            reason = f"{study.reason}; {gain:.0%} less latency than the CPU alone"
            provenance = make_provenance("tables", reason, uncut_ns=cpu_ns, chosen_ns=found.simulated_ns)
            return replace(found.plan, provenance=provenance), name
        reasons.append(f"{study.reason}; that is {gain:.0%} less latency, {least:.0%} is asked for")
    if options.is_split_forced:
        return forced_plan(model, cores=cores), None
    return uncut_plan(model, "; ".join(reasons), cores=cores), None


def _whole_if_it_gains(study: DeviceStudy, name: str, model: Model, *, cores: int) -> tuple[Plan | None, str]:
    """The plan that gives the whole model to a device, unless prices say that the CPU is quicker; or None, and why."""
    plan, why = plan_whole_within(study, name, model, cores=cores)
    if plan is None:
        return None, f'{name} {why}, and split="never" leaves it no part of the model'
    there = None if study.offer is None else study.greedy
    if there is None:
        return plan, ""
    cpu_ns = study.cpu_ns
    compared = f"{there.simulated_ns / 1e6:.3f} ms predicted, {cpu_ns / 1e6:.3f} ms on the CPU alone"
    if there.simulated_ns >= cpu_ns:
        return None, f"the whole model does not gain on {name}: {compared}"
    reason = f"{plan.provenance.reason}: {compared}"
    return replace(
        plan, provenance=make_provenance("tables", reason, uncut_ns=cpu_ns, chosen_ns=there.simulated_ns)
    ), ""


def device_rooms(options: PlanningOptions) -> dict[str, int]:
    """What devices may hold of the model, in bytes, by the names they were asked for; only those with a limit."""
    return {device.name: device.memory_bytes for device in options.devices if device.memory_bytes is not None}


def _forced_body_plan(body: Model, *, cores: int) -> Plan:
    obstacle = why_model_stays_whole(body)
    return forced_plan(body, cores=cores) if obstacle is None else uncut_plan(body, obstacle, cores=cores)


def _uncut_body(body: Model, *, cores: int) -> Plan:
    return uncut_plan(body, "no part of it gains anything", cores=cores)


def _why_options_stay_whole(model: Model, shaped: Model, options: PlanningOptions, session_options: Any) -> str | None:
    """Why the caller's session options keep the model whole, or None."""
    if session_options is None or (options.is_kept_whole and not options.devices):
        return None
    asked = options.devices or options.tune or options.min_gain is not None or options.split == "always"
    cores = session_cores(options, session_options)
    if not asked and remembered_plan(shaped, options, session_options, cores=cores) is None:
        # What they hold can be found out, but takes longer than opening a small model.
        return (
            'session options were given: a model is then split only on demand (tune=True, min_gain= or split="always")'
        )
    return why_given_options_stay_whole(session_options, model)


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
        return uncut_plan(model, obstacle, cores=cores)
    # Without a device, all that a body can gain is work side by side, and looking for that delays opening: on demand.
    return plan_from_tables(model, cores=cores)


def _plan_by_gain(model: Model, options: PlanningOptions, *, cores: int, lifts: bool) -> Plan:
    """The plan by tables where the caller named the least gain."""
    assert options.min_gain is not None  # else the default policy was asked
    min_gain = options.min_gain
    plan = plan_from_tables(model, cores=cores, min_gain=min_gain)
    if not lifts or cores < 2 or not any(node.bodies for node in model.graph.nodes):
        return plan

    def plan_body(body: Model, *, cores: int) -> Plan:
        obstacle = why_model_stays_whole(body)
        if obstacle is not None:
            return uncut_plan(body, obstacle, cores=cores)
        return plan_from_tables(body, cores=cores, min_gain=min_gain)

    def promises(body: OpGraph) -> bool:
        return least_share(body, cores=cores) <= 1 - min_gain

    return lift_bodies(model, plan, plan_body=plan_body, min_gain=min_gain, promises=promises)


def why_model_stays_whole(model: Model) -> str | None:
    """Why this model cannot be cut at all, or None."""
    if model.why_whole is not None:
        return f"only the runtime itself knows what the model says: {model.why_whole}"
    graph = model.graph
    if len(graph.nodes) < 2 and not any(node.bodies for node in graph.nodes):
        return "fewer than two operators: nothing to run side by side"
    for info in (*graph.inputs, *graph.overridable, *graph.outputs):
        if not is_feedable(info):
            return f"{info.name!r} is not a tensor of a type that numpy has; only the whole session converts it"
    for info in graph.outputs:
        if info.name not in graph.producers:
            return f"output {info.name!r} is computed by no operator"
    if any(node.op_type == PRECOMPILED for _, node in graph.walk()):
        return "it holds parts that were compiled for an execution provider; only the whole session opens those"
    foreign = {node.domain for _, node in graph.walk()} - KNOWN_DOMAINS
    if foreign:
        return f"operators of domain {min(foreign)!r} are the caller's own; only the whole session knows them"
    return None


def forced_plan(model: Model, *, cores: int) -> Plan:
    """Every branch a segment, whether it gains or not: for tests, and to see what cutting costs."""
    try:
        survivors = surviving_tensors(model)
    except BackendError as error:
        return uncut_plan(model, f"the runtime refuses the model: {error}", cores=cores)
    context = PlanningContext(model, cores=cores, survivors=survivors)
    lanes = max(2, cores)
    proposal = context.propose(by_branches(context.units, lanes=lanes))
    # Hand-overs are what a forced cut is there to show, even where one lane would be quicker.
    proposal = replace(proposal, schedule=replace(proposal.schedule, lanes=lanes))
    reason = 'split at every branch because split="always" asks for it'
    if proposal.partition.is_uncut:
        return uncut_plan(model, "the model cannot be cut: one branch", cores=cores)
    return context.plan(
        proposal,
        make_provenance("forced", reason, uncut_ns=context.uncut_ns, chosen_ns=proposal.simulated_ns),
    )


def plan_from_tables(model: Model, *, cores: int, min_gain: float | None = None) -> Plan:
    """Cut only where the tables, unmeasured, promise at least ``min_gain``. Must not delay opening.

    Args:
        min_gain: as the caller named it. None: `DEFAULT_MIN_GAIN`, and a saving that is clear in microseconds too.
    """
    if cores < 2:
        return uncut_plan(model, ONE_CORE, cores=cores)
    if not may_gain_clearly(model.graph):
        return uncut_plan(
            model,
            DENSE,
            cores=cores,
        )
    context = PlanningContext(model, cores=cores)
    least_ns = 0
    if min_gain is None:
        min_gain, least_ns = DEFAULT_MIN_GAIN, LEAST_SAVING_NS
        obstacle = small_by_costs(context.graph, context.costs, cores=cores)
        if obstacle is not None:
            return uncut_plan(model, obstacle, cores=cores)
    best = context.best
    if best is not None and _promises(context, best, min_gain, least_ns):
        # Only now is the runtime's optimiser worth asking: a cut may lie only where it leaves tensors alone, and what
        # it merges or drops (equal chains, say) is not there to be run side by side.
        context = PlanningContext(model, cores=cores, costs=context.costs, survivors=surviving_tensors(model))
        best = context.best
    if best is None:
        return uncut_plan(model, "no branches worth running side by side", cores=cores)
    gain = _gain(context, best)
    if not _promises(context, best, min_gain, least_ns):
        asked = f"{min_gain:.0%} is asked for" + (f", and {least_ns / 1e3:.0f} µs" if least_ns else "")
        saving_us = (context.uncut_ns - best.simulated_ns) / 1e3
        return uncut_plan(
            model, f"the best cut promises {gain:.0%} less latency ({saving_us:.0f} µs); {asked}", cores=cores
        )
    return context.plan(
        best,
        make_provenance(
            "tables",
            f"{best.partition.label}: tables promise {gain:.0%} less latency than the uncut model",
            uncut_ns=context.uncut_ns,
            chosen_ns=best.simulated_ns,
        ),
    )


def _promises(context: PlanningContext, proposal: Proposal, min_gain: float, least_ns: int) -> bool:
    return _gain(context, proposal) >= min_gain and context.uncut_ns - proposal.simulated_ns >= least_ns


def _gain(context: PlanningContext, proposal: Proposal) -> float:
    return 1 - proposal.simulated_ns / max(1, context.uncut_ns)


def may_gain_clearly(graph: OpGraph) -> bool:
    """A cheap necessary condition for a clear gain from tables: no dense layers to speak of.

    Looks at operator types and weight shapes only, so that opening a model that will not be cut costs no
    shape inference. A model with dense layers may still gain from a cut, but only measuring can tell.
    """
    dense = 0
    for node in graph.nodes:
        if node.op_type in SCALABLE:
            for name in node.inputs:
                weight = graph.initializers.get(name)
                if weight is not None:
                    dense += math.prod(dim for dim in weight.shape or () if isinstance(dim, int))
            if dense > DENSE_ELEMENTS:
                return False
    return True


def least_share(graph: OpGraph, *, cores: int) -> float:
    """The share of a graph's time that remains at best if work runs side by side, by the tables: a lower bound.

    Nothing ends before the longest path through the graph does; operators with bodies take the least share of those.
    Dense layers gain nothing clearly (`may_gain_clearly`). For graphs whose types are inferred; no model is made.
    """
    costs = estimate_costs(graph, cores=cores)
    narrow, wide = costs.node_ns(1), costs.node_ns(cores)
    weights = [
        min(narrow[node.index], wide[node.index])
        * min((least_share(body, cores=cores) for _, body in node.bodies), default=1.0)
        for node in graph.nodes
    ]
    best = longest_path_ns(graph, weights) if may_gain_clearly(graph) else sum(weights)
    return best / max(1, min(sum(narrow), sum(wide)))


def plan_key(model: Model, options: PlanningOptions, session_options: Any, *, cores: int) -> str:
    """Under which a tuned plan is kept: everything that measured figures depend on."""
    inherited = runtime_options(session_options)
    backends = wanted_backends(options.backends)
    return "|".join(
        (
            f"plan-{PLAN_FORMAT_VERSION}",
            model.structure_digest,
            machine_fingerprint(),
            f"{cores} threads",
            f"optimiser {inherited.graph_optimization_level}",
            f"config {inherited.config}",
            f"backends {backend_versions(backends)}",
            f"devices {'; '.join(device.key for device in options.devices)}",
            f"tables {backend_tables([*backends, *(device.name for device in options.devices)])}",
        )
    )


def remember_plan(model: Model, plan: Plan, options: PlanningOptions, session_options: Any, *, cores: int) -> None:
    """Keep the plan that tuning found, for `remembered_plan` on this machine."""
    Cache(options.cache_dir).store(plan_key(model, options, session_options, cores=cores), plan.to_json())
    note_remembered(model.structure_digest, options.cache_dir)


def remembered_plan(model: Model, options: PlanningOptions, session_options: Any, *, cores: int) -> Plan | None:
    """The plan that tuning found earlier for this model on this machine, if it is still readable."""
    if not may_be_remembered(model.structure_digest, options.cache_dir):
        return None
    stored = Cache(options.cache_dir).load(plan_key(model, options, session_options, cores=cores))
    if stored is None:
        return None
    try:
        plan = Plan.from_json(stored)
        if plan.rows_permille is not None and not may_share_rows(model, options):
            return None
        verify_plan(plan, len(planned_model(model, plan).graph.nodes))
    except PlanError as error:
        logger.warning("ignoring a kept plan that cannot be read: %s", error)
        return None
    return plan if plan.structure_digest == model.structure_digest else None
