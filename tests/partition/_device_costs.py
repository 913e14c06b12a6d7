"""Random graphs with what a device says of them, and placements priced the slow and obvious way."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from hypothesis import strategies as st

from parallax.graph import OpGraph, Rejection, Verdict
from parallax.partition.regions import DeviceCosts
from parallax.partition.regions._plan import TransferCost
from tests.partition._graphs import edge_lists, op_graph

NO = Rejection(verdict=Verdict.UNSUPPORTED_OPERATOR, detail="Relu")


def device_costs_of(
    refused: Sequence[bool],
    device_ns: Sequence[int],
    cpu_ns: Sequence[int],
    *,
    launch_ns: int = 0,
    fixed_ns: int = 0,
    ns_per_byte: float = 0.0,
    flops: Sequence[int] | None = None,
) -> DeviceCosts:
    return DeviceCosts(
        device="toy",
        declined=tuple(NO if no else None for no in refused),
        device_ns=tuple(device_ns),
        cpu_ns=tuple(cpu_ns),
        flops=tuple(flops or [0] * len(refused)),
        launch_ns=launch_ns,
        transfer=TransferCost(fixed_ns=fixed_ns, ns_per_byte=ns_per_byte),
    )


def sized_graph(size: int, edges: Iterable[tuple[int, int]], sizes: Sequence[int]) -> OpGraph:
    """Node i writes ``t{i}`` of ``sizes[i]`` floats; sources read ``x`` of one float, sinks are returned."""
    reads: list[list[str]] = [[] for _ in range(size)]
    is_sink = [True] * size
    for tail, head in edges:
        reads[head].append(f"t{tail}")
        is_sink[tail] = False
    return op_graph(
        [(f"n{index}", "Relu", reads[index] or ["x"], [f"t{index}"]) for index in range(size)],
        outputs=[f"t{index}" for index in range(size) if is_sink[index]],
        shapes={"x": (1,)} | {f"t{index}": (sizes[index],) for index in range(size)},
    )


@st.composite
def priced_graphs(draw: st.DrawFn, max_size: int = 40) -> tuple[OpGraph, DeviceCosts]:
    size, edges = draw(edge_lists(max_size))
    costs = st.lists(st.integers(0, 50), min_size=size, max_size=size)
    graph = sized_graph(size, edges, draw(st.lists(st.integers(0, 20), min_size=size, max_size=size)))
    device_costs = device_costs_of(
        draw(st.lists(st.sampled_from([False, False, True]), min_size=size, max_size=size)),
        draw(costs),
        draw(costs),
        launch_ns=draw(st.integers(0, 60)),
        fixed_ns=draw(st.integers(0, 5)),
        ns_per_byte=draw(st.sampled_from([0.0, 0.25, 1.0])),
        flops=draw(costs),
    )
    return graph, device_costs


@st.composite
def priced_chains(draw: st.DrawFn, max_size: int = 9) -> tuple[OpGraph, DeviceCosts]:
    size = draw(st.integers(1, max_size))
    costs = st.lists(st.integers(0, 50), min_size=size, max_size=size)
    graph = sized_graph(size, itertools.pairwise(range(size)), draw(costs))
    refused = draw(st.lists(st.sampled_from([False, False, False, True]), min_size=size, max_size=size))
    device_costs = device_costs_of(
        refused, draw(costs), draw(costs), launch_ns=draw(st.integers(0, 60)), ns_per_byte=0.25
    )
    return graph, device_costs


def placement_cost(graph: OpGraph, device_costs: DeviceCosts, regions: Sequence[Sequence[int]]) -> int:
    """One thing after the other: compute, a launch per region, every tensor moved once where both sides need it."""
    taken = {node for region in regions for node in region}
    total = device_costs.launch_ns * len(regions)
    for node in graph.nodes:
        total += device_costs.device_ns[node.index] if node.index in taken else device_costs.cpu_ns[node.index]
    for name in graph.tensors:
        readers = graph.consumers.get(name, ())
        producer = graph.producers.get(name)
        info = graph.tensors[name]
        assert info.shape is not None
        size = 4
        for dim in info.shape:
            assert isinstance(dim, int)
            size *= dim
        if producer is not None and producer in taken:
            moves = name in graph.output_names or any(reader not in taken for reader in readers)
        else:
            moves = any(reader in taken for reader in readers)
        if moves:
            total += device_costs.transfer.ns(size)
    return total


def best_chain_cost(graph: OpGraph, device_costs: DeviceCosts) -> int:
    """The cheapest placement of a chain, by trying every one."""
    best = None
    for sides in itertools.product((False, True), repeat=len(graph.nodes)):
        if any(side and device_costs.declined[index] is not None for index, side in enumerate(sides)):
            continue
        regions: list[list[int]] = []
        for index, side in enumerate(sides):
            if side:
                if index and sides[index - 1]:
                    regions[-1].append(index)
                else:
                    regions.append([index])
        cost = placement_cost(graph, device_costs, regions)
        best = cost if best is None else min(best, cost)
    assert best is not None
    return best
