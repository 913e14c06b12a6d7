"""How long a batch of b requests takes: T(b) = a + c b, learnt from each batch that ran."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from typing import Final

FORGETTING: Final = 0.98
"""Weight of an observation relative to the next one: some fifty batches count."""

PRIOR_WEIGHT: Final = 0.1
"""Of each measured point, which is never forgotten: it tells the slope where all batches have one size."""

_WINDOW: Final = 64
"""Batches whose deviations from the fit are kept."""
_LEAST_FOR_QUANTILE: Final = 8
_FIRST_SPREAD: Final = 1.25
"""Of the 95th percentile over the fit, while fewer batches ran than can tell."""
_LEAST_SPREAD: Final = 1.05
"""However regular batches were so far."""
_BAD: Final = 0.2
"""A fit is bad where half of the batches deviate by more than this share of it."""
_OUTLIER: Final = 3.0
"""An observation counts as at most so many times the fit, or one that often less: a stall is not the model's cost."""
_SINGULAR: Final = 1e-9


class CostFit:
    """The linear model T(b) = a + c b of one class of shapes in one setting, by recursive least squares.

    Recursive least squares with forgetting, in information form: each observation multiplies the sums by `FORGETTING`
    and adds itself, weighted by 1 / b^2, since the deviations of a run grow with its length. ``a`` and ``c`` are never
    negative. O(1) an observation, but for the 95th percentile of `_WINDOW` numbers.

    Args:
        measured: (b, seconds), at least one; they count as observations of weight `PRIOR_WEIGHT` for ever, scaled to
            how much faster or slower batches are now.
        scale: factor on ``measured``, which were taken with requests of another size.
    """

    def __init__(self, measured: Sequence[tuple[int, float]], *, scale: float = 1.0) -> None:
        self._prior = _Sums()
        for size, seconds in measured:
            self._prior.add(size, max(seconds * scale, 1e-9), PRIOR_WEIGHT)
        self._stated = self._prior.solved()
        self.observed = 0
        """Batches so far."""
        self.restart()

    def restart(self) -> None:
        """Forget all batches: what was measured at first holds again."""
        self._sums = _Sums()
        self._ratios: deque[float] = deque(maxlen=_WINDOW)
        self._spread = _FIRST_SPREAD
        self._deviation = 0.0
        self.a_s, self.c_s = self._stated
        """Seconds of a batch, and of each request in it."""

    def mean_s(self, size: int) -> float:
        """What a batch of this size is expected to take."""
        return self.a_s + self.c_s * size

    def p95_s(self, size: int) -> float:
        """What it takes at most, with a probability of 95%."""
        return self.mean_s(size) * self._spread

    def stated_s(self, size: int) -> float:
        """What it was expected to take before any batch ran."""
        return self._stated[0] + self._stated[1] * size

    @property
    def spread(self) -> float:
        """The 95th percentile over the mean."""
        return self._spread

    @property
    def is_bad(self) -> bool:
        """Whether what batches take is no function of their size, as far as can be told."""
        return self._deviation > _BAD

    def largest(self, seconds: float) -> int:
        """The largest size whose 95th percentile is within ``seconds``; 0 where not even one request's is."""
        left = seconds / self._spread - self.a_s
        if left < self.c_s or left < 0:
            return 0
        return int(min(left / self.c_s + 1e-9, 1e9)) if self.c_s > 0 else 10**9

    def observe(self, size: int, seconds: float) -> None:
        """A batch of this size took so long."""
        expected = max(self.mean_s(size), 1e-9)
        ratio = max(seconds, 0.0) / expected
        self._ratios.append(ratio)
        self._sums.fade(FORGETTING)
        self._sums.add(size, min(max(ratio, 1 / _OUTLIER), _OUTLIER) * expected, 1.0)
        self.observed += 1
        a, c = self._stated
        pace = self._sums.wt / (a * self._sums.w + c * self._sums.wb)
        self.a_s, self.c_s = self._sums.plus(self._prior, pace).solved()
        if len(self._ratios) >= _LEAST_FOR_QUANTILE:
            ordered = sorted(self._ratios)
            self._spread = max(_LEAST_SPREAD, ordered[-(-len(ordered) * 95 // 100) - 1])
            self._deviation = statistics.median([abs(entry - 1) for entry in ordered])
        else:
            self._spread = max(_FIRST_SPREAD, *self._ratios)


class _Sums:
    """Weighted sums over observations of size b and time t."""

    __slots__ = ("w", "wb", "wbb", "wbt", "wt")

    def __init__(self) -> None:
        self.w = self.wb = self.wbb = self.wt = self.wbt = 0.0

    def add(self, size: int, seconds: float, weight: float) -> None:
        weight /= size * size
        self.w += weight
        self.wb += weight * size
        self.wbb += weight * size * size
        self.wt += weight * seconds
        self.wbt += weight * size * seconds

    def fade(self, factor: float) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) * factor)

    def plus(self, other: _Sums, pace: float) -> _Sums:
        """Both together, the other's times multiplied by ``pace``."""
        total = _Sums()
        total.w, total.wb, total.wbb = self.w + other.w, self.wb + other.wb, self.wbb + other.wbb
        total.wt, total.wbt = self.wt + other.wt * pace, self.wbt + other.wbt * pace
        return total

    def solved(self) -> tuple[float, float]:
        """The weighted least squares for (a, c), neither of them negative."""
        determinant = self.w * self.wbb - self.wb**2
        if determinant > _SINGULAR * self.w * self.wbb:
            a = (self.wbb * self.wt - self.wb * self.wbt) / determinant
            c = (self.w * self.wbt - self.wb * self.wt) / determinant
            if a >= 0 and c >= 0:
                return a, c
            if c < 0:
                return self.wt / self.w, 0.0
        # One size alone, or a line that would start below 0: all of the time is the requests'.
        return 0.0, self.wbt / self.wbb
