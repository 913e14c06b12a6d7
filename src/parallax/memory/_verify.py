"""The judge of arena plans. It reads the plan's segments and knows nothing of lifetimes, planners or bounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from parallax.errors import PlanError
from parallax.memory._arena import ArenaPlan
from parallax.memory._protocols import PlanLike


def verify_arena_plan(
    arena: ArenaPlan,
    plan: PlanLike,
    *,
    sizes: Mapping[str, int | None],
    model_outputs: Iterable[str],
    order: Sequence[int] | None = None,
) -> None:
    """Judge whether runs of a plan may keep their boundary tensors in this arena.

    Each tensor of ``sizes`` has one slot of its size (of unknown size: none, and it is listed as dynamic),
    aligned and within the arena; the figures add up; and two tensors share bytes only if one is dead before
    the other begins in every execution: whatever reads or makes the one is an ancestor of what makes the
    other. O(T² × uses) after O(segments × ancestors); independent of how the arena was planned.

    Args:
        arena: what to judge; its source need not be trusted.
        plan: the plan whose runs use it.
        sizes: the tensors it is for, and their bytes.
        model_outputs: these stay alive to the end.
        order: judge for this one order of execution instead of all.

    Raises: PlanError naming the tensors at fault.
    """

    def refuse(what: str) -> PlanError:
        return PlanError(what, where="arena", fix="runs would overwrite their own data: plan the arena again")

    alignment = arena.alignment_bytes
    if alignment < 1 or alignment & (alignment - 1):
        raise refuse(f"an alignment of {alignment} bytes is no power of two")
    names = [slot.tensor for slot in arena.slots]
    if len(set(names)) != len(names):
        raise refuse("a tensor has two slots")
    if set(names) != {name for name, size in sizes.items() if size is not None}:
        odd = sorted(set(names) ^ {name for name, size in sizes.items() if size is not None})
        raise refuse(f"slots and tensors of known size differ by {odd[:5]}")
    if sorted(arena.dynamic) != sorted(name for name, size in sizes.items() if size is None):
        raise refuse(f"dynamic tensors {list(arena.dynamic)[:5]} are not those of unknown size")
    total = 0
    for slot in arena.slots:
        if slot.size_bytes != sizes[slot.tensor]:
            raise refuse(f"{slot.tensor!r} has {slot.size_bytes} bytes where it needs {sizes[slot.tensor]}")
        if slot.offset < 0 or slot.offset % alignment:
            raise refuse(f"{slot.tensor!r} lies at {slot.offset}, which is not a multiple of {alignment}")
        if slot.offset + slot.size_bytes > arena.arena_bytes:
            raise refuse(f"{slot.tensor!r} ends at {slot.offset + slot.size_bytes} of {arena.arena_bytes} bytes")
        total += -(-slot.size_bytes // alignment) * alignment
    if arena.naive_bytes != total:
        raise refuse(f"naive size {arena.naive_bytes} is not the sum of all tensors, {total}")
    if not 0 <= arena.lower_bound_bytes <= arena.arena_bytes <= arena.naive_bytes:
        raise refuse(f"not lower bound {arena.lower_bound_bytes} <= {arena.arena_bytes} <= naive {arena.naive_bytes}")

    made_by: dict[str, int] = {}
    used_by: dict[str, set[int]] = {}
    before: list[set[int]] = []
    for position, segment in enumerate(plan.segments):
        if order is None:
            before.append(set(segment.predecessors).union(*(before[other] for other in segment.predecessors)))
        else:
            before.append(set(order[: order.index(position)]))
        for name in segment.outputs:
            made_by[name] = position
        for name in (*segment.inputs, *segment.outputs):
            used_by.setdefault(name, set()).add(position)
    kept = frozenset(model_outputs)
    placed = sorted((slot for slot in arena.slots if slot.size_bytes), key=lambda slot: slot.offset)
    for slot in placed:
        if slot.tensor not in made_by:
            raise refuse(f"{slot.tensor!r} is produced by no segment")

    def is_over(first: str, second: str) -> bool:
        return first not in kept and used_by[first] <= before[made_by[second]]

    for number, low in enumerate(placed):
        for high in placed[number + 1 :]:
            if high.offset >= low.offset + low.size_bytes:
                break
            if not is_over(low.tensor, high.tensor) and not is_over(high.tensor, low.tensor):
                raise refuse(
                    f"{low.tensor!r} (bytes {low.offset} to {low.offset + low.size_bytes}) and {high.tensor!r} "
                    f"(from {high.offset}) may be alive at once"
                )
