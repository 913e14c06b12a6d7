"""Measured costs, on real sessions of small models: whose time is whose, never how much."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from parallax.errors import BackendError, ConfigError
from parallax.model import load_model
from parallax.model._graph_only import GraphOnly
from parallax.profile import Cache, fusion_safe_tensors, measure_costs, random_feeds
from parallax.profile._attribution import find_covers
from parallax.profile._measure import _fused_graph, _match_events, _midmean, _scaled
from tests.profile.graphs import make_graph

CHANNELS = 16


def _weight(random: np.random.Generator, name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array((random.standard_normal(shape) * 0.1).astype(np.float32), name)


def build_model() -> onnx.ModelProto:
    """Convolutions, a transformer's product, bias and Gelu, a normalisation, an If: each fused its own way."""
    random = np.random.default_rng(0)
    node = helper.make_node
    free = helper.make_tensor_value_info
    then = helper.make_graph([node("Relu", ["y"], ["z1"], name="then")], "t", [], [free("z1", TensorProto.FLOAT, None)])
    other = helper.make_graph([node("Neg", ["y"], ["z2"], name="else")], "e", [], [free("z2", TensorProto.FLOAT, None)])
    nodes = [
        node("Conv", ["x", "w1"], ["c1"], name="conv1", pads=[1] * 4),
        node("BatchNormalization", ["c1", "s", "b", "m", "v"], ["bn"], name="bn1"),
        node("Relu", ["bn"], ["r"], name="relu1"),
        node("Conv", ["r", "w2"], ["c2"], name="conv2", pads=[1] * 4),
        node("Add", ["c2", "r"], ["a"], name="add"),
        node("Relu", ["a"], ["r2"], name="relu2"),
        node("Transpose", ["r2"], ["t"], name="transpose", perm=[0, 2, 3, 1]),
        node("MatMul", ["t", "wm"], ["mm"], name="product"),
        node("Add", ["mm", "bm"], ["g0"], name="bias"),
        # Gelu as exporters write it; these carry no names, as in many files.
        node("Div", ["g0", "root2"], ["g1"]),
        node("Erf", ["g1"], ["g2"]),
        node("Add", ["g2", "one"], ["g3"]),
        node("Mul", ["g0", "g3"], ["g4"]),
        node("Mul", ["g4", "half"], ["g5"]),
        node("Add", ["g5", "t"], ["sum"]),
        node("LayerNormalization", ["sum", "lg", "lb"], ["ln"], axis=-1),
        node("Softmax", ["ln"], ["y"], axis=-1),
        node("ReduceMean", ["ln"], ["mean"], keepdims=0),
        node("Greater", ["mean", "one"], ["cond"]),
        node("If", ["cond"], ["z"], name="if", then_branch=then, else_branch=other),
        node("Transpose", ["z"], ["out"], name="back", perm=[0, 3, 1, 2]),
    ]
    scalars = {"root2": 2**0.5, "one": 1.0, "half": 0.5}
    graph = helper.make_graph(
        nodes,
        "g",
        [free("x", TensorProto.FLOAT, [1, CHANNELS, 12, 12])],
        [free("out", TensorProto.FLOAT, None)],
        [
            _weight(random, "w1", CHANNELS, CHANNELS, 3, 3),
            _weight(random, "w2", CHANNELS, CHANNELS, 3, 3),
            *(_weight(random, name, CHANNELS) for name in ("s", "b", "m", "lg", "lb", "bm")),
            numpy_helper.from_array(np.ones(CHANNELS, np.float32), "v"),
            _weight(random, "wm", CHANNELS, CHANNELS),
            *(numpy_helper.from_array(np.float32(value), name) for name, value in scalars.items()),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture(scope="module")
def model():
    return load_model(build_model())


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Where temporary files and those of the working folder go, to see what stays."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_node_times_sum_to_the_latency_at_every_width(model, scratch):
    costs = measure_costs(model, widths=[2, 1], runs=4)
    assert costs.widths == (1, 2)
    assert costs.source == "measured"
    for width in (1, 2):
        assert costs.latency_ns(width) > 0
        assert sum(costs.node_ns(width)) == costs.latency_ns(width)
        assert costs.scale(width) > 0
    assert len(costs.node_ns(1)) == len(model.graph.nodes)


def test_nothing_is_left_behind(model, scratch):
    measure_costs(model, widths=[1], runs=1, warmup=0)
    fusion_safe_tensors(model)
    assert list(scratch.iterdir()) == []


def test_heavy_nodes_have_time_and_a_body_counts_for_its_node(model):
    costs = measure_costs(model, widths=[1], runs=4)
    time_of = {node.name: ns for node, ns in zip(model.graph.nodes, costs.node_ns(1), strict=True)}
    assert all(time_of[name] > 0 for name in ("conv1", "conv2", "product", "if"))
    assert time_of["conv1"] > time_of["bn1"]
    assert set(time_of) == {node.name for node in model.graph.nodes}


def test_fused_operators_cover_the_nodes_they_replaced(model):
    fused = _fused_graph(model)
    covers = find_covers(model.graph, fused)
    by_output = {
        node.outputs[0]: {model.graph.nodes[index].outputs[0] for index in cover}
        for node, cover in zip(fused.nodes, covers, strict=True)
    }
    assert by_output["r"] == {"c1", "bn", "r"}
    assert by_output["g5"] == {"g1", "g2", "g3", "g4", "g5"}
    assert all(covers)
    assert sorted({index for cover in covers for index in cover}) == list(range(len(model.graph.nodes)))


def test_fusion_safe_tensors_are_those_that_fusion_left(model):
    fusion_safe = fusion_safe_tensors(model)
    assert {"x", "r", "g0", "g5", "ln", "y", "cond", "out"} <= fusion_safe
    assert fusion_safe.isdisjoint({"c1", "bn", "mm", "g1", "g2", "g3", "g4"})
    assert fusion_safe <= {*model.graph.producers, "x"}


def test_a_fusion_safe_tensor_has_the_same_value_in_the_optimised_graph(tmp_path):
    proto = build_model()
    fusion_safe = sorted(fusion_safe_tensors(load_model(proto)) - {"x", "out"})
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def values(model: onnx.ModelProto) -> list[np.ndarray]:
        for name in fusion_safe:
            kind = TensorProto.BOOL if name == "cond" else TensorProto.FLOAT
            model.graph.output.append(helper.make_tensor_value_info(name, kind, None))
        plain = ort.SessionOptions()
        plain.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(model.SerializeToString(), plain, providers=["CPUExecutionProvider"])
        return session.run(fusion_safe, random_feeds(load_model(build_model()).graph))

    optimised = values(onnx.load(tmp_path / "optimised.onnx"))
    for name, ours, theirs in zip(fusion_safe, optimised, values(proto), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=name)


def test_an_inner_transposition_moved_by_the_runtime_keeps_fusion_safe_tensors_true(tmp_path):
    # The runtime pushes transpositions through operators; a name must not come to mean the moved tensor.
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Relu", ["t"], ["r"]),
        helper.make_node("Transpose", ["r"], ["u"], perm=[0, 2, 1]),
        helper.make_node("Exp", ["u"], ["y"]),
        helper.make_node("Exp", ["r"], ["z"]),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", TensorProto.FLOAT, [2, 3, 4])],
        [info("y", TensorProto.FLOAT, [2, 3, 4]), info("z", TensorProto.FLOAT, [2, 4, 3])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    shapes = {"x": (2, 3, 4), "t": (2, 4, 3), "r": (2, 4, 3), "u": (2, 3, 4), "y": (2, 3, 4), "z": (2, 4, 3)}
    fusion_safe = fusion_safe_tensors(load_model(proto))
    assert {"y", "z"} <= fusion_safe
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimised = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "optimised.onnx"))
    seen = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*optimised.graph.value_info, *optimised.graph.output, *optimised.graph.input)
    }
    assert all(seen[name] == shapes[name] for name in fusion_safe)


