from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.errors import InternalError
from parallax.graph import Dag
from parallax.partition import BranchGraph, NodeClass, classify, find_branches, group_fusions
from parallax.partition._branches import verify_branches, verify_layers
from tests.partition._graphs import dags, op_graph, reachability

# What the paper's example shows: a chain, a splitter, two arms of different length (one with an inner split),
# mergers, and a tail.
#
#   0 - 1 - 2 < 3 - 4 - 5 ----------- > 11 - 12
#             < 6 < 7 - 8 > 10 ------ /
#                 <   9   /
EXAMPLE = Dag.from_edges(
    13,
    [
        *[(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 11)],
        *[(2, 6), (6, 7), (7, 8), (8, 10), (6, 9), (9, 10), (10, 11), (11, 12)],
    ],
)


def test_classes_count_distinct_neighbours_and_take_none_for_one() -> None:
    classes = classify(EXAMPLE)
    assert [index for index, each in enumerate(classes) if each is NodeClass.SPLITTER] == [2, 6]
    assert [index for index, each in enumerate(classes) if each is NodeClass.MERGER] == [10, 11]
    assert NodeClass.SPLIT_MERGE not in classes
    ladder = Dag.from_edges(6, [(0, 2), (1, 2), (0, 3), (1, 3), (2, 4), (3, 4), (2, 5), (3, 5)])
    assert classify(ladder) == (
        *[NodeClass.SPLITTER] * 2,
        *[NodeClass.SPLIT_MERGE] * 2,
        *[NodeClass.MERGER] * 2,
    )


def test_the_example_has_the_branches_and_layers_counted_by_hand() -> None:
    found = find_branches(EXAMPLE)
    verify_branches(EXAMPLE, found)
    verify_layers(found)
    assert [branch.nodes for branch in found.branches] == [
        (0, 1),
        (2,),
        (3, 4, 5),
        (6,),
        (7, 8),
        (9,),
        (10,),
        (11,),
        (12,),
    ]
    assert found.layers == ((0,), (1,), (2, 3), (4, 5), (6,), (7,), (8,))
    assert (found.parallel_layers, found.max_branches) == (2, 2)


def test_a_residual_chain_is_cut_at_its_additions() -> None:
    # splitter 0, conv-conv 1 2, addition 3 (with a successor), twice; the skip is an edge, not a branch.
    dag = Dag.from_edges(7, [(0, 1), (1, 2), (2, 3), (0, 3), (3, 4), (4, 5), (5, 6), (3, 6)])
    found = find_branches(dag)
    assert [branch.nodes for branch in found.branches] == [(0,), (1, 2), (3,), (4, 5), (6,)]
    assert found.branches[2].kind is NodeClass.SPLIT_MERGE
    assert found.parallel_layers == 0


def test_disconnected_parts_share_layers() -> None:
    found = find_branches(Dag.from_edges(5, [(0, 1), (2, 3), (3, 4)]))
    assert [branch.nodes for branch in found.branches] == [(0, 1), (2, 3, 4)]
    assert found.layers == ((0, 1),)


def test_control_flow_is_a_split_merge_whatever_its_degrees() -> None:
    body = op_graph([("inner", "Neg", ["a"], ["r"])], outputs=["r"])
    graph = op_graph(
        [
            ("a", "Relu", ["x"], ["a"]),
            ("b", "Relu", ["a"], ["b"]),
            ("cond", "If", ["b"], ["c"]),
            ("d", "Relu", ["c"], ["d"]),
        ],
        outputs=["d"],
        bodies={"cond": body},
    )
    groups = group_fusions(graph)
    found = find_branches(groups.dag, control_flow=groups.control_flow)
    verify_branches(groups.dag, found)
    assert [(branch.nodes, branch.kind) for branch in found.branches] == [
        ((0, 1), NodeClass.SEQUENTIAL),
        ((2,), NodeClass.SPLIT_MERGE),
        ((3,), NodeClass.SEQUENTIAL),
    ]


def test_a_chain_stops_at_a_region() -> None:
    dag = Dag.from_edges(5, [(0, 1), (1, 2), (2, 3), (3, 4)])
    found = find_branches(dag, regions={2})
    verify_branches(dag, found)
    assert [branch.nodes for branch in found.branches] == [(0, 1), (2,), (3, 4)]


