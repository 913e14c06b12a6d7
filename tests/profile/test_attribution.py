"""Tracing optimised nodes back to the model's own, on graphs by hand."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.graph import OpGraph
from parallax.profile._attribution import find_covers, join_covers, split_times
from tests.profile.graphs import make_graph


def graph(*nodes: tuple[str, str, str, str], constants: tuple[str, ...] = ()) -> OpGraph:
    """Nodes as (name, operator, inputs, outputs), the last two separated by spaces."""
    made = make_graph([(op, inputs.split(), outputs.split(), {}) for _, op, inputs, outputs in nodes], {})
    named = tuple(dataclasses.replace(node, name=name) for node, (name, *_) in zip(made.nodes, nodes, strict=True))
    initializers = {name: made.tensors.get(name) for name in constants}
    return dataclasses.replace(made, nodes=named, initializers=initializers)


CONV_BN_RELU = graph(("conv", "Conv", "x w", "c"), ("bn", "BatchNormalization", "c s", "b"), ("relu", "Relu", "b", "r"))


def test_a_graph_covers_itself_node_by_node():
    assert find_covers(CONV_BN_RELU, CONV_BN_RELU) == ((0,), (1,), (2,))


def test_a_fused_node_covers_everything_back_from_its_output():
    fused = graph(("conv", "FusedConv", "x w2 b2", "r"))
    assert find_covers(CONV_BN_RELU, fused) == ((0, 1, 2),)


def test_a_fused_node_with_a_new_name_is_known_by_its_output():
    assert find_covers(CONV_BN_RELU, graph(("fused_7", "FusedConv", "x w2 b2", "r"))) == ((0, 1, 2),)


def test_walking_back_stops_at_tensors_that_survived():
    optimised = graph(("conv_bn", "Conv", "x w2 b2", "b"), ("act", "Relu", "b", "r"))
    assert find_covers(CONV_BN_RELU, optimised) == ((0, 1), (2,))


def test_what_was_folded_into_a_constant_is_covered_by_nobody():
    original = graph(("shape", "Shape", "w", "s"), ("expand", "Expand", "x s", "y"))
    folded = graph(("expand", "Expand", "x s", "y"), constants=("s",))
    assert find_covers(original, folded) == ((1,),)


def test_each_original_is_claimed_once_where_two_branches_share_it():
    original = graph(
        ("shared", "Relu", "x", "a"), ("left", "Neg", "a", "b"), ("right", "Abs", "a", "c"), ("end", "Add", "b c", "y")
    )
    optimised = graph(("l", "FusedNeg", "x", "b"), ("r", "FusedAbs", "x", "c"), ("end", "Add", "b c", "y"))
    covers = find_covers(original, optimised)
    claimed = [index for cover in covers for index in cover]
    assert sorted(claimed) == [0, 1, 2, 3]


def test_the_layout_pass_names_nodes_after_the_outputs_they_had():
    fused = graph(("conv1", "FusedConv", "x w", "r"), ("conv2", "FusedConv", "r w2", "y"))
    layout = graph(
        ("ReorderInput", "ReorderInput", "x", "token_0"),
        ("r_nchwc", "Conv", "token_0 w", "token_1"),
        ("y_nchwc", "Conv", "token_1 w2", "token_2"),
        ("ReorderOutput", "ReorderOutput", "token_2", "y"),
    )
    assert find_covers(fused, layout) == ((0,), (0,), (1,), (1,))


def test_reshapes_inserted_around_a_product_belong_to_it_or_to_what_it_swallowed():
    original = graph(("mm", "MatMul", "x w", "p"), ("add", "Add", "p b", "y"))
    optimised = graph(
        ("gemm_input_reshape", "Reshape", "x s", "i"),
        ("mm/MatMulAddFusion", "Gemm", "i w b", "o"),
        ("gemm_output_reshape", "Reshape", "o s2", "y"),
    )
    before, product, after = find_covers(original, optimised)
    assert product == (0,)
    assert set(before) | set(after) <= {0, 1}
    assert before
    assert after


def test_a_chain_of_inserted_nodes_leads_to_the_operator_it_feeds():
    original = graph(("relu", "Relu", "x", "y"))
    optimised = graph(("c1", "Cast", "x", "a"), ("c2", "Cast", "a", "b"), ("relu", "Relu", "b", "t"))
    assert find_covers(original, optimised) == ((0,), (0,), (0,))


def test_a_chain_at_the_end_belongs_to_the_operator_it_follows():
    original = graph(("relu", "Relu", "x", "y"))
    optimised = graph(("relu", "Relu", "x", "t"), ("c1", "Cast", "t", "u"), ("c2", "Cast", "u", "v"))
    assert find_covers(original, optimised) == ((0,), (0,), (0,))


def test_covers_of_two_steps_join():
    assert join_covers(((0,), (0, 1), ()), ((4,), (2, 3))) == ((4,), (2, 3, 4), ())


def test_time_is_split_by_flops_and_the_rest_goes_to_the_heaviest():
    assert split_times([100], [(0, 1, 2)], [10, 0, 30]) == [25, 0, 75]
    assert split_times([10], [(0, 1)], [1, 2]) == [3, 7]


def test_where_nothing_weighs_the_last_takes_all():
    assert split_times([9], [(0, 1)], [0, 0]) == [0, 9]


@st.composite
def covered(draw):
    nodes = draw(st.integers(1, 8))
    weights = draw(st.lists(st.integers(0, 10**12), min_size=nodes, max_size=nodes))
    covers = draw(st.lists(st.sets(st.integers(0, nodes - 1), min_size=1).map(lambda s: tuple(sorted(s))), max_size=6))
    times = draw(st.lists(st.integers(0, 10**10), min_size=len(covers), max_size=len(covers)))
    return times, covers, weights


@given(covered())
def test_no_time_is_lost_or_made(case):
    times, covers, weights = case
    shares = split_times(times, covers, weights)
    assert sum(shares) == sum(times)
    assert min(shares) >= 0


@st.composite
def fused_chain(draw):
    """A chain of operators, and the same chain with runs of them fused under new or kept names."""
    length = draw(st.integers(1, 12))
    original = graph(*((f"n{i}", "Relu", f"t{i}", f"t{i + 1}") for i in range(length)))
    cuts = sorted({0, length, *draw(st.sets(st.integers(0, length)))})
    fused = []
    for start, end in itertools.pairwise(cuts):
        kept = draw(st.none() | st.integers(start, end - 1))
        fused.append((f"fused_{start}" if kept is None else f"n{kept}", "Fused", f"t{start}", f"t{end}"))
    return original, graph(*fused), cuts


@given(fused_chain())
def test_a_fused_chain_is_covered_exactly(case):
    original, optimised, cuts = case
    covers = find_covers(original, optimised)
    assert covers == tuple(tuple(range(start, end)) for start, end in itertools.pairwise(cuts))


def test_an_empty_original_covers_nothing():
    assert find_covers(make_graph([], {}), CONV_BN_RELU) == ((), (), ())


@pytest.mark.parametrize("length", [20_000])
def test_long_chains_need_no_recursion(length):
    original = graph(*((f"n{i}", "Relu", f"t{i}", f"t{i + 1}") for i in range(length)))
    optimised = graph(("fused", "Fused", "t0", f"t{length}"))
    assert find_covers(original, optimised) == (tuple(range(length)),)
