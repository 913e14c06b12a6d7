"""The packing problem that planners solve, and the bounds on what any of them can reach."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import chain
from typing import Final

from parallax._record import dataclass
from parallax.errors import InternalError

Offsets = list[int]
"""Per tensor its offset, -1 for one that is not packed."""

UNPACKED: Final = -1

_SEEDS: Final = 12
"""Single tensors that are extended to a lower bound."""


def aligned(size_bytes: int, alignment_bytes: int) -> int:
    """The next multiple of the alignment, a power of two."""
    if alignment_bytes < 1 or alignment_bytes & (alignment_bytes - 1):
        raise InternalError(f"an alignment of {alignment_bytes} bytes is no power of two")
    return (size_bytes + alignment_bytes - 1) & -alignment_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Give every item an offset so that items in conflict never share bytes, in as small a space as possible."""

    sizes: Sequence[int]
    """Per tensor, in bytes, multiples of the alignment (so that every sum is aligned); 0 for those not to pack."""
    items: Sequence[int]
    """The tensors to pack: those of known size above zero, ascending."""
    conflicts: Sequence[bytes]
    """As in `Lifetimes`."""
    neighbours: Sequence[Sequence[int]]
    """As in `Lifetimes`."""
    sweeps: Sequence[Sequence[tuple[int, int]]]
    """As in `Lifetimes`; the first is the order in which segments are most likely to run."""

    @property
    def naive_bytes(self) -> int:
        """What it takes when nothing is shared."""
        sizes = self.sizes
        return sum([sizes[item] for item in self.items])


def reached_bytes(packing: Packing, offsets: Sequence[int]) -> int:
    """The space that a packing takes."""
    sizes = packing.sizes
    return max([offsets[item] + sizes[item] for item in packing.items], default=0)


def clique_bound(packing: Packing, *, enough_bytes: int | None = None) -> int:
    """A lower bound on any packing: the heaviest set found whose members conflict pairwise.

    What is alive at one moment of an execution conflicts pairwise. The heaviest such moment of each known
    execution is extended by whatever else conflicts with all of it (it could be alive beside them in another
    execution), heaviest first; so are the heaviest tensors alone. With a fixed order the moment is exact already.

    Args:
        enough_bytes: stop when this is reached: some packing takes no more.
    """
    sizes = packing.sizes
    heaviest = sorted(packing.items, key=lambda item: (-sizes[item], item))
    packed = frozenset(heaviest)
    rows = [int.from_bytes(row, "little") for row in packing.conflicts]  # one byte per tensor
    best = 0
    moments = (_heaviest_moment(packing, sweep, packed) for sweep in packing.sweeps)
    for start in chain(moments, ((item,) for item in heaviest[:_SEEDS])):
        common = -1
        weight = 0
        for member in start:
            common &= rows[member]
            weight += sizes[member]
        for item in heaviest:
            if common >> 8 * item & 1:  # no member conflicts with itself
                common &= rows[item]
                weight += sizes[item]
                if not common:
                    break
        best = max(best, weight)
        if best == enough_bytes:
            break
    return best


def _heaviest_moment(packing: Packing, sweep: Sequence[tuple[int, int]], packed: Collection[int]) -> tuple[int, ...]:
    """The packed tensors alive at the moment of an execution when they take the most bytes."""
    sizes = packing.sizes
    held = top = at = 0
    for number, (tensor, sign) in enumerate(sweep):
        held += sizes[tensor] * sign  # those not packed have no size
        if held > top:
            top, at = held, number
    alive: dict[int, None] = {}
    for tensor, sign in sweep[: at + 1]:
        if sign < 0:
            alive.pop(tensor, None)
        elif tensor in packed:
            alive[tensor] = None
    return tuple(alive)


def antichain_bound(packing: Packing) -> int:
    """The heaviest set of pairwise conflicting tensors: the best bound that conflicts in pairs can give.

    Tensors that do not conflict are ordered (before, after), so such a set is an antichain, and by Dilworth's
    theorem (with weights) its weight is the least total of chains that cover every tensor as often as it has
    bytes: all bytes less a maximum flow of bytes handed from a tensor to a later one. Order is read off the
    sweep: of two tensors that do not conflict, the one that begins first there is before the other.
    O(T³) at worst, found by shortest augmenting paths; for some hundred tensors.
    """
    sizes = packing.sizes
    packed = set(packing.items)
    begun = [tensor for tensor, sign in packing.sweeps[0] if sign > 0 and tensor in packed] if packing.sweeps else []
    if len(begun) != len(packed):
        raise InternalError(f"a sweep begins {len(begun)} of {len(packed)} tensors")
    # Bipartite: each tensor gives its bytes up once (left) and receives bytes once (right).
    receivers = [
        [other for other in begun[position + 1 :] if not packing.conflicts[tensor][other]]
        for position, tensor in enumerate(begun)
    ]
    give = {tensor: sizes[tensor] for tensor in begun}
    take = dict(give)
    moved: dict[int, dict[int, int]] = {tensor: {} for tensor in begun}  # right -> left -> bytes
    receivers_of = dict(zip(begun, receivers, strict=True))
    flow = 0
    while True:
        # One breadth-first search over tensors that can still give; paths alternate left and right.
        source_of: dict[int, int] = {}  # right -> left it was reached from
        back_of: dict[int, int] = {}  # left -> right it was reached from; absent for those with bytes left
        frontier = [tensor for tensor in begun if give[tensor]]
        seen = set(frontier)
        target = -1
        while frontier and target < 0:
            reached: list[int] = []
            for left in frontier:
                for right in receivers_of[left]:
                    if right in source_of:
                        continue
                    source_of[right] = left
                    if take[right]:
                        target = right
                        break
                    for giver in moved[right]:
                        if giver not in seen:
                            seen.add(giver)
                            back_of[giver] = right
                            reached.append(giver)
                if target >= 0:
                    break
            frontier = reached
        if target < 0:
            return packing.naive_bytes - flow
        amount = take[target]
        right = target
        while True:
            left = source_of[right]
            if left not in back_of:
                amount = min(amount, give[left])
                break
            right = back_of[left]
            amount = min(amount, moved[right][left])
        flow += amount
        take[target] -= amount
        right = target
        while True:
            left = source_of[right]
            moved[right][left] = moved[right].get(left, 0) + amount
            if left not in back_of:
                give[left] -= amount
                break
            right = back_of[left]
            moved[right][left] -= amount
            if not moved[right][left]:
                del moved[right][left]
