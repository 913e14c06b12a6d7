"""Which operators with bodies are lowered out of their segments, and what becomes of what is around them."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import helper

import parallax
from parallax import zoo
from parallax.errors import PlanError
from parallax.model import Model, load_model
from parallax.planner import whole_plan
from parallax.planner._lowering import lower_bodies
from parallax.planner._tables import forced_plan
from parallax.schedule import Plan, verify_plan
from tests.engine._flow_models import FLOAT, captured_weights_model, counting_loop, info, lowered_plan, model, nested


def loop_beside_a_chain() -> Model:
    """A Loop, and work on one thread that neither needs it nor is needed by it."""
    source = counting_loop()
    nodes = [*source.graph.node]
    last = "b"
    for step in range(4):
        nodes.append(helper.make_node("Softmax", [last], [f"b{step}"], axis=0, name=f"serial_{step}"))
        last = f"b{step}"
    side = info("b", FLOAT, [256, 256])
    made = model(nodes, [*source.graph.input, side], [*source.graph.output, info(last)])
    return load_model(made)


def test_what_does_not_depend_on_a_loop_may_run_beside_it() -> None:
    source = loop_beside_a_chain()
    for plan in (lowered_plan(source), lowered_plan(source, cut=False)):
        verify_plan(plan, len(source.graph.nodes))
        (loop,) = (segment for segment in plan.segments if segment.bodies)
        beside = [s for s in plan.segments if any(source.graph.nodes[i].op_type == "Softmax" for i in s.nodes)]
        assert plan.lanes >= 2
        for segment in beside:
            assert loop.index not in segment.predecessors
            assert segment.index not in loop.predecessors
            assert segment.width + loop.width <= plan.cores


def test_a_body_that_gains_nothing_stays_and_both_figures_say_why() -> None:
    source = load_model(counting_loop())
    plan = lower_bodies(
        source,
        whole_plan(source, "whole", cores=2),
        plan_body=lambda body, *, cores: whole_plan(body, "whole", cores=cores),
        min_gain=0.15,
    )
    assert plan.is_whole
    reason = plan.segments[0].reason
    assert "Loop 'loop' stays in it" in reason
    assert "us for an iteration by a plan of its own" in reason
    assert "us in the runtime" in reason


def test_sequences_stay_with_the_runtime() -> None:
    grown = helper.make_graph(
        [helper.make_node("SequenceInsert", ["s", "x"], ["t"]), helper.make_node("Identity", ["c"], ["go"])],
        "body",
        [info("i", 7, []), info("c", 9, []), helper.make_tensor_sequence_value_info("s", FLOAT, None)],
        [info("go", 9), helper.make_tensor_sequence_value_info("t", FLOAT, None)],
    )
    proto = model(
        [
            helper.make_node("SequenceEmpty", [], ["none"]),
            helper.make_node("Loop", ["M", "", "none"], ["all"], name="collect", body=grown),
            helper.make_node("ConcatFromSequence", ["all"], ["y"], axis=0),
        ],
        [info("M", 7, []), info("x", FLOAT, [2])],
        [info("y")],
    )
    session = parallax.InferenceSession(proto, min_gain=0, threads=2)
    assert not any(segment.bodies for segment in session.plan.segments)
    assert any("'none' is not a tensor" in segment.reason for segment in session.plan.segments)
    feeds = {"M": np.array(3, np.int64), "x": np.float32([1, 2])}
    assert session.run(None, feeds)[0].tolist() == [1, 2] * 3


def test_sessions_lift_on_demand_and_answer_as_the_runtime_does() -> None:
    path = zoo.load("lstm-if-loop")
    session = parallax.InferenceSession(path, min_gain=0, threads=2)
    assert sum(bool(segment.bodies) for segment in session.plan.segments) == 2
    reference = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for seed in range(3):
        feeds = zoo.example_inputs("lstm-if-loop", seed=seed)
        for ours, theirs in zip(session.run(None, feeds), reference.run(None, feeds), strict=True):
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_plans_with_bodies_survive_json_and_are_judged() -> None:
    plan = lowered_plan(load_model(nested()))
    value = plan.to_json()
    assert Plan.from_json(value) == plan
    (segment,) = (entry for entry in value["segments"] if entry["bodies"])  # type: ignore[attr-defined]
    segment["bodies"][0]["plan"]["cores"] = 9
    with pytest.raises(PlanError, match="uses 9 cores in a segment of width"):
        Plan.from_json(value)


def test_types_of_bodies_hold_in_every_iteration_and_constants_come_along() -> None:
    grown = load_model(counting_loop(growing=True))
    (body,) = grown.bodies(1)
    shapes = {entry.name: entry.shape for entry in body.model.graph.inputs}
    assert shapes["v"] == (None, 3), "the first dimension grows, the second stays"
    source = load_model(captured_weights_model())
    (body,) = source.bodies(2)
    assert body.captures == ("bias",), "what a caller may override is fed, other constants come along"
    assert "big" in body.model.graph.initializers
    whole = body.model.extract_whole()
    assert np.shares_memory(whole.weights["big"], source.extract_whole().weights["big"]), "weights are not copied"


def test_a_forced_plan_is_left_alone_without_bodies() -> None:
    source = load_model(model([helper.make_node("Relu", ["x"], ["y"])], [info("x")], [info("y")]))
    plan = forced_plan(source, cores=2)
    assert lower_bodies(source, plan, plan_body=lambda body, *, cores: plan, min_gain=0) is plan
