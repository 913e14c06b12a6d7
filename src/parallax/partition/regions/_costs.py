"""What placements of a graph on a device are made on: the costs of its fusion groups, and the tensors between them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from parallax.graph import OpGraph, tensor_bytes
from parallax.partition._constants import find_constants
from parallax.partition.regions._problem import HOST, RegionProblem, TensorTransfer

if TYPE_CHECKING:
    from parallax.partition._fusion_groups import FusionGroups
    from parallax.partition.regions._plan import DeviceCosts


def build_problem(graph: OpGraph, groups: FusionGroups, device_costs: DeviceCosts) -> RegionProblem:
    """The problem of placing a graph on one device. Linear in the graph."""
    copied = copied_constants(graph, groups)
    takes = tuple(
        all(device_costs.declined[node] is None for node in nodes if node not in copied)
        and any(node not in copied for node in nodes)
        for nodes in groups.members
    )
    tensors: list[TensorTransfer] = []
    reads: list[list[int]] = [[] for _ in groups.members]
    writes: list[list[int]] = [[] for _ in groups.members]

    def add(name: str, producer: int, readers: Iterable[int]) -> None:
        outside = sorted({group for group in readers if group != producer})
        returned = name in graph.output_names and producer >= 0
        if not outside and not returned:
            return
        size = tensor_bytes(graph, name)
        moving = device_costs.transfer.ns(size)
        number = len(tensors)
        tensors.append(
            TensorTransfer(
                name=name,
                producer=producer,
                readers=len(outside),
                returned=returned,
                size_bytes=size,
                up_ns=moving,
                down_ns=moving,
            )
        )
        for group in outside:
            reads[group].append(number)
        if producer >= 0:
            writes[producer].append(number)

    group_of = groups.group_of
    for info in (*graph.inputs, *graph.overridable):
        add(info.name, HOST, (group_of[node] for node in graph.consumers.get(info.name, ()) if node not in copied))
    for name, producer in graph.producers.items():
        if producer not in copied:
            add(
                name,
                group_of[producer],
                (group_of[node] for node in graph.consumers.get(name, ()) if node not in copied),
            )
    device_ns, cpu_ns = device_costs.device_ns, device_costs.cpu_ns
    return RegionProblem(
        dag=groups.dag,
        takes=takes,
        device_ns=tuple(sum(device_ns[node] for node in nodes if node not in copied) for nodes in groups.members),
        cpu_ns=tuple(sum(cpu_ns[node] for node in nodes if node not in copied) for nodes in groups.members),
        launch_ns=device_costs.launch_ns,
        tensors=tuple(tensors),
        reads=tuple(map(tuple, reads)),
        writes=tuple(map(tuple, writes)),
        folded=copied,
    )


def copied_constants(graph: OpGraph, groups: FusionGroups) -> frozenset[int]:
    """Constants that go where they are read, or are folded there: neither side computes them in a run."""
    return frozenset(
        node
        for node in find_constants(graph)
        if node in groups.replicated
        or (
            all(groups.group_of[reader] == groups.group_of[node] for reader in graph.successors[node])
            and not any(name in graph.output_names for name in graph.nodes[node].outputs)
        )
    )
