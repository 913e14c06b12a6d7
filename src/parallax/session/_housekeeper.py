"""One thread that looks after the memory of all sessions of the process: pressure, and arenas that idle.

It exists only while there is something to look after.
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


class Tended(Protocol):
    """What wants looking after."""

    def tend(self, now_s: float) -> float | None:
        """Do what is due; in how many seconds to come again, or None for no more. Must not raise."""


class Housekeeper:
    """Calls `Tended.tend` when it is due. Thread-safe.

    Holds those it looks after weakly: one that is gone is forgotten.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._wake = threading.Condition()
        self._due: weakref.WeakKeyDictionary[Tended, float] = weakref.WeakKeyDictionary()
        self._next_s = float("inf")
        self._thread: threading.Thread | None = None

    @property
    def is_working(self) -> bool:
        """Whether there is a thread now."""
        return self._thread is not None

    def look_after(self, tended: Tended, within_s: float) -> None:
        """Come at most that many seconds from now, and then as `Tended.tend` says. Cheap where that is so already.

        Where no thread can be started, nobody comes until this is called again.
        """
        due = self.clock() + within_s
        if self._due.get(tended, float("inf")) <= due:
            return
        with self._wake:
            self._due[tended] = due
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="parallax-memory", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    del self._due[tended]
                    logger.debug("nobody looks after the memory of a session: %s", error)
                else:
                    self._thread = thread
            elif due < self._next_s:
                self._wake.notify()

    def step(self) -> float | None:
        """Tend to all that are due; seconds until the next is, None where there is none."""
        now = self.clock()
        with self._wake:
            due = [tended for tended, when in self._due.items() if when <= now + _SLACK_S]
            for tended in due:
                del self._due[tended]
        for tended in due:
            try:
                again = tended.tend(now)
            except Exception:
                logger.exception("looking after the memory of a session failed; it is left alone until it runs again")
                continue
            if again is not None:
                with self._wake:
                    self._due[tended] = min(self._due.get(tended, float("inf")), self.clock() + again)
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


_housekeeper = Housekeeper()


def housekeeper() -> Housekeeper:
    """That of this process."""
    return _housekeeper


def _replace_after_fork() -> None:
    global _housekeeper
    _housekeeper = Housekeeper()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_replace_after_fork)
