"""Admission of runs: what the runs of one session hold together stays within a limit.

Pure but for its lock: no clock, no reading of memory. Runs that do not fit wait, in the order they came; a run
that came first is never passed, so none starves, and one that runs always ends, so none waits for ever.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from parallax.session._estimate import RunNeed

_LOOK_S: Final = 0.05
"""How often a waiting run looks whether it was stopped."""


class Grant:
    """What one run may hold, from its admission to its end. Made by `MemoryGate.admit`."""

    __slots__ = ("_on_change", "granted_bytes", "need")

    def __init__(self, need: RunNeed, granted_bytes: int) -> None:
        self.need = need
        self.granted_bytes = granted_bytes
        """At least ``need.least_bytes``, at most ``need.wanted_bytes``; for a run of unknown need all there was."""
        self._on_change: Callable[[], None] | None = None

    @property
    def running_bytes(self) -> int:
        """Of it, what segments running at the same time may add up to."""
        return max(0, self.granted_bytes - self.need.fixed_bytes)

    def on_change(self, callback: Callable[[], None] | None) -> None:
        """Call back, from any thread and under the gate's lock, when ``granted_bytes`` changes."""
        self._on_change = callback

    def _set(self, granted_bytes: int) -> None:
        if granted_bytes != self.granted_bytes:
            self.granted_bytes = granted_bytes
            if self._on_change is not None:
                self._on_change()


class MemoryGate:
    """Shares ``limit_bytes`` between the runs of a session. Thread-safe.

    Invariant: what is granted adds up to at most the limit, unless the limit was lowered below what runs already
    had, or what one run needs at least; then that run goes on alone. A run gets all it wants where nobody waits,
    else the least it can run with. One of unknown need gets all there is, and goes alone.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._condition = threading.Condition()
        self._limit = limit_bytes
        self._grants: dict[int, Grant] = {}
        self._granted = 0  # sum over _grants
        self._fixed = 0
        self._peak = 0
        self._waiting: deque[object] = deque()

    @property
    def limit_bytes(self) -> int:
        """In force now."""
        return self._limit

    @property
    def granted_bytes(self) -> int:
        """To runs in flight."""
        return self._granted

    @property
    def fixed_bytes(self) -> int:
        """Of what is granted, what runs hold all along: arenas and outputs."""
        return self._fixed

    @property
    def peak_granted_bytes(self) -> int:
        """The most that was granted at once so far."""
        return self._peak

    @property
    def running(self) -> int:
        """Runs in flight."""
        return len(self._grants)

    @property
    def waiting(self) -> int:
        """Runs that wait."""
        return len(self._waiting)

    def admit(self, need: RunNeed, *, stopped: Callable[[], bool] | None = None) -> Grant | None:
        """Wait until ``need`` fits, and take it. Give it back with `leave`.

        Args:
            stopped: looked at while waiting. Returns None once it says True.
        """
        ticket = object()
        with self._condition:
            self._waiting.append(ticket)
            try:
                while not (self._waiting[0] is ticket and self._fits(need)):
                    if stopped is not None and stopped():
                        return None
                    self._condition.wait(None if stopped is None else _LOOK_S)
                others = len(self._waiting) > 1
            finally:
                self._waiting.remove(ticket)
                self._condition.notify_all()
            free = self._limit - self._granted
            if not need.is_known:
                amount = max(free, need.least_bytes)
            elif others:
                amount = need.least_bytes
            else:
                amount = max(need.least_bytes, min(need.wanted_bytes, free))
            grant = Grant(need, amount)
            self._grants[id(grant)] = grant
            self._granted += amount
            self._fixed += need.fixed_bytes
            self._peak = max(self._peak, self._granted)
            return grant

    def leave(self, grant: Grant) -> None:
        """The run is over."""
        with self._condition:
            grant.on_change(None)
            del self._grants[id(grant)]
            self._granted -= grant.granted_bytes
            self._fixed -= grant.need.fixed_bytes
            self._condition.notify_all()

    def set_limit(self, limit_bytes: int) -> None:
        """Change the limit. Runs in flight give up what they have beyond their least, or get more of what they want."""
        with self._condition:
            self._limit = limit_bytes
            excess = self._granted - limit_bytes
            for grant in self._grants.values():
                if excess > 0:
                    taken = min(excess, grant.granted_bytes - grant.need.least_bytes)
                    excess -= taken
                    self._resize(grant, grant.granted_bytes - taken)
                elif not self._waiting:
                    missing = (grant.need.wanted_bytes if grant.need.is_known else limit_bytes) - grant.granted_bytes
                    given = max(0, min(-excess, missing))
                    excess += given
                    self._resize(grant, grant.granted_bytes + given)
            self._peak = max(self._peak, self._granted)
            self._condition.notify_all()

    def _resize(self, grant: Grant, granted_bytes: int) -> None:
        self._granted += granted_bytes - grant.granted_bytes
        grant._set(granted_bytes)

    def _fits(self, need: RunNeed) -> bool:
        if not self._grants:
            return True
        if not need.is_known or any(not grant.need.is_known for grant in self._grants.values()):
            return False
        return self._granted + need.least_bytes <= self._limit
