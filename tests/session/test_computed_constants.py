"""Sessions with devices plan for the model with its constants computed; the CPU alone runs it as it came."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import parallax
from parallax.errors import PlanError
from parallax.model import load_model
from parallax.planner import plan_model, planned_model
from parallax.planner._measuring import measure_again_if_noisy
from parallax.schedule import CPU_BACKEND, Plan
from tests._threads import in_threads

PHONE = "emulated:pixel-6-gpu"
CPU = "CPUExecutionProvider"
WIDE, HEADS, LENGTH = 128, 4, 96
ON_PHONE: dict[str, Any] = {"providers": [(PHONE, {"speed": 1000}), CPU], "threads": 2}
SHAPES = {"x": (1, LENGTH, WIDE)}


@functools.cache
def attention(layers: int = 2, length: int | str = "length") -> bytes:
    """Causal self-attention over ``x`` (1, length, WIDE), as exporters write it: sizes and the mask are computed."""
    nodes: list[Any] = []
    weights: dict[str, Any] = {
        "one": np.array(1, np.int64),
        "nought": np.array(0, np.int64),
        "first": np.array([0], np.int64),
        "last": np.array([1], np.int64),
        "apart": np.array([HEADS, WIDE // HEADS], np.int64),
        "wide": np.array([WIDE], np.int64),
        "low": np.array(-1e9, np.float32),
        "scale": np.array((WIDE // HEADS) ** -0.5, np.float32),
    }

    def add(op_type: str, inputs: str, output: str, **attributes: Any) -> None:
        nodes.append(helper.make_node(op_type, inputs.split(), [output], name=f"make_{output}", **attributes))

    last = "x"
    for layer in range(layers):
        p = f"l{layer}_"
        add("Shape", last, f"{p}shape")
        add("Gather", f"{p}shape nought", f"{p}batch0", axis=0)
        add("Gather", f"{p}shape one", f"{p}n", axis=0)
        add("Unsqueeze", f"{p}batch0 first", f"{p}batch")
        add("Unsqueeze", f"{p}n first", f"{p}length")
        add("Concat", f"{p}batch {p}length apart", f"{p}cut", axis=0)
        add("Concat", f"{p}batch {p}length wide", f"{p}joined", axis=0)
        add("Range", f"nought {p}n one", f"{p}places")
        add("Unsqueeze", f"{p}places last", f"{p}column")
        add("Unsqueeze", f"{p}places first", f"{p}row")
        add("LessOrEqual", f"{p}row {p}column", f"{p}seen")
        for number, part in enumerate("qkv"):
            values = np.random.default_rng(10 * layer + number).normal(size=(WIDE, WIDE)) / WIDE**0.5
            weights[f"{p}w{part}"] = values.astype(np.float32)
            add("MatMul", f"{last} {p}w{part}", f"{p}{part}0")
            add("Reshape", f"{p}{part}0 {p}cut", f"{p}{part}1")
            add("Transpose", f"{p}{part}1", f"{p}{part}", perm=[0, 2, 3, 1] if part == "k" else [0, 2, 1, 3])
        add("MatMul", f"{p}q {p}k", f"{p}scores0")
        add("Mul", f"{p}scores0 scale", f"{p}scores1")
        add("Where", f"{p}seen {p}scores1 low", f"{p}scores")
        add("Softmax", f"{p}scores", f"{p}shares", axis=-1)
        add("MatMul", f"{p}shares {p}v", f"{p}mixed0")
        add("Transpose", f"{p}mixed0", f"{p}mixed1", perm=[0, 2, 1, 3])
        add("Reshape", f"{p}mixed1 {p}joined", f"{p}mixed")
        output = "y" if layer == layers - 1 else f"{p}out"
        add("Add", f"{p}mixed {last}", output)
        last = output
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, length, WIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, length, WIDE])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    made: bytes = proto.SerializeToString()
    return made


def feeds(length: int = LENGTH, seed: int = 0) -> dict[str, Any]:
    return {"x": np.random.default_rng(seed).normal(size=(1, length, WIDE)).astype(np.float32)}


@functools.cache
def expected(length: int = LENGTH, seed: int = 0) -> Any:
    return onnxruntime.InferenceSession(attention(), providers=[CPU]).run(None, feeds(length, seed))[0]


def check_answers(session: parallax.InferenceSession, *lengths: int, seeds: int = 1) -> None:
    for length in lengths:
        for seed in range(seeds):
            answer = session.run(None, feeds(length, seed))[0]
            np.testing.assert_allclose(answer, expected(length, seed), rtol=1e-4, atol=1e-5)


def regions(plan: Plan) -> int:
    return sum(segment.backend == PHONE for segment in plan.segments)


def operators(plan: Plan) -> set[str]:
    """Of all that a plan for `SHAPES` runs."""
    shaped = load_model(attention(), shapes=SHAPES)
    graph = planned_model(shaped, plan).graph
    return {graph.nodes[node].op_type for segment in plan.segments for node in segment.nodes}


@pytest.fixture
def devices_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first plan with a device that is measured is kept, whatever else the machine is doing."""
    monkeypatch.setattr("parallax.planner._measuring.PATIENCE_S", 0.1)
    labels: list[str] = []

    def measure(peers: Any, *, rounds: int = 0, **how: Any) -> Any:
        labels[:] = [peer.label for peer in peers]
        return measure_again_if_noisy(peers, rounds=2, **how)

    def pick(times: Any, whole: Any = ()) -> int:
        if len(times) == 2:
            return 1
        return next(index for index, label in enumerate(labels) if "regions" in label or "greedy" in label)

    monkeypatch.setattr("parallax.planner._tuning.measure_again_if_noisy", measure)
    monkeypatch.setattr("parallax.planner._tuning.pick_winner", pick)
    monkeypatch.setattr("parallax.planner._tuning.NOISY_SHARE", 1e9)


