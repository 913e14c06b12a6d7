"""OpenVINO: what it must not compute is kept from it, and weights are not held twice."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

import parallax
from parallax.backends import Backend, open_backend
from parallax.backends.openvino import OpenVinoBackend
from parallax.backends.openvino._rules import EXACT_INTEGER, refused_nodes, unproven_nodes
from parallax.backends.openvino._table import operator_table
from parallax.engine import CompiledSegment, Executor, lane_pool
from parallax.errors import BackendError, ConfigError, SegmentError
from parallax.graph import Verdict
from parallax.machine import private_bytes
from parallax.model import load_model
from parallax.schedule import PLAN_FORMAT_VERSION, Plan, Provenance, Segment
from tests.backends._backends import compiled, model_of, obstacle, on_the_processor, run, value, whole

F32, F64, I32, I64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64
BOOL, STRING, U32, I8 = TensorProto.BOOL, TensorProto.STRING, TensorProto.UINT32, TensorProto.INT8
node = helper.make_node

needs_openvino = pytest.mark.skipif(obstacle("openvino") is not None, reason=str(obstacle("openvino")))


@needs_openvino
def test_opening_it_reports_nothing_to_anybody() -> None:
    script = (
        "import sys; from parallax.backends import open_backend; open_backend('openvino'); "
        "print('openvino' in sys.modules, any(name.startswith('openvino_telemetry') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


@pytest.fixture(scope="module")
def backend() -> Backend:
    return open_backend("openvino")


def _refused(proto: onnx.ModelProto) -> dict[str, Verdict]:
    model = load_model(proto)
    graph = model.inferred()
    unproven = unproven_nodes(graph, model.opset_imports, version=operator_table().openvino)
    refused = {**unproven, **refused_nodes(graph, model.opset_imports)}
    return {graph.nodes[index].op_type: entry.reason for index, entry in sorted(refused.items())}


def _one(op_type: str, types: Sequence[int], out: int, **attributes: Any) -> onnx.ModelProto:
    """A model of one operator on inputs of these types."""
    names = [f"x{at}" for at in range(len(types))]
    return model_of(
        [node(op_type, names, ["y"], **attributes)],
        {name: (kind, ["n"]) for name, kind in zip(names, types, strict=True)},
        {"y": (out, None)},
        opset=21,
    )


def _roi_align(**attributes: Any) -> onnx.ModelProto:
    return model_of(
        [node("RoiAlign", ["x", "rois", "batch"], ["y"], output_height=3, output_width=3, **attributes)],
        {"x": (F32, [1, 4, 16, 16])},
        {"y": (F32, [2, 4, 3, 3])},
        {"rois": np.array([[0, 0, 8, 8], [-1, -1, 20, 20]], np.float32), "batch": np.zeros(2, np.int64)},
    )


def _gather_elements(indices: list[int | str]) -> onnx.ModelProto:
    return model_of(
        [node("GatherElements", ["x", "i"], ["y"], axis=1)],
        {"x": (F32, [4, 5]), "i": (I64, indices)},
        {"y": (F32, None)},
    )


def _softmax(opset: int) -> onnx.ModelProto:
    return model_of([node("Softmax", ["x"], ["y"], axis=1)], {"x": (F32, [2, 3, 4])}, {"y": (F32, None)}, opset=opset)


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        pytest.param(_one("Add", (F64, F64), F64), Verdict.LOWER_PRECISION, id="doubles become floats"),
        pytest.param(_one("Add", (I64, I64), I64), Verdict.LOWER_PRECISION, id="sums wrap at 32 bits"),
        pytest.param(_one("Mul", (I32, I32), I32), Verdict.LOWER_PRECISION, id="products leave what a float holds"),
        pytest.param(_one("Max", (U32, U32), U32), Verdict.LOWER_PRECISION, id="unsigned compares as signed"),
        pytest.param(_one("Add", (I8, I8), I8), Verdict.LOWER_PRECISION, id="bytes saturate"),
        pytest.param(_one("Cast", (F32,), I64, to=I64), Verdict.LOWER_PRECISION, id="casts saturate at 32 bits"),
        pytest.param(_one("ReduceSum", (I64,), I64), Verdict.LOWER_PRECISION, id="sums of unknown length"),
        pytest.param(_one("Identity", (STRING,), STRING), Verdict.UNSUPPORTED_TYPE, id="strings"),
        pytest.param(_one("RandomNormalLike", (F32,), F32), Verdict.UNSUPPORTED_FORM, id="random numbers"),
    ],
)
def test_what_it_would_compute_with_less_precision_is_refused(proto: onnx.ModelProto, reason: Verdict) -> None:
    (refusal,) = _refused(proto).values()
    assert refusal is reason


@pytest.mark.parametrize(
    "proto",
    [
        pytest.param(_one("ReduceMax", (F32,), F32), id="maxima of minus infinity"),
        pytest.param(_one("ReduceMean", (F32, I64), F32), id="computed axes"),
        pytest.param(_one("Max", (F32, F32), F32), id="maxima of NaN"),
        pytest.param(_one("Min", (F32, F32), F32), id="minima of NaN"),
        pytest.param(_roi_align(mode="avg"), id="as many samples as a region is wide"),
        pytest.param(_roi_align(mode="max", sampling_ratio=2), id="maxima of samples"),
        pytest.param(_softmax(11), id="rows of all dimensions from the axis on"),
        pytest.param(_one("IsNaN", (F32,), BOOL), id="NaNs"),
        pytest.param(_one("Tile", (F32, I64), F32), id="computed repeats"),
        pytest.param(
            model_of(
                [node("TopK", ["x", "k"], ["v", "i"])],
                {"x": (F32, [4])},
                {"v": (F32, [1]), "i": (I64, [1])},
                {"k": np.array([1])},
            ),
            id="order of equals",
        ),
        pytest.param(
            model_of(
                [node("MaxPool", ["x"], ["y"], kernel_shape=[1, 1], strides=[2, 2], ceil_mode=1)],
                {"x": (F32, [1, 1, 2, 2])},
                {"y": (F32, [1, 1, 1, 1])},
            ),
            id="windows in the padding",
        ),
        pytest.param(
            model_of(
                [node("Resize", ["x", "", "s"], ["y"], mode="linear", antialias=1)],
                {"x": (F32, [1, 1, 4, 4])},
                {"y": (F32, None)},
                {"s": np.array([1, 1, 0.6, 0.6], np.float32)},
                opset=19,
            ),
            id="antialiasing",
        ),
        pytest.param(_one("Trilu", (F32,), F32, upper=2), id="upper and lower are 1 and 0"),
        pytest.param(_one("ReduceMean", (F32,), F32, keepdims=2), id="dimensions kept by 2"),
        pytest.param(_one("ArgMax", (F32,), I64, select_last_index=2), id="last index by 2"),
        pytest.param(_one("MaxPool", (F32,), F32, kernel_shape=[1], storage_order=1), id="order of storage"),
        pytest.param(_one("HardSigmoid", (F32,), F32, alpha=0.0), id="slope 0"),
        pytest.param(_one("Celu", (F32,), F32, alpha=0.0), id="scale 0"),
        pytest.param(_one("HannWindow", (I64,), I32, output_datatype=I32), id="windows of integers"),
        pytest.param(
            model_of(
                [node("Compress", ["x", "c"], ["y"])],
                {"x": (F32, [2, 2]), "c": (BOOL, [2, 2])},
                {"y": (F32, ["n"])},
            ),
            id="conditions of two dimensions",
        ),
        pytest.param(_gather_elements([1, 5]), id="indices short of the data"),
        pytest.param(_gather_elements(["n", 5]), id="indices of unknown size"),
    ],
)
def test_what_it_computes_in_another_way_is_refused(proto: onnx.ModelProto) -> None:
    assert list(_refused(proto).values()) == [Verdict.UNSUPPORTED_FORM]


def test_what_was_compared_is_taken() -> None:
    assert not _refused(_roi_align(mode="avg", sampling_ratio=2))
    assert not _refused(_softmax(13))
    assert not _refused(_one("Max", (I64, I64), I64))
    assert not _refused(_one("Relu", (F32,), F32))
    assert not _refused(_one("ReduceMean", (F32,), F32, keepdims=0))


def test_everything_is_refused_where_the_table_is_of_another_release() -> None:
    model = load_model(_one("Relu", (F32,), F32))
    (refusal,) = unproven_nodes(model.inferred(), model.opset_imports, version="2025.1.0").values()
    assert "2025.1.0" in refusal.detail
    assert "tools/openvino_table.py" in refusal.detail


@needs_openvino
@pytest.mark.parametrize("onnx_type", [F32, TensorProto.FLOAT16, TensorProto.BFLOAT16])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_floats_that_it_loses_are_refused_when_they_are_fed(backend: Backend, onnx_type: int, odd: float) -> None:
    proto = model_of([node("Neg", ["x"], ["y"])], {"x": (onnx_type, ["n"])}, {"y": (onnx_type, ["n"])})
    model = compiled(backend, proto)
    kind = onnx.helper.tensor_dtype_to_np_dtype(onnx_type)

    def fed(numbers: list[float]) -> dict[str, Any]:
        array = np.array(numbers).astype(kind)
        return {"x": value(array.view(np.uint16), onnx_type) if onnx_type == TensorProto.BFLOAT16 else value(array)}

    model.run_with_ort_values(fed([1, -2, 60000, 0]), ["y"])
    for numbers in ([odd, 1, 2], [1, 2, odd]):
        with pytest.raises(BackendError, match="NaNs or infinities"):
            model.run_with_ort_values(fed(numbers), ["y"])


@needs_openvino
def test_a_session_computes_empty_tensors_as_onnxruntime_does() -> None:
    """OpenVINO keeps the size that it had before, in Concat for one."""
    nodes = [node("Concat", ["x", "z"], ["c"], axis=0), node("Relu", ["c"], ["y"])]
    proto = model_of(nodes, {"x": (F32, ["n", 2]), "z": (F32, ["m", 2])}, {"y": (F32, None)})
    session = parallax.InferenceSession(proto.SerializeToString(), providers=["openvino", "CPUExecutionProvider"])
    assert session.plan.segments[0].backend == "openvino"
    for sizes in ((3, 2), (0, 2), (3, 0), (0, 0)):
        feeds = {name: np.ones((size, 2), np.float32) for name, size in zip("xz", sizes, strict=True)}
        np.testing.assert_array_equal(session.run(None, feeds)[0], on_the_processor(proto, feeds)[0])


@needs_openvino
def test_floats_whose_sum_overflows_are_fed_nevertheless(backend: Backend) -> None:
    proto = model_of([node("Neg", ["x"], ["y"])], {"x": (F32, ["n"])}, {"y": (F32, ["n"])})
    x = np.full(4, np.finfo(np.float32).max)
    assert run(compiled(backend, proto), {"x": x})[0].tolist() == (-x).tolist()


@needs_openvino
def test_a_session_keeps_the_nans_that_openvino_would_lose() -> None:
    nodes = [node("Relu", ["x"], ["r"]), node("Add", ["r", "r"], ["y"])]
    proto = model_of(nodes, {"x": (F32, [3])}, {"y": (F32, [3])})
    session = parallax.InferenceSession(proto.SerializeToString(), providers=["openvino", "CPUExecutionProvider"])
    assert session.plan.segments[0].backend == "openvino"
    for numbers in ([np.nan, -1, 2], [1, -1, 2], [np.inf, -np.inf, np.nan]):
        x = np.array(numbers, np.float32)
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], on_the_processor(proto, {"x": x})[0])


@needs_openvino
def test_an_input_handed_on_as_an_output_arrives_there(backend: Backend) -> None:
    """OpenVINO leaves the output's tensor unwritten."""
    nodes = [node("Sum", ["x"], ["y"]), node("Relu", ["x"], ["z"])]
    model = compiled(backend, model_of(nodes, {"x": (F32, ["n"])}, {"y": (F32, ["n"]), "z": (F32, ["n"])}))
    for size in (3, 1, 5):
        x = np.arange(size, dtype=np.float32) - 1
        y, z = run(model, {"x": x})
        assert (y.tolist(), z.tolist()) == (x.tolist(), np.maximum(x, 0).tolist())
        assert not np.shares_memory(y, x)


