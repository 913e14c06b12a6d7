from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.errors import ConfigError
from parallax.model import load_model
from parallax.partition import FusionGroups, group_fusions
from parallax.partition.candidates import by_weight, crossing_bytes, find_boundaries, group_weights
from parallax.partition.candidates._by_weight import SEGMENT_COST_BYTES, bytes_across, lookup_tables
from parallax.partition.candidates._segments import verify_partition
from parallax.zoo import load
from tests.partition._graphs import FLOAT, edge_lists, graph_of_edges, op_graph


def ends_of(groups: FusionGroups, weights: Sequence[int], bound: int, sizes: dict[str, int]) -> list[int]:
    partition = by_weight(groups, weights, segment_bytes=bound, crossing=sizes)
    verify_partition(groups, partition)
    return [segment.groups[-1] + 1 for segment in partition.segments]


def cost_of(held: Sequence[int], ends: Sequence[int]) -> int:
    return sum(held[end] + SEGMENT_COST_BYTES for end in ends[:-1])


def fits(weights: Sequence[int], bound: int, low: int, high: int) -> bool:
    heavy = [weight for weight in weights[low:high] if weight]
    return sum(heavy) <= bound or len(heavy) == 1


@st.composite
def weighted(draw: st.DrawFn, max_size: int) -> tuple[FusionGroups, list[int], int, dict[str, int]]:
    size, edges = draw(edge_lists(max_size))
    groups = group_fusions(graph_of_edges(size, edges))
    weights = draw(st.lists(st.integers(0, 9), min_size=len(groups), max_size=len(groups)))
    sizes = {name: draw(st.integers(0, 3 * SEGMENT_COST_BYTES)) for name in groups.crossing}
    return groups, weights, draw(st.integers(1, 20)), sizes


@given(weighted(60))
def test_segments_are_a_chain_of_runs_within_the_bound(
    drawn: tuple[FusionGroups, list[int], int, dict[str, int]],
) -> None:
    groups, weights, bound, sizes = drawn
    ends = ends_of(groups, weights, bound, sizes)
    assert ends == sorted(set(ends))
    assert (ends[-1] if ends else 0) == len(groups)
    for low, high in itertools.pairwise([0, *ends]):
        assert fits(weights, bound, low, high)


@given(weighted(10))
def test_no_other_chain_within_the_bound_holds_fewer_bytes_across_its_cuts(
    drawn: tuple[FusionGroups, list[int], int, dict[str, int]],
) -> None:
    groups, weights, bound, sizes = drawn
    held = bytes_across(groups, sizes)
    least = min(
        cost_of(held, [*cuts, len(groups)])
        for count in range(max(1, len(groups)))
        for cuts in itertools.combinations(range(1, len(groups)), count)
        if all(fits(weights, bound, low, high) for low, high in itertools.pairwise([0, *cuts, len(groups)]))
    )
    assert cost_of(held, ends_of(groups, weights, bound, sizes)) == least


@given(edge_lists(30))
def test_bytes_across_a_cut_are_those_of_the_tensors_that_cross_it(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    groups = group_fusions(graph_of_edges(*drawn))
    sizes = {name: 1 + position for position, name in enumerate(groups.crossing)}
    for cut, held in enumerate(bytes_across(groups, sizes)):
        made = {name for names in groups.writes[:cut] for name in names}
        assert held == sum(sizes[name] for name in made & {name for names in groups.reads[cut:] for name in names})


def test_a_group_heavier_than_the_bound_shares_its_segment_with_no_other_weights() -> None:
    groups = group_fusions(graph_of_edges(5, [(0, 1), (1, 2), (2, 3), (3, 4)]))
    assert ends_of(groups, [1, 0, 50, 0, 1], 10, {}) in ([1, 4, 5], [2, 3, 5], [2, 4, 5], [1, 3, 5])


def test_what_fits_is_not_cut() -> None:
    groups = group_fusions(graph_of_edges(3, [(0, 1), (1, 2)]))
    assert ends_of(groups, [3, 3, 4], 10, {}) == [3]


def test_a_bound_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="segment_bytes is 0"):
        by_weight(group_fusions(graph_of_edges(1, [])), [1], segment_bytes=0, crossing={})


def test_a_table_that_is_only_gathered_from_weighs_nothing_and_one_that_is_multiplied_too_does() -> None:
    nodes = [
        ("rows", "Gather", ["table", "ids"], ["found"]),
        ("other", "Gather", ["tied", "ids"], ["more"]),
        ("logits", "MatMul", ["found", "tied"], ["y"]),
    ]
    graph = op_graph(
        nodes,
        outputs=["y", "more"],
        shapes={"table": (100, 8), "tied": (8, 50)},
        initializers=["table", "tied"],
    )
    assert graph.initializers["table"].dtype == FLOAT
    assert lookup_tables(graph) == {"table"}
    groups = group_fusions(graph)
    assert sorted(group_weights(graph, groups)) == [0, 1600, 1600]


def test_a_transformer_is_cut_into_segments_that_hold_all_its_weights_once() -> None:
    model = load_model(load("whisper-tiny-encoder"))
    graph = model.inferred()
    groups = group_fusions(graph, may_cross=model.can_split_at)
    weights = group_weights(graph, groups)
    assert 0.99 * model.weight_bytes <= sum(weights) <= 1.01 * model.weight_bytes
    partition = by_weight(groups, weights, segment_bytes=4 << 20, crossing=crossing_bytes(graph, groups), width=2)
    verify_partition(groups, partition)
    assert len(partition.segments) >= sum(weights) // (4 << 20)
    read = {info.name for info in graph.inputs}
    for boundary in find_boundaries(graph, groups, partition):
        assert read.issuperset(boundary.inputs), "nothing is read before it is there"
        read.update(boundary.outputs)
