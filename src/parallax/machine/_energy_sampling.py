"""Energy used while something ran: counters read before and after, power read often in between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from parallax.errors import BackendError
from parallax.machine._energy import Counts, EnergyMeter

SAMPLE_S: Final = 0.02
"""How often power is read. A counter is read as often, so that none begins anew twice unnoticed: RAPL's do so within a
minute at worst."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeteredEnergy:
    """What one meter told."""

    meter: str
    covers: str
    joules: float
    seconds: float
    samples: int
    """How many readings it rests on."""
    failure: str | None = None
    """Why it was not read to the end; ``joules`` are then those until there."""

    @property
    def mean_watts(self) -> float:
        """Over the whole time."""
        return self.joules / self.seconds if self.seconds > 0 else 0.0


class EnergySum:
    """Adds up the readings of one meter. Pure: times are the caller's."""

    def __init__(self, meter_counts: Counts, range_joules: float | None) -> None:
        self._counts = meter_counts
        self._range = range_joules
        self._first_s: float | None = None
        self._last_s = 0.0
        self._last = 0.0
        self.joules = 0.0
        self.samples = 0

    def add(self, value: float, now_s: float) -> None:
        """A reading: joules of a counter, or watts."""
        if self._first_s is None:
            self._first_s = now_s
        elif self._counts is Counts.POWER:
            self.joules += (value + self._last) / 2 * (now_s - self._last_s)
        else:
            used = value - self._last
            if used < 0:
                # It began anew; one that may not (a driver that was loaded again) lost what was before.
                used = value + (self._range - self._last if self._range is not None else 0.0)
            self.joules += used
        self._last, self._last_s = value, now_s
        self.samples += 1

    @property
    def seconds(self) -> float:
        """Between the first reading and the last."""
        return 0.0 if self._first_s is None else self._last_s - self._first_s


class EnergyRecorder:
    """Reads meters in a thread of its own while it is open::

        with EnergyRecorder(meters) as recorder:
            session.run(None, feeds)
        print(recorder.energy())

    Args:
        meters: that can be read.
        interval_s: between readings.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        meters: Sequence[EnergyMeter],
        *,
        interval_s: float = SAMPLE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._meters = tuple(meters)
        self._sums = [EnergySum(meter.info.counts, meter.range_joules) for meter in meters]
        self._failures: list[str | None] = [None] * len(self._meters)
        self._interval_s = interval_s
        self._clock = clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_stopped, name="parallax-energy", daemon=True)

    def __enter__(self) -> EnergyRecorder:
        self._sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def energy(self) -> tuple[MeteredEnergy, ...]:
        """What each meter told, in their order. To be called when the recorder is closed."""
        return tuple(
            MeteredEnergy(
                meter=meter.info.name,
                covers=meter.info.covers,
                joules=total.joules,
                seconds=total.seconds,
                samples=total.samples,
                failure=failure,
            )
            for meter, total, failure in zip(self._meters, self._sums, self._failures, strict=True)
        )

    def _sample_until_stopped(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._sample()

    def _sample(self) -> None:
        for index, meter in enumerate(self._meters):
            if self._failures[index] is None:
                try:
                    self._sums[index].add(meter.read(), self._clock())
                except BackendError as error:
                    self._failures[index] = error.what
