"""A fusion group taken out of its segment: what is left becomes segments before, beside and after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from parallax.graph import OpGraph
from parallax.partition._constants import find_constants

if TYPE_CHECKING:
    from parallax.partition._fusion_groups import FusionGroups


def is_isolated(graph: OpGraph, groups: FusionGroups, node: int) -> bool:
    """Whether a node's group holds nothing else but constants. O(V + E)."""
    constants = find_constants(graph)
    return all(index == node or index in constants for index in groups.members[groups.group_of[node]])


def groups_of(groups: FusionGroups, nodes: Sequence[int]) -> tuple[int, ...] | None:
    """The groups that make up these nodes exactly, copies of constants included; None if the nodes cut through one."""
    found = tuple(sorted({groups.group_of[node] for node in nodes if node not in groups.replicated}))
    return found if groups.nodes_of(found) == tuple(sorted(set(nodes))) else None


def split_around(
    groups: FusionGroups, members: Sequence[int], group: int, *, beside: bool
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Divide the groups of a segment into those before ``group``, beside it and after it, each ascending.

    In the order before, ``group``, beside, after no edge leads back, so each is convex.

    Args:
        beside: False counts what is beside it among those before.
    """
    inside = set(members)
    ahead = _reach(group, groups.dag.predecessors) & inside
    behind = _reach(group, groups.dag.successors) & inside
    rest = inside - ahead - behind - {group}
    if not beside:
        ahead |= rest
        rest = set()
    return tuple(sorted(ahead)), tuple(sorted(rest)), tuple(sorted(behind))


def _reach(start: int, neighbours: Sequence[Sequence[int]]) -> set[int]:
    seen: set[int] = set()
    stack = list(neighbours[start])
    while stack:
        index = stack.pop()
        if index not in seen:
            seen.add(index)
            stack.extend(neighbours[index])
    return seen
