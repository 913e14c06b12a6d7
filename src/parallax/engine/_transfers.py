"""Which tensors of a plan go to another backend's memory, and back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence, Set
from typing import NamedTuple

from parallax.schedule import Plan


class Transfers(NamedTuple):
    """Tensors that a segment moves to its backend's memory, and from there to the processor's."""

    inputs: Collection[str]
    outputs: Collection[str]


def find_transfers(plan: Plan, outputs: Iterable[str]) -> Sequence[Transfers]:
    """What each segment moves. A tensor that several segments of a backend read moves there once, with the first.

    Args:
        outputs: of the model.
    """
    owner = {name: segment.backend for segment in plan.segments for name in segment.outputs}
    seen: set[tuple[str, str]] = set()
    outside = read_outside(plan, outputs)
    found = []
    for segment in plan.segments:
        moved = []
        for name in segment.inputs:
            if owner.get(name) != segment.backend and (segment.backend, name) not in seen:
                seen.add((segment.backend, name))
                moved.append(name)
        found.append(Transfers(tuple(moved), tuple([name for name in segment.outputs if name in outside])))
    return found


def read_outside(plan: Plan, outputs: Iterable[str]) -> Set[str]:
    """Tensors that leave the backend that made them: read by another's segments, or returned."""
    owner = {name: segment.backend for segment in plan.segments for name in segment.outputs}
    found = set(outputs)
    for segment in plan.segments:
        found.update(name for name in segment.inputs if owner.get(name, segment.backend) != segment.backend)
    return found
