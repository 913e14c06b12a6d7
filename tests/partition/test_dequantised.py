"""No cut deals out a quantised weight that the runtime leaves dequantised because it has several readers."""

from __future__ import annotations

import pytest

from parallax.graph import OpGraph
from parallax.partition import group_fusions
from tests.partition._graphs import op_graph

Rows = list[tuple[str, str, list[str], list[str]]]


def products(rows: Rows) -> OpGraph:
    """Two products over dequantised weights, whose rows are given, and what joins them."""
    return op_graph(
        [
            *rows,
            ("left", "MatMul", ["x", "wl"], ["l"]),
            ("right", "MatMul", ["x", "wr"], ["r"]),
            ("join", "Concat", ["l", "r"], ["y"]),
        ],
        outputs=["y"],
        initializers=["q", "q2", "s", "s2", "z", "z2"],
    )


def together(graph: OpGraph, fusion_safe: set[str]) -> bool:
    """Whether both products are in one group."""
    groups = group_fusions(graph, fusion_safe=frozenset({"x", "l", "r", "y", *fusion_safe}), tiny_elements=0)
    names = [{graph.nodes[index].name for index in group} for group in groups.members]
    return any({"left", "right"} <= group for group in names)


ONE_WEIGHT: Rows = [("d", "DequantizeLinear", ["q", "s", "z"], ["w"]), ("l0", "Identity", ["w"], ["wl"]),
                    ("r0", "Identity", ["w"], ["wr"])]  # fmt: skip
SHARED_VALUES: Rows = [("dl", "DequantizeLinear", ["q", "s", "z"], ["wl"]),
                       ("dr", "DequantizeLinear", ["q", "s2", "z2"], ["wr"])]  # fmt: skip
SHARED_SCALES: Rows = [("dl", "DequantizeLinear", ["q", "s", "z"], ["wl"]),
                       ("dr", "DequantizeLinear", ["q2", "s", "z2"], ["wr"])]  # fmt: skip
TURNED: Rows = [("tl", "Transpose", ["q"], ["ql"]), ("tr", "Transpose", ["q"], ["qr"]),
                ("dl", "DequantizeLinear", ["ql", "s", "z"], ["wl"]),
                ("dr", "DequantizeLinear", ["qr", "s2", "z2"], ["wr"])]  # fmt: skip
APART: Rows = [("dl", "DequantizeLinear", ["q", "s", "z"], ["wl"]),
               ("dr", "DequantizeLinear", ["q2", "s2", "z2"], ["wr"])]  # fmt: skip


@pytest.mark.parametrize(
    "rows", [ONE_WEIGHT, SHARED_VALUES, SHARED_SCALES, TURNED], ids=["floats", "values", "scales", "turned values"]
)
def test_readers_of_a_shared_weight_stay_in_one_group(rows: Rows) -> None:
    assert together(products(rows), {"w", "wl", "wr"})


def test_weights_of_their_own_may_part() -> None:
    assert not together(products(APART), {"wl", "wr"})


def test_what_the_runtime_does_not_leave_dequantised_may_part() -> None:
    """It fuses each product with its weight, in the whole model and in a part of it alike."""
    assert not together(products(SHARED_SCALES), set())
