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


def keep_off(thread: int, core: int) -> None:
    """Bind a thread (its native id) to the cores that the calling thread may use, but for ``core`` if others are left.

    Where the system refuses, nothing changes.
    """
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(thread, allowed - {core} or allowed)
    except OSError:  # the thread has ended, or the allowed cores have just changed
        return