def test_bodies_are_left_to_others() -> None:
    branch = helper.make_graph([node("Neg", ["x"], ["b"])], "then", [], [helper.make_tensor_value_info("b", F32, None)])
    proto = model_of(
        [node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)],
        {"c": (BOOL, []), "x": (F32, [2])},
        {"y": (F32, [2])},
    )
    assert _refused(proto) == {"If": Verdict.CONTROL_FLOW}


def test_arithmetic_on_sizes_and_indices_is_trusted() -> None:
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["rows"]),
        node("Mul", ["rows", "two"], ["doubled"]),
        node("Unsqueeze", ["doubled", "axis"], ["dim"]),
        node("Reshape", ["x", "dim"], ["flat"]),
        node("CumSum", ["ids", "zero"], ["positions"]),  # of unknown size, but nothing but an index
        node("Gather", ["flat", "positions"], ["y"]),
    ]
    weights = {"zero": np.array(0, np.int64), "two": np.array(2, np.int64), "axis": np.array([0], np.int64)}
    proto = model_of(nodes, {"x": (F32, ["n", 2]), "ids": (I64, ["m"])}, {"y": (F32, None)}, weights)
    assert not _refused(proto)


def test_an_index_that_is_returned_as_well_is_not_trusted() -> None:
    proto = model_of(
        [node("CumSum", ["ids", "zero"], ["positions"]), node("Gather", ["x", "positions"], ["y"])],
        {"x": (F32, ["n"]), "ids": (I64, ["m"])},
        {"y": (F32, None), "positions": (I64, None)},
        {"zero": np.array(0, np.int64)},
    )
    assert _refused(proto) == {"CumSum": Verdict.LOWER_PRECISION}


