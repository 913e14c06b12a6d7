"""Admission of runs: what the runs of one session hold together stays within a limit.

Pure but for its lock: no clock, no reading of memory. Runs that do not fit wait, in the order they came; a run
that came first is never passed, so none starves, and one that runs always ends, so none waits for ever.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from parallax.memory import MemoryRequirement

_LOOK_S: Final = 0.05
"""How often a waiting run looks whether it was stopped."""


class Reservation:
    """What one run may hold, from its admission to its end. Made by `AdmissionController.admit`."""

    __slots__ = ("_on_change", "granted_bytes", "requirement")

    def __init__(self, requirement: MemoryRequirement, granted_bytes: int) -> None:
        self.requirement = requirement
        self.granted_bytes = granted_bytes
        """At least ``requirement.least_bytes``, at most ``requirement.wanted_bytes``; all there was where the
        requirement is not known."""
        self._on_change: Callable[[], None] | None = None

    @property
    def running_bytes(self) -> int:
        """What segments running at the same time may add up to."""
        return max(0, self.granted_bytes - self.requirement.fixed_bytes)

    def on_change(self, callback: Callable[[], None] | None) -> None:
        """Call back, from any thread and under the controller's lock, when ``granted_bytes`` changes."""
        self._on_change = callback

    def _set(self, granted_bytes: int) -> None:
        if granted_bytes != self.granted_bytes:
            self.granted_bytes = granted_bytes
            if self._on_change is not None:
                self._on_change()


class AdmissionController:
    """Admits the runs of a session, and shares ``limit_bytes`` between them. Thread-safe.

    Invariant: what is granted adds up to at most the limit, unless the limit was lowered below what runs already
    had, or what one run needs at least; then that run goes on alone. A run gets all it wants where nobody waits,
    else the least it can run with. One whose requirement is not known gets all there is, and goes alone.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._condition = threading.Condition()
        self._limit = limit_bytes
        self._reservations: dict[int, Reservation] = {}
        self._granted = 0  # sum over _reservations
        self._fixed = 0
        self._peak = 0
        self._waiting: deque[object] = deque()

    @property
    def limit_bytes(self) -> int:
        """The limit in force now."""
        return self._limit

    @property
    def granted_bytes(self) -> int:
        """What is granted to runs in flight."""
        return self._granted

    @property
    def fixed_bytes(self) -> int:
        """What of that runs hold all along: arenas and outputs."""
        return self._fixed

    @property
    def peak_granted_bytes(self) -> int:
        """The most that was granted at once so far."""
        return self._peak

    @property
    def running(self) -> int:
        """Runs in flight."""
        return len(self._reservations)

    @property
    def waiting(self) -> int:
        """Runs that wait."""
        return len(self._waiting)

    def admit(self, requirement: MemoryRequirement, *, stopped: Callable[[], bool] | None = None) -> Reservation | None:
        """Wait until ``requirement`` fits, and take it. Give it back with `release`.

        Args:
            stopped: looked at while waiting. Returns None once it says True.
        """
        ticket = object()
        with self._condition:
            self._waiting.append(ticket)
            try:
                while not (self._waiting[0] is ticket and self._fits(requirement)):
                    if stopped is not None and stopped():
                        return None
                    self._condition.wait(None if stopped is None else _LOOK_S)
                others = len(self._waiting) > 1
            finally:
                self._waiting.remove(ticket)
                self._condition.notify_all()
            free = self._limit - self._granted
            if not requirement.is_known:
                amount = max(free, requirement.least_bytes)
            elif others:
                amount = requirement.least_bytes
            else:
                amount = max(requirement.least_bytes, min(requirement.wanted_bytes, free))
            reservation = Reservation(requirement, amount)
            self._reservations[id(reservation)] = reservation
            self._granted += amount
            self._fixed += requirement.fixed_bytes
            self._peak = max(self._peak, self._granted)
            return reservation

    def release(self, reservation: Reservation) -> None:
        """Take back what a run was granted: it is over."""
        with self._condition:
            reservation.on_change(None)
            del self._reservations[id(reservation)]
            self._granted -= reservation.granted_bytes
            self._fixed -= reservation.requirement.fixed_bytes
            self._condition.notify_all()

    def set_limit(self, limit_bytes: int) -> None:
        """Change the limit. Runs in flight give up what they have beyond their least, or get more of what they want."""
        with self._condition:
            self._limit = limit_bytes
            excess = self._granted - limit_bytes
            for reservation in self._reservations.values():
                if excess > 0:
                    taken = min(excess, reservation.granted_bytes - reservation.requirement.least_bytes)
                    excess -= taken
                    self._resize(reservation, reservation.granted_bytes - taken)
                elif not self._waiting:
                    required = reservation.requirement
                    wanted = required.wanted_bytes if required.is_known else limit_bytes
                    missing = wanted - reservation.granted_bytes
                    given = max(0, min(-excess, missing))
                    excess += given
                    self._resize(reservation, reservation.granted_bytes + given)
            self._peak = max(self._peak, self._granted)
            self._condition.notify_all()

    def _resize(self, reservation: Reservation, granted_bytes: int) -> None:
        self._granted += granted_bytes - reservation.granted_bytes
        reservation._set(granted_bytes)

    def _fits(self, requirement: MemoryRequirement) -> bool:
        if not self._reservations:
            return True
        if not requirement.is_known:
            return False
        if any(not other.requirement.is_known for other in self._reservations.values()):
            return False
        return self._granted + requirement.least_bytes <= self._limit
