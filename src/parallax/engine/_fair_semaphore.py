"""A counting semaphore that is handed on in the order of arrival."""

from __future__ import annotations

import threading
from collections import deque


class FairSemaphore:
    """Lets so many threads in at a time; the others wait in the order in which they came. Thread-safe.

    ``threading.Semaphore`` lets a thread that leaves come in again before one that waits is awake, so that a caller may
    wait for many runs of others. Here whoever leaves hands its place to the first that waits. A thread that is in may
    enter again without waiting, as an observer of a run does that runs the same session: it would wait for itself.
    Taking a free place and leaving it takes about a microsecond.

    Args:
        places: at least 1.
    """

    __slots__ = ("_free", "_inside", "_lock", "_waiting")

    def __init__(self, places: int) -> None:
        self._free = places
        self._lock = threading.Lock()
        self._inside: dict[int, int] = {}  # thread -> how many times it entered
        self._waiting: deque[tuple[threading.Lock, int]] = deque()

    def __enter__(self) -> None:
        """Wait for a place. Raises: what interrupts the wait (KeyboardInterrupt); no place is taken then."""
        thread = threading.get_ident()
        with self._lock:
            if thread in self._inside:
                self._inside[thread] += 1
                return
            if self._free:
                self._free -= 1
                self._inside[thread] = 1
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append((turn, thread))
        try:
            turn.acquire()  # the one that hands a place over lets go of it
        except BaseException:
            with self._lock:
                is_waiting = (turn, thread) in self._waiting
                if is_waiting:
                    self._waiting.remove((turn, thread))
            if not is_waiting:
                self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        thread = threading.get_ident()
        with self._lock:
            self._inside[thread] -= 1
            if self._inside[thread]:
                return
            del self._inside[thread]
            if self._waiting:
                turn, next_thread = self._waiting.popleft()
                self._inside[next_thread] = 1
                turn.release()
            else:
                self._free += 1