def test_bounds_of_sums_and_products_are_followed() -> None:
    def model(factor: int) -> onnx.ModelProto:
        nodes = [
            node("Cast", ["mask"], ["ones"], to=I64),
            node("Mul", ["ones", "factor"], ["scaled"]),
            node("Add", ["scaled", "ones"], ["y"]),
        ]
        weights = {"factor": np.array(factor, np.int64)}
        return model_of(nodes, {"mask": (BOOL, ["n"])}, {"y": (I64, ["n"])}, weights)

    assert not _refused(model(EXACT_INTEGER - 1))
    assert _refused(model(EXACT_INTEGER)) == {"Add": Verdict.LOWER_PRECISION}
    # What another backend computed comes in from outside: it is checked, but may be as large as the bound allows.
    assert _refused(model(EXACT_INTEGER + 1)) == {"Mul": Verdict.LOWER_PRECISION, "Add": Verdict.LOWER_PRECISION}


@needs_openvino
@given(
    left=st.lists(st.integers(-EXACT_INTEGER, EXACT_INTEGER), min_size=3, max_size=3),
    right=st.lists(st.integers(-EXACT_INTEGER, EXACT_INTEGER), min_size=3, max_size=3),
)
def test_integers_it_takes_come_out_exactly(left: list[int], right: list[int]) -> None:
    proto = model_of(
        [
            node("Equal", ["a", "b"], ["equal"]),
            node("Less", ["a", "b"], ["less"]),
            node("Max", ["a", "b"], ["max"]),
            node("Neg", ["a"], ["neg"]),
            node("Concat", ["a", "b"], ["both"], axis=0),
            node("Cast", ["a"], ["float"], to=F32),
        ],
        {"a": (I64, [3]), "b": (I64, [3])},
        {
            "equal": (BOOL, [3]),
            "less": (BOOL, [3]),
            "max": (I64, [3]),
            "neg": (I64, [3]),
            "both": (I64, [6]),
            "float": (F32, [3]),
        },
    )
    assert not _refused(proto)
    global _integers
    if _integers is None:
        _integers = compiled(open_backend("openvino"), proto)
    feeds = {"a": np.array(left), "b": np.array(right)}
    for ours, theirs in zip(run(_integers, feeds), on_the_processor(proto, feeds), strict=True):
        np.testing.assert_array_equal(ours, theirs)


