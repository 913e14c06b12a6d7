"""Parts of a model do without the fusions that make the runtime slower; whole models are the runtime's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import parallax
from parallax.backends.ort import CPU_PROVIDER, RuntimeOptions, make_session, make_value, save_optimised
from parallax.model import SegmentModel

ROWS, WIDTH = 16, 64
UNFUSED = ["Add", "LayerNormalization"]


def skip_and_normalise() -> bytes:
    """Two inputs are added and normalised, which the runtime fuses where it may."""
    generator = np.random.default_rng(0)
    weights = {name: generator.standard_normal(WIDTH).astype(np.float32) for name in ("scale", "bias")}
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "skip"], ["sum"]),
            helper.make_node("LayerNormalization", ["sum", "scale", "bias"], ["y"], axis=-1),
        ],
        "skip",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, ROWS, WIDTH]) for name in ("x", "skip")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, ROWS, WIDTH])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def saved(folder: Path, *, is_part: bool) -> list[str]:
    """The operators of the model as it is saved."""
    source, target = folder / "model.onnx", folder / f"{is_part}.onnx"
    source.write_bytes(skip_and_normalise())
    save_optimised(str(source), str(target), data_name="data", options=RuntimeOptions(), is_part=is_part)
    return [node.op_type for node in onnx.load(target, load_external_data=False).graph.node]


def test_a_part_is_saved_unfused_and_a_whole_model_as_the_runtime_has_it(tmp_path: Path) -> None:
    assert saved(tmp_path, is_part=False) == ["SkipLayerNormalization"]
    assert saved(tmp_path, is_part=True) == UNFUSED


@pytest.mark.parametrize(("split", "operators"), [("never", ["SkipLayerNormalization"]), ("always", UNFUSED)])
def test_bundles_say_whether_they_hold_parts(tmp_path: Path, split: str, operators: list[str]) -> None:
    twice = onnx.ModelProto.FromString(skip_and_normalise())
    for node in [*twice.graph.node]:
        twin = onnx.NodeProto.FromString(node.SerializeToString())
        # Of other inputs, or the runtime takes it for the same.
        twin.input[:] = ["x", "x"] if node.op_type == "Add" else ["twin_sum", *twin.input[1:]]
        twin.output[:] = [f"twin_{name}" for name in twin.output]
        twice.graph.node.append(twin)
    twice.graph.output.append(helper.make_tensor_value_info("twin_y", TensorProto.FLOAT, [1, ROWS, WIDTH]))
    onnx.save(twice, tmp_path / "model.onnx")
    parallax.compile(tmp_path / "model.onnx", tmp_path / "model.plx", threads=2, split=split)
    graphs = sorted((tmp_path / "model.plx").rglob("segments/*.onnx"))
    found = [node.op_type for path in graphs for node in onnx.load(path, load_external_data=False).graph.node]
    assert set(found) == set(operators)


def test_answers_of_a_part_are_those_of_the_separate_operators() -> None:
    proto = skip_and_normalise()
    generator = np.random.default_rng(1)
    feeds = {name: generator.standard_normal((1, ROWS, WIDTH)).astype(np.float32) for name in ("x", "skip")}
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    (expected,) = onnxruntime.InferenceSession(proto, plain, providers=[CPU_PROVIDER]).run(None, feeds)
    part = SegmentModel(name="part", proto=proto, weights={}, weight_types={})
    session = make_session(part, width=1, options=RuntimeOptions())
    values = {name: make_value(array)._ortvalue for name, array in feeds.items()}
    (answer,) = session.run_with_ort_values(values, ["y"], None)
    assert np.array_equal(answer.numpy(), expected)
