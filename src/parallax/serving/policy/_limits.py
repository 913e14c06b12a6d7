"""The largest batch that is tried: additive increase, multiplicative decrease."""

from __future__ import annotations

from typing import Final

DECREASE: Final = 0.9
"""Factor on the limit after a batch that was late, as in Clipper (Crankshaw et al., NSDI 2017, 4.3.1)."""


class BatchLimit:
    """How many requests a batch may have, learnt by trial.

    Args:
        start: at first.
        most: at most.
    """

    def __init__(self, start: int, most: int) -> None:
        self._most = max(1, most)
        self._limit = float(min(max(1, start), self._most))

    @property
    def size(self) -> int:
        """The limit now, at least 1."""
        return int(self._limit)

    def observe(self, size: int, *, was_late: bool, may_shrink: bool) -> None:
        """A batch of ``size`` ended.

        A full one that was in time raises the limit by one; one that was late lowers it by a tenth, where it
        ``may_shrink``.
        """
        if not was_late:
            if size >= self.size:
                self._limit = min(self._limit + 1, float(self._most))
        elif may_shrink:
            self._limit = max(1.0, self._limit * DECREASE)