def test_regions_are_fewer_and_shapes_are_no_work() -> None:
    session = parallax.InferenceSession(attention(), shapes=SHAPES, min_gain=0.01, **ON_PHONE)
    plan = session.plan
    request = dataclasses.replace(session.planning_request(), computes_constants=False)
    as_it_is = plan_model(request).plan
    assert regions(as_it_is) > 1
    assert plan.constants_shapes == ()
    assert regions(plan) == 1
    assert operators(plan).isdisjoint({"Shape", "Gather", "Unsqueeze", "Concat", "Range", "LessOrEqual"})
    assert "with its constants computed" in str(plan)
    check_answers(session, LENGTH, seeds=3)


def test_other_shapes_run_whole_and_then_in_forms_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    session = parallax.InferenceSession(attention(), shapes=SHAPES, min_gain=0.01, **ON_PHONE)
    stock = onnxruntime.InferenceSession(attention(), providers=[CPU])
    assert [one.shape for one in session.get_inputs()] == [one.shape for one in stock.get_inputs()]
    assert [one.shape for one in session.get_outputs()] == [one.shape for one in stock.get_outputs()]
    own = "have a plan of their own"
    with caplog.at_level(logging.INFO, "parallax"):
        check_answers(session, 64, 5, 1)
        assert own not in caplog.text, "what comes once runs whole"
        check_answers(session, 64, 64, LENGTH)
        assert caplog.text.count(own) == 1
        assert "no plan of their own can be made" not in caplog.text
    check_answers(session, LENGTH, 64, 33, seeds=2)
    copied = pickle.loads(pickle.dumps(session))
    check_answers(copied, LENGTH, 64)


@pytest.mark.parametrize("more", [{"split": "always"}, {"min_gain": 0}, {"policy": "greedy", "min_gain": 0.01}])
def test_forced_splits_and_policies_answer_alike(more: dict[str, Any]) -> None:
    session = parallax.InferenceSession(attention(), shapes=SHAPES, **more, **ON_PHONE)
    assert session.plan.constants_shapes == ()
    assert operators(session.plan).isdisjoint({"Shape", "Range", "Concat"})
    check_answers(session, LENGTH, 40, LENGTH, 40, 40)


def test_eight_threads_in_several_shapes() -> None:
    session = parallax.InferenceSession(attention(), shapes=SHAPES, min_gain=0.01, **ON_PHONE)
    lengths = (LENGTH, 64, 17, LENGTH)
    for length in lengths:
        expected(length)

    def work(number: int) -> None:
        for step in range(8):
            check_answers(session, lengths[(number + step) % len(lengths)])

    in_threads(8, work)


def test_a_budget_holds_for_the_planned_shapes_and_for_others() -> None:
    session = parallax.InferenceSession(attention(), shapes=SHAPES, min_gain=0.01, memory_budget="1GiB", **ON_PHONE)
    assert session.plan.constants_shapes == ()
    assert session.memory().run_peak_bytes
    check_answers(session, LENGTH, 64, 200)


