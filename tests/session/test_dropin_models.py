"""Models that leave something to the runtime: opened by default, split or from a bundle, they compute as there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import parallax
from tests.session._dropin import FloatArray, parse, quiet_options, ramp

SPLIT: dict[str, object] = {"min_gain": 0, "threads": 2}


def check_everywhere(proto: onnx.ModelProto, folder: Path, x: FloatArray) -> None:
    """Stock ONNX Runtime's answers, by default, split, within a budget and from bundles."""
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    feeds = {"x": x}
    stock = onnxruntime.InferenceSession(path, quiet_options(), providers=["CPUExecutionProvider"])
    expected = stock.run(None, feeds)
    bundles = [parallax.compile(path, folder / f"{gain}.plx", min_gain=gain, threads=2) for gain in (None, 0)]
    for session in (
        parallax.InferenceSession(path),
        parallax.InferenceSession(path, **SPLIT),
        parallax.InferenceSession(path, **SPLIT, memory_budget="64MiB"),
        parallax.InferenceSession(path.read_bytes()) if not _has_data(folder) else parallax.InferenceSession(path),
        *(parallax.InferenceSession(bundle) for bundle in bundles),
    ):
        for found, wanted in zip(session.run(None, feeds), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def _has_data(folder: Path) -> bool:
    return any(folder.glob("*.bin"))


TWO_BRANCHES = """
agraph (float[N,64] x) => (float[N,64] y) {
  a = Add(x, w)  sa = Sin(a)  b = Mul(x, w)  sb = Cos(b)  y = Add(sa, sb)
}"""


def with_weights(*weights: onnx.TensorProto) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    proto.CopyFrom(parse(TWO_BRANCHES.replace("w)", "x)")))
    for node in proto.graph.node:
        if node.op_type in ("Add", "Mul") and list(node.input) == ["x", "x"]:
            node.input[1] = "w"
    proto.graph.initializer.extend(weights)
    return proto


def constant(value: float, size: int = 64) -> onnx.TensorProto:
    return numpy_helper.from_array(np.full(size, value, np.float32), "w")


@pytest.mark.parametrize("size", [1, 64], ids=["a small one", "a large one"])
def test_of_an_initializer_defined_twice_the_one_that_the_runtime_takes_counts(tmp_path: Path, size: int) -> None:
    """It takes the last of small ones and the first of others."""
    check_everywhere(with_weights(constant(1, size), constant(2, size)), tmp_path, ramp(2, 64))


def test_the_same_holds_where_a_constant_node_has_the_name_of_an_initializer(tmp_path: Path) -> None:
    proto = with_weights(constant(1))
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=constant(2)))
    check_everywhere(proto, tmp_path, ramp(2, 64))


def test_a_default_of_a_function_holds_in_segments_and_bundles(tmp_path: Path) -> None:
    leak = helper.make_node("LeakyRelu", ["v"], ["w"])
    leak.attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT))
    proto = parse("agraph (float[N,4] x) => (float[N,4] y) { b = Relu(x)  c = Sin(b)  y = Add(c, c) }")
    proto.graph.node.insert(0, helper.make_node("Leak", ["x"], ["a"], domain="local"))
    proto.graph.node[-1].input[0] = "a"
    proto.opset_import.append(helper.make_opsetid("local", 1))
    imports = [helper.make_opsetid("", 21)]
    default = [helper.make_attribute("slope", 0.25)]
    proto.functions.append(helper.make_function("local", "Leak", ["v"], ["w"], [leak], imports, [], default))
    check_everywhere(proto, tmp_path, ramp(2, 4))


def test_a_function_that_works_on_another_opset_is_run_by_the_runtime(tmp_path: Path) -> None:
    """In opset 12, Softmax takes all axes from its own on together."""
    proto = parse("agraph (float[N,2,3] x) => (float[N,2,3] y) { b = Relu(x)  c = Sin(b)  y = Add(c, c) }")
    proto.graph.node.insert(0, helper.make_node("Soft", ["x"], ["a"], domain="local"))
    proto.graph.node[-1].input[0] = "a"
    proto.opset_import.append(helper.make_opsetid("local", 1))
    body = [helper.make_node("Softmax", ["v"], ["w"], axis=1)]
    proto.functions.append(helper.make_function("local", "Soft", ["v"], ["w"], body, [helper.make_opsetid("", 12)]))
    check_everywhere(proto, tmp_path, ramp(2, 2, 3))


def test_sparse_initializers_are_split_and_compiled(tmp_path: Path) -> None:
    proto = with_weights()
    values = helper.make_tensor("w", TensorProto.FLOAT, [3], [1.5, -2, 4])
    places = helper.make_tensor("places", TensorProto.INT64, [3], [0, 21, 63])
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [64]))
    check_everywhere(proto, tmp_path, ramp(2, 64))


