"""Bytes of tensors: one rounding, whoever asks."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from parallax.graph import ELEMENT_TYPES, STRING_TYPE, OpGraph, Shapes, TensorInfo, size_expression, tensor_bytes

FLOAT, UINT4, FLOAT6 = 1, 21, 27


def graph_with(info: TensorInfo) -> OpGraph:
    return OpGraph(
        name="one tensor",
        nodes=(),
        inputs=(info,),
        overridable=(),
        outputs=(),
        tensors={info.name: info},
        initializers={},
        producers={},
        consumers={},
    )


def bytes_of(shape, *, dtype=FLOAT, kind="tensor"):
    return tensor_bytes(graph_with(TensorInfo(name="t", dtype=dtype, shape=shape, kind=kind)), "t")


def test_elements_of_less_than_a_byte_are_packed_and_rounded_up_once():
    assert [bytes_of((count,), dtype=UINT4) for count in (0, 1, 2, 3)] == [0, 1, 1, 2]
    assert bytes_of((3, 3), dtype=UINT4) == 5  # 36 bits, not three rows of two bytes
    assert [bytes_of((count,), dtype=FLOAT6) for count in (1, 2, 3, 4)] == [1, 2, 3, 3]


def test_a_dimension_that_is_not_known_counts_as_one():
    assert bytes_of(("batch", 3, None)) == 12
    assert bytes_of(()) == 4


@pytest.mark.parametrize(
    "info",
    [
        TensorInfo(name="t", dtype=FLOAT),
        TensorInfo(name="t", dtype=0, shape=(2,)),
        TensorInfo(name="t", dtype=99, shape=(2,)),
        TensorInfo(name="t", dtype=FLOAT, shape=(2,), kind="sequence"),
        TensorInfo(name="another", dtype=FLOAT, shape=(2,)),
    ],
    ids=["no rank", "no type", "a type of the future", "a sequence", "another name"],
)
def test_what_is_no_tensor_of_known_type_and_rank_counts_nothing(info):
    assert tensor_bytes(graph_with(info), "t") == 0


FLAT_TYPES = sorted(set(ELEMENT_TYPES) - {STRING_TYPE})
dims = st.one_of(st.integers(0, 7), st.sampled_from(["batch", "length", None]))


@given(st.lists(dims, max_size=4).map(tuple), st.sampled_from(FLAT_TYPES))
def test_transfers_costs_and_memory_plans_count_the_same_bytes(shape, dtype):
    info = TensorInfo(name="t", dtype=dtype, shape=shape)
    found = tensor_bytes(graph_with(info), "t")
    expression = size_expression(info)
    assert expression.bytes(dict.fromkeys(expression.symbols, 1)) == found
    assert Shapes(graph_with(info), assumed_dim=1).bytes("t") == found


@given(st.lists(st.integers(0, 5), max_size=3).map(tuple), st.sampled_from(FLAT_TYPES))
def test_bytes_are_those_that_onnx_stores(shape, dtype):
    if dtype not in onnx.TensorProto.DataType.values():
        return  # this version of onnx is older than the type
    stored = numpy_helper.from_array(np.zeros(math.prod(shape), onnx.helper.tensor_dtype_to_np_dtype(dtype)))
    assert bytes_of(shape, dtype=dtype) == len(stored.raw_data)
