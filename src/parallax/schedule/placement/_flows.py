"""What passes between fusion groups: per tensor who makes it, who reads it, and how large it is."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from parallax.graph import OpGraph, tensor_bytes
from parallax.partition import FusionGroups

CALLER: int = -1
"""Who makes the model's inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A tensor that leaves the fusion group that makes it, or an input of the model."""

    producer: int
    """The fusion group, or `CALLER`."""
    readers: tuple[int, ...]
    """Other fusion groups, ascending."""
    size_bytes: int
    is_returned: bool
    """Whether it is an output of the model."""


def find_flows(graph: OpGraph, groups: FusionGroups, folded: Set[int]) -> tuple[Flow, ...]:
    """Every tensor that moves where its producer and a reader are on different sides. O(V + E).

    Args:
        folded: nodes that are computed when the model is loaded, on either side.
    """
    flows = []
    group_of = groups.group_of

    def add(name: str, producer: int) -> None:
        readers = {group_of[node] for node in graph.consumers.get(name, ()) if node not in folded} - {producer}
        is_returned = producer != CALLER and name in graph.output_names
        if readers or is_returned:
            flows.append(
                Flow(
                    producer=producer,
                    readers=tuple(sorted(readers)),
                    size_bytes=tensor_bytes(graph, name),
                    is_returned=is_returned,
                )
            )

    for info in (*graph.inputs, *graph.overridable):
        add(info.name, CALLER)
    for name, node in graph.producers.items():
        if node not in folded:
            add(name, group_of[node])
    return tuple(flows)
