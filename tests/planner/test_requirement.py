"""What a plan needs of memory is the planner's answer, and what sessions admit runs with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import parallax
from parallax.errors import BudgetError
from parallax.memory import Budget
from parallax.model import load_model
from parallax.planner import PlannedModel, PlanRequest, check_fit, fit_plan, plan_model, whole_plan
from tests.session._dropin import branches_model
from tests.session.test_memory_budget import wide_model


@pytest.mark.parametrize("split", ["always", "never"])
def test_a_planned_model_says_what_a_session_admits_its_runs_with(split: str) -> None:
    source = wide_model(64)
    model = load_model(source)
    planned = plan_model(PlanRequest(model=model, cores=2, split=split))
    required = planned.requirement
    assert required.is_known
    session = parallax.InferenceSession(source, split=split, threads=2, memory_budget="64MiB")  # type: ignore[arg-type]
    assert len(session.plan.segments) == len(planned.plan.segments) == len(required.peaks)
    usage = session.memory()
    assert usage.run_peak_bytes == required.wanted_bytes
    budget = Budget.of(0, weight_bytes=model.weight_bytes, segments=len(planned.plan.segments))
    assert usage.least_budget_bytes == budget.least_bytes(required)


def test_where_sizes_are_open_it_is_not_known() -> None:
    model = load_model(branches_model().SerializeToString())
    plan = whole_plan(model, "a question of memory")
    assert not PlannedModel(plan=plan, model=model).requirement.is_known
    shaped = model.with_shapes({"x": (2, 4)})
    assert PlannedModel(plan=plan, model=shaped).requirement.is_known


def test_a_plan_is_exchanged_for_the_whole_models_where_only_that_fits_unless_it_must_not_be() -> None:
    model = load_model(wide_model(64))
    planned = plan_model(PlanRequest(model=model, cores=2, split="always"))
    needed: dict[bool, int] = {}
    for plan in (planned.plan, whole_plan(model, "to compare")):
        required = replace(planned, plan=plan).requirement
        needed[plan.is_whole] = Budget.of(0, weight_bytes=0, segments=len(plan.segments)).least_bytes(required)
    arguments: dict[str, Any] = {"shapes": None, "weight_bytes": 0}
    for budget_bytes in sorted(needed.values()):
        fits = {is_whole for is_whole, least in needed.items() if least <= budget_bytes}
        fitted, estimator, budget = fit_plan(model, planned.plan, budget_bytes, **arguments)
        assert fitted.is_whole in fits
        assert budget.allows(estimator.requirement({}))
        if False in fits:
            assert not check_fit(model, planned.plan, budget_bytes, **arguments)[0].is_whole
        else:
            with pytest.raises(BudgetError) as refused:
                check_fit(model, planned.plan, budget_bytes, **arguments)
            assert refused.value.least_bytes == needed[False]
    with pytest.raises(BudgetError):
        fit_plan(model, planned.plan, min(needed.values()) - 1, **arguments)
