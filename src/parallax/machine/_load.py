"""How much of the machine others are using: what a measurement must know of before it concludes anything."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple

import psutil

NOISY_SHARE: Final = 0.15
"""Of the cores measured on: where other processes use more than this of them, figures mean nothing."""


class Reading(NamedTuple):
    """What the system has counted so far, in seconds."""

    wall: float
    busy: float
    """Of all cores, for all processes."""
    own: float
    """Of all cores, for this process."""


def read_load() -> Reading:
    """What the system counts now; where it does not tell (no ``/proc``), as if nothing but time had passed."""
    try:
        return _counted()
    except (OSError, psutil.Error):
        return Reading(time.perf_counter(), 0.0, 0.0)


def _counted() -> Reading:
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # Guest time is counted in user time already.
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    own = psutil.Process().cpu_times()
    return Reading(time.perf_counter(), sum(times) - idle - guests, own.user + own.system)


class LoadMeter:
    """Cores that other processes kept busy since the meter was made or last read.

    Args:
        read: tells what the system has counted, as `read_load`.
    """

    def __init__(self, read: Callable[[], Reading] = read_load) -> None:
        self._read = read
        self._last = read()

    def others_cores(self) -> float:
        """Mean number of cores used by everything but this process since the last reading; at least 0.

        What the system counts (user, system, interrupts, stolen time) less what this process used. In a
        container it is the host's count where the kernel shows that.
        """
        wall, busy, own = self._read()
        last_wall, last_busy, last_own = self._last
        self._last = Reading(wall, busy, own)
        return max(0.0, (busy - last_busy) - (own - last_own)) / max(1e-3, wall - last_wall)

    def cores_taken(self, cores: int) -> float:
        """Cores that others took since the last reading from one who uses ``cores`` of the machine's.

        What they use of the cores beyond those is not counted. Compare with ``NOISY_SHARE * cores``.
        """
        return max(0.0, self.others_cores() - max(0, (os.cpu_count() or cores) - cores))


_PROBE_BYTES: Final = 2 << 20
_PROBES: Final = 3
AWAIT_S: Final = 1.0
"""For how long work on cores that are missing goes on, unless it is told otherwise."""
AWAIT_STEP_S: Final = 0.02


def offered_cores(cores: int) -> float:
    """How many cores' worth of work that many threads get done at once; a probe of some 10 ms.

    The cores of a virtual machine may have to share one of the host's for a while, which no counter in it tells: each
    thread by itself is as quick as ever then, and two together take nearly twice as long.
    """
    data = bytes(_PROBE_BYTES)
    alone = together = float("inf")
    for _ in range(_PROBES):
        begin = time.perf_counter()
        hashlib.sha256(data).digest()
        alone = min(alone, time.perf_counter() - begin)
        at_once = _hash_at_once(data, cores)
        if at_once is None:
            return 1.0
        together = min(together, at_once)
    return cores * alone / max(together, 1e-9)


def _hash_at_once(data: bytes, threads: int) -> float | None:
    """Seconds from when all have begun to when the last has ended; None where so many cannot be started."""
    gate = threading.Barrier(threads)
    spans: list[tuple[float, float]] = []
    # New threads may all be put on the core of the one that starts them, and stay there for a while.
    places = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []

    def work(number: int) -> None:
        if places:
            os.sched_setaffinity(0, {places[number % len(places)]})
        try:
            gate.wait()
        except threading.BrokenBarrierError:
            return
        begin = time.perf_counter()
        hashlib.sha256(data).digest()  # lets go of the GIL
        spans.append((begin, time.perf_counter()))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    started = []
    try:
        for worker in workers:
            worker.start()
            started.append(worker)
    except RuntimeError:  # the system allows no more threads
        gate.abort()
    for worker in started:
        worker.join()
    if len(started) < threads:
        return None
    return max(end for _, end in spans) - min(begin for begin, _ in spans)


class CoreMeter:
    """Whether the cores are all there now, by the most that they were seen to do.

    Args:
        cores: those that are measured on.
        probe: tells what they do now, as `offered_cores`.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        cores: int,
        probe: Callable[[int], float] = offered_cores,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._cores = cores
        self._probe = probe
        self._clock = clock
        self._most = max(probe(cores) for _ in range(_PROBES)) if cores > 1 else 1.0

    def missing_share(self) -> float:
        """The share of the most that is missing at this moment; compare with ``NOISY_SHARE``."""
        if self._cores < 2:
            return 0.0
        now = self._probe(self._cores)
        self._most = max(self._most, now)
        return 1.0 - now / self._most

    def await_cores(self, work: Callable[[], object], *, limit_s: float = AWAIT_S) -> None:
        """Do ``work``, which keeps the cores busy, until no more than `NOISY_SHARE` of them is missing.

        For ``limit_s`` at most. A host may leave the cores of an idle virtual machine on one of its own, and takes a
        quarter of a second of work on all of them to part them.
        """
        end = self._clock() + limit_s
        while self.missing_share() > NOISY_SHARE and self._clock() < end:
            until = self._clock() + AWAIT_STEP_S
            work()
            while self._clock() < until:
                work()