_integers: Any = None


@needs_openvino
@pytest.mark.parametrize("number", [EXACT_INTEGER + 1, -EXACT_INTEGER - 1, 1 << 40])
def test_an_integer_beyond_the_bound_is_refused_when_it_is_fed(backend: Backend, number: int) -> None:
    proto = model_of([node("Equal", ["a", "a"], ["y"])], {"a": (I64, ["n"])}, {"y": (BOOL, ["n"])})
    model = compiled(backend, proto)
    with pytest.raises(BackendError, match="does not keep exact"):
        run(model, {"a": np.array([1, number])})
    assert run(model, {"a": np.array([1, EXACT_INTEGER])})[0].tolist() == [True, True]


def test_a_constant_beyond_all_limits_may_limit_but_not_be_computed_with() -> None:
    def model(op_type: str, out: int) -> onnx.ModelProto:
        weights = {"c": np.array([np.iinfo(np.int64).max], np.int64)}
        return model_of([node(op_type, ["a", "c"], ["y"])], {"a": (I64, [1])}, {"y": (out, [1])}, weights)

    assert not _refused(model("Less", BOOL))
    assert _refused(model("Add", I64)) == {"Add": Verdict.LOWER_PRECISION}
    assert _refused(model("Max", I64)) == {"Max": Verdict.LOWER_PRECISION}


