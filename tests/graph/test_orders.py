"""Orders, levels and disjoint sets, against definitions tried by brute force."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from parallax.graph import (
    Dag,
    UnionFind,
    bottom_levels,
    critical_path,
    strong_components,
    top_levels,
    topological_order,
)
from tests.partition._graphs import dags


@st.composite
def digraphs(draw, max_size=12):
    """Per node its predecessors, in any order and with repetitions; cycles and loops are among them."""
    size = draw(st.integers(0, max_size))
    nodes = st.integers(0, max(0, size - 1))
    return [draw(st.lists(nodes, max_size=3)) for _ in range(size)]


@given(digraphs(), st.data())
def test_an_order_takes_the_first_of_those_that_are_free_and_leaves_out_what_cycles_hold(predecessors, data):
    size = len(predecessors)
    precedence = data.draw(st.none() | st.lists(st.integers(-2, 2), min_size=size, max_size=size))
    expected: list[int] = []
    while True:
        free = [node for node in range(size) if node not in expected and set(predecessors[node]) <= set(expected)]
        if not free:
            break
        expected.append(min(free, key=lambda node: (0 if precedence is None else precedence[node], node)))
    assert topological_order(predecessors, precedence=precedence) == expected


@given(dags(max_size=10), st.data())
def test_levels_are_costs_of_longest_paths(dag, data):
    costs = data.draw(st.lists(st.integers(0, 50), min_size=len(dag), max_size=len(dag)))

    def longest(node, neighbours):
        return costs[node] + max((longest(other, neighbours) for other in neighbours[node]), default=0)

    above = [longest(node, dag.predecessors) for node in range(len(dag))]
    below = [longest(node, dag.successors) for node in range(len(dag))]
    assert top_levels(dag.predecessors, costs) == above
    assert bottom_levels(dag.predecessors, costs) == below
    assert critical_path(dag.predecessors, costs) == max(above, default=0) == max(below, default=0)


def test_bottom_levels_are_longest_paths() -> None:
    rows = Dag.from_edges(5, [(0, 1), (0, 2), (1, 3), (2, 3)]).predecessors
    assert bottom_levels(rows, [1, 10, 100, 1000, 7]) == [1101, 1010, 1100, 1000, 7]
    assert critical_path(rows, [1, 10, 100, 1000, 7]) == 1101
    assert critical_path([], []) == 0


@given(dags(max_size=30), st.data())
def test_strong_components_are_mutual_reachability(dag: Dag, data: st.DataObject) -> None:
    size = len(dag)
    pairs = st.tuples(st.integers(0, max(size - 1, 0)), st.integers(0, max(size - 1, 0)))
    back = data.draw(st.lists(pairs, max_size=4)) if size else []
    neighbours = [list(row) for row in dag.successors]
    for tail, head in back:
        neighbours[tail].append(head)
    reach = [{node} for node in range(size)]
    for _ in range(size):
        for node in range(size):
            for target in neighbours[node]:
                reach[node] |= reach[target]
    component = strong_components(neighbours)
    for one in range(size):
        for other in range(size):
            assert (component[one] == component[other]) == (other in reach[one] and one in reach[other])


def test_a_long_chain_needs_no_recursion() -> None:
    size = 5000
    neighbours = [[node + 1] for node in range(size - 1)] + [[0]]
    assert set(strong_components(neighbours)) == {0}


@given(st.integers(1, 12), st.data())
def test_sets_that_are_joined_have_their_smallest_member_for_leader_in_any_order_of_calls(size, data):
    pairs = data.draw(st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)), max_size=15))
    sets = UnionFind(size)
    for one, other in pairs:
        sets.union(one, other)
    rows: list[list[int]] = [[] for _ in range(size)]
    for one, other in pairs:
        rows[one].append(other)
        rows[other].append(one)
    component = strong_components(rows)
    assert len(sets) == size
    assert [sets.find(item) for item in range(size)] == [component.index(of_item) for of_item in component]
