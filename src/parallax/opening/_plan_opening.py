"""Opening another plan of a model that a session has open."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from parallax._record import dataclass
from parallax.engine import nothing_open
from parallax.errors import ConfigError, PlanError
from parallax.opening._opening import opened_split, planning_options, why_kept_whole
from parallax.opening._plan_choice import compile_planned, plan_request
from parallax.opening._source import in_memory_if_small
from parallax.opening._whole_model import OpeningRequest, open_whole
from parallax.options import session_cores, why_given_options_stay_whole
from parallax.planner import PlannedModel, check_fit, planned_model, with_known_peaks
from parallax.schedule import verify_plan

if TYPE_CHECKING:
    from parallax.engine import Estimator, Executor
    from parallax.memory import Budget, MemoryRequirement
    from parallax.model import Model
    from parallax.opening._state import Opened
    from parallax.schedule import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedPlan:
    """A plan that was found to be of a model and to fit its budget, and is not compiled yet."""

    model: Model
    """As it came, without the shapes that were planned for."""
    planned: PlannedModel
    budget: Budget | None = None
    """None without a memory budget; so are the next two."""
    estimator: Estimator | None = None
    requirement: MemoryRequirement | None = None
    """Of a run in the shapes that were planned for."""


def prepare_plan(request: OpeningRequest, opened: Opened, model: Model | None, plan: Plan) -> PreparedPlan:
    """Check that a plan can take the place of what a session has open.

    Args:
        opened: what the session has open.
        model: what it loaded; None where it did not look into the model.

    Raises:
        ConfigError: nothing is open, or what is open has but the plan that it was opened with.
        PlanError: the plan is of another model or for other shapes, or cannot run.
        BudgetError: it does not fit the session's budget.
    """
    options = request.options
    if opened.runner is None:
        raise nothing_open()
    if opened.bundle is not None:
        raise ConfigError(
            "the plan of a bundle was decided when it was compiled",
            where=str(opened.bundle.path),
            fix="open the model itself, or compile a bundle with the other plan's options",
        )
    if model is None or model.fault is not None:
        raise ConfigError(
            "this model was not analysed, so that no plan can be for it: " + opened.runner.plan.provenance.reason,
            fix="open it anew with the options that its plan is to follow",
        )
    shaped = model if options.shapes is None else model.with_shapes(options.shapes)
    if plan.structure_digest not in (model.structure_digest, shaped.structure_digest):
        raise PlanError(
            "the plan was made for another model, or for other shapes of this one",
            fix="make it for this model, in the shapes= of this session",
        )
    planned = PlannedModel(plan=plan, model=planned_model(shaped, plan))
    verify_plan(plan, len(planned.model.graph.nodes))
    obstacle = None if plan.is_whole else why_kept_whole(request, model)
    if obstacle is None and not plan.is_whole and request.session_options is not None:
        obstacle = why_given_options_stay_whole(request.session_options, model)
    if obstacle is not None:
        raise ConfigError(
            f"a session opened like this runs its model whole: {obstacle}",
            fix="leave that out when the session is opened, or swap in a plan of one segment",
        )
    if options.budget_bytes is None:
        return PreparedPlan(
            model=model, planned=replace(planned, plan=plan if plan.is_whole else with_known_peaks(planned.model, plan))
        )
    fitted, estimator, budget = check_fit(
        model, plan, options.budget_bytes, options.shapes, weight_bytes=model.weight_bytes, margin=options.margin
    )
    return PreparedPlan(
        model=model,
        planned=replace(planned, plan=fitted),
        budget=budget,
        estimator=estimator,
        requirement=estimator.requirement({}),
    )


def open_prepared(request: OpeningRequest, prepared: PreparedPlan, opened: Opened) -> Opened:
    """Compile a plan, and return what a session is to have open in place of ``opened``.

    A plan whose backend fails to compile its part becomes that of the whole model, which says so.

    Args:
        request: its ``open_stock`` opens beside what the session has open.

    Raises: BackendError, ModelError: the runtime refuses the model or a part of it.
    """
    model, planned, given = prepared.model, prepared.planned, request.session_options
    plan: Plan = planned.plan
    executor: Executor | None = None
    if not plan.is_whole:
        model, options = in_memory_if_small(model), planning_options(request)
        shaped = model if options.shapes is None else model.with_shapes(options.shapes)
        plan, executor = compile_planned(model, planned, plan_request(shaped, options, given), options)
    if executor is None:
        width = plan.segments[0].width
        is_usual = width == session_cores(request.options, given)
        fresh = open_whole(
            request, plan, model=prepared.model, session_options=given, threads=None if is_usual else width
        )
    else:
        fresh = opened_split(request, model.graph, model, plan, executor)
    made = replace(fresh.within(prepared.budget, prepared.estimator), is_unbounded=opened.is_unbounded)
    return made.with_trimming(opened.trimming)
