"""The smallest packing there is, for a few tensors."""

from __future__ import annotations

from collections.abc import Sequence

from parallax.memory._packing import Offsets, Packing, reached_bytes


def exact(
    packing: Packing, incumbent: Sequence[int], *, lower_bound_bytes: int, node_limit: int
) -> tuple[Offsets, bool]:
    """Branch and bound over the orders in which tensors are stacked.

    In some smallest packing every tensor lies at 0 or right above one it conflicts with (push all down until
    they rest). Taken by ascending offset, each then lies right above the highest end of those it conflicts with
    so far. So it is enough to try the orders in which these offsets never descend; one is given up when it,
    or a tensor still to come above it, cannot stay below the best known.

    Args:
        incumbent: a packing to improve on.
        lower_bound_bytes: what nothing can go below.
        node_limit: placements to try at most: the search stops by count, never by time.

    Returns: the best packing found, and whether nothing smaller exists.
    """
    sizes, conflicts = packing.sizes, packing.conflicts
    best = list(incumbent)
    best_bytes = reached_bytes(packing, best)
    offsets = list(incumbent)
    nodes = 0

    def search(rest: tuple[int, ...], floors: dict[int, int], base: int) -> bool:
        """Place all of ``rest`` at or above ``base``; False when the limit is reached."""
        nonlocal best, best_bytes, nodes
        if not rest:
            best = list(offsets)
            best_bytes = reached_bytes(packing, best)
            return True
        lows = {item: max(floors[item], base) for item in rest}
        if any(lows[item] + sizes[item] >= best_bytes for item in rest):
            return True
        # Twins (same size, same floor, same conflicts among the rest) are tried once.
        seen: set[tuple[int, int, bytes]] = set()
        for item in sorted(rest, key=lambda item: (floors[item], -sizes[item], item)):
            if best_bytes <= lower_bound_bytes:
                return True
            offset = floors[item]
            if offset < base or offset + sizes[item] >= best_bytes:
                continue
            others = tuple([other for other in rest if other != item])
            row = conflicts[item]
            placement = (sizes[item], offset, row)
            if placement in seen:
                continue
            seen.add(placement)
            nodes += 1
            if nodes > node_limit:
                return False
            end = offset + sizes[item]
            offsets[item] = offset
            raised = {other: max(floors[other], end) if row[other] else floors[other] for other in others}
            if not search(others, raised, offset):
                return False
        return True

    complete = search(tuple(packing.items), dict.fromkeys(packing.items, 0), 0)
    return best, complete
