"""Zeros of weights, counted by hand for each layout that ONNX has."""

from __future__ import annotations

import numpy as np
import pytest

from parallax.graph import Node
from parallax.sparsity import WeightCount, count_weight, zero_share


def operator(op_type: str, **attributes: object) -> Node:
    return Node(index=0, name="n", op_type=op_type, domain="", inputs=("x", "w"), outputs=("y",), attributes=attributes)


def counted(op_type: str, weight: np.ndarray, position: int = 1, **attributes: object) -> WeightCount:
    found = count_weight(operator(op_type, **attributes), position, weight)
    assert found is not None
    return found


def test_a_convolution_has_output_channels_first() -> None:
    weight = np.ones((6, 4, 3, 3), np.float32)
    weight[[1, 4]] = 0
    weight[:, 3] = 0
    found = counted("Conv", weight)
    assert found == WeightCount(elements=216, zeros=2 * 36 + 4 * 9, rows=6, zero_rows=2, columns=4, zero_columns=1)
    assert found.share == pytest.approx(108 / 216)


def test_a_transposed_convolution_has_input_channels_first() -> None:
    weight = np.ones((4, 6, 3, 3), np.float32)
    weight[:, [1, 4]] = 0
    weight[3] = 0
    found = counted("ConvTranspose", weight)
    assert (found.rows, found.zero_rows, found.columns, found.zero_columns) == (6, 2, 4, 1)


def test_channels_of_a_grouped_convolution_are_those_of_all_groups() -> None:
    # Two groups: outputs 0 to 2 read inputs 0 and 1, outputs 3 to 5 inputs 2 and 3.
    weight = np.ones((6, 2, 3), np.float32)
    weight[:3, 1] = 0
    weight[5] = 0
    found = counted("Conv", weight, group=2)
    assert (found.rows, found.zero_rows, found.columns, found.zero_columns) == (6, 1, 4, 1)
    # Transposed: inputs 0 to 2 make outputs 0 and 1, inputs 3 to 5 outputs 2 and 3.
    found = counted("ConvTranspose", weight, group=2)
    assert (found.rows, found.zero_rows, found.columns, found.zero_columns) == (4, 1, 6, 1)


def test_in_a_depthwise_convolution_both_are_one() -> None:
    weight = np.ones((5, 1, 3, 3), np.float32)
    weight[2] = 0
    found = counted("Conv", weight, group=5)
    assert (found.rows, found.zero_rows, found.columns, found.zero_columns) == (5, 1, 5, 1)


@pytest.mark.parametrize(
    ("op_type", "position", "attributes", "turned"),
    [
        ("MatMul", 1, {}, False),
        ("MatMul", 0, {}, True),
        ("Gemm", 1, {}, False),
        ("Gemm", 1, {"transB": 1}, True),
        ("Gemm", 1, {"transA": 1}, False),
        ("Gemm", 0, {}, True),
        ("Gemm", 0, {"transA": 1}, False),
    ],
)
def test_a_product_reads_rows_and_writes_columns(
    op_type: str, position: int, attributes: dict[str, object], turned: bool
) -> None:
    weight = np.ones((8, 5), np.float32)  # (inputs, outputs) of a right operand
    weight[:3] = 0
    weight[:, 4] = 0
    found = counted(op_type, weight.T if turned else weight, position, **attributes)
    assert (found.rows, found.zero_rows, found.columns, found.zero_columns) == (5, 1, 8, 3)


def test_a_channel_of_a_batch_of_matrices_is_zero_where_it_is_in_all_of_them() -> None:
    weight = np.ones((3, 8, 5), np.float32)
    weight[:, 0] = 0
    weight[1, 1] = 0
    found = counted("MatMul", weight)
    assert (found.zero_columns, found.zero_rows) == (1, 0)
    assert found.zeros == 3 * 5 + 5


@pytest.mark.parametrize(
    ("op_type", "shape"),
    [("Mul", (4, 4)), ("MatMul", (4,)), ("Conv", (4, 4)), ("LSTM", (1, 4, 4)), ("Conv", (0, 4, 1))],
)
def test_what_has_no_channels_has_zeros_only(op_type: str, shape: tuple[int, ...]) -> None:
    found = counted(op_type, np.zeros(shape, np.float32))
    assert found == WeightCount(elements=int(np.prod(shape)), zeros=int(np.prod(shape)))


def test_a_convolution_of_another_domain_is_not_taken_for_one() -> None:
    node = Node(index=0, name="n", op_type="Conv", domain="mine", inputs=("x", "w"), outputs=("y",))
    found = count_weight(node, 1, np.ones((4, 4, 3), np.float32))
    assert found is not None
    assert found.rows == 0


def test_zeros_are_exact_and_of_either_sign() -> None:
    assert zero_share(np.array([0.0, -0.0, 1e-45, np.nan], np.float32)) == 0.5
    assert zero_share(np.array([0, 1, 0, 0], np.int8)) == 0.75
    assert zero_share(np.array([True, False])) == 0.5
    assert zero_share(np.zeros((0, 3))) is None
    assert zero_share(np.array(["a"], object)) is None
    assert zero_share(None) is None
    assert count_weight(operator("Gather"), 0, np.array(["a"], object)) is None
