"""How much a split must promise where nothing was measured: less than the least gain is no reason to split."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import parallax
from parallax.backends import open_backend
from parallax.model import Model, load_model
from parallax.planner import DEFAULT_MIN_GAIN
from parallax.planner._candidates import PlanningContext
from parallax.planner._tables import plan_from_tables
from tests.session.test_devices import CPU, PHONE, on, two_branches

SIZE = 1024


def after_a_stretch_in_sequence(links: int) -> Model:
    """Sums along the rows, which one thread computes: ``links`` one after the other, then two chains of four."""
    random = np.random.default_rng(7)
    weights = [numpy_helper.from_array(np.array(0, np.int64), "rows")]
    nodes, last = [], "x"
    for link in range(links):
        nodes.append(helper.make_node("CumSum", [last, "rows"], [f"s{link}"]))
        last = f"s{link}"
    for side in "ab":
        weights.append(numpy_helper.from_array(random.standard_normal((1, SIZE)).astype(np.float32), f"w{side}"))
        nodes.append(helper.make_node("Add", [last, f"w{side}"], [f"{side}0"]))
        for link in range(4):
            nodes.append(helper.make_node("CumSum", [f"{side}{link}", "rows"], [f"{side}{link + 1}"]))
    nodes.append(helper.make_node("Add", ["a4", "b4"], ["y"]))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [SIZE, SIZE]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    return load_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def promised(model: Model) -> float:
    """The share of the latency that the best split saves, by the tables."""
    context = PlanningContext(model, cores=2)
    assert context.best is not None
    return 1 - context.best.simulated_ns / context.whole_ns


@pytest.mark.parametrize(("links", "splits"), [(4, True), (30, False), (60, False)])
def test_a_split_that_promises_less_than_the_least_gain_is_not_made_unasked(links: int, splits: bool) -> None:
    model = after_a_stretch_in_sequence(links)
    assert (promised(model) >= DEFAULT_MIN_GAIN) is splits
    plan = plan_from_tables(model, cores=2)
    assert plan.is_whole is not splits
    if not splits:
        assert "15% is asked for" in plan.provenance.reason
        assert not plan_from_tables(model, cores=2, min_gain=0.01).is_whole, "the same split, on demand"


def test_what_is_asked_for_unmeasured_is_far_above_what_the_tables_are_wrong_by() -> None:
    assert 0.1 < promised(after_a_stretch_in_sequence(16)) < DEFAULT_MIN_GAIN


def test_a_device_that_promises_less_than_the_least_gain_is_left_alone_unasked() -> None:
    # Nearly all the time goes to what the phone does not take, so that it can save some percent at most.
    model = two_branches(depth=1, fallbacks=60)
    options: dict[str, Any] = {"providers": [(PHONE, {"speed": 1000}), CPU], "threads": 2}
    unasked = parallax.InferenceSession(model, **options)
    assert on(unasked, open_backend(PHONE).info.name) == []
    assert "15% is asked for" in unasked.plan.provenance.reason
    asked = parallax.InferenceSession(model, **options, min_gain=0.001)
    assert "MatMul" in on(asked, PHONE)
