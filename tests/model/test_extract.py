from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from parallax.errors import InternalError
from parallax.model import Model, SegmentModel, load_model
from parallax.model._wire import NESTED_LIFT_BYTES
from tests.model._models import FLOAT, Array, conv_model, model, node, run, value, weight

TYPES = onnx.TensorProto


def whole(loaded: Model) -> SegmentModel:
    graph = loaded.graph
    return loaded.extract(
        range(len(graph.nodes)), [i.name for i in graph.inputs], [o.name for o in graph.outputs], name="all"
    )


def check_same(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> SegmentModel:
    """The extract of everything computes what ONNX Runtime computes from the file."""
    segment = whole(load_model(proto.SerializeToString()))
    for ours, theirs in zip(run(segment, feeds), run(proto, feeds), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    return segment


def run_cut(loaded: Model, cuts: list[int], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run a model as consecutive segments that end after the given nodes, handing over what crosses."""
    graph = loaded.graph
    have: dict[str, Array] = dict(feeds)
    needed_after = {name: max(readers) for name, readers in graph.consumers.items()}
    start = 0
    for end in [*cuts, len(graph.nodes)]:
        nodes = range(start, end)
        produced = {name for index in nodes for name in graph.nodes[index].outputs if name}
        reads = dict.fromkeys(n for i in nodes for n in (*graph.nodes[i].inputs, *graph.nodes[i].captures) if n)
        inputs = [name for name in reads if name not in produced and name in have]
        outputs = [n for n in sorted(produced) if n in graph.output_names or needed_after.get(n, -1) >= end]
        if not outputs:
            continue
        assert all(loaded.can_split_at(name) for name in outputs)
        segment = loaded.extract(nodes, inputs, outputs, name=f"{start}..{end}")
        have.update(zip(outputs, run(segment, {name: have[name] for name in inputs}), strict=True))
        start = end
    return have


def test_a_bit_of_everything_computes_the_same_whole_and_cut_anywhere() -> None:
    feeds = {"x": weight((2, 3, 8, 8), 9)}
    check_same(conv_model(), feeds)
    loaded = load_model(conv_model())
    expected = dict(zip(("y", "m"), run(conv_model(), feeds), strict=True))
    for cut in range(1, len(loaded.graph.nodes)):
        have = run_cut(loaded, [cut], feeds)
        for name, array in expected.items():
            np.testing.assert_array_equal(have[name], array)


@given(st.data())
def test_random_graphs_compute_the_same_whole_and_cut_at_random(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 14))
    nodes = []
    available = ["x", "small", "large"]
    for index in range(count):
        op_type, arity = data.draw(st.sampled_from([("Add", 2), ("Mul", 2), ("Sum", 3), ("Relu", 1), ("Neg", 1)]))
        reads = [data.draw(st.sampled_from(available)) for _ in range(arity)]
        nodes.append(node(op_type, " ".join(reads), f"t{index}"))
        available.append(f"t{index}")
    outputs = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=3, unique=True))
    proto = model(
        data.draw(st.permutations(nodes)),
        [value("x", ("n", 300))],
        [value(f"t{index}", None) for index in outputs],
        {"small": np.full((1, 1), 0.5, np.float32), "large": weight((1, 300))},
    )
    feeds = {"x": weight((2, 300), 3)}
    expected = run(proto, feeds)
    loaded = load_model(proto.SerializeToString())
    for ours, theirs in zip(run(whole(loaded), feeds), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    cuts = sorted(data.draw(st.sets(st.integers(1, count), max_size=3)) - {count})
    have = run_cut(loaded, cuts, feeds)
    for index, theirs in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(have[f"t{index}"], theirs)


@pytest.mark.parametrize(
    "dtype",
    [np.float32, np.float16, ml_dtypes.bfloat16, np.float64, np.int8, np.uint8, np.int16, np.uint16, np.int32,
     np.uint32, np.int64, np.uint64, np.bool_, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2],
)  # fmt: skip
@pytest.mark.parametrize("padding", [0, 1, 2, 3])
def test_weights_of_every_type_are_handed_over_without_a_copy(dtype: npt.DTypeLike, padding: int) -> None:
    array = np.random.default_rng(0).integers(0, 2, 2048).astype(dtype)
    tensor = numpy_helper.from_array(array, "w")
    assert tensor.raw_data
    proto = model([node("Identity", "w", "y")], [], [value("y", None, tensor.data_type)], [tensor])
    proto.producer_name = "p" * padding  # shifts the payload, so that every alignment occurs
    segment = whole(load_model(proto.SerializeToString()))
    assert segment.weight_types == {"w": tensor.data_type}
    assert segment.weights["w"].dtype == array.dtype
    assert len(segment.proto) < 400
    outputs = [output.tobytes() for output in _run_raw(segment)]
    assert outputs == [array.tobytes()]


def _run_raw(segment: SegmentModel) -> list[Array]:
    """Cast-free outputs: onnxruntime returns bfloat16 and float8 as arrays of their own or of plain bytes."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    values = [
        ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, segment.weight_types[name])
        for name, array in segment.weights.items()
    ]
    for made, array in zip(values, segment.weights.values(), strict=True):
        assert made.data_ptr() == array.__array_interface__["data"][0], "the weight was copied"
    options.add_external_initializers(list(segment.weights), values)
    session = ort.InferenceSession(segment.proto, options, providers=["CPUExecutionProvider"])
    outputs = session.run_with_ort_values(None, {})
    size = {TYPES.BFLOAT16: 2, TYPES.FLOAT8E4M3FN: 1, TYPES.FLOAT8E5M2: 1}
    kind = next(iter(segment.weight_types.values()))
    if kind not in size:
        return [output.numpy() for output in outputs]
    import ctypes

    return [np.frombuffer(ctypes.string_at(output.data_ptr(), 2048 * size[kind]), np.uint8) for output in outputs]


@pytest.mark.parametrize("kind", [TYPES.INT4, TYPES.UINT4])
def test_packed_weights_stay_in_the_proto(kind: int) -> None:
    """A view of them would not have the shape that the model states."""
    codes = np.random.default_rng(0).integers(0, 7, 4096)
    tensor = onnx.TensorProto(name="w", data_type=kind, dims=[4096])
    tensor.raw_data = (codes[0::2] | codes[1::2] << 4).astype(np.uint8).tobytes()
    proto = model(
        [node("DequantizeLinear", "w scale", "y")], [], [value("y", None)],
        [tensor, numpy_helper.from_array(np.array(1, np.float32), "scale")],
    )  # fmt: skip
    segment = check_same(proto, {})
    assert not segment.weights
    np.testing.assert_array_equal(run(segment, {})[0], codes)


PACKED = [name for name in ("UINT4", "FLOAT4E2M1", "UINT2", "FLOAT6E2M3", "FLOAT6E3M2") if hasattr(TYPES, name)]


@pytest.mark.parametrize("name", PACKED)
def test_weights_of_packed_elements_take_the_bytes_that_onnx_stores(name: str) -> None:
    zeros = np.zeros(2001, onnx.helper.tensor_dtype_to_np_dtype(getattr(TYPES, name)))
    tensor = numpy_helper.from_array(zeros, "w")
    loaded = load_model(model([node("Cast", "w", "y", to=FLOAT)], [], [value("y", None)], [tensor]))
    assert loaded.weight_bytes == len(tensor.raw_data) < 2001
    assert not whole(loaded).weights  # the runtime would not take them as they are


def test_strings_and_empty_tensors_stay_in_the_proto() -> None:
    words = np.array([f"word number {index}" for index in range(500)], dtype=object)
    proto = model(
        [node("Identity", "words", "a"), node("Identity", "empty", "b")],
        [],
        [value("a", None, TYPES.STRING), value("b", None)],
        {"words": words, "empty": np.zeros((0, 1000), np.float32)},
    )
    assert not check_same(proto, {}).weights


def test_zero_size_external_tensors_stay_in_the_proto() -> None:
    tensor = onnx.TensorProto(name="w", data_type=FLOAT, dims=[0, 5], data_location=TYPES.EXTERNAL)
    tensor.external_data.add(key="location", value="gone.bin")
    proto = model([node("Identity", "w", "y")], [], [value("y", None)], [tensor])
    segment = whole(load_model(proto))
    assert run(segment, {})[0].shape == (0, 5)


def test_initializers_come_only_with_the_nodes_that_read_them() -> None:
    proto = model(
        [node("Add", "x a", "t"), node("Add", "t b", "y")],
        [value("x", (1000,))],
        [value("y", (1000,))],
        {"a": weight((1000,)), "b": weight((1000,), 1), "small": weight((3,))},
    )
    loaded = load_model(proto)
    assert set(loaded.extract([0], ["x"], ["t"], name="1").weights) == {"a"}
    second = loaded.extract([1], ["t"], ["y"], name="2")
    assert set(second.weights) == {"b"}
    assert [tensor.name for tensor in onnx.load_model_from_string(second.proto).graph.initializer] == ["b"]


def test_a_node_may_be_in_several_extracts() -> None:
    proto = model(
        [node("Relu", "x", "a"), node("Neg", "a", "b"), node("Abs", "a", "c")],
        [value("x")], [value("b"), value("c")],
    )  # fmt: skip
    loaded = load_model(proto)
    feeds = {"x": weight((3,))}
    for nodes, output in (([0, 1], "b"), ([0, 2], "c")):
        ours = run(loaded.extract(nodes, ["x"], [output], name=output), feeds)[0]
        np.testing.assert_array_equal(ours, dict(zip("bc", run(proto, feeds), strict=True))[output])


def test_what_bodies_capture_is_fed_or_comes_along() -> None:
    body = helper.make_graph([node("Add", "a w", "o")], "b", [], [value("o", None)])
    proto = model(
        [node("Relu", "x", "a"), node("If", "c", "y", then_branch=body, else_branch=body)],
        [value("x", (1000,)), value("c", (), TYPES.BOOL)],
        [value("y", (1000,))],
        {"w": weight((1000,))},
    )
    feeds = {"x": weight((1000,), 1), "c": np.array(True)}
    check_same(proto, feeds)
    segment = load_model(proto).extract([1], ["a", "c"], ["y"], name="branch")
    assert set(segment.weights) == {"w"}
    ours = run(segment, {"a": feeds["x"].clip(0), "c": feeds["c"]})[0]
    np.testing.assert_array_equal(ours, run(proto, feeds)[0])


def test_large_tensors_inside_nodes_are_put_back() -> None:
    big = weight((NESTED_LIFT_BYTES // 4,))
    body = helper.make_graph(
        [node("Add", "x w", "o")], "b", [], [value("o", None)], [numpy_helper.from_array(big, "w")]
    )
    other = helper.make_graph([node("Identity", "x", "o")], "e", [], [value("o", None)])
    typed = helper.make_tensor("typed", FLOAT, big.shape, big)
    proto = model(
        [
            node("Constant", "", "k", value=typed),
            node("If", "c", "t", then_branch=body, else_branch=other),
            node("Mul", "t k", "y"),
        ],
        [value("x", (None,)), value("c", (), TYPES.BOOL)],
        [value("y", None)],
    )
    feeds = {"x": weight(big.shape, 1), "c": np.array(True)}
    loaded = load_model(proto.SerializeToString())
    assert loaded.weight_bytes == 2 * big.nbytes
    check_same(proto, feeds)
    check_same(proto, feeds)  # putting back is done to a copy


def test_overridable_initializers_stay_overridable() -> None:
    proto = model(
        [node("Add", "x w", "t"), node("Neg", "t", "y")],
        [value("x", (1000,)), value("w", (1000,))],
        [value("y", (1000,))],
        {"w": weight((1000,))},
    )
    loaded = load_model(proto)
    feeds = {"x": weight((1000,), 1)}
    override = {**feeds, "w": weight((1000,), 2)}
    for inputs in (["x"], ["x", "w"], ["w", "x"]):
        segment = loaded.extract([0], inputs, ["t"], name="add")
        names = [info.name for info in onnx.load_model_from_string(segment.proto).graph.input]
        assert names == (inputs if "w" in inputs else [*inputs, "w"])
        np.testing.assert_array_equal(run(segment, feeds)[0], feeds["x"] + weight((1000,)))
        np.testing.assert_array_equal(run(segment, override)[0], feeds["x"] + override["w"])
    other = loaded.extract([1], ["t"], ["y"], name="neg")
    assert [info.name for info in onnx.load_model_from_string(other.proto).graph.input] == ["t"]


def test_models_of_ir_version_3_have_constant_initializers() -> None:
    proto = model(
        [node("Add", "x w", "y")], [value("x", (1000,)), value("w", (1000,))], [value("y", (1000,))],
        {"w": weight((1000,))}, opset=9, ir_version=3,
    )  # fmt: skip
    check_same(proto, {"x": weight((1000,), 1)})


def test_model_inputs_and_initializers_may_be_outputs() -> None:
    proto = model(
        [node("Relu", "x", "y")],
        [value("x"), value("idle", (2,))],
        [value("x"), value("y"), value("w", (400,)), value("idle", (2,))],
        {"w": weight((400,))},
    )
    check_same(proto, {"x": weight((3,)), "idle": weight((2,), 1)})
    loaded = load_model(proto)
    passed = loaded.extract([], ["x"], ["x"], name="through")
    np.testing.assert_array_equal(run(passed, {"x": weight((3,))})[0], weight((3,)))
    constant = loaded.extract([], [], ["w"], name="constant")
    np.testing.assert_array_equal(run(constant, {})[0], weight((400,)))


def test_unused_inputs_are_kept_in_the_order_asked_for() -> None:
    proto = model([node("Relu", "x", "y")], [value("x"), value("idle", (2,))], [value("y")])
    segment = load_model(proto).extract([0], ["idle", "x"], ["y"], name="all")
    parsed = onnx.load_model_from_string(segment.proto)
    assert [info.name for info in parsed.graph.input] == ["idle", "x"]
    assert run(segment, {"idle": weight((2,)), "x": weight((3,))})[0].shape == (3,)


def test_sparse_initializers_come_along() -> None:
    sparse = onnx.SparseTensorProto(dims=[3])
    sparse.values.CopyFrom(numpy_helper.from_array(np.array([5], np.float32), "w"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([1]), "i"))
    proto = model([node("Add", "x w", "y")], [value("x")], [value("y")], sparse_initializer=[sparse])
    assert run(check_same(proto, {"x": weight((3,))}), {"x": np.zeros(3, np.float32)})[0].tolist() == [0, 5, 0]


def test_sequences_and_optionals_flow_inside_a_segment() -> None:
    sequence = helper.make_tensor_sequence_value_info("s", FLOAT, None)
    proto = model(
        [node("SequenceConstruct", "x x", "s"), node("SequenceAt", "s i", "y")],
        [value("x", (2, 3)), value("i", (), TYPES.INT64)],
        [value("y", None), sequence],
    )
    feeds = {"x": weight((2, 3)), "i": np.array(1)}
    segment = whole(load_model(proto))
    ours, theirs = run(segment, feeds), run(proto, feeds)
    np.testing.assert_array_equal(ours[0], theirs[0])
    assert len(ours[1]) == len(theirs[1]) == 2


def test_what_describes_the_model_is_copied() -> None:
    proto = conv_model()
    helper.set_model_props(proto, {"author": "someone"})
    proto.producer_name, proto.producer_version, proto.domain = "maker", "1.2", "org.example"
    proto.model_version, proto.doc_string, proto.graph.doc_string = 7, "model text", "graph text"
    copy = onnx.load_model_from_string(whole(load_model(proto)).proto)
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string", "ir_version"):
        assert getattr(copy, field) == getattr(proto, field)
    assert (copy.graph.name, copy.graph.doc_string) == ("graph", "graph text")
    assert [(entry.key, entry.value) for entry in copy.metadata_props] == [("author", "someone")]
    assert not copy.functions


def test_nodes_carry_the_names_of_the_graph() -> None:
    loaded = load_model(model([node("Relu", "x", "t"), node("Relu", "t", "y")], [value("x")], [value("y")]))
    parsed = onnx.load_model_from_string(loaded.extract([1], ["t"], ["y"], name="second").proto)
    assert [node.name for node in parsed.graph.node] == [loaded.graph.nodes[1].name] == ["Relu_1"]


def test_boundary_tensors_are_declared_with_their_inferred_type() -> None:
    loaded = load_model(conv_model(), shapes={"x": (2, 3, 8, 8)})
    graph = onnx.load_model_from_string(loaded.extract([1, 2], ["c0"], ["c1"], name="middle").proto).graph
    for info in (graph.input[0], graph.output[0]):
        tensor = info.type.tensor_type
        assert tensor.elem_type == FLOAT
        assert [dim.dim_value for dim in tensor.shape.dim] == [2, 16, 8, 8]


def test_an_output_without_a_declared_type_gets_one() -> None:
    proto = model([node("Relu", "x", "y")], [value("x")], [onnx.ValueInfoProto(name="y")])
    check_same(proto, {"x": weight((3,))})
    graph = onnx.load_model_from_string(whole(load_model(proto)).proto).graph
    assert graph.output[0].type.tensor_type.elem_type == FLOAT


def test_a_segment_that_lacks_an_input_is_a_bug_of_ours() -> None:
    loaded = load_model(conv_model())
    with pytest.raises(InternalError, match=r"'cut' needs tensor 'c0'"):
        loaded.extract([1], [], ["c1"], name="cut")
    with pytest.raises(InternalError, match="needs tensor 'y'"):
        loaded.extract([0], ["x"], ["c0", "y"], name="cut")
