"""Observers: callables that are given every event of the runs they observe, as records of `parallax.events`.

There is one stream per session, which numbers the events. The engine runs the same code with and without observers;
without any it makes no record, reads no clock and calls nothing for them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Generic, TypeVar

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.events import Event

logger = _lazy.logger(__name__)

T = TypeVar("T")

Observer = Callable[["Event"], object]
"""Called with each event, from any thread, also from several at once. An error in one never breaks a run: it is
detached, and the error logged. Events come in their order from one thread; from several, what led to an event comes
before it, and otherwise an event may overtake others: ``Event.sequence`` gives the order."""


class Attached:
    """An observer of a stream, as long as it does not fail.

    Args:
        observer: is called.
        what: it is, for messages.
    """

    __slots__ = ("is_attached", "observer", "what")

    def __init__(self, observer: Observer, what: str) -> None:
        self.observer = observer
        self.what = what
        self.is_attached = True


class EventStream:
    """Numbers events and gives them to observers. Thread-safe.

    A run is observed by those that were attached when it began, as are the runs inside it: so each observer gets all
    events of a run or none, unless it is removed or fails meanwhile.

    Attributes:
        attached: the observers, replaced as a whole; empty (false) where nobody observes.
    """

    __slots__ = ("_lock", "_next", "attached")

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self.attached: tuple[Attached, ...] = ()
        self._lock = threading.Lock()
        self._next = 1  # (lock)
        for observer in observers:
            self.add(observer)

    def add(self, observer: Observer, *, what: str | None = None) -> None:
        """Give it the events of all runs that begin from now on. ``what``: what it is, for messages."""
        named = what or f"observer {getattr(observer, '__qualname__', type(observer).__name__)}"
        with self._lock:
            self.attached = (*self.attached, Attached(observer, named))

    def remove(self, observer: Observer) -> bool:
        """Give it no more events; returns whether it was attached, which one that failed is not any more."""
        with self._lock:
            found = [entry for entry in self.attached if entry.observer == observer]
            for entry in found:
                entry.is_attached = False
            self.attached = tuple(entry for entry in self.attached if entry.is_attached)
        return bool(found)

    def __contains__(self, observer: Observer) -> bool:
        return any(entry.observer == observer for entry in self.attached)

    def renew(self) -> None:
        """Make the lock anew, in a forked child: a thread of the parent may have held it."""
        self._lock = threading.Lock()

    def reserve(self, count: int) -> int:
        """The first of so many numbers in a row, which are the caller's to use."""
        with self._lock:
            first = self._next
            self._next = first + count
        return first

    def deliver(self, attached: Iterable[Attached], event: Event) -> None:
        """Call these observers; detach those that raise an `Exception`. Anything else an observer raises goes through.

        To be called without a lock held: an observer may take its time, and may call the session.
        """
        for entry in attached:
            if entry.is_attached:
                try:
                    entry.observer(event)
                except Exception:
                    self._detach_failed(entry)

    def _detach_failed(self, entry: Attached) -> None:
        """Of several threads that see it fail, one says so. Called where the error is being handled."""
        with self._lock:
            is_first, entry.is_attached = entry.is_attached, False
            self.attached = tuple(other for other in self.attached if other is not entry)
        if is_first:
            logger.exception("the %s failed and is detached; the run goes on", entry.what)  # noqa: LOG004


class Kept(Generic[T]):
    """Keeps what threads add, in that order, until it is taken."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[T] = []

    def add(self, entry: T) -> None:
        with self._lock:
            self._entries.append(entry)

    def take(self) -> list[T]:
        """The entries so far; none are kept afterwards."""
        with self._lock:
            entries, self._entries = self._entries, []
        return entries


class EventRecorder:
    """An observer that keeps events in memory."""

    def __init__(self) -> None:
        self._events: Kept[Event] = Kept()

    def __call__(self, event: Event) -> None:
        self._events.add(event)

    def take(self) -> tuple[Event, ...]:
        """The events so far, in the order of their numbers; the recorder is empty afterwards."""
        return tuple(sorted(self._events.take(), key=lambda event: event.sequence))