def test_a_model_with_weights_in_another_file_is_measured_the_same_way(tmp_path):
    random = np.random.default_rng(0)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product"), helper.make_node("Relu", ["y"], ["z"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 64])],
        [_weight(random, "w", 64, 64)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    model = load_model(tmp_path / "m.onnx")
    costs = measure_costs(model, widths=[1], runs=2, feeds={"x": np.ones((5, 64), np.float32)})
    assert sum(costs.node_ns(1)) == costs.latency_ns(1)
    assert fusion_safe_tensors(model) == {"x", "y", "z"}
    assert sorted(os.listdir(tmp_path)) == ["m.data", "m.onnx"]


def test_progress_counts_every_run(model):
    seen = []
    measure_costs(model, widths=[1, 2], runs=2, warmup=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 10) for done in range(1, 11)]


def test_a_cached_result_is_used_and_is_the_same(model, tmp_path):
    cache = Cache(tmp_path)
    first = measure_costs(model, widths=[1], runs=1, cache=cache)
    runs = []
    again = measure_costs(model, widths=[1], runs=1, cache=cache, progress=lambda *step: runs.append(step))
    assert again == first
    assert runs == []
    measure_costs(model, widths=[1, 2], runs=1, warmup=0, cache=cache, progress=lambda *step: runs.append(step))
    assert len(runs) == 4


def test_a_cached_result_of_another_form_is_measured_anew(model, tmp_path):
    cache = Cache(tmp_path)
    measure_costs(model, widths=[1], runs=1, cache=cache)
    [path] = tmp_path.glob("*.json")
    path.write_text(path.read_text().replace('"format":1,"source"', '"format":0,"source"'))
    runs = []
    measure_costs(model, widths=[1], runs=1, cache=cache, progress=lambda *step: runs.append(step))
    assert runs


