"""How slow each processor is, estimated from runs: a Kalman filter of one number per processor.

After ALERT (Wan et al., USENIX ATC 2020, arXiv 1911.00119), which estimates the ratio of observed to predicted latency
in this way: ``K = P / (P + R); x += K (r - x); P = (1 - K) P + Q``. Ours beside it: noise is taken in proportion to the
slow-down, and a jump is told from an outlier by waiting for the next run.
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
"""Standard deviation of a run's ratio around the slow-down, as a share of the slow-down (sqrt R)."""

DRIFT: Final = 0.02
"""Standard deviation of what the slow-down changes by from run to run, as a share of it (sqrt Q)."""

OUTLIER: Final = 3.0
"""Standard deviations beyond which a run is an outlier, or the first after a jump."""

FIRST_VARIANCE: Final = 1.0
"""Of a slow-down nothing is known of: the first run decides nearly alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowdown:
    """The estimate for one processor."""

    value: float = 1.0
    variance: float = FIRST_VARIANCE
    """Of the estimate (P)."""
    outlier: int = 0
    """1 or -1 if the last run was an outlier above or below, not counted so far; else 0."""
    runs: int = 0
    """How many runs were counted."""

    def updated(self, ratio: float) -> Slowdown:
        """The estimate after a run that took ``ratio`` times what was predicted.

        A run more than `OUTLIER` deviations away is set aside. If the next one is as far away on the same side, the
        processor has changed: nothing is known any more, and that run decides.

        Raises: ConfigError unless ``ratio`` is above 0 and finite.
        """
        if not 0 < ratio < math.inf:
            raise ConfigError(f"a run that took {ratio} times its prediction", fix="give a finite ratio above 0")
        noise = (NOISE * self.value) ** 2
        deviation = ratio - self.value
        side = 0
        if self.runs and abs(deviation) > OUTLIER * math.sqrt(self.variance + noise):
            side = 1 if deviation > 0 else -1
        if side and side != self.outlier:
            return replace(self, outlier=side)
        variance = self.variance
        if side:
            # After a jump the spread of what is possible is that of the jump itself, and noise that of where it led to.
            variance, noise = max(variance, deviation * deviation), (NOISE * ratio) ** 2
        gain = variance / (variance + noise)
        value = self.value + gain * deviation
        return Slowdown(
            value=value,
            variance=(1 - gain) * variance + (DRIFT * value) ** 2,
            runs=1 if side else self.runs + 1,
        )


class SlowdownEstimator:
    """Estimates of all processors, from what each run reported. Not thread-safe: its owner locks."""

    def __init__(self) -> None:
        self._estimates: dict[str, Slowdown] = {}

    def update(self, ratios: Mapping[str, float] | Iterable[tuple[str, float]]) -> None:
        """Count a run: processor -> observed over predicted time of its segments together."""
        for processor, ratio in dict(ratios).items():
            self._estimates[processor] = self._estimates.get(processor, Slowdown()).updated(ratio)

    def forget(self, processor: str) -> None:
        """Take a processor to be as predicted again."""
        self._estimates.pop(processor, None)

    def estimate(self, processor: str) -> Slowdown:
        """What is known of one processor."""
        return self._estimates.get(processor, Slowdown())

    def state(self, *, free_cores: float | None = None, free_bytes: int | None = None) -> HardwareState:
        """The machine's state, by the runs so far."""
        values = {processor: estimate.value for processor, estimate in self._estimates.items()}
        return HardwareState(slowdowns=MappingProxyType(values), free_cores=free_cores, free_bytes=free_bytes)
