"""Sizes as expressions over symbolic dimensions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.graph import SizeTable, TensorInfo, bind_dims, size_expression
from parallax.graph._sizes import MAX_TENSOR_BYTES

FLOAT, STRING, INT4, INT64 = 1, 8, 22, 7


def info(shape, *, name="t", dtype=FLOAT, kind="tensor"):
    return TensorInfo(name=name, dtype=dtype, shape=shape, kind=kind)


def size(shape, dims=(), *, symbols=("batch", "sequence"), dtype=FLOAT):
    expression = size_expression(info(shape, dtype=dtype), symbols=symbols)
    return expression.bytes(dict(dims))


def test_a_static_shape_needs_no_dimensions():
    assert size((2, 3, 5)) == 120
    assert size(()) == 4
    assert size((7, 0)) == 0


def test_named_dimensions_multiply():
    dims = {"batch": 2, "sequence": 10}
    assert size(("batch", 12, "sequence", "sequence"), dims) == 2 * 12 * 100 * 4


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2*batch", 6),
        ("batch + sequence", 8),
        ("batch*sequence - 1", 14),
        ("(batch + 1)*(sequence + 1)", 24),
        (" sequence ", 5),
        ("2 - batch + batch", 2),
    ],
)
def test_a_name_that_is_an_expression_of_input_dimensions_is_evaluated(text, value):
    assert size((text, 3), {"batch": 3, "sequence": 5}) == value * 12


@pytest.mark.parametrize(
    "text",
    ["past-seq", "floor(batch/2)", "batch//2", "batch**2", "Add/out_dim_1", "batch + other", "((", "a" * 5000, "True"],
)
def test_any_other_name_is_a_symbol_of_its_own(text):
    expression = size_expression(info((text, 3)), symbols=("batch", "seq"))
    assert expression.symbols == {text}
    assert expression.bytes({"batch": 3, "seq": 1}) is None
    assert expression.bytes({text: 7}) == 84


def test_a_name_that_is_a_dimension_itself_is_not_taken_apart():
    assert (
        size(("batch-size",), {"batch-size": 9, "batch": 1, "size": 1}, symbols=("batch-size", "batch", "size")) == 36
    )


def test_an_expression_that_explodes_is_left_a_name():
    text = "*".join(f"({a}+{b})" for a, b in zip("abcdefghijk", "lmnopqrstuv", strict=True))
    expression = size_expression(info((text,)), symbols=tuple("abcdefghijklmnopqrstuv"))
    assert expression.symbols == {text}


def test_unnamed_dimensions_and_ranks_have_symbols_of_their_own():
    assert size_expression(info((None, 4))).symbols == {"?t:0"}
    assert size_expression(info(None)).bytes({"?t": 10}) == 40


@pytest.mark.parametrize(
    "other", [info((2,), dtype=STRING), info((2,), dtype=0), info((2,), dtype=999), info((2,), kind="sequence")]
)
def test_what_is_no_flat_block_of_bytes_has_no_size(other):
    assert size_expression(other) is None


def test_elements_smaller_than_a_byte_are_packed():
    assert size((3,), dtype=INT4) == 2
    assert size((3,), dtype=INT64) == 24


@pytest.mark.parametrize("shape", [(1 << 30, 1 << 30), ("batch", 1 << 40)])
def test_a_size_beyond_any_machine_is_unknown(shape):
    assert size(shape, {"batch": 1 << 20}) is None
    assert MAX_TENSOR_BYTES < 1 << 62


def test_a_negative_size_is_unknown():
    assert size(("batch - sequence",), {"batch": 2, "sequence": 5}) is None


@given(
    st.lists(st.integers(0, 9) | st.sampled_from(["a", "b", "a+b", "2*a", "b-1"]), max_size=5),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_an_expression_equals_the_product_of_its_dimensions(shape, a, b):
    expected = math.prod(dim if isinstance(dim, int) else eval(dim, {"a": a, "b": b}) for dim in shape) * 4
    assert size(tuple(shape), {"a": a, "b": b}, symbols=("a", "b")) == expected


def test_shapes_bind_the_symbols_of_declared_types():
    infos = [info(("batch", 3), name="x"), info((None, "batch"), name="y"), info(None, name="z"), info((4,), name="w")]
    bound = bind_dims(infos, {"x": (2, 3), "y": (9, 2), "z": (5, 5), "other": (1,)})
    assert bound == {"batch": 2, "?y:0": 9, "?z": 25}


def test_a_symbol_bound_to_two_values_is_left_out():
    infos = [info(("n", "m"), name="x"), info(("n",), name="y")]
    assert bind_dims(infos, {"x": (2, 3), "y": (5,)}) == {"m": 3}


def test_a_shape_of_another_rank_teaches_nothing():
    assert bind_dims([info(("n",), name="x")], {"x": (2, 3)}) == {}


def test_a_table_binds_all_its_tensors_in_order():
    table = SizeTable(
        [size_expression(info(shape), symbols=("n",)) for shape in ((2,), ("n",), (None,), ("n",), ("2*n",))] + [None]
    )
    assert len(table) == 6
    assert table.symbols == ("?t:0", "n")
    assert table.bind({"n": 3}) == [8, 12, None, 12, 24, None]
    assert table.bind({"n": 5}) == [8, 20, None, 20, 40, None]
