from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.errors import InternalError
from parallax.graph import Dag, OpGraph
from parallax.graph._dag import verify_convex
from parallax.partition import FusionGroups, group_fusions
from parallax.partition._fusion_groups import verify_groups
from tests.partition._graphs import edge_lists, graph_of_edges, op_graph, reachability


def test_without_limits_every_node_is_a_group() -> None:
    graph = graph_of_edges(4, [(0, 1), (0, 2), (1, 3), (2, 3)])
    groups = group_fusions(graph)
    assert groups.members == ((0,), (1,), (2,), (3,))
    assert groups.dag == Dag.from_graph(graph)
    assert groups.reads == ((), ("t0",), ("t0",), ("t1", "t2"))
    assert groups.crossing == ("t0", "t1", "t2")


def test_a_tensor_that_is_not_fusion_safe_joins_its_producer_and_readers() -> None:
    # conv -> relu is fused by the backend, so 'a' is not fusion-safe.
    graph = op_graph(
        [
            ("conv1", "Conv", ["x", "w"], ["a"]),
            ("relu1", "Relu", ["a"], ["b"]),
            ("conv2", "Conv", ["b", "w"], ["c"]),
            ("add", "Add", ["b", "c"], ["y"]),
        ],
        outputs=["y"],
        initializers=["w"],
    )
    groups = group_fusions(graph, fusion_safe=frozenset({"b", "c", "y"}))
    verify_groups(graph, groups, fusion_safe=frozenset({"b", "c", "y"}))
    assert groups.members == ((0, 1), (2,), (3,))
    assert groups.crossing == ("b", "c")


def test_a_further_condition_on_names_is_obeyed() -> None:
    graph = graph_of_edges(3, [(0, 1), (1, 2)])
    assert group_fusions(graph, may_cross=lambda name: name != "t1").members == ((0,), (1, 2))
    assert group_fusions(graph, fusion_safe=frozenset({"t1"}), may_cross=lambda name: name != "t1").members == (
        (0, 1, 2),
    )


def test_a_cycle_among_groups_is_merged_away() -> None:
    # 0 and 3 are joined; 0 -> 1 -> 3 would leave the group and come back, 0 -> 2 is free to go.
    graph = op_graph(
        [
            ("n0", "Split", ["x"], ["a", "b"]),
            ("n1", "Relu", ["b"], ["c"]),
            ("n2", "Relu", ["b"], ["z"]),
            ("n3", "Add", ["a", "c"], ["y"]),
        ],
        outputs=["y", "z"],
    )
    fusion_safe = frozenset({"b", "c"})
    groups = group_fusions(graph, fusion_safe=fusion_safe)
    verify_groups(graph, groups, fusion_safe=fusion_safe)
    assert groups.members == ((0, 1, 3), (2,))


def test_groups_are_ordered_topologically_even_where_their_first_nodes_are_not() -> None:
    # Group {0, 3} needs node 2, which needs node 1: the group with the smallest node comes last.
    graph = op_graph(
        [
            ("n0", "Relu", ["x"], ["a"]),
            ("n1", "Relu", ["x"], ["b"]),
            ("n2", "Relu", ["b"], ["c"]),
            ("n3", "Add", ["a", "c"], ["y"]),
        ],
        outputs=["y"],
    )
    groups = group_fusions(graph, fusion_safe=frozenset({"b", "c"}))
    verify_groups(graph, groups, fusion_safe=frozenset({"b", "c"}))
    assert groups.members == ((1,), (2,), (0, 3))
    assert groups.group_of == (2, 0, 1, 2)


