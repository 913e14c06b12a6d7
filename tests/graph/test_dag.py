from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.errors import InternalError
from parallax.graph import Dag, find_barriers
from parallax.graph._dag import verify_convex, verify_dag
from tests.partition._graphs import dags, edge_lists, reachability


@given(edge_lists())
def test_constructors_agree_and_keep_the_invariants(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    size, edges = drawn
    dag = Dag.from_edges(size, [*edges, *edges])
    verify_dag(dag)
    assert dag == Dag.from_predecessors([[tail for tail, head in edges if head == node] for node in range(size)])


@pytest.mark.parametrize("edge", [(1, 0), (1, 1), (0, 3), (-1, 1)])
def test_an_edge_against_the_order_is_refused(edge: tuple[int, int]) -> None:
    with pytest.raises(InternalError, match="topological order"):
        Dag.from_edges(3, [edge])


def test_a_quotient_against_the_order_is_refused() -> None:
    dag = Dag.from_edges(3, [(0, 1), (1, 2)])
    assert dag.quotient([0, 0, 1], 2) == Dag.from_edges(2, [(0, 1)])
    with pytest.raises(InternalError, match="topological order"):
        dag.quotient([0, 1, 0], 2)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Dag(predecessors=((), (0,)), successors=((), ())), "mirror"),
        (Dag(predecessors=((1,), ()), successors=((), (0,))), "topological order"),
        (Dag(predecessors=((), (0, 0)), successors=((1,), ())), "distinct and ascending"),
        (Dag(predecessors=((),), successors=()), "rows"),
    ],
)
def test_the_judge_of_dags_finds_broken_ones(broken: Dag, message: str) -> None:
    with pytest.raises(InternalError, match=message):
        verify_dag(broken)


@given(dags())
def test_barriers_are_exactly_the_nodes_comparable_with_all_others(dag: Dag) -> None:
    below = reachability(dag)
    comparable = [
        node
        for node in range(len(dag))
        if all(other == node or other in below[node] or node in below[other] for other in range(len(dag)))
    ]
    assert find_barriers(dag) == comparable


@given(dags(), st.data())
def test_rough_barriers_are_the_weighty_nodes_comparable_with_all_weighty_others(dag: Dag, data: st.DataObject) -> None:
    is_significant = data.draw(st.lists(st.booleans(), min_size=len(dag), max_size=len(dag)))
    below = reachability(dag)
    heavy = [node for node in range(len(dag)) if is_significant[node]]
    comparable = [
        node for node in heavy if all(other == node or other in below[node] or node in below[other] for other in heavy)
    ]
    assert find_barriers(dag, is_significant) == comparable


def test_a_residual_connection_does_not_hide_barriers() -> None:
    # 0 -> 1 -> 2 -> 3 with a skip 0 -> 3: nothing can run beside any of them.
    assert find_barriers(Dag.from_edges(4, [(0, 1), (1, 2), (2, 3), (0, 3)])) == [0, 1, 2, 3]
    # A diamond: its two arms are no barriers.
    assert find_barriers(Dag.from_edges(4, [(0, 1), (0, 2), (1, 3), (2, 3)])) == [0, 3]
    # Two parts without a connection: none.
    assert find_barriers(Dag.from_edges(4, [(0, 1), (2, 3)])) == []


@given(dags(max_size=20), st.data())
def test_convexity_is_judged_as_by_reachability(dag: Dag, data: st.DataObject) -> None:
    members = data.draw(st.sets(st.integers(0, max(len(dag) - 1, 0)))) if len(dag) else set()
    below = reachability(dag)
    reenters = any(
        middle not in members and middle in below[one] and other in below[middle]
        for one in members
        for other in members
        for middle in range(len(dag))
    )
    if reenters:
        with pytest.raises(InternalError, match="not convex"):
            verify_convex(dag, members)
    else:
        verify_convex(dag, members)
