"""Which weights are to be in memory now, when there is not room for all: a state machine without clock or threads.

Segments run in a cycle, run after run. For cyclic access, keeping what was used last (LRU, as the kernel does) is the
worst there is: each segment is dropped just before it is needed. Best is to keep a fixed part and to let the rest pass
through a small buffer (Belady's rule, applied to a cycle). Which part is kept is spread evenly over the cycle, so that
the disk has something to do all the time.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

BUFFERED = 2
"""Segments the buffer has room for: one runs, one is being read."""


class Act(enum.Enum):
    """What is to be done with a segment's weights."""

    READ = "bring them into memory"
    DROP = "let go of them"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to be done, and then reported with `Window.done`."""

    act: Act
    segment: int


class Window:
    """Decides what to read and what to drop. Not thread-safe.

    Args:
        sizes: bytes of each segment's weights, in the order they run in.
        budget_bytes: what they may take together.
    """

    def __init__(self, sizes: Sequence[int], budget_bytes: int) -> None:
        self._sizes = list(sizes)
        self._present = [not size for size in sizes]
        self._users = [0] * len(sizes)
        self._wanted: dict[int, None] = {}  # in use and not present, in the order of asking
        self._now = 0
        self.held_bytes = 0
        self.budget_bytes = budget_bytes
        self._settled = settle(self._sizes, budget_bytes)

    def set_budget(self, budget_bytes: int) -> None:
        """From now on they may take so much."""
        if budget_bytes != self.budget_bytes:
            self.budget_bytes = budget_bytes
            self._settled = settle(self._sizes, budget_bytes)

    def resize(self, segment: int, size: int) -> None:
        """Less of a segment is read than was thought."""
        if self._present[segment]:
            self.held_bytes += size - self._sizes[segment]
        self._sizes[segment] = size
        if not size:
            self._present[segment] = True
            self._wanted.pop(segment, None)
        self._settled = settle(self._sizes, self.budget_bytes)

    def start(self, segment: int) -> None:
        """A run has come to this segment: it is in use, and what comes after it is needed next."""
        self._now = segment
        self._users[segment] += 1
        if not self._present[segment]:
            self._wanted[segment] = None

    def end(self, segment: int) -> None:
        """A run is done with it."""
        self._users[segment] -= 1

    def is_present(self, segment: int) -> bool:
        """Whether its weights can be used without waiting for the disk."""
        return self._present[segment]

    def next(self) -> Step | None:
        """What to do now; None if nothing, until something changes. O(segments)."""
        for segment in self._wanted:
            # Within the budget or not, it has to be there.
            return self._bring(segment, nearer=-1) or Step(Act.READ, segment)
        if self.held_bytes > self.budget_bytes and (victim := self._victim(nearer=-1)) is not None:
            return Step(Act.DROP, victim)
        for distance in range(len(self._sizes)):
            segment = (self._now + distance) % len(self._sizes)
            if not self._present[segment]:
                return self._bring(segment, nearer=distance)
        return None

    def _bring(self, segment: int, *, nearer: int) -> Step | None:
        """The next step to having an absent segment; None if the budget does not allow that yet."""
        if self.held_bytes + self._sizes[segment] <= self.budget_bytes:
            return Step(Act.READ, segment)
        victim = self._victim(nearer=nearer)
        return None if victim is None else Step(Act.DROP, victim)

    def _victim(self, *, nearer: int) -> int | None:
        """What is needed last, if that is later than in ``nearer`` segments. With -1 there is need: of all, and of what
        is settled if of nothing else."""
        count = len(self._sizes)
        reluctant = None
        for distance in range(count - 1, nearer, -1):
            segment = (self._now + distance) % count
            if not self._present[segment] or self._users[segment] or not self._sizes[segment]:
                continue
            if segment not in self._settled:
                return segment
            if reluctant is None:
                reluctant = segment
        return reluctant if nearer < 0 else None

    def done(self, step: Step) -> None:
        """This was done."""
        segment = step.segment
        if step.act is Act.READ:
            self._present[segment] = True
            self._wanted.pop(segment, None)
            self.held_bytes += self._sizes[segment]
        else:
            self._present[segment] = False
            self.held_bytes -= self._sizes[segment]


def settle(sizes: Sequence[int], budget_bytes: int) -> frozenset[int]:
    """Which segments stay in memory, of those in a cycle: as many as leave room for the others to pass through.

    All of them, if all fit. Otherwise they are spread evenly, by bytes.
    """
    total = sum(sizes)
    if total <= budget_bytes:
        return frozenset(range(len(sizes)))
    keep = budget_bytes - BUFFERED * max(sizes)
    kept: set[int] = set()
    taken = passed = 0
    for segment, size in enumerate(sizes):
        passed += size
        # In step with what would have been kept of all up to here, were weights divisible.
        if taken + size <= keep and (taken + size) * total <= keep * (passed + size):
            kept.add(segment)
            taken += size
    return frozenset(kept)