def test_each_reader_of_a_constant_has_a_copy() -> None:
    graph = op_graph(
        [
            ("two", "Constant", [], ["two"]),
            ("left", "Mul", ["x", "two"], ["a"]),
            ("right", "Pow", ["x", "two"], ["b"]),
            ("join", "Add", ["a", "b"], ["y"]),
        ],
        outputs=["y"],
    )
    groups = group_fusions(graph, fusion_safe=frozenset({"a", "b"}))
    verify_groups(graph, groups, fusion_safe=frozenset({"a", "b"}))
    assert groups.members == ((0, 1), (0, 2), (3,))
    assert groups.replicated == {0}
    assert groups.crossing == ("a", "b")
    assert groups.group_costs([100, 1, 2, 4]) == (1, 2, 4)
    assert groups.nodes_of([0, 1]) == (0, 1, 2)


def test_what_is_folded_from_constants_is_copied_with_them() -> None:
    graph = op_graph(
        [
            ("shape", "Constant", [], ["shape"]),
            ("zeros", "ConstantOfShape", ["shape"], ["zeros"]),
            ("left", "Add", ["x", "zeros"], ["a"]),
            ("right", "Sub", ["x", "zeros"], ["b"]),
        ],
        outputs=["a", "b"],
        shapes={"zeros": (8,)},
    )
    groups = group_fusions(graph)
    verify_groups(graph, groups)
    assert groups.members == ((0, 1, 2), (0, 1, 3))


def test_a_large_folded_constant_with_two_readers_is_computed_once_and_may_be_cut() -> None:
    graph = op_graph(
        [
            ("turned", "Transpose", ["w"], ["turned"]),
            ("left", "MatMul", ["x", "turned"], ["a"]),
            ("right", "MatMul", ["z", "turned"], ["b"]),
        ],
        outputs=["a", "b"],
        initializers=["w"],
        shapes={"w": (4096, 4096), "turned": (4096, 4096)},
    )
    groups = group_fusions(graph, fusion_safe=frozenset())
    verify_groups(graph, groups, fusion_safe=frozenset())
    assert groups.members == ((0,), (1,), (2,))
    assert not groups.replicated


def test_a_large_folded_constant_with_one_reader_joins_it() -> None:
    graph = op_graph(
        [("turned", "Transpose", ["w"], ["turned"]), ("mm", "MatMul", ["x", "turned"], ["y"])],
        outputs=["y"],
        initializers=["w"],
        shapes={"turned": (4096, 4096)},
    )
    assert group_fusions(graph).members == ((0, 1),)


def test_an_overridable_initializer_is_no_constant() -> None:
    graph = op_graph(
        [("neg", "Neg", ["w"], ["n"]), ("a", "Add", ["x", "n"], ["a"]), ("b", "Sub", ["x", "n"], ["b"])],
        outputs=["a", "b"],
        initializers=["w"],
        shapes={"w": (2,), "n": (2,)},
    )
    assert group_fusions(graph).replicated == {0}
    fed = dataclasses.replace(graph, overridable=(graph.tensors["w"],))
    assert group_fusions(fed, tiny_elements=0).members == ((0,), (1,), (2,))


def test_random_constants_are_not_copied() -> None:
    graph = op_graph(
        [("noise", "RandomNormal", [], ["r"]), ("a", "Add", ["x", "r"], ["a"]), ("b", "Sub", ["x", "r"], ["b"])],
        outputs=["a", "b"],
        shapes={"r": (2,)},
    )
    assert group_fusions(graph).members == ((0,), (1,), (2,))


def test_a_constant_the_model_returns_stays_in_one_place() -> None:
    graph = op_graph(
        [("two", "Constant", [], ["two"]), ("a", "Add", ["x", "two"], ["a"]), ("b", "Sub", ["x", "two"], ["b"])],
        outputs=["a", "b", "two"],
    )
    groups = group_fusions(graph)
    verify_groups(graph, groups)
    assert groups.members == ((0,), (1,), (2,))
    assert groups.crossing == ("two",)


