"""Plans that fit a memory budget: the one that was found, or the whole model's, or none and what would do."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from parallax.memory import DEFAULT_MARGIN, Budget
from parallax.model import Model
from parallax.planner._requirement import (
    RequirementEstimator,
    estimate_graph,
    estimate_model,
    segment_peaks,
    with_peaks,
)
from parallax.planner._whole import uncut_plan
from parallax.schedule import Plan

logger = logging.getLogger(__name__)


def fit_plan(
    model: Model,
    plan: Plan,
    budget_bytes: int,
    shapes: Mapping[str, Sequence[int]] | None,
    *,
    weight_bytes: int,
    margin: float = DEFAULT_MARGIN,
) -> tuple[Plan, RequirementEstimator, Budget]:
    """The plan, or the uncut one where only that fits; with the peaks of its segments.

    What depends on shapes that are not given is left to the run that has them.

    Args:
        model: without ``shapes``.
        weight_bytes: of private weights.
        margin: share of the budget that is left free.

    Raises: BudgetError with the budget that would do.
    """
    estimator = estimate_model(model, plan, planned=shapes)
    budget = Budget.of(budget_bytes, weight_bytes=weight_bytes, segments=len(plan.segments), margin=margin)
    requirement = estimator.requirement({})
    if not budget.allows(requirement) and not plan.is_uncut:
        reason = f"split, it needs a memory budget of {budget.least_bytes(requirement)} bytes at least"
        whole = uncut_plan(model, reason, cores=plan.cores)
        other = estimate_model(model, whole, planned=shapes)
        less = Budget.of(budget_bytes, weight_bytes=weight_bytes, margin=margin)
        if less.least_bytes(other.requirement({})) < budget.least_bytes(requirement):
            logger.info("the model stays whole: %s", reason)
            plan, estimator, budget, requirement = whole, other, less, other.requirement({})
    budget.check(requirement, shapes=shapes)
    return with_counted_peaks(plan, requirement.peaks), estimator, budget


def check_fit(
    model: Model,
    plan: Plan,
    budget_bytes: int,
    shapes: Mapping[str, Sequence[int]] | None,
    *,
    weight_bytes: int,
    margin: float = DEFAULT_MARGIN,
) -> tuple[Plan, RequirementEstimator, Budget]:
    """This plan and no other, as `fit_plan`. Raises: BudgetError if it does not fit, with the budget that would do."""
    estimator = estimate_model(model, plan, planned=shapes)
    budget = Budget.of(budget_bytes, weight_bytes=weight_bytes, segments=len(plan.segments), margin=margin)
    requirement = estimator.requirement({})
    budget.check(requirement, shapes=shapes)
    return with_counted_peaks(plan, requirement.peaks), estimator, budget


def with_known_peaks(model: Model, plan: Plan) -> Plan:
    """A split plan with the peaks of its segments in the shapes of ``model``, if these tell them."""
    peaks = None if plan.is_uncut else segment_peaks(model.inferred(), plan)
    return plan if peaks is None else with_counted_peaks(plan, peaks)


def with_noted_peaks(model: Model, plan: Plan) -> Plan:
    """The plan likewise for a bundle, whose sessions have no model to look at: a whole model's as well."""
    requirement = estimate_graph(model.inferred(), plan)
    return with_counted_peaks(plan, requirement.peaks) if requirement.is_known else plan


def with_counted_peaks(plan: Plan, peaks: Sequence[int]) -> Plan:
    """The plan with these peaks, each at least 1: 0 says that it is not known, and without any the dispatcher would not
    count bytes at all."""
    known = peaks if len(peaks) == len(plan.segments) else (0,) * len(plan.segments)
    return with_peaks(plan, [max(1, peak) for peak in known])