@given(dags(), st.data())
def test_branches_of_any_graph_satisfy_the_invariants(dag: Dag, data: st.DataObject) -> None:
    marks = st.sets(st.integers(0, max(len(dag) - 1, 0)), max_size=4) if len(dag) else st.just(set())
    found = find_branches(dag, control_flow=data.draw(marks), regions=data.draw(marks))
    verify_branches(dag, found)
    verify_layers(found)
    below = reachability(found.dag)
    for layer in found.layers:
        for one in layer:
            assert not below[one] & set(layer), "a layer is an antichain"
    for branch in found.branches:
        preds = found.dag.predecessors[branch.index]
        assert branch.layer == max((found.branches[pred].layer + 1 for pred in preds), default=0), (
            "no later than it must"
        )


@given(dags())
def test_chains_are_as_long_as_can_be(dag: Dag) -> None:
    found = find_branches(dag)
    for tail, targets in enumerate(dag.successors):
        for head in targets:
            kinds = {found.branches[found.branch_of[node]].kind for node in (tail, head)}
            if kinds == {NodeClass.SEQUENTIAL}:
                assert found.branch_of[tail] == found.branch_of[head]


def test_a_long_chain_is_one_branch() -> None:
    size = 50_000
    found = find_branches(Dag.from_edges(size, [(node, node + 1) for node in range(size - 1)]))
    assert len(found.branches) == 1


def _broken(change: str) -> BranchGraph:
    found = find_branches(EXAMPLE)
    branches = list(found.branches)
    match change:
        case "lost node":
            branches[0] = dataclasses.replace(branches[0], nodes=(0,))
        case "shared node":
            branches[3] = dataclasses.replace(branches[3], nodes=(6, 5))
        case "no chain":
            branches[2] = dataclasses.replace(branches[2], nodes=(3, 5, 4))
        case "empty":
            branches[1] = dataclasses.replace(branches[1], nodes=())
        case "edges":
            rows = list(found.dag.predecessors)
            rows[8] = (6,)
            return dataclasses.replace(found, dag=Dag.from_predecessors(rows))
        case "entered in the middle":
            # 2 is a splitter: 6 leaves the chain before its end.
            merged = dataclasses.replace(branches[0], nodes=(0, 1, 2, 3, 4, 5))
            rest = [dataclasses.replace(each, index=each.index - 2) for each in branches[3:]]
            home = {node: each.index for each in (merged, *rest) for node in each.nodes}
            branch_of = tuple(home[node] for node in range(13))
            return dataclasses.replace(
                found, branches=(merged, *rest), branch_of=branch_of, dag=EXAMPLE.quotient(branch_of, 7)
            )
    return dataclasses.replace(found, branches=tuple(branches))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lost node", "do not cover"),
        ("shared node", "node 5 is in branches 2 and 3"),
        ("no chain", "no chain"),
        ("empty", "empty"),
        ("edges", "edges differ"),
        ("entered in the middle", "no chain between nodes 2 and 3"),
    ],
)
def test_the_judge_of_branches_finds_broken_ones(change: str, message: str) -> None:
    with pytest.raises(InternalError, match=message):
        verify_branches(EXAMPLE, _broken(change))


def test_the_judge_of_branches_finds_a_cycle() -> None:
    # Two chains that need each other once a node is moved: {0, 3} is no chain, so the edges must be made up.
    dag = Dag.from_edges(2, [(0, 1)])
    found = find_branches(dag, regions={0, 1})
    looped = dataclasses.replace(found, dag=Dag(predecessors=((1,), (0,)), successors=((1,), (0,))))
    with pytest.raises(InternalError, match="edges differ"):
        verify_branches(dag, looped)
    with pytest.raises(InternalError, match="on cycles"):
        verify_branches(Dag(predecessors=((1,), (0,)), successors=((1,), (0,))), looped)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (((0,), (1,), (2, 3), (4, 5), (6,), (7, 8)), "says layer|no antichain"),
        (((0,), (1,), (2, 3), (4, 5), (6,), (7,)), "in no layer"),
        (((0,), (1,), (2, 3), (4, 5), (6,), (7,), (8, 8)), "two layers"),
        (((0,), (1,), (2, 3), (4, 5), (6,), (7,), (8,), ()), "empty"),
    ],
)
def test_the_judge_of_layers_finds_broken_ones(layers: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(InternalError, match=message):
        verify_layers(dataclasses.replace(find_branches(EXAMPLE), layers=layers))


def test_the_judge_of_layers_finds_dependent_branches_in_one() -> None:
    found = find_branches(EXAMPLE)
    branches = (*found.branches[:8], dataclasses.replace(found.branches[8], layer=5))
    with pytest.raises(InternalError, match="branch 8 needs branch 7"):
        verify_layers(dataclasses.replace(found, branches=branches, layers=(*found.layers[:5], (7, 8))))
