"""What a group of nodes needs while it runs, against sums written out by hand and node by node."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.graph import TensorInfo
from parallax.memory import PeakTable
from parallax.memory._peaks import GroupPeak
from tests.partition._graphs import op_graph

KIB = 1024


def shapes(**kib):
    """Float tensors of so many KiB."""
    return {name: (size * KIB // 4,) for name, size in kib.items()}


def peak(graph, nodes=None, *, dims=None, kept=None):
    nodes = range(len(graph.nodes)) if nodes is None else nodes
    (found,) = PeakTable(graph, [nodes], kept=None if kept is None else [kept]).bind(dims or {})
    return found


CHAIN = op_graph(
    [
        ("n0", "Conv", ["x"], ["a"]),
        ("n1", "Relu", ["a"], ["b"]),
        ("n2", "Conv", ["b"], ["c"]),
        ("n3", "Conv", ["c"], ["y"]),
    ],
    outputs=["y"],
    shapes=shapes(x=1, a=2, b=2, c=4, y=8),
)


def test_a_tensor_is_free_after_its_last_reader():
    assert peak(CHAIN).interior_bytes == 6 * KIB, "b and c; y is handed on"


def test_what_is_read_lives_all_along_and_what_is_handed_on_from_when_it_is_made():
    assert peak(CHAIN).total_bytes == (1 + 4 + 8) * KIB


def test_an_elementwise_operator_is_taken_to_write_beside_its_input():
    graph = op_graph(
        [("n0", "Conv", ["x"], ["a"]), ("n1", "Relu", ["a"], ["b"]), ("n2", "Conv", ["b"], ["y"])],
        outputs=["y"],
        shapes=shapes(x=1, a=2, b=2, y=8),
    )
    assert peak(graph).interior_bytes == 4 * KIB


def test_an_input_read_again_later_is_held_until_then():
    graph = op_graph(
        [
            ("n0", "Conv", ["x"], ["a"]),
            ("n1", "Relu", ["a"], ["b"]),
            ("n2", "Add", ["a", "b"], ["c"]),
            ("n3", "Conv", ["c"], ["y"]),
        ],
        outputs=["y"],
        shapes=shapes(x=1, a=2, b=2, c=2, y=8),
    )
    assert peak(graph).interior_bytes == 6 * KIB


def test_a_view_shares_the_bytes_of_its_input_and_prolongs_their_life():
    graph = op_graph(
        [
            ("n0", "Conv", ["x"], ["a"]),
            ("n1", "Reshape", ["a", "s"], ["v"]),
            ("n2", "Conv", ["x"], ["b"]),
            ("n3", "Add", ["v", "b"], ["y"]),
        ],
        outputs=["y"],
        shapes=shapes(x=1, a=2, v=2, b=4, y=8),
        initializers=["s"],
    )
    assert peak(graph).interior_bytes == 6 * KIB, "a, kept alive by its view, and b"


def test_a_view_of_what_comes_from_outside_takes_nothing():
    graph = op_graph(
        [("n0", "Squeeze", ["x"], ["v"]), ("n1", "Conv", ["v"], ["y"])],
        outputs=["y"],
        shapes=shapes(x=2, v=2, y=8),
    )
    assert peak(graph) == GroupPeak(0, 10 * KIB, 0)


def test_a_view_that_is_handed_on_is_a_copy():
    graph = op_graph(
        [("n0", "Conv", ["x"], ["a"]), ("n1", "Squeeze", ["a"], ["y"])],
        outputs=["y"],
        shapes=shapes(x=1, a=2, y=2),
    )
    assert peak(graph) == GroupPeak(2 * KIB, 5 * KIB, 0)


def test_a_part_of_a_graph_hands_on_what_others_read():
    first, second = PeakTable(CHAIN, [(0, 1), (2, 3)]).bind({})
    assert first == GroupPeak(2 * KIB, (1 + 2 + 2) * KIB, 0)
    assert second == GroupPeak(4 * KIB, (2 + 4 + 8) * KIB, 0)


def test_weights_and_constants_are_there_anyway():
    graph = op_graph(
        [("k", "Constant", [], ["c"]), ("n0", "Conv", ["x", "w", "c"], ["a"]), ("n1", "Conv", ["a", "c"], ["y"])],
        outputs=["y"],
        shapes=shapes(x=1, w=100, c=100, a=2, y=8),
        initializers=["w"],
    )
    assert peak(graph) == GroupPeak(2 * KIB, (1 + 2 + 8) * KIB, 0)
    assert PeakTable(graph, [(1,)]).bind({})[0].total_bytes == 3 * KIB


def test_a_tensor_that_nothing_reads_lives_while_it_is_made():
    graph = op_graph(
        [("n0", "Split", ["x"], ["a", "unread"]), ("n1", "Conv", ["a"], ["b"]), ("n2", "Conv", ["b"], ["y"])],
        outputs=["y"],
        shapes=shapes(x=1, a=1, unread=16, b=2, y=8),
    )
    assert peak(graph).interior_bytes == 17 * KIB


def test_sizes_follow_the_dimensions_and_unknown_ones_are_counted():
    graph = replace(
        CHAIN,
        inputs=(TensorInfo(name="x", dtype=1, shape=("n",)),),
        tensors={
            **CHAIN.tensors,
            "b": TensorInfo(name="b", dtype=1, shape=("n", 4)),
            "c": TensorInfo(name="c", dtype=1, shape=(None,)),
        },
    )
    table = PeakTable(graph, [range(4)])
    assert table.symbols == ("?c:0", "n")
    (small,) = table.bind({"n": 1})
    assert (small.interior_bytes, small.unknown_tensors) == (2 * KIB + 16, 1)
    (large,) = table.bind({"n": KIB})
    assert (large.interior_bytes, large.unknown_tensors) == (18 * KIB, 1)
    (learned,) = table.bind({"n": KIB, "?c:0": KIB})
    assert (learned.interior_bytes, learned.unknown_tensors) == (20 * KIB, 0)


def test_a_body_counts_while_its_node_runs():
    body = op_graph(
        [("b0", "Conv", ["a"], ["u"]), ("b1", "Conv", ["u"], ["v"])], outputs=["v"], shapes=shapes(u=32, v=4)
    )
    body = replace(body, inputs=())  # "a" is of the graph around it
    graph = op_graph(
        [("n0", "Conv", ["x"], ["a"]), ("n1", "If", ["q"], ["b"]), ("n2", "Conv", ["b"], ["y"])],
        outputs=["y"],
        shapes=shapes(x=1, q=1, a=2, b=4, y=8),
        bodies={"n1": body},
        captures={"n1": ["a"]},
    )
    assert peak(graph).interior_bytes == (2 + 4 + 32 + 4) * KIB


def test_arms_of_an_if_do_not_add_up():
    arms = [
        replace(op_graph([("b", "Conv", ["a"], ["v"])], outputs=["v"], shapes=shapes(v=size)), inputs=())
        for size in (4, 9)
    ]
    graph = op_graph(
        [("n0", "Conv", ["x"], ["a"]), ("n1", "If", ["q"], ["y"])],
        outputs=["y"],
        shapes=shapes(x=1, q=1, a=2, y=8),
        captures={"n1": ["a"]},
    )
    node = replace(graph.nodes[1], bodies=(("then_branch", arms[0]), ("else_branch", arms[1])))
    graph = replace(graph, nodes=(graph.nodes[0], node))
    assert peak(graph).interior_bytes == (2 + 9) * KIB


@pytest.mark.parametrize("groups", [[], [()], [(), (0, 1)]])
def test_empty_groups_need_nothing(groups):
    found = PeakTable(CHAIN, groups).bind({})
    assert len(found) == len(groups)
    assert all(peak == GroupPeak(0, 0, 0) for peak, nodes in zip(found, groups, strict=True) if not nodes)


@st.composite
def graphs(draw):
    count = draw(st.integers(1, 10))
    rows = []
    made = ["x"]
    for index in range(count):
        reads = sorted(draw(st.sets(st.sampled_from(made), min_size=1, max_size=3)))
        writes = [f"t{index}_{number}" for number in range(draw(st.integers(1, 2)))]
        rows.append((f"n{index}", "Conv", reads, writes))
        made += writes
    sizes = {name: draw(st.integers(1, 20)) for name in made}
    outputs = sorted(draw(st.sets(st.sampled_from(made[1:]), max_size=2)))
    graph = op_graph(rows, outputs=outputs, shapes={name: (size,) for name, size in sizes.items()})
    groups = [sorted(draw(st.sets(st.integers(0, count - 1), min_size=1))) for _ in range(draw(st.integers(1, 3)))]
    return graph, groups, sizes


@given(graphs())
@settings(max_examples=150)
def test_peaks_equal_what_is_alive_node_by_node(case):
    graph, groups, sizes = case
    for nodes, found in zip(groups, PeakTable(graph, groups).bind({}), strict=True):
        made = {name for index in nodes for name in graph.nodes[index].outputs}
        outside = {name for index in nodes for name in graph.nodes[index].inputs} - made
        kept = {name for name in made if name in graph.output_names or set(graph.consumers.get(name, ())) - set(nodes)}
        interior = total = 0
        for position, index in enumerate(nodes):
            so_far = {name for other in nodes[: position + 1] for name in graph.nodes[other].outputs}
            still = {name for other in nodes[position:] for name in graph.nodes[other].inputs}
            alive = {name for name in so_far - kept if name in still or name in graph.nodes[index].outputs}
            interior = max(interior, sum(4 * sizes[name] for name in alive))
            total = max(total, sum(4 * sizes[name] for name in alive | (kept & so_far) | outside))
        assert found == GroupPeak(interior, total, 0)
