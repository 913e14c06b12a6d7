"""Memory pressure: how much is free now, and whether tasks are already waiting for memory.

Free memory says what may still be taken; Linux's pressure stall information says that too much was taken already,
by whomever, long before anything is killed.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from parallax.machine._cgroups import CgroupVersion, Root, cgroup_folders, read_text
from parallax.machine._memory import free_memory_bytes

_CONTROLLER_MOUNTS: Final = ("memory",)
_SOME: Final = re.compile(r"^some avg10=(\d+(?:\.\d+)?)\b", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class PressureReading:
    """Memory as this process meets it at one moment."""

    free_bytes: int
    """What it may still take, as `free_memory_bytes` has it."""
    stalled_share: float | None = None
    """Share of the last ten seconds, 0 to 1, in which some task waited for memory; None where nobody says."""


def read_pressure(*, root: Root = "/") -> PressureReading:
    """Read both now. Some hundred microseconds.

    The stalls are those of the control group of this process (``memory.pressure``, v2) where it has any, else of
    the whole machine (``/proc/pressure/memory``).

    Args:
        root: where ``proc`` and ``sys`` are mounted.
    """
    return PressureReading(free_bytes=free_memory_bytes(root=root), stalled_share=_stalled_share(root))


def _stalled_share(root: Root) -> float | None:
    groups = (
        os.path.join(folder, "memory.pressure")
        for folder, version in cgroup_folders(root, "memory", _CONTROLLER_MOUNTS)
        if version is CgroupVersion.V2
    )
    for path in (*groups, os.path.join(root, "proc/pressure/memory")):
        found = _SOME.search(read_text(path) or "")
        if found is not None:
            return min(1.0, float(found[1]) / 100)
    return None


class PressureMonitor:
    """Readings, taken at most every so often however many ask. Thread-safe.

    Args:
        interval_s: a reading younger than this is given out again.
        read: takes a reading.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        interval_s: float = 0.25,
        read: Callable[[], PressureReading] = read_pressure,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.interval_s = interval_s
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._last: PressureReading | None = None
        self._taken_s = 0.0

    def reading(self) -> PressureReading:
        """The latest reading, at most ``interval_s`` old."""
        with self._lock:
            now = self._clock()
            if self._last is None or now - self._taken_s >= self.interval_s:
                self._last = self._read()
                self._taken_s = now
            return self._last
