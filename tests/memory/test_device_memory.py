"""What a device must hold, and what is offered to one that has not room for all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from parallax.graph import OpGraph, Rejection, Verdict
from parallax.memory import device_requirement, restrict_to_memory
from parallax.model import load_model
from parallax.partition import group_fusions
from parallax.partition.regions import DeviceCosts, RegionRule, find_regions
from parallax.partition.regions._plan import TransferCost

FLOAT_BYTES = 4


def graph_of(nodes: list[Any], weights: dict[str, tuple[int, ...]], *, outputs: list[str], size: int = 8) -> OpGraph:
    """From x[1, size]; what is returned is of that shape."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name in outputs],
        [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()],
    )
    return load_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)).inferred()


def layers(count: int, *, shared: bool = False) -> OpGraph:
    """Products and activations in turn: node 2i has a weight of 256 bytes, node 2i + 1 none."""
    nodes, last = [], "x"
    for step in range(count):
        weight = "w0" if shared else f"w{step}"
        nodes.append(helper.make_node("MatMul", [last, weight], [f"a{step}"], name=f"product_{step}"))
        nodes.append(helper.make_node("Relu", [f"a{step}"], [f"r{step}"], name=f"relu_{step}"))
        last = f"r{step}"
    weights = {"w0" if shared else f"w{step}": (8, 8) for step in range(count)}
    return graph_of(nodes, weights, outputs=[last])


def device_costs_of(
    graph: OpGraph, *, cpu_ns: list[int] | None = None, declined: frozenset[int] = frozenset()
) -> DeviceCosts:
    count = len(graph.nodes)
    no = Rejection(verdict=Verdict.UNSUPPORTED_OPERATOR, detail="no")
    return DeviceCosts(
        device="toy",
        declined=tuple(no if node in declined else None for node in range(count)),
        device_ns=(10,) * count,
        cpu_ns=tuple(cpu_ns or [1000] * count),
        flops=(0,) * count,
        launch_ns=100,
        transfer=TransferCost(fixed_ns=5, ns_per_byte=0.01),
    )


def test_a_chain_holds_its_weights_and_two_tensors_at_a_time() -> None:
    need = device_requirement(layers(3), range(6))
    assert need.weight_bytes == 3 * 64 * FLOAT_BYTES
    assert need.wanted_bytes == 2 * 8 * FLOAT_BYTES
    assert need.total_bytes == need.weight_bytes + need.wanted_bytes


def test_a_weight_that_several_nodes_read_is_held_once() -> None:
    assert device_requirement(layers(3, shared=True), range(6)).weight_bytes == 64 * FLOAT_BYTES


def test_what_is_read_again_later_is_alive_until_then() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("Abs", ["b"], ["c"]),
        helper.make_node("Add", ["a", "c"], ["y"]),
    ]
    graph = graph_of(nodes, {}, outputs=["y"])
    assert device_requirement(graph, range(4)).wanted_bytes == 3 * 8 * FLOAT_BYTES
    assert device_requirement(graph, [1, 2]).wanted_bytes == 2 * 8 * FLOAT_BYTES
    assert device_requirement(graph, []).total_bytes == 0


def test_a_constant_counts_as_a_weight_of_its_readers_only() -> None:
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones((1, 8), np.float32))),
        helper.make_node("Neg", ["c"], ["n"]),
        helper.make_node("Add", ["x", "n"], ["y"]),
    ]
    graph = graph_of(nodes, {}, outputs=["y"])
    assert device_requirement(graph, range(3)).weight_bytes == 8 * FLOAT_BYTES
    assert device_requirement(graph, [0, 1]).total_bytes == 0


def test_what_fits_is_offered_as_it_was() -> None:
    graph = layers(3)
    device_costs = device_costs_of(graph)
    assert restrict_to_memory(graph, group_fusions(graph), device_costs, 1 << 20) is device_costs


