"""What a fork of the process means for sessions: threads are gone, and who held a lock is not there to release it."""

from __future__ import annotations

import os
import threading
from typing import Any


class Forks:
    """How often this process and its ancestors forked since the module was loaded, and what has to outlive that."""

    def __init__(self) -> None:
        self.generation = 0
        """A session that was opened in another one is opened again before it runs."""
        self.reopening = threading.Lock()
        """Held while a session is opened again."""
        self._orphans: list[object] = []

    def keep(self, *orphans: Any) -> None:
        """Never destroy these: C sessions that a fork left without their threads would wait for them."""
        self._orphans.append(orphans)

    def note(self) -> None:
        """In a child that was just forked."""
        self.generation += 1
        self.reopening = threading.Lock()


FORKS = Forks()
"""Of this process."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=FORKS.note)
