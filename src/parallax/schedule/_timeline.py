"""A timeline that holds no more bytes than allowed: list scheduling with the banker's algorithm.

What the dispatcher does, but for one rule: a segment starts only if what it makes fits beside what is alive, and
if from there the rest can still run one by one within the limit.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from heapq import heappop, heappush

from parallax.memory import Lifetimes
from parallax.schedule._plan import Plan


def timeline_within(
    plan: Plan,
    lifetimes: Lifetimes,
    sizes: Sequence[int],
    *,
    limit_bytes: int,
    interior_bytes: Sequence[int],
    interior_limit_bytes: int,
    order: Sequence[int],
    handover_ns: int = 0,
    segment_overhead_ns: int = 0,
) -> list[tuple[int, int]] | None:
    """When each segment of a plan would run if tensors between segments could never take more than a limit.

    Ready segments start by priority, then those that leave fewer bytes behind, then by index; with backfill, one that
    fits passes those before it that do not. A start is safe if, after all that runs has ended, what remains
    fits step by step in ``order`` (Dijkstra, EWD 123, section 6); the next in that order is always safe. So the
    timeline exists for every limit in which ``order`` itself fits. O(segments²) at worst.

    Args:
        plan: gives dependencies, widths, lanes, priorities and costs.
        lifetimes: of its tensors.
        sizes: bytes per tensor.
        limit_bytes: for tensors alive at once.
        interior_bytes: per segment what it holds besides while it runs.
        interior_limit_bytes: for the sum of those that run; one that exceeds it runs alone.
        order: all segments, one after the other.
        handover_ns: see `simulate`.
        segment_overhead_ns: see `simulate`.

    Returns: (start, end) per segment in ns, or None if ``order`` does not fit.
    """
    bank = _Bank(lifetimes, sizes, len(plan.segments), limit_bytes, order)
    segments = plan.segments
    waits = [len(segment.predecessors) for segment in segments]
    successors: list[list[int]] = [[] for _ in segments]
    for segment in segments:
        for other in segment.predecessors:
            successors[other].append(segment.index)
    key = [(-segment.priority, bank.left_behind(segment.index), segment.index) for segment in segments]
    ready = sorted(key[index] for index, count in enumerate(waits) if not count)
    idle = set(range(plan.lanes))
    queues = {segment.lane for segment in segments if not segment.width}  # of devices: nothing else goes there
    running: list[tuple[int, int, int, int]] = []  # (end, number started, segment, lane)
    spans = [(0, 0)] * len(segments)
    cores, interior = plan.cores, 0
    now = reporting = started = 0
    while True:
        position = 0
        while position < len(ready) and idle:
            index = ready[position][2]
            segment = segments[index]
            free = idle - queues if segment.lane is None else idle & {segment.lane}
            fits = not running or (segment.width <= cores and interior + interior_bytes[index] <= interior_limit_bytes)
            if not (free and fits and bank.start(index)):
                if not plan.backfill and running:
                    break
                position += 1
                continue
            del ready[position]
            position = 0
            lane = reporting if reporting in free else min(free)
            begin = now + segment_overhead_ns + (handover_ns if lane != reporting else 0)
            spans[index] = begin, begin + segment.cost_ns
            heappush(running, (begin + segment.cost_ns, started, index, lane))
            started += 1
            idle.remove(lane)
            cores -= segment.width
            interior += interior_bytes[index]
        if not running:
            return None if ready else spans
        now, _, index, reporting = heappop(running)
        bank.end(index)
        idle.add(reporting)
        cores += segments[index].width
        interior -= interior_bytes[index]
        for other in successors[index]:
            waits[other] -= 1
            if not waits[other]:
                insort(ready, key[other])


class _Bank:
    """What is alive, and whether the rest can still run."""

    __slots__ = ("_alive", "_left", "_limit", "_makes", "_next", "_order", "_reads", "_running", "_sizes", "_started")

    def __init__(
        self, lifetimes: Lifetimes, sizes: Sequence[int], segments: int, limit_bytes: int, order: Sequence[int]
    ) -> None:
        self._limit = limit_bytes
        self._order = order
        self._next = 0
        self._sizes = sizes
        self._makes = [0] * segments
        self._reads: list[list[int]] = [[] for _ in range(segments)]
        for tensor, producer in enumerate(lifetimes.producers):
            self._makes[producer] += sizes[tensor]
            if not lifetimes.to_the_end[tensor]:
                for user in lifetimes.uses[tensor]:
                    self._reads[user].append(tensor)
        self._left = [len(users) for users in lifetimes.uses]
        self._alive = 0
        self._started = [False] * segments
        self._running: set[int] = set()

    def left_behind(self, segment: int) -> int:
        """Bytes it makes less those that it is the only one to read."""
        left = self._left  # before the first start: the number of all uses
        return self._makes[segment] - sum(self._sizes[tensor] for tensor in self._reads[segment] if left[tensor] <= 2)

    def start(self, segment: int) -> bool:
        """Take what it makes, if that is safe."""
        order, started = self._order, self._started
        if self._alive + self._makes[segment] > self._limit:
            return False
        while started[order[self._next]]:
            self._next += 1
        if order[self._next] != segment and not self._is_safe(segment):
            return False
        started[segment] = True
        self._running.add(segment)
        self._alive += self._makes[segment]
        return True

    def end(self, segment: int) -> None:
        """Give back what nothing reads any more."""
        self._running.remove(segment)
        self._alive -= self._released(segment, self._left)

    def _is_safe(self, segment: int) -> bool:
        left = self._left.copy()
        alive = self._alive + self._makes[segment]
        for other in (*self._running, segment):
            alive -= self._released(other, left)
        for other in self._order[self._next :]:
            if not self._started[other] and other != segment:
                alive += self._makes[other]
                if alive > self._limit:
                    return False
                alive -= self._released(other, left)
        return True

    def _released(self, segment: int, left: list[int]) -> int:
        released = 0
        for tensor in self._reads[segment]:
            left[tensor] -= 1
            if not left[tensor]:
                released += self._sizes[tensor]
        return released
