"""Plans in slices of rows, and plans that run one segment at a time."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

import parallax
from parallax.errors import BudgetError
from parallax.model import load_model
from parallax.planner._candidates import PlanningContext
from parallax.planner._requirement import estimate_graph
from parallax.planner._rows import planned_model
from parallax.planner._slices import depth_first, sliced_plans
from parallax.planner._whole import whole_plan
from parallax.schedule import verify_plan
from tests.session._dropin import ForcedSplitSession, ramp
from tests.session.test_computed_constants import attention
from tests.session.test_memory_budget import wide_model
from tests.session.test_narrow_budgets import tokens_model


def test_each_plan_in_slices_could_run_and_needs_less_than_the_one_before() -> None:
    model = load_model(tokens_model())
    found = list(sliced_plans(model, cores=2, reason="for a test"))
    assert [planned.plan.rows_rounds for planned in found] == [1, 2, 3]
    needs = []
    for planned in found:
        verify_plan(planned.plan, len(planned.model.graph.nodes))
        assert planned.plan.structure_digest == model.structure_digest
        assert planned.plan.lanes == 1
        covered = {node for segment in planned.plan.segments for node in segment.nodes}
        assert len(covered) == len(planned.model.graph.nodes)
        needs.append(estimate_graph(planned.model.inferred(), planned.plan).least_bytes)
    assert needs == sorted(needs, reverse=True)
    assert needs[2] < needs[0] / 2


def test_constants_are_computed_before_and_what_all_rows_are_needed_of_is_joined_once() -> None:
    """Attention as exporters write it: what asks for shapes would hold tensors, and end cuts."""
    model = load_model(attention(layers=3, length=1024))
    whole = estimate_graph(model.inferred(), whole_plan(model, "for a test", cores=2)).least_bytes
    found = list(sliced_plans(model, cores=2, reason="for a test"))
    needs = [estimate_graph(planned.model.inferred(), planned.plan).least_bytes for planned in found]
    assert min(needs) < 0.4 * whole
    for planned in found:
        assert planned.plan.constants_shapes == ()
        assert planned.plan.rows_joined
        made = planned_model(model, planned.plan)
        assert [entry.name for entry in made.graph.nodes] == [entry.name for entry in planned.model.graph.nodes]
        names = [name for entry in made.graph.nodes if entry.op_type == "Concat" for name in entry.outputs]
        assert {"l0_k", "l0_v", "l2_k", "l2_v"} <= set(names), "joined under their own names, for all slices"
        assert not any(entry.op_type == "Shape" for entry in made.graph.nodes)


def test_there_are_no_slices_of_open_shapes_or_of_few_rows() -> None:
    assert not list(sliced_plans(load_model(tokens_model("n")), cores=2, reason="for a test"))
    assert not list(sliced_plans(load_model(tokens_model(4)), cores=2, reason="for a test"))


def test_a_slice_runs_as_far_as_it_goes_before_the_next_begins() -> None:
    context = PlanningContext(load_model(wide_model(8)), cores=2, fusion_safe=None)
    groups = context.groups
    for slices in ([()] * len(groups), [(group % 2,) for group in range(len(groups))]):
        order = depth_first(groups, list(slices))
        assert sorted(order) == list(range(len(groups)))
        place = {group: position for position, group in enumerate(order)}
        for group in range(len(groups)):
            assert all(place[before] < place[group] for before in groups.dag.predecessors[group])


def test_a_budget_between_two_plans_takes_the_one_that_fits() -> None:
    """Whatever the budget, from what is refused to what is wanted, the answers are the same."""
    model, x = wide_model(256), ramp(256, 1024)
    expected = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    with pytest.raises(BudgetError) as caught:
        ForcedSplitSession(model, memory_budget=1 << 20)
    least = caught.value.least_bytes
    for budget in range(least, 3 * least, least // 4):
        session = ForcedSplitSession(model, memory_budget=budget)
        np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-5, atol=1e-6)
        usage = session.memory()
        assert usage.admitted_peak_bytes is not None
        assert usage.limit_bytes is not None
        assert 0 < usage.admitted_peak_bytes <= usage.limit_bytes < budget
    assert isinstance(session, parallax.InferenceSession)
