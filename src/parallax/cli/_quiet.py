"""Time and cores for a measurement: how long it may take, and whether other programs leave it the cores."""

from __future__ import annotations

import time
from collections.abc import Callable

from parallax.cli._console import ProgressCallback, Screen
from parallax.machine import NOISY_SHARE, LoadMeter

POLL_S = 0.25
"""So long is looked for, to say how many cores others use."""


class Deadline:
    """A point in time by which some work is to end.

    Args:
        seconds: from now, or from when it began.
        clock: seconds, monotonic.
        began_s: by the clock; None: now.
    """

    def __init__(
        self, seconds: float, clock: Callable[[], float] = time.monotonic, *, began_s: float | None = None
    ) -> None:
        self._clock = clock
        self._began = clock() if began_s is None else began_s
        self.seconds = seconds

    @property
    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return self._clock() - self._began

    @property
    def remaining_s(self) -> float:
        """Seconds that are left, at least 0."""
        return max(0.0, self.seconds - self.elapsed_s)

    def within(self, share: float) -> Deadline:
        """Another one that ends after this share of what is left."""
        return Deadline(self.remaining_s * share, self._clock)


def await_idle_cores(
    screen: Screen,
    progress: ProgressCallback,
    *,
    cores: int,
    limit_s: float,
    meter: LoadMeter | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> float:
    """Wait until other programs leave ``cores`` cores to us, ``limit_s`` seconds at most, and say so while it lasts.

    Args:
        meter: tells what others use; by default the system's.

    Returns: the number of those cores that others use in the end; 0.0 where there is nothing to complain of.
    """
    deadline = Deadline(limit_s, clock)
    load = LoadMeter() if meter is None else meter
    is_said = False
    while True:
        sleep(POLL_S)
        busy = min(load.cores_taken(cores), float(cores))
        if busy <= NOISY_SHARE * cores:
            if is_said:
                screen.notice(f"the cores are there after {deadline.elapsed_s:.0f} s")
            return 0.0
        if not deadline.remaining_s:
            return busy
        if not is_said:
            screen.notice(f"other programs use {busy:.1f} of {cores} cores: waiting up to {limit_s:.0f} s for them")
            is_said = True
        progress("waiting for cores (s)", round(deadline.elapsed_s), round(limit_s))
