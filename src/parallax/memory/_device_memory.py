"""What a device must hold for its part of a model, and which part it gets where its memory is too small for all.

A device holds the weights of all its regions for as long as the session is open, and beside them the tensors of a run
that are alive there. As with layers of a language model that are "offloaded" as far as memory goes, what does not fit
stays on the processor; which part that is, is decided by what the placement would cost.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from parallax.graph import OpGraph, Rejection, Verdict, tensor_bytes
from parallax.memory._budget import DEFAULT_MARGIN, show_bytes
from parallax.memory._requirement import MemoryRequirement
from parallax.partition import FusionGroups, find_constants
from parallax.partition.regions import DeviceCosts, find_regions


def device_requirement(graph: OpGraph, nodes: Collection[int]) -> MemoryRequirement:
    """What a device must hold to run these nodes one after the other, in the order of the graph. O(V + E).

    Estimated: what its runtime needs for itself is not in it. A dimension that is not known counts as 1
    (`parallax.graph.tensor_bytes`).

    Args:
        graph: with types, as `Model.inferred` gives it.
        nodes: indices; constants among them are folded when the model is loaded.
    """
    return _need(graph, nodes, find_constants(graph))


def _need(graph: OpGraph, nodes: Collection[int], constants: frozenset[int]) -> MemoryRequirement:
    """`device_requirement`, in time of the nodes alone."""
    overridable = {info.name for info in graph.overridable}
    inside = set(nodes) - constants
    weights: set[str] = set()
    nested = 0
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for index in sorted(inside):
        node = graph.nodes[index]
        nested += sum(tensor_bytes(body, name) for _, body in node.bodies for name in body.initializers)
        for name in (*node.inputs, *node.captures):
            if graph.producers.get(name, -1) in constants or (name in graph.initializers and name not in overridable):
                weights.add(name)
            elif name:
                first.setdefault(name, index)
                last[name] = index
        for name in node.outputs:
            if name:
                first[name] = last[name] = index
    change: dict[int, int] = {}
    for name, begin in first.items():
        size = tensor_bytes(graph, name)
        change[begin] = change.get(begin, 0) + size
        change[last[name] + 1] = change.get(last[name] + 1, 0) - size
    alive = most = 0
    for index in sorted(change):
        alive += change[index]
        most = max(most, alive)
    return MemoryRequirement(
        weight_bytes=nested + sum(tensor_bytes(graph, name) for name in weights),
        fixed_bytes=0,
        peaks=(most,),
        wanted_bytes=most,
    )


def restrict_to_memory(
    graph: OpGraph, groups: FusionGroups, device_costs: DeviceCosts, limit_bytes: int, *, margin: float = DEFAULT_MARGIN
) -> DeviceCosts:
    """The costs of what fits into a device's memory: the rest is declined with `Verdict.OUT_OF_MEMORY`.

    Whatever is then placed on the device needs no more than ``limit_bytes`` less the margin, by
    `device_requirement`. Several choices are tried (what gains most per byte first, from the front of the model,
    from its end, each with what has no weights before or in its turn), and the one whose regions cost least is
    taken. O(V log V) for each.

    Args:
        groups: the pieces that are offered or declined as wholes.
        limit_bytes: what the device may hold.
        margin: share of it left free, for what estimates do not see.
    """
    constants = find_constants(graph)
    usable = math.floor(limit_bytes * (1 - margin))
    offered = [
        group
        for group, nodes in enumerate(groups.members)
        if all(device_costs.declined[node] is None for node in nodes if node not in constants)
        and any(node not in constants for node in nodes)
    ]

    def fits(chosen: Sequence[int]) -> bool:
        return _need(graph, groups.nodes_of(chosen), constants).total_bytes <= usable

    if fits(offered):
        return device_costs
    best: DeviceCosts | None = None
    best_ns = 0
    for order in _orders(graph, groups, device_costs, offered, constants):
        low, high = 0, len(order)  # so many fit, so many do not: more never need less
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(order[:middle]) else (low, middle)
        limited = _without(groups, device_costs, order[low:], constants, limit_bytes)
        cost_ns = find_regions(graph, groups, limited, join_siblings=True).chosen_ns
        if best is None or cost_ns < best_ns:
            best, best_ns = limited, cost_ns
    assert best is not None  # there are groups, or all would have fitted
    return best


def _orders(
    graph: OpGraph, groups: FusionGroups, device_costs: DeviceCosts, offered: Sequence[int], constants: frozenset[int]
) -> Iterator[list[int]]:
    """Orders in which to fill the device, the groups that are to be there first at the front."""
    weights = {group: _need(graph, groups.members[group], constants).weight_bytes for group in offered}
    gains = {
        group: sum(device_costs.cpu_ns[node] - device_costs.device_ns[node] for node in groups.members[group])
        for group in offered
    }

    def worth(group: int) -> int:
        # In powers of two, so that among what is worth as much neighbours come together.
        return math.frexp(max(0, gains[group]) / max(1, weights[group]))[1]

    by_worth = sorted(offered, key=lambda group: (-worth(group), group))
    for order in (by_worth, list(offered), list(reversed(offered))):
        # What has no weights joins what has, and costs only while it is alive.
        yield sorted(order, key=lambda group: weights[group] > 0)
        yield order


def _without(
    groups: FusionGroups,
    device_costs: DeviceCosts,
    left_out: Sequence[int],
    constants: frozenset[int],
    limit_bytes: int,
) -> DeviceCosts:
    declined = list(device_costs.declined)
    answer = Rejection(verdict=Verdict.OUT_OF_MEMORY, detail=f"{show_bytes(limit_bytes)} are allowed")
    for group in left_out:
        for node in groups.members[group]:
            if node not in constants:
                declined[node] = answer
    return replace(device_costs, declined=tuple(declined))
