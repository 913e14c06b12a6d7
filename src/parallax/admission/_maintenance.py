"""One thread that maintains the memory of all sessions of the process: pressure, and arenas that idle.

It exists only while there is something to maintain.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Final, Protocol

logger = logging.getLogger(__name__)

_SLACK_S: Final = 0.005


class Maintained(Protocol):
    """What wants maintenance."""

    def maintain(self, now_s: float) -> float | None:
        """Do what is due; return in how many seconds to come again, or None for no more. Must not raise."""


class MaintenanceThread:
    """Calls `Maintained.maintain` when it is due. Thread-safe.

    Holds those it serves weakly: one that is gone is forgotten.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._wake = threading.Condition()
        self._due: weakref.WeakKeyDictionary[Maintained, float] = weakref.WeakKeyDictionary()
        self._next_s = float("inf")
        self._thread: threading.Thread | None = None

    @property
    def is_working(self) -> bool:
        """Whether there is a thread now."""
        return self._thread is not None

    def schedule(self, maintained: Maintained, within_s: float) -> None:
        """Come at most that many seconds from now, and then as `Maintained.maintain` says. Cheap where that is so
        already.

        Where no thread can be started, nobody comes until this is called again.
        """
        due = self.clock() + within_s
        if self._due.get(maintained, float("inf")) <= due:
            return
        with self._wake:
            self._due[maintained] = due
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="parallax-memory", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    del self._due[maintained]
                    logger.debug("nobody looks after the memory of a session: %s", error)
                else:
                    self._thread = thread
            elif due < self._next_s:
                self._wake.notify()

    def step(self) -> float | None:
        """Maintain all that is due; return the seconds until the next is, None where there is none."""
        now = self.clock()
        with self._wake:
            due = [maintained for maintained, when in self._due.items() if when <= now + _SLACK_S]
            for maintained in due:
                del self._due[maintained]
        for maintained in due:
            try:
                again = maintained.maintain(now)
            except Exception:
                logger.exception("looking after the memory of a session failed; it is left alone until it runs again")
                continue
            if again is not None:
                with self._wake:
                    self._due[maintained] = min(self._due.get(maintained, float("inf")), self.clock() + again)
        del due
        with self._wake:
            self._next_s = min(self._due.values(), default=float("inf"))
            return None if self._next_s == float("inf") else max(0.0, self._next_s - self.clock())

    def _work(self) -> None:
        while True:
            wait = self.step()
            with self._wake:
                if not self._due:
                    self._thread = None
                    return
                if wait:
                    self._next_s = min(self._due.values())
                    self._wake.wait(max(0.0, self._next_s - self.clock()))


_process_thread = MaintenanceThread()


def maintenance_thread() -> MaintenanceThread:
    """The one of this process."""
    return _process_thread


def _replace_after_fork() -> None:
    global _process_thread
    _process_thread = MaintenanceThread()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_replace_after_fork)