def test_fusion_safe_tensors_are_cached(model, tmp_path):
    cache = Cache(tmp_path)
    assert fusion_safe_tensors(model, cache=cache) == fusion_safe_tensors(model, cache=cache)
    assert len(list(tmp_path.glob("*.json"))) == 1


def test_the_callers_options_make_the_sessions(model):
    made = []

    def options() -> ort.SessionOptions:
        made.append(ort.SessionOptions())
        made[-1].graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return made[-1]

    costs = measure_costs(model, widths=[1], runs=2, session_options=options)
    assert [made_one.intra_op_num_threads for made_one in made] == [1]
    # Nothing fused, so even the cheapest node ran by itself.
    assert sum(ns > 0 for ns in costs.node_ns(1)) > 15


@pytest.mark.parametrize("fields", [{"widths": []}, {"widths": [0, 1]}, {"widths": [1], "runs": 0}])
def test_senseless_requests_are_refused(model, fields):
    with pytest.raises(ConfigError):
        measure_costs(model, **fields)


def test_feeds_the_model_cannot_take_are_the_callers_to_mend(model, scratch):
    with pytest.raises(BackendError, match="give feeds"):
        measure_costs(model, widths=[1], feeds={"x": np.zeros((3,), np.float32)})
    assert list(scratch.iterdir()) == []


def test_made_up_inputs_fit_the_models_types():
    shapes = {"f": (2, "n", None), "i": (7, (3,)), "b": (9, ()), "s": (8, (1,)), "h": (10, (2,))}
    graph = make_graph([("Odd", list(shapes), ["y"], {})], shapes)
    feeds = random_feeds(graph, unknown_dim=4)
    assert feeds["f"].shape == (2, 4, 4)
    assert feeds["f"].std() > 0
    assert feeds["i"].tolist() == [0, 0, 0]
    assert feeds["b"].tolist() is True
    assert feeds["s"].tolist() == ["a"]
    assert feeds["h"].dtype == np.float16
    np.testing.assert_array_equal(feeds["f"], random_feeds(graph, unknown_dim=4)["f"])


def test_an_input_that_numpy_cannot_hold_asks_for_feeds():
    with pytest.raises(ConfigError, match="give feeds"):
        random_feeds(make_graph([("Odd", ["x"], ["y"], {})], {"x": (16, (2,))}))


def test_events_of_bodies_are_passed_over():
    outer = make_graph([("Relu", ["x"], ["a"], {}), ("If", ["a"], ["b"], {}), ("Relu", ["b"], ["y"], {})], {})
    outline = GraphOnly(graph=outer, stated_names=("r", "branch", "r"))
    events = [("r", "Relu", 5), ("r", "Relu", 7), ("inner", "Neg", 8), ("branch", "If", 20), ("r", "Relu", 6)]
    assert _match_events(outline, events) == [5, 20, 6]


def test_nodes_without_names_are_known_by_operator():
    outer = make_graph([("Relu", ["x"], ["a"], {}), ("Exp", ["a"], ["y"], {})], {})
    outline = GraphOnly(graph=outer, stated_names=("", ""))
    assert _match_events(outline, [("Relu_17", "Relu", 3), ("Exp_4", "Exp", 4)]) == [3, 4]


def test_another_order_of_execution_falls_back_to_names():
    outer = make_graph([("Relu", ["x"], ["a"], {}), ("Exp", ["x"], ["b"], {}), ("Neg", ["x"], ["c"], {})], {})
    outline = GraphOnly(graph=outer, stated_names=("r", "e", "n"))
    assert _match_events(outline, [("n", "Neg", 1), ("e", "Exp", 2), ("r", "Relu", 3)]) == [3, 2, 1]


def test_the_midmean_ignores_outliers_and_keeps_fractions():
    assert _midmean([1, 2, 2, 3, 3, 1, 2, 1000]) == pytest.approx(2.25)
    assert _midmean([7]) == 7


def test_scaled_times_sum_exactly():
    scaled, factor = _scaled([1.5, 2.25, 0.0, 3.5], 1_000_003)
    assert sum(scaled) == 1_000_003
    assert factor == pytest.approx(1_000_003 / 7.25)
    assert _scaled([0.0, 0.0], 50) == ([0, 0], 1.0)


def test_a_model_whose_every_node_folds_away_costs_nothing(tmp_path: Path):
    graph = helper.make_graph(
        [helper.make_node("Add", ["c", "c"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.ones(1, np.float32), "c")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    costs = measure_costs(load_model(proto), widths=[1], runs=1)
    assert costs.node_ns(1) == (0,)
