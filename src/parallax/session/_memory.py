"""The memory of one session: its budget and who may run within it, its answer to pressure, its idle arenas."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from parallax.errors import BudgetError, RunCancelled
from parallax.machine import PressureMonitor, PressureReading
from parallax.memory import DEFAULT_MARGIN, admission_budget, least_budget, show_bytes
from parallax.session._estimate import RUNTIME_BYTES, SEGMENT_BYTES, UNKNOWN_NEED, Estimator, RunNeed, Shapes
from parallax.session._gate import Grant, MemoryGate
from parallax.session._housekeeper import Housekeeper, housekeeper

IDLE_TRIM_S: Final = 30.0
"""After so many seconds without a run, a session with a budget gives back what it holds for the next one."""

STALLED: Final = 0.1
"""From this share of time spent waiting for memory on, sessions get narrower."""

SCARCE_LIMITS: Final = 4
"""... unless so many times what they may hold is free."""

_LINGER_S: Final = 1.0
"""Runs closer together than this are one piece of work to the monitor of pressure."""

_process_monitor = PressureMonitor()


def _replace_after_fork() -> None:
    # A thread of the parent may have held its lock.
    global _process_monitor
    _process_monitor = PressureMonitor()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_replace_after_fork)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A budget in bytes, and what of it is spent before anything runs."""

    budget_bytes: int
    weight_bytes: int
    """Of private weights."""
    runtime_bytes: int
    """What the runtime takes for itself."""

    @classmethod
    def of(cls, budget_bytes: int, *, weight_bytes: int, segments: int = 1) -> Budget:
        """For a session of so many segments with that many bytes of private weights."""
        return cls(
            budget_bytes=budget_bytes,
            weight_bytes=weight_bytes,
            runtime_bytes=RUNTIME_BYTES + segments * SEGMENT_BYTES,
        )

    @property
    def held_bytes(self) -> int:
        """All the time."""
        return self.weight_bytes + self.runtime_bytes

    @property
    def limit_bytes(self) -> int:
        """What all runs together may hold. 0 for a budget that its margin, weights and runtime use up."""
        held = least_budget((), arena_bytes=self.held_bytes).least_bytes
        return 0 if self.budget_bytes < held else admission_budget(self.budget_bytes, (), arena_bytes=self.held_bytes)

    def least_bytes(self, need: RunNeed) -> int:
        """The smallest budget in which such a run can go on, one segment at a time."""
        return least_budget(need.peaks, arena_bytes=self.held_bytes + need.fixed_bytes).least_bytes

    def allows(self, need: RunNeed) -> bool:
        """Whether a run fits, one segment at a time."""
        return self.budget_bytes >= self.least_bytes(need)

    def check(self, need: RunNeed, *, where: str, least_bytes: int | None = None) -> None:
        """Refuse what cannot run even alone.

        Args:
            where: what it is about, for the message.
            least_bytes: the budget that would do, where another plan needs less.

        Raises: BudgetError with the budget that would do.
        """
        if self.allows(need):
            return
        least = self.least_bytes(need) if least_bytes is None else least_bytes
        weights = self.weight_bytes
        parts = []
        if need.least_bytes:
            parts.append(f"a run takes {show_bytes(need.least_bytes)} with one segment at a time")
        if weights:
            parts.append(f"weights {show_bytes(weights)}")
        parts.append(f"the runtime {show_bytes(self.runtime_bytes)}")
        mapped = "; a compiled bundle maps its weights, which then do not count" if weights else ""
        raise BudgetError(
            f"a budget of {self.budget_bytes} bytes ({show_bytes(self.budget_bytes)}) is too small: "
            f"{', '.join(parts)}, and {DEFAULT_MARGIN:.0%} is kept free",
            least_bytes=least,
            where=where,
            fix=f"give at least memory_budget={least} ({show_bytes(least)}){mapped}",
        )


def limit_under_pressure(reading: PressureReading, *, limit_bytes: int, current_bytes: int, granted_bytes: int) -> int:
    """What the runs of a session may hold together while the machine is short of memory.

    Never more than runs have now and what is free beside that, less the margin of budgets. Where tasks wait for
    memory, a quarter less each time; otherwise back towards the limit by a quarter of it each time. While several times
    the limit is free, those who wait do so in other containers, and less of ours would not help them.

    Args:
        limit_bytes: without pressure.
        current_bytes: in force.
        granted_bytes: to runs in flight.
    """
    room = granted_bytes + int(reading.free_bytes * (1 - DEFAULT_MARGIN))
    stalled = reading.stalled_share is not None and reading.stalled_share >= STALLED
    if stalled and reading.free_bytes < SCARCE_LIMITS * limit_bytes:
        wanted = current_bytes * 3 // 4
    else:
        wanted = current_bytes + (limit_bytes + 3) // 4
    return max(0, min(limit_bytes, room, wanted))


