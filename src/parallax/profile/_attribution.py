"""Whose time is it: nodes of the runtime's optimised graph traced back to the nodes of the model.

The runtime fuses, renames, inserts and drops nodes before it runs a graph, so what it measures is
not what the model's author wrote. Every optimised node is given the original nodes whose work it does:

1. A node that kept its name kept (at least) that node. The layout pass names what it rewrites
   ``<output>_nchwc``, after the original output.
2. A node whose output still carries an original name does everything back from there up to tensors
   that exist in the optimised graph too: fused operators. Original nodes are claimed once.
3. What is left, the runtime inserted: a node named ``<original>/<pass>`` belongs to that original;
   a layout change or reshape to the producer of the tensor it makes, else to the operator it feeds,
   else to the one it follows.

The runtime optimises in two steps, fusions first and layout second, and names survive one step better
than two: trace each step by itself and join the two with `join_covers`.

Everything here is linear in nodes and edges of both graphs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from parallax.graph import OpGraph

Cover = tuple[int, ...]
"""Indices of original nodes whose work one optimised node does; ascending."""

_LAYOUT_SUFFIX = "_nchwc"
_SEPARATORS = re.compile(r"[/_:.]")


def find_covers(original: OpGraph, optimised: OpGraph) -> tuple[Cover, ...]:
    """The original nodes that each node of ``optimised`` stands for; never empty unless ``original`` is.

    Rules 1 and 2 give each original node to at most one optimised node; rule 3 adds one that is
    taken already. Originals in no cover do not run at all (folded into constants, or renamed away).
    """
    if not original.nodes:
        return ((),) * len(optimised.nodes)
    covers: list[list[int]] = [[] for _ in optimised.nodes]
    claimed: dict[int, int] = {}
    by_name = {node.name: node.index for node in original.nodes}
    _claim_by_name(original, optimised, by_name, covers, claimed)
    _claim_by_output(original, optimised, covers, claimed)
    _adopt_inserted(original, optimised, by_name, covers)
    return tuple(tuple(sorted(cover)) for cover in covers)


def _claim_by_name(
    original: OpGraph, optimised: OpGraph, by_name: dict[str, int], covers: list[list[int]], claimed: dict[int, int]
) -> None:
    for node in optimised.nodes:
        index = by_name.get(node.name)
        if index is None and node.name.endswith(_LAYOUT_SUFFIX):
            index = original.producers.get(node.name.removesuffix(_LAYOUT_SUFFIX))
        if index is not None and index not in claimed:
            claimed[index] = node.index
            covers[node.index].append(index)


def _claim_by_output(original: OpGraph, optimised: OpGraph, covers: list[list[int]], claimed: dict[int, int]) -> None:
    alive = optimised.producers.keys() | optimised.initializers.keys()
    for node in optimised.nodes:
        pending = [original.producers[name] for name in node.outputs if name in original.producers]
        seen: set[int] = set()
        while pending:
            index = pending.pop()
            if index in seen or claimed.get(index, node.index) != node.index:
                continue
            seen.add(index)
            if index not in claimed:
                claimed[index] = node.index
                covers[node.index].append(index)
            source = original.nodes[index]
            pending.extend(
                original.producers[name]
                for name in (*source.inputs, *source.captures)
                if name not in alive and name in original.producers
            )


def _adopt_inserted(original: OpGraph, optimised: OpGraph, by_name: dict[str, int], covers: list[list[int]]) -> None:
    for node in optimised.nodes:
        if not covers[node.index]:
            owner = _named_after(node.name, by_name)
            if owner is None:
                owner = next((original.producers[name] for name in node.outputs if name in original.producers), None)
            if owner is not None:
                covers[node.index].append(owner)
    # Backwards, so that a chain of inserted nodes ends at the operator it leads to; then forwards.
    for node in reversed(optimised.nodes):
        if not covers[node.index]:
            following = (covers[after][0] for after in optimised.successors[node.index] if covers[after])
            covers[node.index].extend(owner for owner in (next(following, None),) if owner is not None)
    for node in optimised.nodes:
        if not covers[node.index]:
            preceding = (covers[before][-1] for before in optimised.predecessors[node.index] if covers[before])
            covers[node.index].append(next(preceding, 0))


def _named_after(name: str, by_name: dict[str, int]) -> int | None:
    """The original node whose name is the longest part of ``name`` that ends at a separator."""
    for cut in sorted((match.start() for match in _SEPARATORS.finditer(name)), reverse=True):
        index = by_name.get(name[:cut])
        if index is not None:
            return index
    return None


def join_covers(outer: Sequence[Cover], inner: Sequence[Cover]) -> tuple[Cover, ...]:
    """Covers of the last of three graphs by the first.

    ``outer`` says which nodes of the middle graph each node of the last one stands for, ``inner`` which
    nodes of the first graph each of the middle one does.
    """
    return tuple(tuple(sorted({index for middle in cover for index in inner[middle]})) for cover in outer)


def split_times(times: Sequence[int], covers: Sequence[Cover], weights: Sequence[int]) -> list[int]:
    """Share each optimised node's time among the original nodes of its cover; the sum stays the same.

    Args:
        times: per optimised node, at least 0, in any unit.
        covers: as `find_covers` gives them.
        weights: per original node, at least 0: its FLOPs. The heaviest node of a cover (the last of
            equals) is its anchor; it takes what rounding leaves over, and all where all weigh nothing.
    """
    shares = [0] * len(weights)
    for time, cover in zip(times, covers, strict=True):
        if not cover:
            continue
        total = sum(weights[index] for index in cover)
        anchor = max(cover, key=lambda index: (weights[index], index))
        left = time
        if total:
            for index in cover:
                if index != anchor:
                    share = time * weights[index] // total
                    shares[index] += share
                    left -= share
        shares[anchor] += left
    return shares
