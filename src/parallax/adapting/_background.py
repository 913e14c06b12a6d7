"""Work in the background that a fork and the end of the process wait for, one piece at a time.

A child of a fork has the memory of its parent as it was, and none of its threads: a lock of the runtime's that one of
them held is held there for ever. So what calls the runtime in the background holds a lock of ours, and a fork waits for
it.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from typing import Final, Protocol

_PATIENCE_S: Final = 10.0
"""A fork waits for no longer: a piece of work may wait for what the forking thread holds."""


class Stoppable(Protocol):
    """Something with a thread of its own."""

    def stop(self, why: str) -> None:
        """Have it end."""
        ...

    def join(self, timeout_s: float) -> None:
        """Wait for its end."""
        ...


class BackgroundWork:
    """Whose threads work in the background in this process, and which of them may call the runtime.

    Attributes:
        turn: held while something calls the runtime, or makes a plan.
    """

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self._workers: weakref.WeakSet[Stoppable] = weakref.WeakSet()
        self._forking: int | None = None  # the thread that holds the turn for a fork

    def add(self, worker: Stoppable) -> None:
        """To be stopped before the process ends: a thread that compiles while the runtime is taken down would crash."""
        self._workers.add(worker)

    def stop_all(self) -> None:
        """The process ends."""
        workers = list(self._workers)
        for worker in workers:
            worker.stop("the process ends")
        for worker in workers:
            worker.join(_PATIENCE_S)

    def before_fork(self) -> None:
        """Wait until nothing is under way in the background."""
        if self.turn.acquire(timeout=_PATIENCE_S):
            self._forking = threading.get_ident()

    def after_in_parent(self) -> None:
        """It goes on."""
        if self._forking == threading.get_ident():
            self._forking = None
            self.turn.release()

    def after_in_child(self) -> None:
        """Here are no threads."""
        self.__init__()  # type: ignore[misc]  # as new


WORK: Final = BackgroundWork()
"""Of this process."""

atexit.register(WORK.stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=WORK.before_fork, after_in_parent=WORK.after_in_parent, after_in_child=WORK.after_in_child
    )
