"""The memory of one session: its budget and who may run within it, its answer to pressure, its idle arenas."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from parallax.admission._controller import AdmissionController, Reservation
from parallax.admission._maintenance import MaintenanceThread, maintenance_thread
from parallax.errors import RunCancelled
from parallax.machine import PressureMonitor, PressureReading
from parallax.memory import DEFAULT_MARGIN, Budget, MemoryRequirement

IDLE_TRIM_S: Final = 30.0
"""After so many seconds without a run, a session with a budget gives back what it holds for the next one."""

STALLED: Final = 0.1
"""From this share of time spent waiting for memory on, sessions get narrower."""

SCARCE_LIMITS: Final = 4
"""... unless so many times what they may hold is free."""

_LINGER_S: Final = 1.0
"""Runs closer together than this are one piece of work to the monitor of pressure."""

Shapes = Mapping[str, Sequence[int]]
"""By name of an input."""

_process_monitor = PressureMonitor()


def _replace_after_fork() -> None:
    # A thread of the parent may have held its lock.
    global _process_monitor
    _process_monitor = PressureMonitor()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_replace_after_fork)


def limit_under_pressure(
    reading: PressureReading,
    *,
    limit_bytes: int,
    current_bytes: int,
    granted_bytes: int,
    margin: float = DEFAULT_MARGIN,
) -> int:
    """What the runs of a session may hold together while the machine is short of memory.

    Never more than runs have now and what is free beside that, less a margin. Where tasks wait for
    memory, a quarter less each time; otherwise back towards the limit by a quarter of it each time. While several times
    the limit is free, those who wait do so in other containers, and less of ours would not help them.

    Args:
        limit_bytes: without pressure.
        current_bytes: in force.
        granted_bytes: to runs in flight.
        margin: share of what is free that stays so.
    """
    room = granted_bytes + int(reading.free_bytes * (1 - margin))
    stalled = reading.stalled_share is not None and reading.stalled_share >= STALLED
    if stalled and reading.free_bytes < SCARCE_LIMITS * limit_bytes:
        wanted = current_bytes * 3 // 4
    else:
        wanted = current_bytes + (limit_bytes + 3) // 4
    return max(0, min(limit_bytes, room, wanted))


class SessionMemory:
    """Who may run, and what is given back when nobody does. Thread-safe.

    Args:
        budget: None for a session without one, which then only has its idle time watched.
        idle_trim_s: seconds without a run after which ``trim`` is called; infinity for never.
        trim: gives idle memory back.
        arenas: bytes of arenas that runs left behind for the next ones, or use now.
        monitor, maintenance: of this process.
    """

    def __init__(
        self,
        *,
        budget: Budget | None,
        idle_trim_s: float,
        trim: Callable[[], object],
        arenas: Callable[[], int] | None = None,
        monitor: PressureMonitor | None = None,
        maintenance: MaintenanceThread | None = None,
    ) -> None:
        self.budget = budget
        self.idle_trim_s = idle_trim_s
        self._trim = trim
        self._arenas = arenas
        # (lock) Since the last trim: the most that runs held beside arenas, all together and one of them, and what an
        # allocator may have kept of it: blocks too small for what came later are kept beside those that are not.
        self._inside_bytes = 0
        self._largest_bytes = 0
        self._kept_bytes = 0
        self._monitor = monitor or _process_monitor
        self._maintenance = maintenance or maintenance_thread()
        self._full_bytes = 0 if budget is None else budget.limit_bytes
        self._controller = None if budget is None else AdmissionController(self._full_bytes)
        self._seen: PressureReading | None = None
        self._lock = threading.Lock()
        self._gone_bytes: deque[int] = deque()  # weights that are gone, but still counted
        self._running = 0  # (lock) runs in flight or waiting
        self._ended_s = self._maintenance.clock()
        self._trimmed = True  # nothing ran since the last trim
        self.last_shapes: Shapes = {}
        """Of the inputs of the run admitted last; empty before any."""

    @property
    def controller(self) -> AdmissionController | None:
        """What admits runs; None without a budget."""
        return self._controller

    @contextlib.contextmanager
    def run(
        self, shapes: Shapes, requirement: MemoryRequirement | None = None, run_options: Any = None
    ) -> Iterator[Reservation | None]:
        """Around one run: waits until it fits.

        Args:
            shapes: of its inputs.
            requirement: what it holds; None where that is not known, or there is no budget.
            run_options: ``terminate`` is seen while waiting.

        Yields: what it may hold; None without a budget.

        Raises:
            BudgetError: it does not fit, even alone.
            RunCancelled: it was stopped while it waited.
        """
        if self._gone_bytes:
            self._settle()
        controller, budget = self._controller, self.budget
        required = MemoryRequirement.UNKNOWN if requirement is None else requirement
        if budget is not None and not 0 < required.least_bytes <= self._full_bytes:
            budget.check(required, shapes=shapes)
        self.last_shapes = shapes
        with self._lock:
            self._running += 1
            self._trimmed = False
        reservation: Reservation | None = None
        try:
            if controller is not None:
                reading = self._monitor.reading()
                if reading is not self._seen:
                    self.follow_pressure(reading)
                self._maintenance.schedule(self, self._monitor.interval_s)
                reservation = controller.admit(
                    required, stopped=lambda: run_options is not None and run_options.terminate
                )
                if reservation is None:
                    raise RunCancelled("the run was stopped while it waited for memory", fix="run again to start over")
                self._make_room(controller, reservation)
            yield reservation
        finally:
            if controller is not None and reservation is not None:
                controller.release(reservation)
            with self._lock:
                self._running -= 1
                self._ended_s = self._maintenance.clock()
            if controller is None and self.idle_trim_s != float("inf"):
                self._maintenance.schedule(self, self.idle_trim_s)

    def _make_room(self, controller: AdmissionController, reservation: Reservation) -> None:
        """Give back what earlier runs left behind where there is no room for that beside those in flight: other shapes
        or fewer runs at once need other parts of it."""
        inside = controller.granted_bytes - controller.fixed_bytes
        with self._lock:
            if reservation.running_bytes > self._largest_bytes:
                self._kept_bytes += reservation.running_bytes
                self._largest_bytes = reservation.running_bytes
            elif inside > self._inside_bytes:
                self._kept_bytes += inside - self._inside_bytes
            self._inside_bytes = max(self._inside_bytes, inside)
            left = controller.fixed_bytes if self._arenas is None else max(self._arenas(), controller.fixed_bytes)
            if left + self._kept_bytes <= self._full_bytes:
                return
            is_needed = left > controller.fixed_bytes or self._kept_bytes > inside
            self._inside_bytes = self._kept_bytes = inside
            self._largest_bytes = reservation.running_bytes
        if is_needed:
            self._trim()

    def hold(self, weight_bytes: int, requirement: MemoryRequirement | None = None) -> None:
        """Count more private weights from now on.

        Args:
            requirement: of a run that is to fit beside them; None where it is not known.

        Raises: BudgetError where they do not fit beside that run; nothing is counted then.
        """
        if self._gone_bytes:
            self._settle()
        with self._lock:
            budget = self.budget
            if budget is None:
                return
            more = replace(budget, weight_bytes=budget.weight_bytes + weight_bytes)
            more.check(requirement or MemoryRequirement.UNKNOWN, where="weights that are held twice")
            self._go_by(more)

    def let_go(self, weight_bytes: int) -> None:
        """Count so much less of private weights from the next run on: they are gone.

        Takes no lock: it may be called wherever a garbage collection runs.
        """
        self._gone_bytes.append(weight_bytes)

    def _settle(self) -> None:
        with self._lock:
            budget = self.budget
            while self._gone_bytes and budget is not None:
                budget = replace(budget, weight_bytes=budget.weight_bytes - self._gone_bytes.popleft())
            if budget is not None:
                self._go_by(budget)

    def count_runtime(self, runtime_bytes: int) -> None:
        """Count so much for what the runtime takes for itself from now on: another plan has other segments."""
        with self._lock:
            if self.budget is not None:
                self._go_by(replace(self.budget, runtime_bytes=runtime_bytes))

    def _go_by(self, budget: Budget) -> None:
        before, self._full_bytes = self._full_bytes, budget.limit_bytes
        self.budget = budget
        controller = self._controller
        if controller is not None:
            # Under pressure, less is in force than might be: more comes back as pressure goes.
            is_full = controller.limit_bytes == before
            controller.set_limit(self._full_bytes if is_full else min(controller.limit_bytes, self._full_bytes))

    def follow_pressure(self, reading: PressureReading) -> None:
        """Let the limit follow what the machine has left."""
        controller = self._controller
        if controller is None:
            return
        self._seen = reading
        limit = limit_under_pressure(
            reading,
            limit_bytes=self._full_bytes,
            current_bytes=controller.limit_bytes,
            granted_bytes=controller.granted_bytes,
            margin=DEFAULT_MARGIN if self.budget is None else self.budget.margin,
        )
        if limit != controller.limit_bytes:
            controller.set_limit(limit)

    def maintain(self, now_s: float) -> float | None:
        """Follow pressure while something runs, trim when nothing did for long; see `Maintained.maintain`."""
        with self._lock:
            idle_s = 0.0 if self._running else now_s - self._ended_s
            trimmed = self._trimmed
        if idle_s < _LINGER_S and self._controller is not None:
            self.follow_pressure(self._monitor.reading())
            return self._monitor.interval_s
        if trimmed or self.idle_trim_s == float("inf"):
            return None
        if idle_s < self.idle_trim_s:
            return self.idle_trim_s - idle_s
        with self._lock:
            if self._running:
                return self._monitor.interval_s
            self._trimmed = True
        self._trim()
        return None


def shapes_of(feeds: Any) -> dict[str, Sequence[int]]:
    """The shapes of what is fed, as far as they are easily told; what is wrong with feeds is for others to say."""
    shapes: dict[str, Sequence[int]] = {}
    for name, value in feeds.items():
        if isinstance(value, np.ndarray):
            shapes[name] = value.shape
        elif callable(shape := getattr(value, "shape", None)):
            with contextlib.suppress(RuntimeError):  # how the binding says that a value is no tensor
                shapes[name] = tuple(shape())
        elif isinstance(value, list):
            with contextlib.suppress(ValueError):  # a ragged list
                shapes[name] = np.shape(value)
    return shapes
