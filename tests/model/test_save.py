"""A sub-model written to disk is the same model, its weights beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from parallax.model import load_model, save_segment


def _model(path: Path, *, external: bool) -> Path:
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((64, 64)).astype(np.float32), "first"),
        numpy_helper.from_array(rng.standard_normal((64, 333)).astype(np.float32), "second"),
        numpy_helper.from_array(np.float32(0.5), "small"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"]),
        helper.make_node("MatMul", ["a", "second"], ["b"]),
        helper.make_node("Mul", ["b", "small"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 333])
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save_model(model, path, save_as_external_data=external, location="w.bin", size_threshold=0)
    return path


def _outputs(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)


def test_a_saved_segment_computes_what_the_model_does(tmp_path: Path) -> None:
    feeds = {"x": np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)}
    for external in (False, True):
        folder = tmp_path / str(external)
        folder.mkdir()
        path = _model(folder / "m.onnx", external=external)
        part = load_model(path).extract([0, 1, 2], ["x"], ["y"], name="whole")
        save_segment(part, tmp_path / "saved.onnx")
        np.testing.assert_array_equal(_outputs(tmp_path / "saved.onnx", feeds)[0], _outputs(path, feeds)[0])


def test_a_segment_is_saved_with_its_own_weights_only_each_at_the_start_of_a_page(tmp_path: Path) -> None:
    part = load_model(_model(tmp_path / "m.onnx", external=False)).extract([1], ["a"], ["b"], name="part")
    save_segment(part, tmp_path / "saved.onnx")
    saved = onnx.load(tmp_path / "saved.onnx", load_external_data=False)
    places = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data} for tensor in saved.graph.initializer
    }
    assert places == {"second": {"location": "saved.onnx.data", "offset": "0", "length": str(64 * 333 * 4)}}
    assert (tmp_path / "saved.onnx.data").stat().st_size == 64 * 333 * 4


def test_a_segment_without_large_weights_is_one_file(tmp_path: Path) -> None:
    part = load_model(_model(tmp_path / "m.onnx", external=False)).extract([2], ["b"], ["y"], name="part")
    save_segment(part, tmp_path / "saved.onnx")
    assert not (tmp_path / "saved.onnx.data").exists()


def test_a_model_lists_its_files_of_external_data(tmp_path: Path) -> None:
    external = load_model(_model(tmp_path / "m.onnx", external=True)).files.external
    assert {location: file.path for location, file in external.items()} == {"w.bin": str(tmp_path / "w.bin")}
    assert not load_model(_model(tmp_path / "n.onnx", external=False)).files.external