@needs_openvino
def test_a_constant_beyond_the_bound_is_refused_when_it_is_compiled(backend: Backend) -> None:
    def model(constant: int) -> onnx.ModelProto:
        weights = {"c": np.array([constant], np.int64)}
        return model_of([node("Less", ["a", "c"], ["y"])], {"a": (I64, [1])}, {"y": (BOOL, [1])}, weights)

    with pytest.raises(BackendError, match="a constant holds 16777217"):
        compiled(backend, model(EXACT_INTEGER + 1))
    # "No limit" is clamped, and remains one.
    unlimited = compiled(backend, model(np.iinfo(np.int64).max))
    assert run(unlimited, {"a": np.array([EXACT_INTEGER])})[0].tolist() == [True]


@needs_openvino
def test_strings_are_refused_before_they_reach_it(backend: Backend) -> None:
    """They crash the process in some releases."""
    proto = model_of(
        [node("Identity", ["s"], ["t"]), node("Relu", ["x"], ["y"])],
        {"s": (STRING, [2]), "x": (F32, [2])},
        {"t": (STRING, [2]), "y": (F32, [2])},
    )
    answer = backend.capability(load_model(proto))
    assert (answer.taken, [entry.node for entry in answer.refused]) == ((1,), [0])
    with pytest.raises(BackendError, match="string"):
        compiled(backend, proto)


@needs_openvino
def test_each_node_it_does_not_know_is_named(backend: Backend) -> None:
    proto = model_of(
        [
            node("Relu", ["x"], ["a"], name="fine"),
            node("Gelu", ["a"], ["b"], name="strange", domain="nobody"),
            node("Dropout", ["b"], ["c"], name="passes on"),
            node("Relu", ["a"], ["d"], name="beside it"),
            node("Tanh", ["d"], ["e"], name="fine again"),
            node("Det", ["e"], ["y"], name="lacking"),
        ],
        {"x": (F32, [2, 2])},
        {"y": (F32, []), "c": (F32, None)},
        domains=["nobody"],
    )
    for name, shape in {"a": [2, 2], "b": [2, 2]}.items():
        proto.graph.value_info.append(helper.make_tensor_value_info(name, F32, shape))
    model = load_model(proto)
    answer = backend.capability(model)
    assert {model.graph.nodes[entry.node].name: entry.reason for entry in answer.refused} == {
        "strange": Verdict.UNSUPPORTED_OPERATOR,
        "passes on": Verdict.DYNAMIC_SHAPE,  # what a strange operator makes has no proven rank
        "lacking": Verdict.UNSUPPORTED_OPERATOR,
    }
    assert answer.taken == (0, 3, 4)


