"""Plans that fit a memory budget: the one that was found, or the whole model's, or none and what would do."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from parallax.errors import ConfigError, ModelError
from parallax.memory import DEFAULT_MARGIN, Budget, MemoryRequirement
from parallax.model import Model, cut_weight_bytes
from parallax.planner._constants import with_constants
from parallax.planner._request import PlannedModel
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
    weight_bytes: int | None,
    margin: float = DEFAULT_MARGIN,
    may_slice: bool = False,
) -> tuple[Plan, RequirementEstimator, Budget]:
    """The plan, or the first that fits of: the whole model, the same segments one at a time, slices of its rows one
    after the other. With the peaks of its segments.

    What depends on shapes that are not given is left to the run that has them.

    Args:
        model: without ``shapes``.
        weight_bytes: of private weights; None where all are mapped, those that a plan adds among them.
        margin: share of the budget that is left free.
        may_slice: whether the model may be computed in slices of its rows.

    Raises: BudgetError with the budget that would do.
    """
    judge = _Judge(model, shapes, budget_bytes=budget_bytes, weight_bytes=weight_bytes, margin=margin)
    first = judge.of_plan(plan)
    tried = [first]
    if not first.fits and judge.shaped is not None:
        for other in _narrower_plans(judge.shaped, first, may_slice=may_slice):
            tried.append(judge.of_planned(other))
            if tried[-1].fits:
                logger.info("within its memory budget: %s", other.plan.summary)
                break
    chosen = tried[-1] if tried[-1].fits else min(tried, key=lambda fitting: fitting.least_bytes)
    return chosen.checked(shapes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fitting:
    """A plan, and what it needs."""

    plan: Plan
    estimator: RequirementEstimator
    budget: Budget
    requirement: MemoryRequirement

    @property
    def fits(self) -> bool:
        return self.budget.allows(self.requirement)

    @property
    def least_bytes(self) -> int:
        """The budget that would do."""
        return self.budget.least_bytes(self.requirement)

    def checked(self, shapes: Mapping[str, Sequence[int]] | None) -> tuple[Plan, RequirementEstimator, Budget]:
        """The plan with the peaks of its segments. Raises: BudgetError where it does not fit."""
        self.budget.check(self.requirement, shapes=shapes)
        return with_counted_peaks(self.plan, self.requirement.peaks), self.estimator, self.budget


class _Judge:
    """Says of plans of one model what they need, and whether that fits a budget.

    Args:
        model: without ``shapes``.
        shapes: to plan for; None for those that the model has.
        weight_bytes: as of `fit_plan`, as is ``margin``.
    """

    def __init__(
        self,
        model: Model,
        shapes: Mapping[str, Sequence[int]] | None,
        *,
        budget_bytes: int,
        weight_bytes: int | None,
        margin: float,
    ) -> None:
        self._model, self._shapes = model, shapes
        self._budget_bytes, self._weight_bytes, self._margin = budget_bytes, weight_bytes, margin
        self.shaped: Model | None = model
        """The model in the shapes to plan for; None where it does not take them, which the run will say."""
        if shapes is not None:
            try:
                self.shaped = model.with_shapes(shapes)
            except (ConfigError, ModelError):
                self.shaped = None

    def of_plan(self, plan: Plan) -> _Fitting:
        """What a plan of the model needs."""
        if self.shaped is None:
            return self._fitting(plan, MemoryRequirement.UNKNOWN, 0)
        return self.of_planned(PlannedModel(plan=plan, model=planned_model(self.shaped, plan)))

    def of_planned(self, planned: PlannedModel) -> _Fitting:
        """Likewise, where the model that it speaks of is at hand."""
        assert self.shaped is not None
        added = 0 if self._weight_bytes is None else _computed_bytes(self.shaped, planned)
        return self._fitting(planned.plan, planned.requirement, added)

    def _fitting(self, plan: Plan, requirement: MemoryRequirement, added_bytes: int) -> _Fitting:
        return _Fitting(
            plan=plan,
            estimator=estimate_model(self._model, plan, planned=self._shapes, known=requirement),
            budget=Budget.of(
                self._budget_bytes,
                weight_bytes=(self._weight_bytes or 0) + added_bytes,
                segments=len(plan.segments),
                margin=self._margin,
            ),
            requirement=requirement,
        )


def _narrower_plans(model: Model, wide: _Fitting, *, may_slice: bool) -> Iterator[PlannedModel]:
    """What may need less memory than a plan, the quickest first. ``model``: in the shapes to plan for."""
    plan = wide.plan
    needs = f"needs a memory budget of {wide.least_bytes} bytes at least"
    if not plan.is_whole:
        yield PlannedModel(plan=whole_plan(model, f"split, it {needs}", cores=plan.cores), model=model)
        if plan.lanes > 1 and all(segment.backend == CPU_BACKEND for segment in plan.segments):
            one_lane = _one_at_a_time(plan, f"side by side, it {needs}")
            yield PlannedModel(plan=one_lane, model=planned_model(model, one_lane))
    if may_slice:
        from parallax.planner._slices import sliced_plans  # few budgets are that small

        yield from sliced_plans(model, cores=plan.cores, reason=f"otherwise, it {needs}")
        from parallax.planner._stretches import stretched_plans

        inside_budget = inside_bytes(wide.budget.limit_of(1) - output_bytes(model.inferred()))
        yield from stretched_plans(model, budget_bytes=inside_budget, cores=plan.cores, reason=f"otherwise, it {needs}")


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
    judge = _Judge(model, shapes, budget_bytes=budget_bytes, weight_bytes=weight_bytes, margin=margin)
    return judge.of_plan(plan).checked(shapes)


def _computed_bytes(model: Model, planned: PlannedModel) -> int:
    """What constants take beside a model's weights: values that were computed for a plan, or rows of weights."""
    plan = planned.plan
    if plan.stretches:
        return cut_weight_bytes(planned.model)
    computed = None if plan.constants_shapes is None else with_constants(in_rows_shapes(model, plan.own_shapes))
    return 0 if computed is None else computed.value_bytes


def with_known_peaks(model: Model, plan: Plan) -> Plan:
    """A split plan with the peaks of its segments in the shapes of ``model``, if these tell them."""
    peaks = None if plan.is_whole else segment_peaks(model.inferred(), plan)
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
