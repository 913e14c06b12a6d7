"""One unit taken out of the segment that holds it: what is left becomes segments before, beside and after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from parallax.graph import OpGraph
from parallax.partition._constants import find_constants

if TYPE_CHECKING:
    from parallax.partition._units import UnitGraph


def is_isolated(graph: OpGraph, units: UnitGraph, node: int) -> bool:
    """Whether a node's unit holds nothing else but constants. O(V + E)."""
    constants = find_constants(graph)
    return all(index == node or index in constants for index in units.units[units.unit_of[node]])


def units_of(units: UnitGraph, nodes: Sequence[int]) -> tuple[int, ...] | None:
    """The units that make up these nodes exactly, copies of constants included; None if the nodes cut through one."""
    found = tuple(sorted({units.unit_of[node] for node in nodes if node not in units.replicated}))
    return found if units.nodes_of(found) == tuple(sorted(set(nodes))) else None


def split_around(
    units: UnitGraph, members: Sequence[int], unit: int, *, beside: bool
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Divide the units of a segment into those before ``unit``, beside it and after it, each ascending.

    In the order before, ``unit``, beside, after no edge leads back, so each is convex.

    Args:
        beside: False counts what is beside it among those before.
    """
    inside = set(members)
    ahead = _reach(unit, units.dag.predecessors) & inside
    behind = _reach(unit, units.dag.successors) & inside
    rest = inside - ahead - behind - {unit}
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