def _loop_with_a_sequence() -> onnx.ModelProto:
    """A Loop that carries a tensor and a growing sequence: OpenVINO's conversion of it throws."""
    sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(F32, None))
    body = helper.make_graph(
        [
            node("Neg", ["state"], ["next"]),
            node("SequenceInsert", ["kept", "next"], ["more"]),
            node("Identity", ["go"], ["on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", I64, []),
            helper.make_tensor_value_info("go", BOOL, []),
            helper.make_tensor_value_info("state", F32, [2]),
            helper.make_value_info("kept", sequence),
        ],
        [
            helper.make_tensor_value_info("on", BOOL, []),
            helper.make_tensor_value_info("next", F32, [2]),
            helper.make_value_info("more", sequence),
        ],
    )
    nodes = [
        node("SequenceEmpty", [], ["none"], dtype=F32),
        node("Loop", ["trips", "", "x", "none"], ["last", "all"], body=body),
        node("SequenceLength", ["all"], ["count"]),
        node("Cast", ["count"], ["length"], to=F32),
        node("Add", ["last", "length"], ["y"]),
    ]
    return model_of(nodes, {"x": (F32, [2])}, {"y": (F32, [2])}, {"trips": np.array(3, np.int64)})


@needs_openvino
def test_a_model_that_it_fails_to_be_asked_about_stays_on_the_processor() -> None:
    proto = _loop_with_a_sequence()
    session = parallax.InferenceSession(proto.SerializeToString(), providers=["openvino", "CPUExecutionProvider"])
    assert session.plan.segments[0].backend == "cpu"
    assert "openvino does not take 4 of 5 operators, the first of them SequenceEmpty" in session.plan.provenance.reason
    assert session.run(None, {"x": np.array([1, -2], np.float32)})[0].tolist() == [2, 5]


@needs_openvino
@pytest.mark.parametrize("dtype", [TensorProto.BFLOAT16, TensorProto.FLOAT16, I8, TensorProto.UINT8, BOOL])
@pytest.mark.parametrize("as_node", [False, True])
def test_weights_in_typed_fields_are_read_as_they_are(backend: Backend, dtype: int, as_node: bool) -> None:
    weight = helper.make_tensor("w", dtype, [5], np.array([0, 1, 0, 1, 1]))
    assert not weight.HasField("raw_data")
    nodes = [node("Cast", ["w"], ["f"], to=F32), node("Mul", ["x", "f"], ["y"])]
    proto = model_of(nodes, {"x": (F32, [5])}, {"y": (F32, [5])})
    if as_node:
        proto.graph.node.insert(0, node("Constant", [], ["w"], value=weight))
    else:
        proto.graph.initializer.append(weight)
    x = np.array([2, 3, 5, 7, 11], np.float32)
    assert run(compiled(backend, proto), {"x": x})[0].tolist() == [0, 3, 0, 7, 11]


@needs_openvino
@pytest.mark.parametrize("onnx_type", [TensorProto.BFLOAT16, TensorProto.FLOAT16])
def test_half_precision_goes_in_and_out(backend: Backend, onnx_type: int) -> None:
    proto = model_of([node("Neg", ["x"], ["y"])], {"x": (onnx_type, [3])}, {"y": (onnx_type, [3])}, opset=21)
    kind = onnx.helper.tensor_dtype_to_np_dtype(onnx_type)
    x = np.array([1.5, -2, 0.25]).astype(kind)
    y = np.zeros(3, np.uint16)
    compiled(backend, proto).run_bound({"x": value(x.view(np.uint16), onnx_type)}, {"y": value(y, onnx_type)})
    assert y.view(kind).astype(np.float32).tolist() == [-1.5, 2, -0.25]


@needs_openvino
@pytest.mark.parametrize("dim", [4, "n"])
def test_the_same_memory_is_read_anew_each_time(backend: Backend, dim: int | str) -> None:
    nodes = [node("Cast", ["i"], ["f"], to=F32), node("Add", ["x", "f"], ["y"])]
    proto = model_of(nodes, {"x": (F32, [dim]), "i": (I64, [dim])}, {"y": (F32, [dim])})
    model = compiled(backend, proto)
    x, i = np.zeros(4, np.float32), np.zeros(4, np.int64)
    feeds = {"x": value(x), "i": value(i)}
    for step in range(5):
        x[:], i[:] = step, np.arange(4) * step
        (y,) = model.run_with_ort_values(feeds, ["y"])
        np.testing.assert_array_equal(y.numpy(), x + i)
    # Between them other memory, and in the same memory what must not be computed with.
    np.testing.assert_array_equal(
        run(model, {"x": np.ones(4, np.float32), "i": np.ones(4, np.int64)})[0], np.full(4, 2, np.float32)
    )
    i[2] = EXACT_INTEGER + 1
    with pytest.raises(BackendError):
        model.run_with_ort_values(feeds, ["y"])
    i[2] = 7
    np.testing.assert_array_equal(model.run_with_ort_values(feeds, ["y"])[0].numpy(), x + i)


@needs_openvino
def test_large_weights_are_not_copied(backend: Backend) -> None:
    if sys.platform != "linux":
        pytest.skip("memory that is the process's own is told on Linux")
    size = 2048
    weight = np.random.default_rng(0).standard_normal((size, size), np.float32)
    nodes = [node("MatMul", ["x", "w"], ["y"]), node("Relu", ["y"], ["z"])]
    model = load_model(
        model_of(nodes, {"x": (F32, [1, size])}, {"z": (F32, [1, size])}, {"w": weight}).SerializeToString()
    )
    segment = whole(model)
    warm = backend.compile(segment, width=1)
    del warm
    gc.collect()
    before = private_bytes()
    held = backend.compile(segment, width=1)
    after = private_bytes()
    assert before is not None
    assert after is not None
    # Once as the kernels pack them, and not a second time.
    assert after - before < 1.5 * weight.nbytes
    x = np.ones((1, size), np.float32)
    np.testing.assert_allclose(run(held, {"x": x})[0], np.maximum(x @ weight, 0), rtol=0, atol=1e-3)


@needs_openvino
def test_its_own_properties_can_be_given(backend: Backend) -> None:
    proto = model_of([node("Relu", ["x"], ["y"])], {"x": (F32, [2])}, {"y": (F32, [2])})
    own = OpenVinoBackend(options={"PERF_COUNT": True})
    assert run(compiled(own, proto), {"x": np.array([-1, 1], np.float32)})[0].tolist() == [0, 1]
    with pytest.raises(BackendError, match="NO_SUCH_PROPERTY"):
        compiled(OpenVinoBackend(options={"NO_SUCH_PROPERTY": 1}), proto)


@needs_openvino
def test_precision_is_full(backend: Backend) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((4, 512), np.float32), rng.standard_normal((512, 512), np.float32)
    proto = model_of([node("MatMul", ["x", "w"], ["y"])], {"x": (F32, [4, 512])}, {"y": (F32, [4, 512])}, {"w": w})
    exact = x.astype(np.float64) @ w
    (full,) = run(compiled(backend, proto), {"x": x})
    assert np.abs(full - exact).max() < 1e-5 * np.abs(exact).max()


@needs_openvino
def test_a_device_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"'NPU.7'.*CPU"):
        open_backend("openvino:NPU.7")


