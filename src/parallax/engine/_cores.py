"""Which core a thread is on, and keeping lanes off the caller's."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable


def _find_current_core() -> Callable[[], int] | None:
    if not hasattr(os, "sched_setaffinity"):
        return None
    try:
        found = ctypes.PyDLL(None).sched_getcpu  # quicker than letting go of the GIL for it
    except (AttributeError, OSError):
        return None
    return found if found() >= 0 else None


current_core = _find_current_core()
"""The number of the core that the calling thread is on; None where the system cannot tell, or a thread not be moved."""


class CoreBinding:
    """Keeps one thread off one core at a time; otherwise it stays where it may be: what others set is taken over.

    Args:
        thread: native id.
    """

    __slots__ = ("_allowed", "_avoided", "_bound", "_thread")

    def __init__(self, thread: int) -> None:
        self._thread = thread
        self._avoided = -1
        self._allowed: set[int] = set()
        self._bound: set[int] = set()

    def avoid(self, core: int) -> None:
        """Keep off that core from now on, if others are left. Where the system refuses, nothing changes."""
        if core == self._avoided:
            return
        try:
            now = os.sched_getaffinity(self._thread)
            if now != self._bound:
                self._allowed = now
            self._bound = self._allowed - {core} or self._allowed
            os.sched_setaffinity(self._thread, self._bound)
        except OSError:  # the allowed cores have just changed
            return
        self._avoided = core
