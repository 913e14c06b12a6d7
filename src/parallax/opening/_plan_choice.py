"""A session's question to the planner, and what is made of the answer: a plan that fits, and its executor."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, Protocol

from parallax.engine import Executor, compile_plan
from parallax.errors import ParallaxError
from parallax.model import Model
from parallax.opening._source import in_memory_if_small
from parallax.opening._whole_model import unjudged
from parallax.options import (
    PlanningOptions,
    check_calibration_names,
    lean_options,
    open_devices,
    runtime_options,
    session_cores,
    sliced_options,
    why_given_options_stay_whole,
)
from parallax.planner import (
    PlanDevice,
    PlannedModel,
    PlanRequest,
    feed_shapes,
    forms_of_shapes,
    graph_for_backends,
    is_yardstick,
    may_be_remembered,
    open_placer,
    plan_model,
    planned_model,
    policy_name,
    remembered_plan,
    whole_plan,
)
from parallax.schedule import CPU_BACKEND, Plan

logger = logging.getLogger(__name__)


def plan_request(model: Model, options: PlanningOptions, session_options: Any) -> PlanRequest:
    """What the planner is asked for a session with these options.

    Args:
        model: in the shapes to plan for.
        session_options: the caller's, or None.

    Raises: as ``parallax.backends.open_backend``.
    """
    backends = open_devices(options.devices)
    return PlanRequest(
        model=model,
        cores=session_cores(options, session_options),
        policy=policy_name(options.policy),
        placer=open_placer(options.policy),
        split=options.split,
        min_gain=options.min_gain,
        # What callers are served by is the session's affair: it does not change the plan.
        objective=options.objective if options.objective in Plan.ENERGY_OBJECTIVES else "latency",
        tune=options.tune,
        calibration=options.calibration,
        cache_dir=options.cache_dir,
        progress=options.progress,
        backends=options.backends,
        devices={
            device.name: PlanDevice(backend=backends[device.name], budget_bytes=device.memory_bytes, key=device.key)
            for device in options.devices
        },
        runtime=runtime_options(session_options),
        has_runtime_options=session_options is not None,
        faults=options.faults,
        # A session that follows the machine goes by durations, which are those of one plan, in all shapes; and one that
        # leaves out padding brings other shapes with each run.
        computes_constants=options.padding is None and not (options.adapt and model.shapes),
    )


class Fit(Protocol):
    """Makes a plan fit the memory that runs may take."""

    def __call__(self, shaped: Model, plan: Plan, *, may_slice: bool = False) -> Plan:
        """Return the plan with peaks, or another.

        Args:
            shaped: the model whose nodes the plan speaks of, in its planned shapes.
            may_slice: whether the other may be one that computes the model in slices of its rows.
        """
        ...


def choose_plan(model: Model, options: PlanningOptions, session_options: Any, fit: Fit) -> tuple[Plan, Executor | None]:
    """The plan for one session, and its executor if the model is split.

    Args:
        model: without the shapes of the options.
        fit: makes a plan fit the memory.

    Raises: as `parallax.planner.plan_model`; and as ``fit``.
    """
    # Shapes are for planning alone: segments made from the model as it is go on accepting others.
    shaped = model if options.shapes is None else model.with_shapes(options.shapes)
    check_calibration_names(options.calibration, model)
    obstacle = _why_options_stay_whole(model, shaped, options, session_options)
    if obstacle is not None:
        cores = session_cores(options, session_options)
        return fit(shaped, whole_plan(model, unjudged(obstacle, options), cores=cores)), None
    request = plan_request(shaped, options, session_options)
    planned = plan_model(request)
    fitted = fit(planned.model, planned.plan, may_slice=may_slice(options))
    if fitted.is_whole:
        return fitted, None
    planned = PlannedModel(
        plan=fitted,
        model=planned.model if _is_of_same_model(fitted, planned.plan) else planned_model(shaped, fitted),
    )
    return compile_planned(model, planned, request, options)


def may_slice(options: PlanningOptions) -> bool:
    """Whether a model may be computed in slices of its rows where a memory budget asks for that."""
    return not (options.is_kept_whole or is_yardstick(options.policy))


def _is_of_same_model(one: Plan, other: Plan) -> bool:
    """Whether two plans of a model speak of the same nodes."""
    rewrites = [
        (plan.rows_permille, plan.rows_rounds, plan.rows_whole, plan.rows_joined, plan.constants_shapes, plan.stretches)
        for plan in (one, other)
    ]
    return rewrites[0] == rewrites[1]


def compile_planned(
    model: Model, planned: PlannedModel, request: PlanRequest, options: PlanningOptions
) -> tuple[Plan, Executor | None]:
    """The plan and its executor; the plan for the whole model and None where a backend fails to compile its part.

    Args:
        model: without the shapes of the options.

    Raises: BackendError if ONNX Runtime refuses the CPU's part.
    """
    plan = planned.plan
    parts = in_memory_if_small(planned.model if plan.is_rewritten else model)
    inherited = request.runtime
    expected = {**feed_shapes(options.calibration or {}), **(options.shapes or {})}
    if options.budget_bytes is not None:
        inherited = lean_options(inherited)
        if plan.stretches:
            inherited = sliced_options(inherited)
    elif not request.has_runtime_options and not all(info.is_static for info in model.graph.inputs):
        # A memory pattern is one block for all that a segment makes in a run of these shapes, which no other shapes'
        # block fits into: the allocator would come to hold one for each of the larger shapes.
        inherited = replace(inherited, enable_mem_pattern=False)
    # What is rewritten is so in the shapes that it is for.
    prepared = graph_for_backends(parts, plan, {} if plan.is_rewritten else expected)
    try:
        executor = compile_plan(
            parts,
            plan,
            inherited,
            backends=request.open_backends,
            planned=prepared,
            faults=options.faults,
        )
        if plan.is_rewritten:
            executor.forms = forms_of_shapes(
                model,
                planned,
                request,
                inherited,
                has_budget=options.budget_bytes is not None,
                in_memory=in_memory_if_small,
            )
        return plan, executor
    except ParallaxError as error:
        if all(segment.backend == CPU_BACKEND for segment in plan.segments):
            raise
        # It could when the plan was measured; what it was installed for is not worth failing over.
        logger.warning("a backend cannot do its part of the plan, so the CPU does it all: %s", error)
        return whole_plan(model, f"a backend failed to compile its part: {error}", cores=plan.cores), None


def _why_options_stay_whole(model: Model, shaped: Model, options: PlanningOptions, session_options: Any) -> str | None:
    """Why the caller's session options keep the model whole, or None."""
    if session_options is None or (options.is_kept_whole and not options.devices):
        return None
    asked = options.devices or options.tune or options.min_gain is not None or options.split == "always"
    asked = asked or is_yardstick(options.policy) or options.objective in Plan.ENERGY_OBJECTIVES
    if not asked and not _is_remembered(shaped, options, session_options):
        # What they hold can be found out, but takes longer than opening a small model.
        return (
            'session options were given: a model is then split only on demand (tune=True, min_gain= or split="always")'
        )
    return why_given_options_stay_whole(session_options, model)


def _is_remembered(shaped: Model, options: PlanningOptions, session_options: Any) -> bool:
    if not may_be_remembered(shaped.structure_digest, options.cache_dir):
        return False  # without reading the session options, which takes milliseconds
    return remembered_plan(plan_request(shaped, options, session_options)) is not None
