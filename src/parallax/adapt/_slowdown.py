"""How slow each processor is, estimated from runs: a Kalman filter of one number per processor.

After ALERT (Wan et al., USENIX ATC 2020, arXiv 1911.00119), which estimates the ratio of observed to predicted latency
in this way: ``K = P / (P + R); x += K (r - x); P = (1 - K) P + Q``. Ours beside it: x is the logarithm of the ratio, R
is learned from the runs, and a change is told from noise by sums of deviations (CUSUM: Page, Biometrika 41, 1954).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from parallax.adapt._state import HardwareState
from parallax.errors import ConfigError

NOISE: Final = 0.1
"""The least standard deviation of the logarithm of a run's ratio around that of the slow-down (sqrt R)."""

NOISE_GAIN: Final = 0.1
"""The part by which R follows the square of the last deviation. Where others take the cores, runs of one model in one
state differ by more than half, so that R must be learned."""

DRIFT: Final = 0.01
"""Standard deviation of what the logarithm of the slow-down changes by from run to run (sqrt Q)."""

OUTLIER: Final = 3.0
"""Standard deviations beyond which a run is an outlier, or the first after a change. It counts as so many."""

SUSPECTED: Final = 2.0
"""A sum of deviations from which on the next runs should be seen soon: an outlier, or several runs nearer by."""

SLACK: Final = 0.5
"""Standard deviations of each run that are left out of the sums of deviations: half of the least shift looked for."""

CHANGE: Final = 7.5
"""A sum of deviations, each less `SLACK`, that tells of a change: three outliers in a row, or more runs nearer by. Two
are not enough: where others take the cores, a quarter of the runs may take ten times as long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shift:
    """Runs in a row that lie above the estimate, taken together, or below it."""

    score: float = 0.0
    """Sum of the deviations in standard deviations, each at most `OUTLIER` and less `SLACK`; at least 0."""
    total: float = 0.0
    """Sum of the deviations since the score was 0, or since the first outlier."""
    runs: int = 0
    """Since then."""
    has_outlier: bool = False
    """Whether one of them was an outlier. What lay nearer by before the first one tells nothing of how far it went."""

    def updated(self, deviation: float, spread: float) -> _Shift:
        """``deviation``: in the direction that is looked at. ``spread``: the standard deviation of a run."""
        score = self.score + min(OUTLIER, deviation / spread) - SLACK
        if score <= 0:
            return _NO_SHIFT
        is_outlier = deviation > OUTLIER * spread
        if is_outlier and not self.has_outlier:
            return _Shift(score=score, total=deviation, runs=1, has_outlier=True)
        has_outlier = is_outlier or self.has_outlier
        return _Shift(score=score, total=self.total + deviation, runs=self.runs + 1, has_outlier=has_outlier)


_NO_SHIFT: Final = _Shift()


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowdown:
    """The estimate for one processor. Deviations and variances are those of natural logarithms."""

    value: float = 1.0
    variance: float = NOISE**2
    """Of the estimate (P)."""
    noise: float = NOISE**2
    """Variance of a run's ratio around the estimate (R)."""
    outlier: int = 0
    """1 or -1 if the last run was an outlier above or below, not counted so far; else 0."""
    runs: int = 0
    """How many runs were counted since the last change."""
    above: _Shift = _NO_SHIFT
    below: _Shift = _NO_SHIFT

    @property
    def is_suspected(self) -> bool:
        """Whether the last runs lie so far off to one side that the processor may have changed."""
        return max(self.above.score, self.below.score) >= SUSPECTED

    def updated(self, ratio: float) -> Slowdown:
        """The estimate after a run that took ``ratio`` times what was predicted.

        The first run is taken as it is. A run more than `OUTLIER` deviations away is discarded. Where deviations to one
        side add up, as those of three such runs do, the processor has changed: the runs that added up decide, from the
        first outlier on.

        Raises: ConfigError unless ``ratio`` is above 0 and finite.
        """
        if not 0 < ratio < math.inf:
            raise ConfigError(f"a run that took {ratio} times its prediction", fix="give a finite ratio above 0")
        if not self.runs:
            return Slowdown(value=ratio, variance=self.noise, noise=self.noise, runs=1)
        deviation = math.log(ratio / self.value)
        spread = math.sqrt(self.variance + self.noise)
        square = min(abs(deviation), OUTLIER * spread) ** 2
        noise = max(NOISE**2, self.noise + NOISE_GAIN * (square - self.variance - self.noise))
        above, below = self.above.updated(deviation, spread), self.below.updated(-deviation, spread)
        for shift, sign in ((above, 1), (below, -1)):
            if shift.score >= CHANGE:
                value = self.value * math.exp(sign * shift.total / shift.runs)
                return Slowdown(value=value, variance=self.noise / shift.runs, noise=noise, runs=shift.runs)
        if abs(deviation) > OUTLIER * spread:
            side = 1 if deviation > 0 else -1
            return replace(self, noise=noise, outlier=side, above=above, below=below)
        gain = self.variance / (self.variance + self.noise)
        return Slowdown(
            value=self.value * math.exp(gain * deviation),
            variance=(1 - gain) * self.variance + DRIFT**2,
            noise=noise,
            runs=self.runs + 1,
            above=above,
            below=below,
        )


_SETTLED: Final = 5
"""Runs of which an estimate is made before it counts as the least one."""


class SlowdownEstimator:
    """Estimates of all processors, from what each run reported. Not thread-safe: its owner locks."""

    def __init__(self) -> None:
        self._estimates: dict[str, Slowdown] = {}
        self._least: dict[str, float] = {}

    def update(self, ratios: Mapping[str, float] | Iterable[tuple[str, float]]) -> None:
        """Count a run: processor -> observed over predicted time of its segments together."""
        for processor, ratio in dict(ratios).items():
            estimate = self._estimates[processor] = self.estimate(processor).updated(ratio)
            if estimate.runs >= _SETTLED:
                self._least[processor] = min(estimate.value, self._least.get(processor, math.inf))

    def forget(self, processor: str) -> None:
        """Take a processor to be as predicted again."""
        self._estimates.pop(processor, None)

    @property
    def estimates(self) -> Mapping[str, Slowdown]:
        """What is known now, of each processor that something is known of."""
        return MappingProxyType(dict(self._estimates))

    def restore(self, estimates: Mapping[str, Slowdown]) -> None:
        """Take all processors to be as they were when `estimates` was asked for, whatever runs have shown since."""
        self._estimates = dict(estimates)

    def estimate(self, processor: str) -> Slowdown:
        """What is known of one processor."""
        return self._estimates.get(processor, Slowdown())

    def least(self, processor: str) -> float | None:
        """The least slow-down that runs have shown so far: that of the nominal state. None: too few runs."""
        return self._least.get(processor)

    def state(self, *, free_cores: float | None = None, free_bytes: int | None = None) -> HardwareState:
        """The machine's state, by the runs so far."""
        values = {processor: estimate.value for processor, estimate in self._estimates.items()}
        return HardwareState(slowdowns=MappingProxyType(values), free_cores=free_cores, free_bytes=free_bytes)
