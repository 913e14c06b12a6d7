"""Random problems to learn from: graphs that could be models, and costs that make a choice of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from parallax.graph import OpGraph, node_work
from parallax.partition._fusion_groups import verify_groups
from parallax.schedule.placement import BRANCH_COLUMNS, BranchFeatures, find_placement
from parallax.training._random_problems import DEVICE, random_graph, random_problem, random_state

GRAPHS = 40


def drawn(number: int) -> np.random.Generator:
    return np.random.default_rng((7, number))


def inferred_shapes(graph: OpGraph) -> Mapping[str, Sequence[int]]:
    """What ONNX infers for the same nodes, from inputs and weights alone; what Resize makes is given."""
    nodes, given = [], [*graph.inputs, *graph.initializers.values()]
    for node in graph.nodes:
        if node.op_type == "Resize":  # drafted without the sizes that it would be given
            given.append(graph.tensors[node.outputs[0]])
            continue
        nodes.append(helper.make_node(node.op_type, node.inputs, node.outputs, **dict(node.attributes)))
    inputs = [helper.make_tensor_value_info(info.name, TensorProto.FLOAT, info.shape) for info in given]
    outputs = [helper.make_empty_tensor_value_info(info.name) for info in graph.outputs]
    model = helper.make_model(
        helper.make_graph(nodes, "drawn", inputs, outputs), opset_imports=[helper.make_opsetid("", 20)]
    )
    found = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    return {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*found.value_info, *found.output)
    }


@pytest.mark.parametrize("number", range(GRAPHS))
def test_shapes_are_those_that_onnx_infers(number: int) -> None:
    graph = random_graph(drawn(number))
    shapes = inferred_shapes(graph)
    for node in graph.nodes:
        if node.op_type != "Resize":
            assert list(graph.tensors[node.outputs[0]].shape) == shapes[node.outputs[0]], node
        assert node_work(graph, node).known


def test_the_same_seed_gives_the_same_problems_and_another_gives_others() -> None:
    problems = [random_problem(drawn(number)) for number in (0, 0, 1)]
    rows = [BranchFeatures.of(problem).branches for problem in problems]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert rows[0].shape != rows[2].shape or not np.array_equal(rows[0], rows[2])


def test_groups_are_sound_and_join_products_with_their_activations() -> None:
    joined = 0
    for number in range(GRAPHS):
        problem = random_problem(drawn(number))
        verify_groups(problem.graph, problem.groups)
        joined += sum(len(group) == 2 for group in problem.groups.members)
    assert joined > GRAPHS


def test_problems_differ_in_what_is_best_and_in_what_there_is_to_see() -> None:
    gains, zeros, refused = [], 0, 0
    for number in range(GRAPHS):
        problem = random_problem(drawn(number))
        found = find_placement(problem, ())
        alone = found.best.makespan_ns
        gains.append(alone / min(alone, found.greedy_ns))
        rows = BranchFeatures.of(problem).branches
        assert np.isfinite(rows).all()
        zeros += bool(rows[:, BRANCH_COLUMNS.index("worth of zeros")].any())
        refused += not all(problem.takes[0])
    assert sum(gain > 1.2 for gain in gains) > GRAPHS // 8, "a device pays at times"
    assert sum(gain == 1.0 for gain in gains) > GRAPHS // 8, "and at times it does not"
    assert 0 < zeros < GRAPHS
    assert 0 < refused < GRAPHS


def test_some_states_are_nominal_and_none_is_quicker_than_that() -> None:
    states = [random_state(drawn(number), DEVICE) for number in range(200)]
    assert 10 < sum(not state.slowdowns for state in states) < 100
    assert all(factor >= 1 for state in states for factor in state.slowdowns.values())
    assert any(state.slowdown(DEVICE) > 4 for state in states)
