"""Untuned, and with nothing said of gains: which models are split, which stay whole and why, and what that takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import parallax
from parallax.model import Model, load_model
from parallax.planner import _tables as tables
from parallax.profile import fusion_safe_tensors

CPU = ["CPUExecutionProvider"]


def made(
    nodes: Sequence[onnx.NodeProto],
    x_shape: Sequence[int | str],
    y_shape: Sequence[int | str] | None,
    weights: Sequence[onnx.TensorProto] = (),
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y_shape)],
        weights,
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model: bytes = helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()
    return model


def products_of_features(terms: int) -> bytes:
    """Polynomial features: each picks two columns and multiplies them, on its own; all cost is calls."""
    random = np.random.default_rng(3)
    nodes, weights = [], []
    for term in range(terms):
        weights.append(numpy_helper.from_array(random.integers(0, 6, 2), f"columns{term}"))
        nodes.append(
            helper.make_node("ArrayFeatureExtractor", ["x", f"columns{term}"], [f"pair{term}"], domain="ai.onnx.ml")
        )
        nodes.append(helper.make_node("ReduceProd", [f"pair{term}"], [f"term{term}"], axes=[1], keepdims=1))
    nodes.append(helper.make_node("Concat", [f"term{term}" for term in range(terms)], ["y"], axis=1))
    return made(nodes, ["n", 6], None, weights)


def chains(*, count: int = 4, links: int = 6, size: int, rows: int | str | None = None) -> bytes:
    """``count`` chains of operators that do not scale with threads over (rows, size), each with a weight of its own."""
    random = np.random.default_rng(5)
    nodes, weights = [], [numpy_helper.from_array(np.array(0, np.int64), "rows")]
    for chain in range(count):
        weight = random.standard_normal((1, size)).astype(np.float32) / size
        weights.append(numpy_helper.from_array(weight, f"weight{chain}"))
        nodes.append(helper.make_node("Add", ["x", f"weight{chain}"], [f"c{chain}_0"]))
        for link in range(links):
            source, target = f"c{chain}_{link}", f"c{chain}_{link + 1}"
            if link % 2:
                nodes.append(helper.make_node("Tanh", [source], [target]))
            else:
                nodes.append(helper.make_node("CumSum", [source, "rows"], [target]))
    nodes.append(helper.make_node("Sum", [f"c{chain}_{links}" for chain in range(count)], ["y"]))
    return made(nodes, [rows or size, size], [rows or size, size], weights)


def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the dear questions that are asked from now on, each still answered."""
    asked: list[str] = []
    infer = onnx.shape_inference.infer_shapes

    def infer_shapes(*arguments: object, **options: object) -> onnx.ModelProto:
        asked.append("types")
        inferred: onnx.ModelProto = infer(*arguments, **options)  # type: ignore[arg-type]
        return inferred

    def fusion_safe(model: Model) -> frozenset[str]:
        asked.append("fusion_safe")
        return fusion_safe_tensors(model)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", infer_shapes)
    monkeypatch.setattr(tables, "fusion_safe_tensors", fusion_safe)
    return asked


