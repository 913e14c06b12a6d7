"""Cut a model into a chain of segments of bounded weights, so that those of the next can be read while one runs.

For models whose weights do not fit into memory: then at no time more of them is needed than one segment's, and
what the segments behind it held can make room for those ahead.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from parallax.errors import ConfigError
from parallax.graph import OpGraph, tensor_bytes
from parallax.partition.candidates._segments import Cause, DraftSegment, Partition, assemble

if TYPE_CHECKING:
    from parallax.partition._fusion_groups import FusionGroups

SEGMENT_COST_BYTES = 256 << 10
"""What one more segment is worth, in bytes held across a cut: its call takes as long as moving so much."""


def group_weights(graph: OpGraph, groups: FusionGroups) -> tuple[int, ...]:
    """Bytes of the initializers that each group reads, those that several read counted for each. O(V + E).

    Tables that are only gathered from count nothing: a run reads a few of their rows.
    """
    tables = lookup_tables(graph)
    weights = []
    for nodes in groups.members:
        names = {name for index in nodes for name in (*graph.nodes[index].inputs, *graph.nodes[index].captures)}
        weights.append(sum(tensor_bytes(graph, name) for name in names - tables if name in graph.initializers))
    return tuple(weights)


def lookup_tables(graph: OpGraph) -> frozenset[str]:
    """Initializers of which a run reads only the rows it looks up: whatever reads them is a Gather from them."""
    return frozenset(
        name
        for name in graph.initializers
        if (readers := graph.consumers.get(name))
        and all(graph.nodes[index].op_type == "Gather" and graph.nodes[index].inputs[0] == name for index in readers)
    )


def crossing_bytes(graph: OpGraph, groups: FusionGroups) -> dict[str, int]:
    """Bytes of the tensors that cross between groups, see `parallax.graph.tensor_bytes`."""
    return {name: tensor_bytes(graph, name) for name in groups.crossing}


def by_weight(
    groups: FusionGroups,
    weights: Sequence[int],
    *,
    segment_bytes: int,
    crossing: Mapping[str, int],
    width: int = 1,
) -> Partition:
    """A chain of runs of consecutive groups, of at most ``segment_bytes`` of weights each. O(V + E).

    Of all such chains the one with the least sum of bytes held across its cuts, each cut counting `SEGMENT_COST_BYTES`
    more, so that segments are not smaller than they must be without a reason. A group heavier than the bound is in a
    segment without other weights. (Shortest path over the cuts, with a sliding-window minimum.)

    Args:
        weights: bytes of weights per group.
        crossing: bytes of boundary tensors (`crossing_bytes`); one that is missing counts nothing.
        width: threads of every segment.

    Raises: ConfigError if ``segment_bytes`` is not positive.
    """
    if segment_bytes < 1:
        raise ConfigError(f"segment_bytes is {segment_bytes}", fix="allow at least one byte")
    size = len(groups)
    held = bytes_across(groups, crossing)
    before = [0, *itertools.accumulate(min(weight, segment_bytes) for weight in weights)]
    cost = [0] * (size + 1)
    previous = [0] * (size + 1)
    window: deque[int] = deque()
    for end in range(1, size + 1):
        # Of two equally good beginnings the later one: it leaves the segment in front of it more room.
        while window and cost[window[-1]] >= cost[end - 1]:
            window.pop()
        window.append(end - 1)
        while before[end] - before[window[0]] > segment_bytes:
            window.popleft()
        previous[end] = window[0]
        cost[end] = cost[window[0]] + (held[end] + SEGMENT_COST_BYTES if end < size else 0)
    ends = []
    end = size
    while end:
        ends.append(end)
        end = previous[end]
    drafts = [
        DraftSegment(groups=tuple(range(low, high)), width=width, cause=Cause.WEIGHT)
        for low, high in itertools.pairwise([0, *reversed(ends)])
    ]
    return assemble(groups, drafts, label=f"at most {segment_bytes} bytes of weights", lanes=1)


def bytes_across(groups: FusionGroups, crossing: Mapping[str, int]) -> list[int]:
    """For each cut, before group ``i`` of their order, the bytes produced before it and read after it. O(V + E)."""
    last: dict[str, int] = {}
    for group, names in enumerate(groups.reads):
        for name in names:
            last[name] = group
    change = [0] * (len(groups) + 2)
    for group, names in enumerate(groups.writes):
        for name in names:
            change[group + 1] += crossing.get(name, 0)
            change[last[name] + 1] -= crossing.get(name, 0)
    return list(itertools.accumulate(change))[: len(groups) + 1]