def test_what_does_not_fit_is_declined_and_says_what_is_allowed() -> None:
    graph = layers(4)
    limit = round((2 * 256 + 64) / 0.9) + 1
    device_costs = device_costs_of(graph, cpu_ns=[1000, 50] * 4)
    limited = restrict_to_memory(graph, group_fusions(graph, tiny_elements=0), device_costs, limit)
    left = [node for node, answer in enumerate(limited.declined) if answer is not None]
    assert {answer.verdict for answer in limited.declined if answer is not None} == {Verdict.OUT_OF_MEMORY}
    assert all(f"{limit} B are allowed" == answer.detail for answer in limited.declined if answer is not None)
    kept = [node for node in range(8) if node not in left]
    # Two of four equal products, next to each other, so that one region does.
    assert sum(node % 2 == 0 for node in kept) == 2
    assert len(find_regions(graph, group_fusions(graph, tiny_elements=0), limited, join_siblings=True).regions) == 1


def test_what_gains_most_for_its_bytes_comes_first() -> None:
    graph = layers(4)
    cpu_ns = [1000] * 8
    cpu_ns[4] = 1_000_000
    limited = restrict_to_memory(
        graph, group_fusions(graph, tiny_elements=0), device_costs_of(graph, cpu_ns=cpu_ns), 400
    )
    assert limited.declined[4] is None
    assert all(limited.declined[node] is not None for node in (0, 2, 6))


def test_no_room_at_all_leaves_everything_to_the_processor() -> None:
    graph = layers(2)
    limited = restrict_to_memory(graph, group_fusions(graph), device_costs_of(graph), 1)
    plan = find_regions(graph, group_fusions(graph), limited, rule=RegionRule.GREEDY)
    assert plan.is_cpu_only
    assert {found.verdict for found in plan.verdicts} == {Verdict.OUT_OF_MEMORY}


@settings(max_examples=60)
@given(data=st.data())
def test_whatever_is_placed_then_fits(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    names = ["x"]
    nodes = []
    weights: dict[str, tuple[int, ...]] = {}
    for step in range(count):
        source = data.draw(st.sampled_from(names))
        if data.draw(st.booleans()):
            weight = f"w{data.draw(st.integers(0, step))}"
            weights[weight] = (8, 8)
            nodes.append(helper.make_node("MatMul", [source, weight], [f"t{step}"]))
        else:
            nodes.append(helper.make_node("Add", [source, data.draw(st.sampled_from(names))], [f"t{step}"]))
        names.append(f"t{step}")
    graph = graph_of(nodes, weights, outputs=[names[-1]])
    cpu_ns = data.draw(st.lists(st.integers(0, 5000), min_size=count, max_size=count))
    declined = frozenset(data.draw(st.lists(st.integers(0, count - 1), max_size=2)))
    groups = group_fusions(graph, tiny_elements=0)
    limit = data.draw(st.integers(1, 2000))
    limited = restrict_to_memory(graph, groups, device_costs_of(graph, cpu_ns=cpu_ns, declined=declined), limit)
    assert all(limited.declined[node] is not None for node in declined)
    for rule in (RegionRule.GREEDY, RegionRule.MODEL):
        plan = find_regions(graph, groups, limited, rule=rule)
        held = {node for region in plan.regions for node in region.nodes}
        assert device_requirement(graph, held).total_bytes <= limit


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_the_margin_stays_free(margin: float) -> None:
    graph = layers(4)
    groups = group_fusions(graph, tiny_elements=0)
    limited = restrict_to_memory(graph, groups, device_costs_of(graph), 700, margin=margin)
    taken = [node for node, answer in enumerate(limited.declined) if answer is None]
    assert device_requirement(graph, taken).total_bytes <= 700 * (1 - margin)
    assert sum(node % 2 == 0 for node in taken) == (2 if margin == 0 else 1)


def test_a_tenth_of_a_devices_memory_is_left_free_unless_said_otherwise() -> None:
    graph = layers(4)
    groups = group_fusions(graph, tiny_elements=0)
    device_costs = device_costs_of(graph)
    everything = device_requirement(graph, [node.index for node in graph.nodes]).total_bytes
    room = -(-everything * 10 // 9)
    assert restrict_to_memory(graph, groups, device_costs, room) is device_costs
    assert restrict_to_memory(graph, groups, device_costs, room - 2) is not device_costs