def test_calls_of_tiny_operators_are_no_work_that_a_split_could_save(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = looked_at(monkeypatch)
    model = products_of_features(60)
    session = parallax.InferenceSession(model, threads=2)
    assert session.plan.is_whole
    assert "too small to split" in session.plan.provenance.reason
    assert not asked
    x = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    (expected,) = onnxruntime.InferenceSession(model, providers=CPU).run(None, {"x": x})
    assert np.array_equal(session.run(None, {"x": x})[0], expected)


def test_more_calls_do_not_become_work(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = looked_at(monkeypatch)
    session = parallax.InferenceSession(products_of_features(600), threads=2)
    assert session.plan.is_whole
    assert not asked


def test_a_clear_gain_is_taken_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = looked_at(monkeypatch)
    model = chains(size=640)
    session = parallax.InferenceSession(model, threads=2)
    assert len(session.plan.segments) > 1
    assert session.plan.provenance.source == "tables"
    assert {"types", "fusion_safe"} <= set(asked)
    x = np.random.default_rng(0).standard_normal((640, 640)).astype(np.float32)
    (expected,) = onnxruntime.InferenceSession(model, providers=CPU).run(None, {"x": x})
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-4, atol=1e-4)


def test_a_gain_in_percent_is_none_where_it_is_microseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same chains at a size where the tables promise their share, but little time: only whoever asks gets it."""
    asked = looked_at(monkeypatch)
    model = chains(size=96)
    left = parallax.InferenceSession(model, threads=2)
    assert left.plan.is_whole
    assert "too small to split" in left.plan.provenance.reason
    assert "fusion_safe" not in asked
    assert len(parallax.InferenceSession(model, threads=2, min_gain=0.01).plan.segments) > 1


def test_a_size_that_is_not_known_promises_nothing() -> None:
    assert parallax.InferenceSession(chains(size=640, rows="n"), threads=2).plan.is_whole


def test_a_chain_has_nothing_to_run_beside_it_however_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = looked_at(monkeypatch)
    session = parallax.InferenceSession(chains(count=1, links=40, size=640), threads=2)
    assert session.plan.is_whole
    assert "too small to split" in session.plan.provenance.reason
    assert "fusion_safe" not in asked


def test_a_plan_made_at_sight_says_what_the_graph_says() -> None:
    model = products_of_features(5)
    session = parallax.InferenceSession(model, threads=2)
    loaded = load_model(model)
    (segment,) = session.plan.segments
    assert segment.nodes == tuple(node.index for node in loaded.graph.nodes)
    assert segment.inputs == tuple(info.name for info in loaded.graph.inputs)
    assert segment.outputs == tuple(info.name for info in loaded.graph.outputs)
    assert session.plan.structure_digest == loaded.structure_digest
    assert session.memory().weights_private_bytes == loaded.weight_bytes


LOOPS = """
<ir_version: 10, opset_import: ["" : 21]>
g (int64 trips, float[4] x) => (float[4] y)
{
  keep = Constant<value = bool {1}>()
  a = Loop(trips, keep, x) <
    body = step (int64 i, bool c, float[4] v) => (bool c2, float[4] v2) { c2 = Identity(c)  v2 = Sin(v) }
  >
  %s
  y = Cos(b)
}
"""


def test_one_loop_among_small_operators_has_nothing_worth_running_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = looked_at(monkeypatch)
    alone = onnx.parser.parse_model(LOOPS % "b = Exp(x)").SerializeToString()
    session = parallax.InferenceSession(alone, threads=2)
    assert "too small to split" in session.plan.provenance.reason
    assert not asked


def test_two_loops_are_looked_into_since_they_might_run_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = looked_at(monkeypatch)
    second = """b = Loop(trips, keep, x) <
      body = other (int64 i, bool c, float[4] v) => (bool c2, float[4] v2) { c2 = Identity(c)  v2 = Cos(v) }
    >"""
    session = parallax.InferenceSession(onnx.parser.parse_model(LOOPS % second).SerializeToString(), threads=2)
    assert session.plan.is_whole  # how often they run is not known
    assert "types" in asked


IFS = """
<ir_version: 10, opset_import: ["" : 21]>
g (bool c, int64 trips, float[%d,%d] x) => (float[%d,%d] y)
{
  a = If(c) <
    then_branch = t () => (p) { p = MatMul(x, x) },
    else_branch = e () => (q) { q = If(c) <then_branch = u () => (r) { r = Sin(x) }, else_branch = v () => (s) { %s }> }
  >
  b = If(c) <then_branch = w () => (h) { h = Cos(x) }, else_branch = k () => (j) { j = MatMul(x, x) }>
  y = Add(a, b)
}
"""


def ifs(*, size: int, innermost: str = "s = Cos(x)") -> bytes:
    """Two Ifs, of which one holds another."""
    return onnx.parser.parse_model(IFS % (size, size, size, size, innermost)).SerializeToString()


def test_small_ifs_are_left_whole_at_sight_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = looked_at(monkeypatch)
    model = ifs(size=4)

    def never(*_: object) -> NoReturn:
        pytest.fail("the model was read")

    with monkeypatch.context() as unread:
        unread.setattr("parallax.opening._source.SessionSource.read", never)
        session = parallax.InferenceSession(model, threads=2)
    assert session.plan.is_whole
    assert "too small to split" in session.plan.provenance.reason
    assert not asked
    x = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    stock = onnxruntime.InferenceSession(model, providers=CPU)
    for c in (True, False):
        feed = {"c": np.array(c), "trips": np.array(1), "x": x}
        assert np.array_equal(session.run(None, feed)[0], stock.run(None, feed)[0])


def test_large_ifs_are_looked_into_since_they_might_run_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = looked_at(monkeypatch)
    parallax.InferenceSession(ifs(size=640), threads=2)
    assert "types" in asked


def test_a_loop_in_a_branch_may_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the only one, so that all else may run beside it; but the model is read, as one with a loop is."""
    asked = looked_at(monkeypatch)
    loop = (
        "keep = Constant<value = bool {1}>() s = Loop(trips, keep, x) <body = m (int64 i, bool d, float[4,4] f) => "
        "(bool g, float[4,4] l) { g = Identity(d) l = Cos(f) }>"
    )
    session = parallax.InferenceSession(ifs(size=4, innermost=loop), threads=2)
    assert "too small to split" in session.plan.provenance.reason
    assert not asked
    assert session._durations.may_be_long


def test_session_options_leave_a_model_whole_without_a_look_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = looked_at(monkeypatch)
    session = parallax.InferenceSession(chains(size=640), onnxruntime.SessionOptions())
    assert session.plan.is_whole
    assert "session options" in session.plan.provenance.reason
    assert not asked


def test_a_name_that_is_no_text_is_only_the_analysis_s_trouble() -> None:
    """The runtime runs the model, so the session does; what needs the graph says that it does not know."""
    model = products_of_features(3).replace(b"pair1", b"pair\xff")
    x = np.ones((2, 6), np.float32)
    (expected,) = onnxruntime.InferenceSession(model, providers=CPU).run(None, {"x": x})
    session = parallax.InferenceSession(model, threads=2)
    assert np.array_equal(session.run(None, {"x": x})[0], expected)
    assert session.plan.is_whole
    assert session.memory().run_peak_bytes is None


def test_what_is_wrong_with_a_graph_is_told_in_our_words_though_the_runtime_saw_it_first() -> None:
    nodes = [helper.make_node("Sin", ["x"], ["a"]), helper.make_node("Cos", ["nowhere"], ["y"], name="lost")]
    model = made(nodes, [2, 2], [2, 2])
    with pytest.raises(Exception, match="nowhere") as theirs:
        onnxruntime.InferenceSession(model, providers=CPU)
    with pytest.raises(parallax.ModelError, match="nowhere") as ours:
        parallax.InferenceSession(model)
    assert isinstance(ours.value, theirs.type)
    assert "lost" in str(ours.value.where)