def test_the_cpu_alone_runs_the_model_as_it_came() -> None:
    for more in ({"split": "never"}, {"min_gain": 0.99}):
        session = parallax.InferenceSession(
            attention(), shapes=SHAPES, providers=[(PHONE, {"speed": 0.01}), CPU], threads=2, **more
        )
        assert session.plan.is_whole
        assert session.plan.constants_shapes is None
        assert len(session.plan.segments[0].nodes) == len(load_model(attention()).graph.nodes)
        check_answers(session, LENGTH, 64)
    alone = parallax.InferenceSession(attention(), shapes=SHAPES, threads=2, split="always")
    assert alone.plan.constants_shapes is None
    check_answers(alone, LENGTH, 64)


def test_without_shapes_the_model_is_planned_as_it_is() -> None:
    session = parallax.InferenceSession(attention(), min_gain=0, **ON_PHONE)
    assert session.plan.constants_shapes is None
    check_answers(session, LENGTH, 64)


@pytest.mark.parametrize("more", [{"calibration": feeds()}, {"shapes": SHAPES}], ids=["calibration", "shapes"])
@pytest.mark.usefixtures("devices_win")
def test_a_tuned_plan_is_remembered_and_swapped_in(more: dict[str, Any], tmp_path: Path) -> None:
    session = parallax.InferenceSession(attention(), tune=True, cache_dir=tmp_path, **more, **ON_PHONE)
    plan = session.plan
    assert plan.constants_shapes == (() if "shapes" in more else tuple(SHAPES.items()))
    assert regions(plan) >= 1
    check_answers(session, LENGTH, 64, 64, 64)
    kept = {name: value for name, value in more.items() if name == "shapes"}
    later = parallax.InferenceSession(attention(), cache_dir=tmp_path, **kept, **ON_PHONE)
    assert later.plan == plan
    check_answers(later, LENGTH, 64, 64)
    read = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert read == plan
    other = parallax.InferenceSession(attention(), cache_dir=tmp_path / "other", min_gain=0.99, **kept, **ON_PHONE)
    other.swap_plan(read)
    assert other.plan.constants_shapes == plan.constants_shapes
    check_answers(other, LENGTH, 64)


@pytest.mark.usefixtures("devices_win")
def test_a_plan_for_other_shapes_is_refused(tmp_path: Path) -> None:
    tuned = parallax.InferenceSession(attention(), tune=True, cache_dir=tmp_path, calibration=feeds(), **ON_PHONE)
    other = parallax.InferenceSession(
        attention(), cache_dir=tmp_path / "other", shapes={"x": (1, 8, WIDE)}, min_gain=0.99, **ON_PHONE
    )
    with pytest.raises(PlanError, match="is for 'x' of shape"):
        other.swap_plan(tuned.plan)
    check_answers(other, 8, LENGTH)


def test_a_plan_without_what_was_to_be_computed_is_refused() -> None:
    session = parallax.InferenceSession(attention(), min_gain=0, **ON_PHONE)
    with pytest.raises(PlanError, match="constants were computed"):
        session.swap_plan(dataclasses.replace(session.plan, constants_shapes=()))
    with pytest.raises(PlanError):
        session.swap_plan(dataclasses.replace(session.plan, constants_shapes=(("x", (1, 2)),)))
    check_answers(session, LENGTH)


def test_sessions_that_follow_the_machine_are_not_tied_to_a_shape() -> None:
    session = parallax.InferenceSession(attention(), shapes=SHAPES, adapt=True, **ON_PHONE)
    try:
        assert session.plan.constants_shapes is None
        assert {segment.backend for segment in session.plan.segments} <= {PHONE, CPU_BACKEND}
        check_answers(session, LENGTH, 64)
    finally:
        session.close()


@pytest.mark.parametrize("length", [LENGTH, "length"])
def test_bundles_are_made_of_it_where_the_model_takes_one_shape_alone(length: int | str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(attention(length=length))
    made = parallax.compile(path, tmp_path / "m.plx", shapes=SHAPES, min_gain=0.01, portable=True, **ON_PHONE)
    session = parallax.InferenceSession(made)
    assert (session.plan.constants_shapes == ()) is (length == LENGTH)
    assert regions(session.plan) >= 1
    check_answers(session, LENGTH, seeds=3)
    assert session.memory().run_peak_bytes
    if length != LENGTH:
        check_answers(session, 64, 5)
