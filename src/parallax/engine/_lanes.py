"""Lanes: the process's worker threads, shared by every session.

A lane is a Python thread that runs one segment at a time; the wrapped runtime releases the GIL while
it computes. The thread that calls ``run`` is a lane too (lane 0 of its run), so a process needs at
most one lane fewer than it has cores, however many sessions are open: ten sessions share one set.

A run leases the cores it means to use, and the pool grants what is free. The calling thread is the
caller's own, so a run always has at least that one core and never waits for another run: with as many
callers as cores, every run goes on alone in its own thread, which is also what gives most throughput.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from parallax._record import dataclass
from parallax.engine._mailbox import Mailbox
from parallax.machine import (
    CoreBinding,
    ask_for_short_slices,
    available_cores,
    current_core,
    every_core,
    own_this_thread,
)

logger = logging.getLogger(__name__)

# How long an idle lane spins before it parks. Hand-overs inside a run arrive within tens of microseconds
# of each other; anything longer would burn a core that a wide segment could use.
LANE_SPIN_NS = 60_000

Job = tuple[Callable[[Any], Sequence[Mailbox[Any]]], Any]
"""A function and its one argument: cheaper to make per hand-over than a closure. It returns whom to wake after it."""


class Lane:
    """One worker thread with a mailbox of jobs. Started lazily, daemonic, named for debuggers.

    Args:
        is_queue: it waits for devices, and is to have a core at once whenever it needs one.

    Raises: RuntimeError where the system allows this process no more threads.
    """

    __slots__ = ("_is_queue", "_thread", "binding", "index", "mailbox")

    def __init__(self, index: int, *, is_queue: bool = False) -> None:
        self.index = index
        self.mailbox: Mailbox[Job] = Mailbox()
        self._is_queue = is_queue
        name = f"parallax-{'queue' if is_queue else 'lane'}-{index}"
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()
        thread = self._thread.native_id
        self.binding = None if thread is None or current_core is None else CoreBinding(thread)

    def end(self) -> None:
        """End the thread, once it has done what it was given."""
        self.mailbox.put((_end, None))

    def _loop(self) -> None:
        own_this_thread()
        if self._is_queue:
            ask_for_short_slices()
        take = self.mailbox.take
        to_notify: Sequence[Mailbox[Any]] = ()
        while True:
            # A job contains its own failures (it reports them to its run), so the lane never dies of one.
            function, argument = take(LANE_SPIN_NS, to_notify)
            if function is _end:
                return
            to_notify = function(argument)
            del function, argument  # or the parked lane would keep the last run's tensors alive


def _end(_: Any) -> Sequence[Mailbox[Any]]:
    """The last job of a lane."""
    return ()


@dataclass(frozen=True, slots=True)
class Lease:
    """Cores granted to one run: the caller's own, plus one lane for each further core."""

    cores: int
    lanes: tuple[Lane, ...]
    queues: tuple[Lane, ...] = ()
    """One thread for each device's queue: it waits for the device, and so takes no core."""
    is_all: bool = False
    """With every core of the process, each for a thread of its own: then none gains by going elsewhere meanwhile."""