def test_a_copy_never_reads_a_constant_that_is_not_copied() -> None:
    # 'size' is small, but made from a constant the model returns.
    graph = op_graph(
        [
            ("kept", "Constant", [], ["kept"]),
            ("size", "Shape", ["kept"], ["size"]),
            ("a", "Reshape", ["x", "size"], ["a"]),
            ("b", "Reshape", ["z", "size"], ["b"]),
        ],
        outputs=["a", "b", "kept"],
        shapes={"size": (1,)},
    )
    groups = group_fusions(graph, fusion_safe=frozenset(), tiny_elements=0)
    verify_groups(graph, groups, fusion_safe=frozenset())
    assert groups.members == ((0,), (1,), (2,), (3,))


def test_shape_arithmetic_joins_what_it_measures() -> None:
    graph = op_graph(
        [
            ("conv", "Conv", ["x", "w"], ["a"]),
            ("shape", "Shape", ["a"], ["s"]),
            ("pick", "Gather", ["s", "zero"], ["n"]),
            ("left", "Relu", ["a"], ["b"]),
            ("right", "Reshape", ["b", "n"], ["y"]),
        ],
        outputs=["y"],
        initializers=["w", "zero"],
        shapes={"s": (4,), "zero": (1,), "n": (1,), "a": (1, 64, 80, 80)},
    )
    groups = group_fusions(graph)
    verify_groups(graph, groups)
    assert groups.members == ((0, 1, 2), (3,), (4,))
    assert group_fusions(graph, tiny_elements=0).members == ((0,), (1,), (2,), (3,), (4,))


def test_shape_arithmetic_on_two_tensors_joins_its_only_reader() -> None:
    graph = op_graph(
        [
            ("p", "Conv", ["x", "w"], ["p"]),
            ("q", "Conv", ["x", "w"], ["q"]),
            ("sp", "Shape", ["p"], ["sp"]),
            ("sq", "Shape", ["q"], ["sq"]),
            ("sum", "Add", ["sp", "sq"], ["s"]),
            ("end", "Expand", ["p", "s"], ["y"]),
        ],
        outputs=["y", "q"],
        initializers=["w"],
        shapes={"sp": (4,), "sq": (4,), "s": (4,), "p": (1, 64, 80, 80), "q": (1, 64, 80, 80)},
    )
    groups = group_fusions(graph)
    verify_groups(graph, groups)
    assert groups.members == ((0, 2), (1, 3), (4, 5))


def test_dead_nodes_never_make_a_group_without_results() -> None:
    graph = op_graph(
        [
            ("a", "Relu", ["x"], ["a"]),
            ("unused", "Exp", ["a"], ["u"]),
            ("y", "Neg", ["a"], ["y"]),
            ("unread", "Constant", [], ["c"]),
        ],
        outputs=["y"],
    )
    groups = group_fusions(graph)
    verify_groups(graph, groups)
    assert groups.members == ((0, 3), (1, 2))


@pytest.mark.parametrize("rows", [[], [("c", "Constant", [], ["c"])], [("dead", "Relu", ["x"], ["u"])]])
def test_graphs_without_work_are_contracted_too(rows: list[tuple[str, str, list[str], list[str]]]) -> None:
    graph = op_graph(rows, outputs=["x"])
    groups = group_fusions(graph)
    verify_groups(graph, groups)
    assert len(groups) == len(rows)


def test_control_flow_is_marked_and_its_captures_are_dependencies() -> None:
    body = op_graph([("inner", "Neg", ["a"], ["r"])], outputs=["r"])
    graph = op_graph(
        [("a", "Relu", ["x"], ["a"]), ("cond", "If", ["c"], ["y"])],
        outputs=["y"],
        bodies={"cond": body},
        captures={"cond": ["a"]},
    )
    groups = group_fusions(graph)
    verify_groups(graph, groups)
    assert groups.members == ((0,), (1,))
    assert groups.control_flow == {1}
    assert groups.reads == ((), ("a",))


