"""Every operator of shape arithmetic against ONNX Runtime: same type, same shape, same bits, or no answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from parallax.model._arithmetic import LARGEST, OPERATORS, evaluate
from tests.model._models import Array, model, node, value


def ints(*items: int) -> Array:
    return np.array(items, np.int64)


def int32s(*items: int) -> Array:
    return np.array(items, np.int32)


def floats(*items: float) -> Array:
    return np.array(items, np.float32)


def bools(*items: bool) -> Array:
    return np.array(items, np.bool_)


SCALAR, MATRIX, CUBE = np.array(5), np.arange(-5, 7).reshape(3, 4), np.arange(24, dtype=np.int32).reshape(2, 3, 4)
FRACTIONS = floats(-2.5, -1.5, -0.5, 0.0, 0.5, 1.5, 2.5, 7.99)

CASES: list[tuple[str, list[Array | None], dict[str, object]]] = [
    ("Identity", [MATRIX], {}),
    ("Neg", [MATRIX], {}),
    ("Abs", [CUBE - 9], {}),
    ("Sign", [MATRIX], {}),
    ("Not", [bools(True, False)], {}),
    ("Floor", [FRACTIONS], {}),
    ("Ceil", [FRACTIONS], {}),
    ("Round", [FRACTIONS], {}),
    ("Sqrt", [floats(2, 3, 49, 0.1)], {}),
    ("Add", [MATRIX, ints(1, 2, 3, 4)], {}),
    ("Add", [floats(0.1, 0.2), floats(0.7, 1e-9)], {}),
    ("Sub", [SCALAR, MATRIX], {}),
    ("Mul", [ints(1, 2).reshape(2, 1), ints(3, 4, 5)], {}),
    ("Div", [MATRIX, np.array(3)], {}),
    ("Div", [MATRIX, np.array(-2)], {}),
    ("Div", [int32s(7, -7, 6, -6), int32s(-2, 2, 3, -3)], {}),
    ("Div", [floats(1, 2, 10), floats(3, 7, 0.3)], {}),
    ("Mod", [MATRIX, np.array(3)], {}),
    ("Mod", [MATRIX, np.array(-3)], {}),
    ("Mod", [MATRIX, np.array(-3)], {"fmod": 1}),
    ("Min", [MATRIX, np.array(2), ints(0, 1, 2, 3)], {}),
    ("Max", [MATRIX], {}),
    ("Max", [MATRIX, np.array(2)], {}),
    ("Equal", [MATRIX, np.array(-1)], {}),
    ("Equal", [bools(True, False), bools(True, True)], {}),
    ("Less", [MATRIX, np.array(1)], {}),
    ("LessOrEqual", [MATRIX, np.array(1)], {}),
    ("Greater", [FRACTIONS, floats(0)], {}),
    ("GreaterOrEqual", [MATRIX, np.array(1)], {}),
    ("And", [bools(True, False), bools(True, True)], {}),
    ("Or", [bools(True, False), bools(False, False)], {}),
    ("Xor", [bools(True, False), bools(True, True)], {}),
    ("Where", [bools(True, False, True), ints(1, 2, 3), np.array(9)], {}),
    ("Where", [MATRIX > 0, MATRIX, -MATRIX], {}),
    ("Cast", [FRACTIONS], {"to": onnx.TensorProto.INT64}),
    ("Cast", [FRACTIONS], {"to": onnx.TensorProto.BOOL}),
    ("Cast", [ints(2**40 + 3, -7)], {"to": onnx.TensorProto.INT32}),
    ("Cast", [ints(2**55 + 1, 3)], {"to": onnx.TensorProto.FLOAT}),
    ("Cast", [bools(True, False)], {"to": onnx.TensorProto.INT64}),
    ("ConstantOfShape", [ints(2, 3)], {}),
    ("ConstantOfShape", [ints(2, 0)], {"value": helper.make_tensor("v", onnx.TensorProto.INT64, [1], [7])}),
    ("ConstantOfShape", [ints()], {"value": helper.make_tensor("v", onnx.TensorProto.BOOL, [1], [True])}),
    ("Range", [np.array(2), np.array(11), np.array(3)], {}),
    ("Range", [np.array(5), np.array(-4), np.array(-2)], {}),
    ("Range", [np.array(5), np.array(5), np.array(1)], {}),
    ("Expand", [ints(1, 2, 3).reshape(3, 1), ints(2, 1, 4)], {}),
    ("Expand", [SCALAR, ints(3)], {}),
    ("Reshape", [CUBE, ints(4, -1)], {}),
    ("Reshape", [CUBE, ints(0, -1, 2)], {}),
    ("Reshape", [np.zeros((0, 3), np.int64), ints(3, 0)], {"allowzero": 1}),
    ("Squeeze", [np.zeros((1, 3, 1), np.int64)], {}),
    ("Squeeze", [np.zeros((1, 3, 1), np.int64), ints(-1)], {}),
    ("Unsqueeze", [MATRIX, ints(0, -1)], {}),
    ("Unsqueeze", [SCALAR, ints(0)], {}),
    ("Concat", [ints(1, 2), ints(), ints(3)], {"axis": 0}),
    ("Concat", [MATRIX, MATRIX], {"axis": -1}),
    ("Gather", [MATRIX, np.array(-1)], {}),
    ("Gather", [MATRIX, ints(0, 3, -2).reshape(1, 3)], {"axis": 1}),
    ("GatherND", [CUBE, ints(0, 1, 1, -1).reshape(2, 2)], {}),
    ("GatherND", [CUBE, ints(0, 1, 3, 1, 2, -4).reshape(2, 1, 3)], {}),
    ("Slice", [ints(1, 2, 3, 4), ints(1), ints(2**63 - 1)], {}),
    ("Slice", [ints(1, 2, 3, 4), ints(-1), ints(-(2**63)), ints(0), ints(-1)], {}),
    ("Slice", [CUBE, ints(1, -3), ints(9, -1), ints(2, -2), ints(2, 1)], {}),
    ("Split", [MATRIX, ints(1, 0, 3)], {"axis": 1}),
    ("Split", [MATRIX], {"axis": 0, "num_outputs": 3}),
    ("Split", [ints(1, 2, 3, 4, 5)], {"num_outputs": 3}),
    ("Transpose", [CUBE], {}),
    ("Transpose", [CUBE], {"perm": [1, 2, 0]}),
    ("Tile", [MATRIX, ints(2, 1)], {}),
    ("ReduceProd", [MATRIX], {"keepdims": 0}),
    ("ReduceProd", [CUBE + 1, ints(1)], {}),
    ("ReduceProd", [ints(), ints(0)], {}),
    ("ReduceSum", [MATRIX, ints(0)], {"keepdims": 0}),
    ("ReduceSum", [MATRIX], {"noop_with_empty_axes": 1}),
    ("ReduceMax", [MATRIX, ints(-1)], {}),
    ("ReduceMin", [MATRIX, ints(0)], {}),
    ("NonZero", [MATRIX], {}),
]


def both(
    op_type: str, inputs: Sequence[Array | None], attributes: dict[str, object]
) -> tuple[tuple[Array, ...] | None, list[Array] | None]:
    """What we evaluate and what ONNX Runtime computes; None where one of them refuses."""
    count = 3 if op_type == "Split" else 1
    words = " ".join("-" if array is None else f"i{index}" for index, array in enumerate(inputs))
    proto = node(op_type, words, " ".join(f"o{index}" for index in range(count)), **attributes)
    feeds = {f"i{index}": array for index, array in enumerate(inputs) if array is not None}
    types = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feeds.items()}
    source = model(
        [proto],
        [value(name, array.shape, types[name]) for name, array in feeds.items()],
        [onnx.ValueInfoProto(name=f"o{index}") for index in range(count)],
    )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(source.SerializeToString(), options, providers=["CPUExecutionProvider"])
        computed = session.run(None, feeds)
    except Exception:  # whatever the runtime raises: it refuses
        computed = None
    return evaluate(proto, inputs), computed


def assert_same(ours: tuple[Array, ...], theirs: list[Array]) -> None:
    assert [(array.dtype, array.shape) for array in ours] == [(array.dtype, array.shape) for array in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert np.ascontiguousarray(mine).tobytes() == np.ascontiguousarray(other).tobytes()


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes"), CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)]
)
def test_an_operator_computes_what_onnx_runtime_does(
    op_type: str, inputs: list[Array | None], attributes: dict[str, object]
) -> None:
    ours, theirs = both(op_type, inputs, attributes)
    assert ours is not None
    assert theirs is not None
    assert_same(ours, theirs)


def test_every_operator_has_a_case() -> None:
    assert {case[0] for case in CASES} == set(OPERATORS)


BOUND = st.integers(-6, 6) | st.sampled_from([2**63 - 1, -(2**63), 2**31 - 1])


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(0, 5), start=BOUND, end=BOUND, step=st.integers(-3, 3).filter(bool), axis=st.sampled_from([0, -1])
)
def test_slices_are_clamped_as_onnx_runtime_does(size: int, start: int, end: int, step: int, axis: int) -> None:
    ours, theirs = both("Slice", [ints(*range(size)), ints(start), ints(end), ints(axis), ints(step)], {})
    assert theirs is not None
    if ours is None:
        assert step < 0 < 2**30 < end  # where ONNX Runtime departs from ONNX's text
    else:
        assert_same(ours, theirs)


@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(0, 4), max_size=3),
    target=st.lists(st.integers(-1, 6), max_size=3),
    allowzero=st.booleans(),
)
def test_reshapes_are_never_answered_differently(shape: list[int], target: list[int], allowzero: bool) -> None:
    data = np.arange(np.prod(shape, dtype=np.int64)).reshape(shape)
    ours, theirs = both("Reshape", [data, ints(*target)], {"allowzero": int(allowzero)})
    if ours is not None and theirs is not None:
        assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes"),
    [
        ("Div", [ints(1), ints(0)], {}),
        ("Mod", [ints(1), ints(0)], {}),
        ("Mod", [floats(1), floats(1)], {}),
        ("Sqrt", [floats(-1)], {}),
        ("Cast", [floats(1e30)], {"to": onnx.TensorProto.INT64}),
        ("Cast", [floats(float("nan"))], {"to": onnx.TensorProto.INT32}),
        ("Cast", [ints(1)], {"to": onnx.TensorProto.STRING}),
        ("Cast", [ints(1)], {}),
        ("Gather", [ints(1), ints(1)], {}),
        ("Gather", [SCALAR, ints(0)], {}),
        ("Reshape", [ints(1, 2, 3), ints(2, -1)], {}),
        ("Slice", [ints(1), ints(0), ints(1), ints(0), ints(0)], {}),
        ("Range", [np.array(0), np.array(1), np.array(0)], {}),
        ("Range", [floats(0), floats(1), floats(0.1)], {}),
        ("ReduceSum", [FRACTIONS], {}),
        ("ReduceProd", [CUBE + 1], {}),
        ("Split", [ints(1)], {"num_outputs": 1, "split": [2]}),
        ("Concat", [ints(1), ints(2)], {}),
        ("Add", [ints(1), int32s(1)], {}),
        ("Add", [ints(1, 2), ints(1, 2, 3)], {}),
        ("Add", [ints(1), None], {}),
        ("Add", [MATRIX, ints(1, 2, 3)], {"broadcast": 1, "axis": 0}),
        ("Erf", [FRACTIONS], {}),
        ("Neg", [np.zeros(2, np.float16)], {}),
        ("ConstantOfShape", [ints(-1)], {}),
        ("ConstantOfShape", [ints(2**40, 2**40)], {}),
        ("Expand", [SCALAR, ints(LARGEST + 1)], {}),
        ("Range", [np.array(0), np.array(2**62), np.array(1)], {}),
        ("Tile", [ints(1, 2), ints(2**40)], {}),
        ("Add", [np.zeros((LARGEST // 2, 1), np.int64), np.zeros(3, np.int64)], {}),
        ("Gather", [MATRIX, np.zeros(LARGEST, np.int64)], {}),
        ("Neg", [np.zeros(LARGEST + 1, np.int64)], {}),
        ("Identity", [], {}),
    ],
)
def test_what_is_wrong_inexact_or_large_has_no_answer(
    op_type: str, inputs: list[Array | None], attributes: dict[str, object]
) -> None:
    words = " ".join("-" if array is None else "i" for array in inputs)
    assert evaluate(node(op_type, words, "o", **attributes), inputs) is None


def test_axes_given_as_attributes_by_older_versions_are_read() -> None:
    squeezed = evaluate(node("Squeeze", "x", "y", axes=[0]), [np.zeros((1, 1), np.int64)])
    assert squeezed is not None
    assert squeezed[0].shape == (1,)
    sliced = evaluate(node("Slice", "x", "y", starts=[1], ends=[3]), [ints(1, 2, 3, 4)])
    assert sliced is not None
    assert sliced[0].tolist() == [2, 3]
    parts = evaluate(node("Split", "x", "a b", split=[1, 2]), [ints(1, 2, 3)])
    assert parts is not None
    assert [part.tolist() for part in parts] == [[1], [2, 3]]
