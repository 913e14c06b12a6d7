"""The time of an emulated device: one part after the other, on a clock that can be replaced."""

from __future__ import annotations

import functools
import os
import threading
import time
import weakref
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from parallax.backends.ort import TERMINATED, Bytes
from parallax.errors import RunCancelled

_SLICE_S: Final = 0.01
"""A sleeping run looks this often whether it was cancelled."""

OVERSLEEP_S: Final = 60e-6
"""What an operating system's timer is late by; the rest of a sleep is spun."""

_COPY_BYTES: Final = 1 << 20
_COPY_BYTES_PER_S: Final = 4e9
"""A core copies at least so fast: what is copied at a time ends before the time is over."""


class Clock(Protocol):
    """Tells the time, and lets it pass. Any thread may call it."""

    def now(self) -> float:
        """Seconds; never less than before."""
        ...

    def sleep(self, seconds: float) -> None:
        """Return when so much has passed, or somewhat more."""
        ...


class SystemClock:
    """The machine's own."""

    def now(self) -> float:
        """See `Clock`."""
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        """See `Clock`."""
        time.sleep(seconds)


class DeviceQueue:
    """The device's time: one part after the other. Moments are on ``clock``."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._free_at = 0.0

    def reserve(self, seconds: float, since: float) -> float:
        """Take the next ``seconds`` of the device, from ``since`` on at the earliest. Returns when they are over.

        What an emulation does itself, to recall and to copy, falls into the time it emulates.
        """
        with self._lock:
            end = max(since, self._free_at) + seconds
            self._free_at = end
            return end

    def wait(self, end: float, copying_s: float, run_options: Any) -> None:
        """Wait for what was reserved until then, and copy for the last ``copying_s`` of it.

        What is left of it goes back if the run is stopped.

        Raises: RunCancelled if asked to stop.
        """
        try:
            self._wait_until(end - copying_s, run_options)
            self._copy_until(end)
        except BaseException:
            with self._lock:
                self._free_at -= max(0.0, end - self.clock.now())
            raise

    def _wait_until(self, end: float, run_options: Any) -> None:
        """Sleep, without using the processor but for the last of it. Raises: RunCancelled if asked to stop."""
        while (left := end - self.clock.now()) > 0:
            if is_cancelled(run_options):
                raise RunCancelled(f"the run was stopped: {TERMINATED}", fix="run again to start over")
            if left > OVERSLEEP_S:
                self.clock.sleep(min(left - OVERSLEEP_S, _SLICE_S))

    def _copy_until(self, end: float) -> None:
        """Keep a core copying, without Python's lock."""
        source, target = _copied()
        while (left := end - self.clock.now()) > 0:
            size = max(1, min(_COPY_BYTES, int(left * _COPY_BYTES_PER_S)))
            np.copyto(target[:size], source[:size])


@functools.cache
def _copied() -> tuple[Bytes, Bytes]:
    """What is copied from and to; nobody reads what it holds."""
    return np.zeros(_COPY_BYTES, np.uint8), np.zeros(_COPY_BYTES, np.uint8)


def is_cancelled(run_options: Any) -> bool:
    """Whether a run was asked to stop."""
    return run_options is not None and bool(run_options.terminate)


@functools.cache
def queue_of(device: str) -> DeviceQueue:
    """A process has each device once, however many sessions use it."""
    return DeviceQueue(SystemClock())


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Since:
    """A moment that a device's condition counts from, on the device's clock. Whoever has the device open holds it."""

    moment: float


_opened: weakref.WeakValueDictionary[tuple[str, str], Since] = weakref.WeakValueDictionary()


def since_first_opened(device: str, condition: str | os.PathLike[str]) -> Since:
    """When a device was opened in this condition, by whoever was first of those who have it open still.

    Whoever opens it again meanwhile, as a session does that switches to another plan, finds it as it is by then.
    """
    return _opened.setdefault((device, os.path.abspath(condition)), Since(queue_of(device).clock.now()))
