"""FLOPs and bytes of single operators against counts made by hand or by running the loops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx.defs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.graph import Node, OpGraph, intensity, node_flops, node_work, operator_work
from parallax.graph._formulas import FORMULAS, KNOWN_OPERATORS, NO_ARITHMETIC, PER_INPUT_ELEMENT, PER_OUTPUT_ELEMENT
from tests.profile.graphs import INT8, INT64, make_graph, one_node


def flops(op_type: str, inputs: Sequence[object], outputs: Sequence[object], domain: str = "", **attributes: object):
    return node_flops(*one_node(op_type, inputs, outputs, domain=domain, **attributes))


def node_bytes(graph: OpGraph, node: Node) -> int | None:
    return node_work(graph, node).bytes


def test_convolution_counts_two_per_multiply_accumulate_and_one_per_bias():
    macs = 64 * 56 * 56 * 32 * 3 * 3
    assert flops("Conv", [(1, 32, 56, 56), (64, 32, 3, 3)], [(1, 64, 56, 56)]) == 2 * macs
    assert flops("Conv", [(1, 32, 56, 56), (64, 32, 3, 3), (64,)], [(1, 64, 56, 56)]) == 2 * macs + 64 * 56 * 56


def test_depthwise_convolution_reads_one_channel_per_output():
    depthwise = flops("Conv", [(2, 96, 28, 28), (96, 1, 5, 5)], [(2, 96, 14, 14)], group=96)
    assert depthwise == 2 * 2 * 96 * 14 * 14 * 5 * 5


@given(
    batch=st.integers(1, 2),
    groups=st.integers(1, 3),
    inward=st.integers(1, 3),
    outward=st.integers(1, 3),
    kernel=st.integers(1, 3),
    size=st.integers(3, 6),
)
def test_convolution_equals_a_count_of_the_loops(batch, groups, inward, outward, kernel, size):
    channels, made, result = groups * inward, groups * outward, size - kernel + 1
    counted = 0
    for _ in np.ndindex(batch, made, result, result):
        counted += 2 * inward * kernel * kernel
    shapes = [(batch, channels, size, size), (made, inward, kernel, kernel)]
    assert flops("Conv", shapes, [(batch, made, result, result)], group=groups) == counted


def test_transposed_convolution_spreads_each_input_over_its_kernel():
    assert flops("ConvTranspose", [(1, 8, 10, 10), (8, 4, 2, 2)], [(1, 4, 20, 20)]) == 2 * 8 * 10 * 10 * 4 * 2 * 2


def test_quantised_convolution_counts_like_the_float_one():
    scalar = ()
    quantised = flops(
        "QLinearConv",
        [(1, 8, 9, 9), scalar, scalar, (16, 8, 3, 3), scalar, scalar, scalar, scalar],
        [(1, 16, 7, 7)],
    )
    assert quantised == flops("Conv", [(1, 8, 9, 9), (16, 8, 3, 3)], [(1, 16, 7, 7)])
    assert quantised == flops("ConvInteger", [(1, 8, 9, 9), (16, 8, 3, 3)], [(1, 16, 7, 7)])


@pytest.mark.parametrize(
    ("left", "right", "out", "expected"),
    [
        ((4, 5), (5, 6), (4, 6), 2 * 4 * 5 * 6),
        ((7, 4, 5), (5, 6), (7, 4, 6), 2 * 7 * 4 * 5 * 6),
        ((2, 1, 4, 5), (3, 5, 6), (2, 3, 4, 6), 2 * 2 * 3 * 4 * 5 * 6),
        ((5,), (5,), (), 2 * 5),
        ((5,), (3, 5, 6), (3, 6), 2 * 3 * 5 * 6),
    ],
)
def test_matrix_product_broadcasts_its_batch(left, right, out, expected):
    for op_type in ("MatMul", "MatMulInteger", "FusedMatMul"):
        assert flops(op_type, [left, right], [out], domain="com.microsoft") == expected


def test_gemm_takes_its_inner_size_from_the_transposed_side():
    assert flops("Gemm", [(5, 4), (5, 6), (6,)], [(4, 6)], transA=1) == 2 * 4 * 5 * 6 + 24
    assert flops("FusedGemm", [(4, 5), (6, 5)], [(4, 6)], transB=1, domain="com.microsoft") == 2 * 4 * 5 * 6


def test_block_quantised_product_also_unpacks_its_weights():
    counted = flops("MatMulNBits", [(3, 64), (32, 2, 16)], [(3, 32)], domain="com.microsoft", K=64, N=32)
    assert counted == 2 * 3 * 64 * 32 + 2 * 64 * 32


@pytest.mark.parametrize(
    ("equation", "shapes", "out", "expected"),
    [
        ("ij,jk->ik", [(4, 5), (5, 6)], (4, 6), 2 * 4 * 5 * 6),
        ("...ij,...jk", [(2, 4, 5), (2, 5, 6)], (2, 4, 6), 2 * 2 * 4 * 5 * 6),
        ("bhid,bhjd->bhij", [(1, 2, 3, 4), (1, 2, 5, 4)], (1, 2, 3, 5), 2 * 2 * 3 * 4 * 5),
        ("ii", [(4, 4)], (), 4),
    ],
)
def test_einsum_multiplies_every_combination_of_labels(equation, shapes, out, expected):
    assert flops("Einsum", shapes, [out], equation=equation) == expected


def test_einsum_whose_labels_do_not_fit_its_operands_is_not_guessed():
    assert flops("Einsum", [(4, 5), (5, 6)], [(4, 6)], equation="ijk,jk->ik") is None


@pytest.mark.parametrize(("op_type", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers_do_both_products_in_each_step_and_direction(op_type, gates):
    steps, batch, size, hidden, directions = 7, 2, 10, 16, 2
    counted = flops(
        op_type,
        [(steps, batch, size), (directions, gates * hidden, size), (directions, gates * hidden, hidden)],
        [(steps, directions, batch, hidden)],
        hidden_size=hidden,
        direction="bidirectional",
    )
    products = 2 * steps * batch * directions * gates * hidden * (size + hidden)
    assert products < counted < products + steps * batch * directions * hidden * 100


def test_attention_written_three_ways_costs_the_same():
    batch, heads, length, size = 2, 4, 10, 8
    hidden = heads * size
    rank4 = [(batch, heads, length, size)] * 3
    rank3 = [(batch, length, hidden)] * 3
    standard = flops("Attention", rank4, [(batch, heads, length, size)])
    assert standard == flops("Attention", rank3, [(batch, length, hidden)], q_num_heads=heads, kv_num_heads=heads)
    assert standard == flops(
        "MultiHeadAttention", rank3, [(batch, length, hidden)], domain="com.microsoft", num_heads=heads
    )
    packed = flops(
        "Attention",
        [(batch, length, hidden), (hidden, 3 * hidden)],
        [(batch, length, hidden)],
        domain="com.microsoft",
        num_heads=heads,
    )
    assert packed - standard == 2 * batch * length * hidden * 3 * hidden
    assert standard > 2 * 2 * batch * heads * length * length * size


def test_pooling_counts_its_window_and_global_pooling_its_input():
    assert flops("MaxPool", [(1, 8, 10, 10)], [(1, 8, 5, 5)], kernel_shape=(2, 2)) == 8 * 5 * 5 * 4
    assert flops("GlobalAveragePool", [(1, 8, 10, 10)], [(1, 8, 1, 1)]) == 800


def test_reductions_and_normalisations_count_what_they_read():
    assert flops("ReduceMean", [(4, 100)], [(4, 1)]) == 400
    assert flops("LayerNormalization", [(4, 100), (100,), (100,)], [(4, 100)]) == 7 * 400
    skip = flops("SkipLayerNormalization", [(4, 100)] * 2 + [(100,)] * 2, [(4, 100)], domain="com.microsoft")
    assert skip == 9 * 400
    assert flops("Softmax", [(4, 100)], [(4, 100)]) == (1 + 1 + 8 + 1 + 4) * 400


def test_elementwise_operators_count_what_they_write_by_weight():
    assert flops("Add", [(4, 1), (1, 5)], [(4, 5)]) == 20
    assert flops("Div", [(4, 5), ()], [(4, 5)]) == 4 * 20
    assert flops("Exp", [(4, 5)], [(4, 5)]) == 8 * 20
    assert flops("Sum", [(4, 5)] * 3, [(4, 5)]) == 2 * 20


def test_movement_costs_no_arithmetic():
    assert flops("Transpose", [(4, 5)], [(5, 4)]) == 0
    assert flops("Gather", [(30000, 768), (INT64, (8,))], [(8, 768)]) == 0


def test_resize_weighs_neighbours_only_along_resized_axes():
    assert flops("Resize", [(1, 2, 4, 4)], [(1, 2, 8, 8)], mode="nearest") == 0
    assert flops("Resize", [(1, 2, 4, 4)], [(1, 2, 8, 4)], mode="linear") == 2 * 2 * 64
    assert flops("Resize", [(1, 2, 4, 4)], [(1, 2, 8, 8)], mode="linear") == 2 * 4 * 128


def test_bytes_are_inputs_read_and_outputs_written():
    assert node_bytes(*one_node("Add", [(4, 5), (5,)], [(4, 5)])) == 4 * (20 + 5 + 20)
    assert node_bytes(*one_node("QuantizeLinear", [(4, 5), (), (INT8, ())], [(INT8, (4, 5))])) == 80 + 4 + 1 + 20


def test_an_operand_used_twice_is_read_once():
    graph = make_graph([("Mul", ["x", "x"], ["y"], {})], {"x": (10,), "y": (10,)})
    assert node_bytes(graph, graph.nodes[0]) == 80


def test_gather_reads_the_rows_it_picks_and_shape_reads_no_data():
    picked = node_bytes(*one_node("Gather", [(30000, 768), (INT64, (8,))], [(8, 768)]))
    assert picked == 2 * 8 * 768 * 4 + 8 * 8
    assert node_bytes(*one_node("Shape", [(30000, 768)], [(INT64, (2,))])) == 32


def test_four_bit_elements_are_packed_two_to_a_byte():
    assert node_bytes(*one_node("Identity", [(22, (7,))], [(22, (7,))])) == 8


def test_unknown_shapes_give_none():
    for shape in ((1, "n"), (1, None), None):
        graph, node = one_node("Relu", [shape], [shape])
        assert node_flops(graph, node) is None
        assert node_bytes(graph, node) is None
        assert intensity(graph, node) is None


def test_intensity_is_flops_per_byte():
    assert intensity(*one_node("Relu", [(100,)], [(100,)])) == pytest.approx(100 / 800)


def test_an_operator_not_in_the_table_counts_as_nothing_and_says_so():
    work = node_work(*one_node("Frobnicate", [(100,)], [(100,)], domain="example.com"))
    assert (work.flops, work.bytes, work.known) == (0, 800, False)


def _body(size: int):
    return make_graph([("Relu", ["a"], ["b"], {})], {"a": (size,), "b": (size,)})


def test_if_costs_its_dearer_branch():
    graph = make_graph(
        [("If", ["c"], ["y"], {})],
        {"c": (9, ()), "y": (10,)},
        bodies={0: [("then_branch", _body(10)), ("else_branch", _body(1000))]},
    )
    assert node_flops(graph, graph.nodes[0]) == 1000


def test_a_body_sees_the_shapes_of_the_graphs_around_it():
    body = make_graph([("Relu", ["outer"], ["b"], {})], {"b": (50,)})
    graph = make_graph(
        [("If", ["c"], ["y"], {})],
        {"c": (9, ()), "outer": (50,), "y": (50,)},
        bodies={0: [("then_branch", body), ("else_branch", body)]},
    )
    assert node_bytes(graph, graph.nodes[0]) == 400


def test_loop_multiplies_its_body_by_a_constant_trip_count_and_else_says_unknown():
    def loop(**constants: int):
        return make_graph(
            [("Loop", ["m", "", "x"], ["y"], {})],
            {"m": (INT64, ()), "x": (10,), "y": (10,)},
            bodies={0: [("body", _body(10))]},
            constants=constants,
        )

    graph = loop(m=5)
    counted = node_work(graph, graph.nodes[0])
    assert (counted.flops, counted.known) == (50, True)
    for graph in (loop(), loop(m=2**63 - 1)):
        endless = node_work(graph, graph.nodes[0])
        assert (endless.flops, endless.known) == (10, False)


def test_scan_runs_once_per_element_of_its_scan_axis():
    graph = make_graph(
        [("Scan", ["s", "x"], ["t", "y"], {"num_scan_inputs": 1})],
        {"s": (10,), "x": (12, 10), "t": (10,), "y": (12, 10)},
        bodies={0: [("body", _body(10))]},
    )
    assert node_flops(graph, graph.nodes[0]) == 120


def test_every_standard_inference_operator_is_in_the_table():
    with_bodies = {"If", "Loop", "Scan", "SequenceMap"}
    # Drafts without a settled definition.
    drafts = {"LinearAttention"}
    missing = {
        schema.name
        for schema in onnx.defs.get_all_schemas()
        if schema.domain == "" and schema.name not in KNOWN_OPERATORS | with_bodies | drafts
    }
    assert missing == set()


def test_fused_operators_of_the_runtime_are_in_the_table():
    fused = {
        *("FusedConv", "FusedGemm", "FusedMatMul", "LayerNormalization", "SkipLayerNormalization", "BiasGelu", "Gelu"),
        *("QuickGelu", "FastGelu", "Attention", "MultiHeadAttention", "EmbedLayerNormalization", "BiasSoftmax"),
        *("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QAttention", "SimplifiedLayerNormalization"),
    }
    assert fused <= KNOWN_OPERATORS


def test_no_operator_is_in_two_tables():
    tables: list[set[str]] = [set(FORMULAS), set(PER_INPUT_ELEMENT), set(PER_OUTPUT_ELEMENT), set(NO_ARITHMETIC)]
    assert sum(map(len, tables)) == len(set().union(*tables))


@given(st.sampled_from(sorted(KNOWN_OPERATORS)), st.lists(st.sampled_from([(), (0,), (3,), (2, 3), (1, 2, 3), None])))
def test_a_malformed_node_never_raises(op_type, shapes):
    work = node_work(*one_node(op_type, shapes, [(2, 3)]))
    assert work.flops is None or work.flops >= 0


@given(st.lists(st.integers(0, 50), max_size=4))
def test_elementwise_flops_grow_with_the_elements(shape):
    assert flops("Relu", [tuple(shape)], [tuple(shape)]) == math.prod(shape)


def test_an_operator_computes_in_the_type_of_its_first_result():
    graph, node = one_node("Cast", [(100,)], [(INT8, (100,))])
    assert operator_work(graph, node).element_type == "int8"
    graph, node = one_node("Relu", [(100,)], [(100,)])
    work = operator_work(graph, node)
    assert (work.op_type, work.flops, work.touched_bytes, work.element_type) == ("Relu", 100, 800, "float32")


def test_what_is_not_known_of_an_operator_promises_nothing():
    graph, node = one_node("Relu", [None], [None])
    work = operator_work(graph, node)
    assert (work.flops, work.touched_bytes) == (0, 0)