class SessionMemory:
    """Who may run, and what is given back when nobody does. Thread-safe.

    Args:
        estimator: needs of runs; None where they cannot be estimated: then each run is taken to need everything.
        budget: None for a session without one, which then only has its idle time watched.
        idle_trim_s: seconds without a run after which ``trim`` is called; infinity for never.
        trim: gives idle memory back.
        arenas: bytes of arenas that runs left behind for the next ones, or use now.
        monitor, keeper: of this process.
    """

    def __init__(
        self,
        *,
        estimator: Estimator | None,
        budget: Budget | None,
        idle_trim_s: float,
        trim: Callable[[], object],
        arenas: Callable[[], int] | None = None,
        monitor: PressureMonitor | None = None,
        keeper: Housekeeper | None = None,
    ) -> None:
        self.estimator = estimator
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
        self._keeper = keeper or housekeeper()
        self._full_bytes = 0 if budget is None else budget.limit_bytes
        self._gate = None if budget is None else MemoryGate(self._full_bytes)
        self._heeded: PressureReading | None = None
        self._lock = threading.Lock()
        self._running = 0  # (lock) runs in flight or waiting
        self._ended_s = self._keeper.clock()
        self._trimmed = True  # nothing ran since the last trim
        self.last_shapes: Shapes = {}
        """Of the inputs of the run admitted last; empty before any."""

    @property
    def gate(self) -> MemoryGate | None:
        """Admission; None without a budget."""
        return self._gate

    @contextlib.contextmanager
    def run(self, shapes: Shapes, need: RunNeed | None = None, run_options: Any = None) -> Iterator[Grant | None]:
        """Around one run: waits until it fits.

        Args:
            shapes: of its inputs.
            need: what it needs, where shapes do not tell.
            run_options: ``terminate`` is seen while waiting.

        Yields: what it may hold; None without a budget.

        Raises:
            BudgetError: it does not fit, even alone.
            RunCancelled: it was stopped while it waited.
        """
        gate, budget = self._gate, self.budget
        if gate is not None and budget is not None:
            if need is None:
                need = self.need(shapes)
            if not 0 < need.least_bytes <= self._full_bytes:
                budget.check(need, where=f"inputs {describe_shapes(shapes)}" if shapes else "memory_budget")
        self.last_shapes = shapes
        with self._lock:
            self._running += 1
            self._trimmed = False
        grant: Grant | None = None
        try:
            if gate is not None and need is not None:
                reading = self._monitor.reading()
                if reading is not self._heeded:
                    self.heed(reading)
                self._keeper.look_after(self, self._monitor.interval_s)
                grant = gate.admit(need, stopped=lambda: run_options is not None and run_options.terminate)
                if grant is None:
                    raise RunCancelled("the run was stopped while it waited for memory", fix="run again to start over")
                self._make_room(gate, grant)
            yield grant
        finally:
            if gate is not None and grant is not None:
                gate.leave(grant)
            with self._lock:
                self._running -= 1
                self._ended_s = self._keeper.clock()
            if gate is None and self.idle_trim_s != float("inf"):
                self._keeper.look_after(self, self.idle_trim_s)

    def _make_room(self, gate: MemoryGate, grant: Grant) -> None:
        """Give back what earlier runs left behind where there is no room for that beside those in flight: other shapes
        or fewer runs at once need other parts of it."""
        inside = gate.granted_bytes - gate.fixed_bytes
        with self._lock:
            if grant.running_bytes > self._largest_bytes:
                self._kept_bytes += grant.running_bytes
                self._largest_bytes = grant.running_bytes
            elif inside > self._inside_bytes:
                self._kept_bytes += inside - self._inside_bytes
            self._inside_bytes = max(self._inside_bytes, inside)
            left = gate.fixed_bytes if self._arenas is None else max(self._arenas(), gate.fixed_bytes)
            if left + self._kept_bytes <= self._full_bytes:
                return
            is_needed = left > gate.fixed_bytes or self._kept_bytes > inside
            self._inside_bytes = self._kept_bytes = inside
            self._largest_bytes = grant.running_bytes
        if is_needed:
            self._trim()

    def hold(self, weight_bytes: int) -> None:
        """Count more private weights from now on.

        Raises: BudgetError where they do not fit beside a run; nothing is counted then.
        """
        budget, gate = self.budget, self._gate
        if budget is None or gate is None:
            return
        more = replace(budget, weight_bytes=budget.weight_bytes + weight_bytes)
        more.check(self.need(self.last_shapes), where="weights that are held twice")
        self.budget = more
        self._full_bytes = more.limit_bytes
        gate.set_limit(min(gate.limit_bytes, self._full_bytes))

    def need(self, shapes: Shapes) -> RunNeed:
        """Of a run with inputs of these shapes."""
        return UNKNOWN_NEED if self.estimator is None else self.estimator.need(shapes)

    def heed(self, reading: PressureReading) -> None:
        """Let the limit follow what the machine has left."""
        gate = self._gate
        if gate is None:
            return
        self._heeded = reading
        limit = limit_under_pressure(
            reading,
            limit_bytes=self._full_bytes,
            current_bytes=gate.limit_bytes,
            granted_bytes=gate.granted_bytes,
        )
        if limit != gate.limit_bytes:
            gate.set_limit(limit)

    def tend(self, now_s: float) -> float | None:
        """Called by the housekeeper: heeds pressure while something runs, trims when nothing did for long."""
        with self._lock:
            idle_s = 0.0 if self._running else now_s - self._ended_s
            trimmed = self._trimmed
        if idle_s < _LINGER_S and self._gate is not None:
            self.heed(self._monitor.reading())
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


def describe_shapes(shapes: Shapes) -> str:
    """For messages: ``x [1, 3, 224, 224]``."""
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