@given(edge_lists(), st.data())
def test_any_fusion_safe_tensors_give_convex_groups_in_topological_order(
    drawn: tuple[int, list[tuple[int, int]]], data: st.DataObject
) -> None:
    graph = graph_of_edges(*drawn)
    fusion_safe = (
        frozenset(data.draw(st.sets(st.sampled_from(sorted(graph.producers))))) if graph.producers else frozenset()
    )
    groups = group_fusions(graph, fusion_safe=fusion_safe)
    verify_groups(graph, groups, fusion_safe=fusion_safe)
    for members in groups.members:
        verify_convex(Dag.from_graph(graph), members)


@given(edge_lists(max_size=25), st.data())
def test_contraction_merges_no_more_than_it_must(drawn: tuple[int, list[tuple[int, int]]], data: st.DataObject) -> None:
    """Oracle: the finest partition closed under sharing a tensor that may not cross and lying on a common cycle."""
    graph = graph_of_edges(*drawn)
    fusion_safe = (
        frozenset(data.draw(st.sets(st.sampled_from(sorted(graph.producers))))) if graph.producers else frozenset()
    )
    leader_of = list(range(len(graph.nodes)))

    def merge(one: int, other: int) -> None:
        low, high = sorted((leader_of[one], leader_of[other]))
        leader_of[:] = [low if each == high else each for each in leader_of]

    for name, readers in graph.consumers.items():
        if name in graph.producers and name not in fusion_safe:
            for reader in readers:
                merge(graph.producers[name], reader)
    changed = True
    while changed:
        changed = False
        reach = {each: {each} for each in leader_of}
        for _ in leader_of:
            for head, preds in enumerate(graph.predecessors):
                for tail in preds:
                    for each in reach:
                        if leader_of[tail] in reach[each]:
                            reach[each].add(leader_of[head])
        for one in range(len(leader_of)):
            for other in range(one):
                if (
                    leader_of[one] != leader_of[other]
                    and leader_of[one] in reach[leader_of[other]]
                    and leader_of[other] in reach[leader_of[one]]
                ):
                    merge(one, other)
                    changed = True
    expected = {tuple(node for node in range(len(leader_of)) if leader_of[node] == each) for each in leader_of}
    assert set(group_fusions(graph, fusion_safe=fusion_safe).members) == expected


def _diamond() -> tuple[OpGraph, FusionGroups]:
    graph = graph_of_edges(4, [(0, 1), (0, 2), (1, 3), (2, 3)])
    return graph, group_fusions(graph)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"members": ((0,), (1,), (2,), ())}, "empty"),
        ({"members": ((0,), (1,), (2,), (2, 3))}, "disagree"),
        ({"members": ((0,), (1,), (2,), (2, 3)), "replicated": frozenset({2})}, "depends on the inputs"),
        ({"members": ((1,), (0,), (2,), (3,)), "group_of": (1, 0, 2, 3)}, "from the later group"),
        ({"group_of": (0, 2, 1, 3)}, "group_of"),
        ({"dag": Dag.from_edges(4, [(0, 1), (0, 2), (1, 3)])}, "edges differ"),
        ({"writes": (("t0",), ("t1",), (), ())}, "crossing tensors"),
    ],
)
def test_the_judge_of_groups_finds_broken_ones(change: dict[str, object], message: str) -> None:
    graph, groups = _diamond()
    verify_groups(graph, groups)
    with pytest.raises(InternalError, match=message):
        verify_groups(graph, dataclasses.replace(groups, **change))  # type: ignore[arg-type]


def test_the_judge_of_groups_finds_a_cut_through_a_tensor_that_is_not_fusion_safe() -> None:
    graph, groups = _diamond()
    with pytest.raises(InternalError, match="'t1', which is not fusion-safe"):
        verify_groups(graph, groups, fusion_safe=frozenset({"t0", "t2"}))


def test_reachability_oracle_counts_itself_out() -> None:
    assert reachability(Dag.from_edges(3, [(0, 1), (1, 2)])) == [{1, 2}, {2}, set()]
