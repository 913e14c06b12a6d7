"""The planner of the Parallax paper: an arena per branch, and blocks handed over between branches."""

from __future__ import annotations

from dataclasses import field

from parallax._record import dataclass
from parallax.errors import InternalError
from parallax.memory._lifetimes import Lifetimes
from parallax.memory._packing import UNPACKED, Offsets, Packing


@dataclass(slots=True)
class _Arena:
    """One branch's bytes: a bump pointer, and below it pieces that are free."""

    top: int = 0
    free: list[tuple[int, int, int]] = field(default_factory=list)
    """(start, end, tensor that was there), ascending and disjoint. Neighbours are joined when a tensor looks
    for room, not before: a piece whose last tensor may still be alive beside it stays out of its run."""

    def runs(self, row: bytes) -> list[tuple[int, int]]:
        """Contiguous free space whose last tensors cannot be alive beside the one whose conflicts these are."""
        found: list[tuple[int, int]] = []
        for start, end, last in self.free:
            if row[last]:
                continue
            if found and found[-1][1] == start:
                found[-1] = (found[-1][0], end)
            else:
                found.append((start, end))
        return found

    def take(self, start: int, end: int) -> None:
        """Remove a range from the free pieces; it begins where one of them does, or at the top."""
        kept: list[tuple[int, int, int]] = []
        for low, high, last in self.free:
            if high <= start or low >= end:
                kept.append((low, high, last))
            elif high > end:
                kept.append((end, high, last))
        self.free = kept


def branch_arenas(packing: Packing, lifetimes: Lifetimes) -> Offsets:
    """A dedicated arena per branch, after "branch-aware memory" in Parallax (arXiv 2512.11532).

    Segments are taken in the order in which they would run one by one. A tensor goes to its branch's arena: into
    the smallest free run that holds it; else into the smallest that another branch hands over; else on top,
    growing the arena. Bytes pass on only where all uses of the last tensor there precede the next one (so
    earlier ones do, too), within a branch as well, because its tensors may be read in others. Between branches
    that is the paper's rule: a branch is entered by its first segment and left by its last, so a tensor of one is
    over before one of another begins only if the whole branch is. (With a fixed order no branches run together.)
    Arenas lie one behind the other. O(T × pieces).
    """
    sizes, conflicts = packing.sizes, packing.conflicts
    packed = frozenset(packing.items)
    arenas = [_Arena() for _ in range(max(lifetimes.branch_of, default=-1) + 1)]
    where: dict[int, tuple[int, int]] = {}
    for tensor, sign in packing.sweeps[0]:
        if tensor not in packed:
            continue
        size = sizes[tensor]
        if sign < 0:
            owner, start = where[tensor]
            pieces = arenas[owner].free
            pieces.append((start, start + size, tensor))
            pieces.sort()
            continue
        branch = lifetimes.branch_of[lifetimes.producers[tensor]]
        row = conflicts[tensor]
        own = arenas[branch]
        runs = own.runs(row)
        fitting = [(end - start, branch, start) for start, end in runs if end - start >= size]
        if not fitting:
            fitting = [
                (end - start, other, start)
                for other, arena in enumerate(arenas)
                if arena is not own
                for start, end in arena.runs(row)
                if end - start >= size
            ]
        if fitting:
            _, owner, start = min(fitting)
        else:
            owner = branch
            start = runs[-1][0] if runs and runs[-1][1] == own.top else own.top
            own.top = start + size
        arenas[owner].take(start, start + size)
        where[tensor] = (owner, start)
    bases: list[int] = []
    total = 0
    for item in arenas:
        bases.append(total)
        total += item.top
    offsets = [UNPACKED] * len(sizes)
    for tensor, (owner, start) in where.items():
        offsets[tensor] = bases[owner] + start
    if len(where) != len(packing.items):
        raise InternalError(f"a sweep begins {len(where)} of {len(packing.items)} tensors")
    return offsets
