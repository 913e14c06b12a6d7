"""Costs estimated from shapes: their form, not their truth (which benchmarks judge)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser

from parallax.errors import ConfigError
from parallax.graph import CostModel
from parallax.model import load_model
from parallax.profile import NODE_OVERHEAD_NS, estimate_costs, most_work_ns
from tests.profile.graphs import INT64, make_graph, one_node

CONV = ([(1, 64, 56, 56), (64, 64, 3, 3)], [(1, 64, 56, 56)])


def cost(op_type, inputs, outputs, width, cores=8, **attributes):
    graph, _ = one_node(op_type, inputs, outputs, **attributes)
    return estimate_costs(graph, cores=cores).node_ns(width)[0]


def test_convolution_scales_and_a_slice_does_not():
    assert cost("Conv", *CONV, 2) < 0.6 * cost("Conv", *CONV, 1)
    big = ([(1, 256, 256, 256)], [(1, 256, 256, 255)])
    assert cost("Slice", *big, 8) == cost("Slice", *big, 1)


def test_layer_normalisation_scales_less_than_a_matrix_product():
    norm = [cost("LayerNormalization", [(1, 4096, 768)], [(1, 4096, 768)], width) for width in (1, 2)]
    product = [cost("MatMul", [(4096, 768), (768, 768)], [(4096, 768)], width) for width in (1, 2)]
    assert norm[0] / norm[1] == pytest.approx(1.25, rel=0.02)
    assert product[0] / product[1] == pytest.approx(1.9, rel=0.02)


def test_softmax_over_an_inner_axis_is_dear_and_serial():
    shape = (1, 16, 4, 8400)
    inner = [cost("Softmax", [shape], [shape], width, axis=1) for width in (1, 4)]
    last = [cost("Softmax", [shape], [shape], width, axis=-1) for width in (1, 4)]
    assert inner[0] == inner[1] > last[0] > last[1]


def test_reducing_an_inner_axis_is_dearer_than_reducing_the_last():
    shape = (1, 256, 64, 64)
    inner = cost("ReduceSum", [shape], [(1, 64, 64)], 1, axes=(1,))
    assert inner > 3 * cost("ReduceSum", [shape], [(1, 256)], 1, axes=(-1, -2))
    node = [("ReduceSum", ["x", "axes"], ["y"], {})]
    shapes = {"x": shape, "axes": (INT64, (1,)), "y": (1, 64, 64)}
    told = make_graph(node, shapes, constants={"axes": [1]})
    assert estimate_costs(told, cores=1).node_ns(1)[0] == pytest.approx(inner, rel=0.01)


def test_gathering_single_elements_is_dearer_than_gathering_rows():
    rows = cost("Gather", [(4096, 64), (INT64, (4096,))], [(4096, 64)], 1, axis=0)
    assert cost("Gather", [(64, 4096), (INT64, (4096,))], [(64, 4096)], 1, axis=-1) > 3 * rows


def test_depthwise_convolution_is_slower_per_flop_than_a_dense_one():
    dense = cost("Conv", [(1, 96, 56, 56), (96, 96, 1, 1)], [(1, 96, 56, 56)], 1) / (2 * 96 * 96 * 56 * 56)
    depth = cost("Conv", [(1, 96, 56, 56), (96, 1, 3, 3)], [(1, 96, 56, 56)], 1, group=96) / (2 * 96 * 9 * 56 * 56)
    assert depth > dense


def test_small_operators_do_not_gain_from_threads():
    assert cost("Relu", [(1, 100)], [(1, 100)], 8) == cost("Relu", [(1, 100)], [(1, 100)], 1)


def test_renaming_costs_a_call_whatever_the_size():
    assert cost("Reshape", [(10**6,), (INT64, (2,))], [(1000, 1000)], 1) == cost("Reshape", [(4,)], [(2, 2)], 1)


def test_unknown_dimensions_look_cheap_and_lower_the_known_fraction():
    graph = make_graph(
        [("Relu", ["x"], ["a"], {}), ("Relu", ["a"], ["b"], {}), ("Relu", ["b"], ["c"], {}), ("Odd", ["c"], ["y"], {})],
        {"x": (1000, 1000), "a": (1000, 1000), "b": ("n", 1000), "y": (5,)},
    )
    costs = estimate_costs(graph, cores=2)
    known, partly, blind, unheard = costs.node_ns(1)
    assert known > partly >= blind > 0
    assert unheard > 0
    assert costs.known_fraction == pytest.approx(0.25)


def test_a_loop_costs_its_body_once_per_iteration():
    body = make_graph([("Relu", ["a"], ["b"], {})], {"a": (10**6,), "b": (10**6,)})

    def loop(count: int) -> int:
        graph = make_graph(
            [("Loop", ["m", "", "x"], ["y"], {})],
            {"m": (INT64, ()), "x": (10**6,), "y": (10**6,)},
            bodies={0: [("body", body)]},
            constants={"m": count},
        )
        return estimate_costs(graph, cores=1).node_ns(1)[0]

    assert loop(20) == pytest.approx(20 * loop(1), rel=0.05)


def test_an_empty_graph_has_costs_too():
    costs = estimate_costs(make_graph([], {}), cores=4)
    assert costs.node_ns(3) == ()
    assert costs.known_fraction == 1.0


def test_no_cores_are_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        estimate_costs(make_graph([], {}), cores=0)


@given(
    st.sampled_from(
        [
            "Conv",
            "MatMul",
            "Softmax",
            "LayerNormalization",
            "Relu",
            "Transpose",
            "LSTM",
            "Gather",
            "ReduceSum",
            "Frobnicate",
        ]
    ),
    st.lists(st.integers(0, 600), min_size=3, max_size=3),
    st.integers(1, 70),
)
def test_more_threads_never_look_slower_nor_faster_than_ideal(op_type, sizes, cores):
    graph, _ = one_node(op_type, [tuple(sizes)] * 3, [tuple(sizes)])
    costs = estimate_costs(graph, cores=cores)
    durations = [costs.node_ns(width)[0] for width in range(1, cores + 1)]
    assert costs.widths[0] == 1
    assert costs.widths[-1] == cores
    assert all(slow >= fast > 0 for slow, fast in itertools.pairwise(durations))
    assert durations[-1] * cores >= durations[0] - cores


def test_estimates_are_the_same_twice():
    graph, _ = one_node("Conv", *CONV)
    assert estimate_costs(graph, cores=4) == estimate_costs(graph, cores=4)
    assert isinstance(estimate_costs(graph, cores=4), CostModel)


def test_work_at_sight_bounds_the_work_of_every_operator_from_above() -> None:
    """Where every tensor is stated, no class of operator is dearer by its formulas than at sight."""
    texts = (
        "y = Exp(x)",
        "y = Pow(x, x)",
        "y = Softmax<axis=0>(x)",
        "y = CumSum(x, zero)",
        "y = Transpose<perm=[1,0]>(x)",
        "y = Concat<axis=0>(x, x)",
        "y = Gather<axis=1>(x, picks)",
        "y = MatMul(x, x)",
        "y = ReduceSum<keepdims=1>(x, axes)",
        "y = ReduceL2<keepdims=1>(x, axes)",
        "y = Cast<to=11>(x)",
        "y = Where(mask, x, x)",
        "y = LayerNormalization(x, x)",
        "y, _ = TopK(x, one)",
    )
    header = '<ir_version: 10, opset_import: ["" : 21]>'
    for text in texts:
        model = load_model(
            parser.parse_model(
                f"{header} g (float[300,300] x, int64 zero, int64[9] picks, int64[1] axes, bool[300,300] mask, int64[1]"
                f" one) => (float[300,300] y) {{ {text} }}"
            )
        )
        work_ns = sum(estimate_costs(model.inferred(), cores=1).node_ns(1)) - NODE_OVERHEAD_NS
        assert work_ns <= most_work_ns(model.survey), text


@pytest.mark.parametrize("size", [1, 300])
def test_work_at_sight_bounds_branches_from_above(size: int) -> None:
    text = f"""
    <ir_version: 10, opset_import: ["" : 21]>
    g (bool c, float[{size},{size}] x) => (float[{size},{size}] y) {{
      a = If(c) <
        then_branch = t () => (p) {{ o = Exp(x) p = Softmax<axis=0>(o) }},
        else_branch = e () => (q) {{
          q = If(c) <then_branch = u () => (r) {{ r = MatMul(x, x) }}, else_branch = v () => (s) {{ s = Cos(x) }}>
        }}
      >
      y = If(c) <then_branch = w () => (h) {{ h = Sin(a) }}, else_branch = k () => (j) {{ j = Identity(x) }}>
    }}"""
    model = load_model(parser.parse_model(text))
    work_ns = sum(estimate_costs(model.inferred(), cores=1).node_ns(1)) - 2 * NODE_OVERHEAD_NS
    assert most_work_ns(model.survey) < work_ns <= most_work_ns(model.survey, with_branches=True)


@pytest.mark.parametrize("row", [1, 7, 8, 300])
@pytest.mark.parametrize("axis", [0, 1])
def test_work_at_sight_bounds_rows_picked_from_weights_from_above(row: int, axis: int) -> None:
    graph = helper.make_graph(
        [helper.make_node("Gather", ["w", "picks"], ["y"], axis=axis)],
        "g",
        [helper.make_tensor_value_info("picks", TensorProto.INT64, [5000])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5000, row] if axis == 0 else [400, 5000])],
        [numpy_helper.from_array(np.zeros((400, row), np.float32), "w")],
    )
    model = load_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    work_ns = sum(estimate_costs(model.inferred(), cores=1).node_ns(1)) - NODE_OVERHEAD_NS
    assert work_ns <= most_work_ns(model.survey)
    if axis == 0 and row >= 8:  # several times less than if each node took the largest tensor at the slowest rate
        assert most_work_ns(model.survey) < 10 * work_ns
