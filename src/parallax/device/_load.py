"""How much of the machine others are using: what a measurement must know of before it concludes anything."""

from __future__ import annotations

import os
import time
from typing import Final

import psutil  # type: ignore[import-untyped]

DISTURBED_SHARE: Final = 0.15
"""Of the cores measured on: where other processes use more than this of them, figures mean nothing."""


class LoadMeter:
    """Cores that other processes kept busy since the meter was made or last read."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._last = self._reading()

    def others_cores(self) -> float:
        """Mean number of cores used by everything but this process since the last reading; at least 0.

        What the system counts (user, system, interrupts, stolen time) less what this process used. In a
        container it is the host's count where the kernel shows that.
        """
        wall, busy, own = self._reading()
        last_wall, last_busy, last_own = self._last
        self._last = wall, busy, own
        return max(0.0, (busy - last_busy) - (own - last_own)) / max(1e-3, wall - last_wall)

    def disturbance(self, cores: int) -> float:
        """Cores that others took since the last reading from one who uses ``cores`` of the machine's.

        What they use of the cores beyond those is no disturbance. Compare with ``DISTURBED_SHARE * cores``.
        """
        return max(0.0, self.others_cores() - max(0, (os.cpu_count() or cores) - cores))

    def _reading(self) -> tuple[float, float, float]:
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Guest time is counted in user time already.
        guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        own = self._process.cpu_times()
        return time.perf_counter(), sum(times) - idle - guests, own.user + own.system
