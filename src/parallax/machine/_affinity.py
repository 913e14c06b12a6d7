"""Which core a thread is on, keeping lanes off the caller's, and a core for each thread of a segment that takes all.

A thread that is woken may be put on the core of the one that wakes it, and stay there until the system balances load
again, some milliseconds later. A segment of several threads, whose pool is parked, then runs on fewer cores than it
has: beside an emulated device, DistilBERT took 70 ms rather than 46.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Set
from typing import NamedTuple

from parallax.machine._cores import current_core


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


def every_core(count: int) -> frozenset[int]:
    """The cores of this process, if they are so many and threads can be moved among them; else none."""
    allowed = frozenset() if current_core is None else frozenset(os.sched_getaffinity(0))
    return allowed if len(allowed) == count else frozenset()


def cores_of_pool(width: int) -> tuple[int, ...]:
    """Cores for the further threads of a segment of ``width`` threads, each its own; what is left for the thread that
    runs it is the first. Empty unless the segment takes all cores of this process, or where threads cannot be bound."""
    return tuple(sorted(every_core(width))[1:])


class _OfThread(threading.local):
    is_ours = False
    """May be moved from where it is bound, since we bound it."""


_this_thread = _OfThread()


def own_this_thread() -> None:
    """The calling thread is one of ours."""
    _this_thread.is_ours = True


class Bound(NamedTuple):
    """What a thread was before it was bound: where it was allowed to go, and whether it was ours."""

    allowed: set[int]
    is_ours: bool


def bind_here() -> Bound | None:
    """Bind the calling thread to the core it is on; returns what to give to `unbind`, or None if it stays as it was,
    as one does that its owner has bound."""
    return None if current_core is None else _bind(current_core())


def move_to_first_of(cores: frozenset[int]) -> Bound | None:
    """Move the calling thread to the first of ``cores``, free to be moved on among them when that gets crowded.

    Returns: what to give to `unbind`; None if it stays where it was: it is there, or its owner keeps it elsewhere.
    """
    first = min(cores)
    if current_core is None or current_core() == first:
        return None
    before = _bind(first)
    if before is not None:
        _allow(cores if before.is_ours else before.allowed)
    return before


def unbind(before: Bound) -> None:
    """Let the calling thread go where it was allowed to."""
    _this_thread.is_ours = before.is_ours
    _allow(before.allowed)


def _bind(core: int) -> Bound | None:
    is_ours = _this_thread.is_ours
    try:
        allowed = os.sched_getaffinity(0)
        if (len(allowed) == 1 or core not in allowed) and not is_ours:
            return None
        os.sched_setaffinity(0, {core})
    except OSError:  # the allowed cores have just changed, or a sandbox forbids it
        return None
    _this_thread.is_ours = True
    return Bound(allowed, is_ours)


def _allow(cores: Set[int]) -> None:
    with contextlib.suppress(OSError):  # what is allowed has changed meanwhile: that counts
        os.sched_setaffinity(0, cores)
