"""Plans that fit a memory budget: the one that was found, or the whole model's, or none and what would do."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from parallax.memory import DEFAULT_MARGIN, Budget, MemoryRequirement
from parallax.model import Model, cut_weight_bytes
from parallax.planner._constants import with_constants
from parallax.planner._requirement import (
    RequirementEstimator,
    estimate_graph,
    estimate_model,
    inside_bytes,
    output_bytes,
    segment_peaks,
    with_peaks,
)
from parallax.planner._rows import in_rows_shapes, planned_model
from parallax.planner._whole import whole_plan
from parallax.schedule import CPU_BACKEND, Plan

logger = logging.getLogger(__name__)


def fit_plan(
    model: Model,
    plan: Plan,
    budget_bytes: int,
    shapes: Mapping[str, Sequence[int]] | None,
    *,
    weight_bytes: int,
    margin: float = DEFAULT_MARGIN,
    may_slice: bool = False,
) -> tuple[Plan, RequirementEstimator, Budget]:
    """The plan, or the first that fits of: the whole model, the same segments one at a time, slices of its rows one
    after the other. With the peaks of its segments.

    What depends on shapes that are not given is left to the run that has them.

    Args:
        model: without ``shapes``.
        weight_bytes: of private weights.
        margin: share of the budget that is left free.
        may_slice: whether the model may be computed in slices of its rows.

    Raises: BudgetError with the budget that would do.
    """
    judge = partial(
        _Fitting.of, model, budget_bytes=budget_bytes, shapes=shapes, weight_bytes=weight_bytes, margin=margin
    )
    first = judge(plan)
    tried = [first]
    if not first.fits:
        for other in _narrower_plans(model, first, shapes, may_slice=may_slice):
            tried.append(judge(other))
            if tried[-1].fits:
                logger.info("within its memory budget: %s", other.summary)
                break
    chosen = tried[-1] if tried[-1].fits else min(tried, key=lambda fitting: fitting.least_bytes)
    chosen.budget.check(chosen.requirement, shapes=shapes)
    return with_counted_peaks(chosen.plan, chosen.requirement.peaks), chosen.estimator, chosen.budget


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fitting:
    """A plan, and what it needs."""

    plan: Plan
    estimator: RequirementEstimator
    budget: Budget
    requirement: MemoryRequirement

    @classmethod
    def of(
        cls,
        model: Model,
        plan: Plan,
        *,
        budget_bytes: int,
        shapes: Mapping[str, Sequence[int]] | None,
        weight_bytes: int,
        margin: float,
    ) -> _Fitting:
        estimator = estimate_model(model, plan, planned=shapes)
        held = weight_bytes + _computed_bytes(model, plan, shapes)
        budget = Budget.of(budget_bytes, weight_bytes=held, segments=len(plan.segments), margin=margin)
        return cls(plan=plan, estimator=estimator, budget=budget, requirement=estimator.requirement({}))

    @property
    def fits(self) -> bool:
        return self.budget.allows(self.requirement)

    @property
    def least_bytes(self) -> int:
        """The budget that would do."""
        return self.budget.least_bytes(self.requirement)


def _narrower_plans(
    model: Model, wide: _Fitting, shapes: Mapping[str, Sequence[int]] | None, *, may_slice: bool
) -> Iterator[Plan]:
    """What may need less memory than a plan, the quickest first."""
    plan = wide.plan
    needs = f"needs a memory budget of {wide.least_bytes} bytes at least"
    if not plan.is_uncut:
        yield whole_plan(model, f"split, it {needs}", cores=plan.cores)
        if plan.lanes > 1 and all(segment.backend == CPU_BACKEND for segment in plan.segments):
            yield _one_at_a_time(plan, f"side by side, it {needs}")
    if may_slice:
        from parallax.planner._slices import sliced_plans  # few budgets are that small

        shaped = model if shapes is None else model.with_shapes(shapes)
        for sliced in sliced_plans(shaped, cores=plan.cores, reason=f"otherwise, it {needs}"):
            yield sliced.plan
        from parallax.planner._stretches import stretched_plans

        room = inside_bytes(wide.budget.limit_of(1) - output_bytes(shaped.inferred()))
        yield from stretched_plans(shaped, room_bytes=room, cores=plan.cores, reason=f"otherwise, it {needs}")


def _one_at_a_time(plan: Plan, reason: str) -> Plan:
    """The same segments on one lane, in their order, each on all cores: then what they hand on lies closer together."""
    segments = tuple(replace(segment, width=plan.cores, lane=0, priority=-segment.index) for segment in plan.segments)
    provenance = replace(plan.provenance, reason=f"one segment at a time: {reason}")
    return replace(plan, policy="sequential", lanes=1, backfill=False, segments=segments, provenance=provenance)


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
    held = weight_bytes + _computed_bytes(model, plan, shapes)
    budget = Budget.of(budget_bytes, weight_bytes=held, segments=len(plan.segments), margin=margin)
    requirement = estimator.requirement({})
    budget.check(requirement, shapes=shapes)
    return with_counted_peaks(plan, requirement.peaks), estimator, budget


def _computed_bytes(model: Model, plan: Plan, shapes: Mapping[str, Sequence[int]] | None) -> int:
    """What constants take beside the model's weights: values that were computed for a plan, or rows of weights."""
    if plan.constants_shapes is None and not plan.stretches:
        return 0
    given = {name: tuple(shape) for name, shape in {**plan.own_shapes, **(shapes or {})}.items()}
    shaped = in_rows_shapes(model, given)
    if plan.stretches:
        return cut_weight_bytes(planned_model(shaped, plan))
    computed = with_constants(shaped)
    return 0 if computed is None else computed.value_bytes


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
