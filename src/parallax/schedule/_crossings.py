"""What it costs the processor that a tensor leaves one of its segments for another."""

from __future__ import annotations

from collections.abc import Sequence

from parallax.graph import OpGraph, tensor_bytes
from parallax.partition import FusionGroups


class Crossings:
    """Tensors between fusion groups, and what either side pays where a cut goes through them.

    Such a tensor leaves the caches and the runtime's blocked layouts, and comes back.

    Args:
        graph: tells the sizes; a dimension that is not known counts as 1.
        groups: of that graph.
        ns_per_byte: on either side.
    """

    def __init__(self, graph: OpGraph, groups: FusionGroups, ns_per_byte: float) -> None:
        readers: dict[str, list[int]] = {}
        for group, names in enumerate(groups.reads):
            for name in names:
                readers.setdefault(name, []).append(group)
        self._flows = tuple(
            (home, tuple(readers.get(name, ())), cost)
            for home, names in enumerate(groups.writes)
            for name in names
            if (cost := round(tensor_bytes(graph, name) * ns_per_byte))
        )

    def of_parts(self, part_of: Sequence[int], parts: int) -> list[int]:
        """Return in ns what each of ``parts`` parts pays in all, given the part of each group. O(edges)."""
        total = [0] * parts
        for home, readers, cost in self._flows:
            here = part_of[home]
            others = {part_of[reader] for reader in readers} - {here}
            if others:
                total[here] += cost
                for other in others:
                    total[other] += cost
        return total