class LanePool:
    """The lanes and cores of this process.

    Thread-safe. ``cores`` is what affinity and cgroup quota allow at creation.

    Where the system allows no more threads, a lease has fewer lanes than it might, and the run does with them: its
    calling thread alone can run everything.

    Invariant: lanes are granted only from free cores, so the cores of all leases together exceed
    ``cores`` by no more than there are calling threads beyond it.
    """

    def __init__(self, cores: int) -> None:
        if cores < 1:
            raise ValueError(f"a pool needs at least one core, got {cores}")
        self.cores = cores
        self._lock = threading.Lock()
        self._free_cores = cores  # negative while there are more callers than cores
        self._idle: list[Lane] = []
        self._idle_queues: list[Lane] = []
        self._made = 0
        self._lacks_threads = False
        self._is_every_core = bool(every_core(cores))

    def lease(self, cores: int, *, queues: int = 0) -> Lease:
        """Grant up to ``cores`` cores: the caller's own, and a lane for each other that is free. Never waits.

        ``queues``: lanes for devices' queues, which take no core.
        """
        with self._lock:
            lanes, queue_threads = self._take(max(1, min(cores, self._free_cores)) - 1, queues)
            granted = 1 + len(lanes)
            self._free_cores -= granted
        if granted > 1 and current_core is not None:
            # A woken thread may be put on its waker's core, and stay there until the system balances load again.
            core = current_core()
            for lane in lanes:
                if lane.binding is not None:
                    lane.binding.avoid(core)
        is_all = 1 < granted == self.cores and self._is_every_core
        return Lease(granted, lanes, queue_threads, is_all)

    def lend(self, cores: int, *, queues: int = 0) -> Lease:
        """Lanes for ``cores`` that are leased already, the caller's own among them: none is counted once more."""
        with self._lock:
            return Lease(0, *self._take(cores - 1, queues))

    def _take(self, lanes: int, queues: int) -> tuple[tuple[Lane, ...], tuple[Lane, ...]]:
        """Idle or new lanes, and lanes for queues; fewer where no thread can be started."""
        taken: list[Lane] = []
        queue_threads: list[Lane] = []
        try:
            for into, idle, count in ((taken, self._idle, lanes), (queue_threads, self._idle_queues, queues)):
                while len(into) < count:
                    if idle:
                        into.append(idle.pop())
                    else:
                        into.append(Lane(self._made, is_queue=into is queue_threads))
                        self._made += 1
        except RuntimeError as error:
            if not self._lacks_threads:
                self._lacks_threads = True
                logger.warning(
                    "no thread can be started (%s); runs go on with those there are, slower; raise the limit on "
                    "processes and threads (ulimit -u, or the container's pids limit)",
                    error,
                )
        except BaseException:
            self._put_back(taken, queue_threads)
            raise
        return tuple(taken), tuple(queue_threads)

    def _put_back(self, lanes: Sequence[Lane], queues: Sequence[Lane]) -> None:
        self._idle.extend(reversed(lanes))
        self._idle_queues.extend(reversed(queues))

    def give_back(self, lease: Lease) -> None:
        """Return a lease whose lanes are all idle again."""
        with self._lock:
            self._free_cores += lease.cores
            self._put_back(lease.lanes, lease.queues)

    def end_idle(self) -> int:
        """End the threads that no run uses. The next run that needs one starts it anew. Returns how many there were."""
        with self._lock:
            idle = [*self._idle, *self._idle_queues]
            self._idle.clear()
            self._idle_queues.clear()
        for lane in idle:
            lane.end()
        return len(idle)

    def statistics(self) -> LaneStatistics:
        """A snapshot for reports and tests."""
        with self._lock:
            return LaneStatistics(
                cores=self.cores,
                free_cores=self._free_cores,
                lanes=self._made,
                idle_lanes=len(self._idle) + len(self._idle_queues),
            )


class Lanes(Protocol):
    """Where a run gets its lanes from."""

    def lease(self, cores: int, *, queues: int = 0) -> Lease:
        """See `LanePool.lease`."""
        ...

    def give_back(self, lease: Lease) -> None:
        """See `LanePool.give_back`."""
        ...


class InnerLanes:
    """Lanes for runs inside a segment, on the cores that the segment's own run has leased for it.

    Args:
        pool: has the threads.
        width: the segment's.
    """

    def __init__(self, pool: LanePool, width: int) -> None:
        self._pool = pool
        self._width = max(1, width)

    def lease(self, cores: int, *, queues: int = 0) -> Lease:
        """As many cores as are asked for, up to the segment's width."""
        lent = self._pool.lend(min(cores, self._width), queues=queues)
        return Lease(1 + len(lent.lanes), lent.lanes, lent.queues)

    def give_back(self, lease: Lease) -> None:
        """Return a lease whose lanes are all idle again."""
        self._pool.give_back(Lease(0, lease.lanes, lease.queues))


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneStatistics:
    """State of a pool at one moment: cores in all and free, lane threads started and idle."""

    cores: int
    free_cores: int
    lanes: int
    idle_lanes: int


_pool: LanePool | None = None
_pool_lock = threading.Lock()


def lane_pool() -> LanePool:
    """The pool of this process, made on first use."""
    global _pool
    pool = _pool
    if pool is None:
        with _pool_lock:
            if _pool is None:
                _pool = LanePool(available_cores())
            pool = _pool
    return pool


def _forget_pool_after_fork() -> None:
    # Threads do not survive a fork: the child makes its own lanes when it first needs one.
    global _pool, _pool_lock
    _pool = None
    _pool_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool_after_fork)