@needs_openvino
def test_the_engine_runs_what_it_compiled_like_a_session(backend: Backend) -> None:
    """A plan of the whole model on OpenVINO: the place where it competes with the one on the CPU."""
    proto = model_of([node("Equal", ["a", "a"], ["y"])], {"a": (I64, ["n"])}, {"y": (BOOL, ["n"])})
    model = load_model(proto)
    plan = Plan(
        format_version=PLAN_FORMAT_VERSION,
        structure_digest=model.structure_digest,
        policy="sequential",
        cores=1,
        lanes=1,
        backfill=True,
        segments=(
            Segment(
                index=0,
                name="whole",
                nodes=(0,),
                inputs=("a",),
                outputs=("y",),
                predecessors=(),
                width=1,
                priority=0,
                lane=None,
                cost_ns=0,
                reason="a test",
            ),
        ),
        provenance=Provenance(
            source="forced", whole_ns=None, chosen_ns=None, candidates=(), runtime_version="", machine="", reason=""
        ),
    )
    session = backend.compile(whole(model), width=1)
    segment = CompiledSegment(
        name="whole", node_names=("equal",), width=1, session=session, inputs=("a",), outputs=("y",), weights={}
    )
    executor = Executor(plan, [segment], inputs=["a"], outputs=["y"], pool=lane_pool())
    (y,) = executor.run({"a": value(np.array([1, 2]))}, ["y"])
    assert y.numpy().tolist() == [True, True]
    with pytest.raises(SegmentError, match="does not keep exact"):
        executor.run({"a": value(np.array([1 << 40]))}, ["y"])