@pytest.mark.parametrize("shared", ["floats", "scales"])
def test_a_split_computes_quantised_weights_in_the_precision_of_the_whole_model(tmp_path: Path, shared: str) -> None:
    """Alone with its weight, a product would be computed with activations of eight bits: 3e-2 off."""
    random = np.random.default_rng(3)
    size, block = 64, 16
    nodes, weights = [], [
        numpy_helper.from_array((random.random((size // block, size)) * 0.1 + 0.01).astype(np.float32), "scale"),
        helper.make_tensor("zero", TensorProto.UINT4, [size // block, size], [8] * (size // block * size)),
    ]  # fmt: skip
    for branch in range(2):
        if branch == 0 or shared == "scales":
            values = random.integers(0, 15, size * size).tolist()
            weights.append(helper.make_tensor(f"q{branch}", TensorProto.UINT4, [size, size], values))
            reads = [f"q{branch}", "scale", "zero"]
            nodes.append(helper.make_node("DequantizeLinear", reads, [f"d{branch}"], axis=0, block_size=block))
        weight = f"d{branch}" if shared == "scales" else "d0"
        nodes.append(helper.make_node("MatMul", ["x", weight], [f"m{branch}"]))
        nodes.append(helper.make_node("Softmax" if branch else "Tanh", [f"m{branch}"], [f"b{branch}"]))
    nodes.append(helper.make_node("Concat", ["b0", "b1"], ["y"], axis=1))
    proto = parse("agraph (float[N,64] x) => (float[N,128] y) { y = Concat<axis=1>(x, x) }")
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(weights)
    check_everywhere(proto, tmp_path, random.standard_normal((4, size)).astype(np.float32))


def external(**entries: object) -> onnx.TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[64], data_location=TensorProto.EXTERNAL)
    for key, text in entries.items():
        tensor.external_data.add(key=key, value=str(text))
    return tensor


def unused(tensor: onnx.TensorProto) -> onnx.ModelProto:
    proto = with_weights(constant(1))
    tensor.name = "idle"
    proto.graph.initializer.append(tensor)
    return proto


@pytest.mark.parametrize(
    "make",
    [
        lambda: with_weights(external(location="w.bin", length=0)),
        lambda: with_weights(external(location="w.bin", offset=16, length=0)),
        lambda: with_weights(external(location="folder/../w.bin")),
        lambda: unused(external(location="nowhere.bin")),
        lambda: unused(external(location="../nowhere.bin")),
        lambda: unused(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3], raw_data=b"1234")),
    ],
    ids=["length 0", "offset and length 0", "folder and back", "idle and missing", "idle and outside", "idle, broken"],
)
def test_external_data_are_read_as_the_runtime_reads_them(tmp_path: Path, make: Callable[[], onnx.ModelProto]) -> None:
    (tmp_path / "folder").mkdir()
    np.arange(100, dtype=np.float32).tofile(tmp_path / "w.bin")
    check_everywhere(make(), tmp_path, ramp(2, 64))


def test_a_file_of_another_program_in_the_working_folder_refuses_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The options say where the data of a model given as bytes are, and not there."""
    (tmp_path / "data").mkdir()
    np.ones(64, np.float32).tofile(tmp_path / "data" / "w.bin")
    (tmp_path / "w.bin").write_bytes(b"short")
    monkeypatch.chdir(tmp_path)
    options = quiet_options()
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", os.fspath(tmp_path / "data")
    )
    session = parallax.InferenceSession(with_weights(external(location="w.bin")).SerializeToString(), options)
    np.testing.assert_allclose(
        session.run(None, {"x": np.zeros((1, 64), np.float32)})[0], np.full((1, 64), 1 + np.sin(1))
    )


def test_a_weight_read_by_a_quantised_and_by_a_plain_product_keeps_its_precision(tmp_path: Path) -> None:
    """The runtime gives either a copy of the dequantised weight before it fuses one of them."""
    random = np.random.default_rng(5)
    proto = parse(
        """agraph (float[N,64] x) => (float[N,64] y)
        <float sx = {0.02}, uint8 zx = {128}, float sw = {0.01}, int8 zw = {0}> {
          q = QuantizeLinear(x, sx, zx)  d = DequantizeLinear(q, sx, zx)  w = DequantizeLinear(qw, sw, zw)
          a = MatMul(d, w)  t = Tanh(a)  b = MatMul(x, w)  s = Sin(b)  y = Add(t, s)
        }"""
    )
    values = random.integers(-100, 100, (64, 64)).astype(np.int8)
    proto.graph.initializer.append(numpy_helper.from_array(values, "qw"))
    check_everywhere(proto, tmp_path, random.standard_normal((4, 64)).astype(np.float32))


def test_constants_of_bodies_in_bodies_are_compiled(tmp_path: Path) -> None:
    """The runtime writes such a constant twice, as a node and as an initializer, and then cannot read it."""
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=constant(0.5)), helper.make_node("Mul", ["a", "c"], ["b"])],
        "inner",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)],
    )
    outer = helper.make_graph(
        [
            helper.make_node("Sin", ["x"], ["a"]),
            helper.make_node("If", ["yes"], ["o"], then_branch=inner, else_branch=inner),
        ],
        "outer",
        [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)],
    )
    proto = parse(
        """agraph (float[N,64] x) => (float[N,64] y)
        { total = ReduceSum<keepdims=0>(x)  yes = Greater(total, total)  y = Relu(x) }"""
    )
    proto.graph.node[-1].input[0] = "i"
    proto.graph.node.insert(2, helper.make_node("If", ["yes"], ["i"], then_branch=outer, else_branch=outer))
    check_everywhere(proto, tmp_path, ramp(2, 64))


def test_an_initializer_that_is_defined_here_and_in_another_file_is_why_a_model_stays_whole(tmp_path: Path) -> None:
    np.full(64, 3, np.float32).tofile(tmp_path / "w.bin")
    path = tmp_path / "model.onnx"
    path.write_bytes(with_weights(constant(1), external(location="w.bin")).SerializeToString())
    session = parallax.InferenceSession(path, **SPLIT)
    assert session.plan.is_whole
    assert "initializer 'w' is defined more than once" in session.plan.provenance.reason
    stock = onnxruntime.InferenceSession(path, quiet_options(), providers=["CPUExecutionProvider"])
    feeds = {"x": ramp(2, 64)}
    np.testing.assert_array_equal(session.run(None, feeds)[0], stock.run(None, feeds)[0])
    with pytest.raises(parallax.UnsupportedModelError, match="defined more than once"):
        parallax.compile(path, tmp_path / "model.plx")
