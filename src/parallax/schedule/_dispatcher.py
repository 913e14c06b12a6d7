"""The dispatcher: the one place that decides what may start now.

Events in (a segment is done, one failed, there are fewer bytes or more), instructions out
(start this segment on that lane). It is a pure, deterministic state machine: no clock, no thread, no
lock. The engine drives it with real lanes, the simulator with a virtual clock, so what is simulated is
what runs. It knows nothing of durations; those belong to the policies, which speak to it by priorities.

What a plan fixes is computed once (`DispatchTable`); what a run changes is a few small lists
(`Dispatcher`), because one of these is made for every run and asked after every segment.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from heapq import heappop, heappush
from typing import Final

from parallax.errors import ConfigError, InternalError
from parallax.schedule._fit_queue import EMPTY, FitQueue
from parallax.schedule._table import ANY_LANE, LEGAL_MOVES, DispatchTable, SegmentState, Start
from parallax.schedule._verify_state import verify_state

UNLIMITED_BYTES: Final = sys.maxsize

# Plain integers for the hot path: reading an enum member costs more than the rest of a move.
_WAITING: Final = int(SegmentState.WAITING)
_READY: Final = int(SegmentState.READY)
_RUNNING: Final = int(SegmentState.RUNNING)
_DONE: Final = int(SegmentState.DONE)
_FAILED: Final = int(SegmentState.FAILED)
_CANCELLED: Final = int(SegmentState.CANCELLED)


class Dispatcher:
    """Decides for one run of one plan: it gets what happened, and answers what starts now.

    Its only door is the event methods; each returns the instructions that follow from that event, in the
    order in which they were decided. Not thread-safe: whoever drives it from several lanes holds a lock
    around each call. Same table, same capacities, same events: same instructions, always.

    Rules, in the order in which they apply (the tie-breaks are numbers 2 to 6):

    1. A segment may start when all its predecessors are done, its width fits the free cores, its peak fits
       the free bytes (budget less the peaks of what runs), and a lane it may use is idle.
    2. Among those that are ready, the higher priority starts first.
    3. At equal priority, the lower index starts first.
    4. With backfill, a segment that fits passes those before it that do not; without, nothing passes the head.
    5. A segment with a fixed lane runs there. Any other takes the lane that has just reported (its
       predecessor's data are warm there, and nothing is handed over) if that lane is idle, else the lowest idle
       lane. A fixed lane that this run does not have counts as none: a run may get fewer lanes than its plan.
       A lane that a segment of width 0 is fixed to is a device's queue: segments that may choose stay off it.
    6. Where nothing runs and nothing may start, one segment runs alone, beyond the limits, so that a run
       never stalls: with backfill the one that exceeds the budget least (none exceeds it: only widths are too
       large), ties by 2 and 3; without backfill the head. Nothing starts beside it until it ends.
    7. After a failure nothing starts; what runs is waited for.

    Cost: O(successors + starts x classes) heap operations per event, however many segments are ready.

    Args:
        table: the plan's table.
        cores: threads that may run at once, at least 1.
        lanes: lanes that may be used: 0 to lanes - 1.
        absent: of these, some that this run does not have after all.
        budget_bytes: limit of the summed peaks of what runs, or None for no limit.
        strict: record every move and judge the whole state after every event (`verify_state`); O(segments) per event.

    Raises:
        ConfigError: cores or lanes below 1, all lanes absent, or a negative budget.
    """

    __slots__ = (
        "_budget_bytes",
        "_classes",
        "_cores",
        "_every",
        "_failed",
        "_fits",
        "_free_bytes",
        "_free_cores",
        "_idle",
        "_lanes",
        "_log",
        "_pending",
        "_ready",
        "_remaining",
        "_running",
        "_squeezed",
        "_started",
        "_states",
        "_stopped",
        "_table",
    )

    def __init__(
        self,
        table: DispatchTable,
        *,
        cores: int,
        lanes: int,
        absent: Collection[int] = (),
        budget_bytes: int | None = None,
        strict: bool = False,
    ) -> None:
        every = (1 << max(0, lanes)) - 1
        for lane in absent:
            every &= ~(1 << lane)
        if cores < 1 or not every or (budget_bytes is not None and budget_bytes < 0):
            raise _bad_capacity(cores, lanes, budget_bytes)
        self._table = table
        self._cores = cores
        self._lanes = lanes
        self._every = every  # bit i: there is a lane i
        self._budget_bytes = UNLIMITED_BYTES if budget_bytes is None else budget_bytes
        self._free_cores = cores  # cores - widths of what runs; negative while one runs beyond the limit
        self._free_bytes = self._budget_bytes  # likewise in bytes
        self._idle = every  # bit i: lane i is idle
        self._states = bytearray(table.states)
        self._remaining = list(table.remaining)
        # Per class: heap of the ranks of its ready segments, width, mask of the lanes it may use (rule 5).
        # Once there is a budget the heaps stay empty and `_fits` holds what is ready.
        self._classes = [(list(ranks), width, mask & every or every) for ranks, width, mask in table.classes]
        self._ready = table.ready_count  # entries in all those queues
        self._fits: list[FitQueue] | None = None  # per class
        if budget_bytes is not None and table.has_peaks:
            self._queue_by_size()
        self._pending = len(table.states)  # segments not yet done, failed or cancelled
        self._running: dict[int, int] = {}  # segment -> lane, in order of start
        self._failed: tuple[int, ...] = ()
        self._started = False
        self._stopped = False  # a segment failed
        self._squeezed = False  # the budget was lowered below what was running at that moment
        self._log: list[tuple[int, str]] | None = [] if strict else None

    # -- events ---------------------------------------------------------------------------------------

    def start(self) -> tuple[Start, ...]:
        """Begin the run. Once only, before any other event but a change of the budget."""
        if self._started:
            raise InternalError("the run was started twice")
        self._started = True
        starts = self._admit(ANY_LANE) if self._ready else ()
        if self._log is not None:
            verify_state(self)
        return starts

    def segment_done(self, segment: int) -> tuple[Start, ...]:
        """A running segment ended well; its lane is idle and its successors may be ready."""
        lane = self._running.pop(segment, -1)
        if lane < 0:
            raise self._illegal("segment_done", segment)
        log = self._log
        if log is not None:
            self._note(segment, SegmentState.DONE, f"segment_done on lane {lane}")
        table = self._table
        states = self._states
        states[segment] = _DONE
        self._free_cores += table.widths[segment]
        self._free_bytes += table.peaks[segment]
        self._idle |= 1 << lane
        self._pending -= 1
        starts: tuple[Start, ...] = ()
        if not self._stopped:
            remaining = self._remaining
            for successor in table.successors[segment]:
                left = remaining[successor] - 1
                remaining[successor] = left
                if not left:
                    if log is not None:
                        self._note(successor, SegmentState.READY, f"its last predecessor {segment} is done")
                    states[successor] = _READY
                    if self._fits is None:
                        heappush(self._classes[table.class_of[successor]][0], table.ranks[successor])
                    else:
                        self._fits[table.class_of[successor]].put(table.places[successor], table.peaks[successor])
                    self._ready += 1
            if self._ready:
                starts = self._admit(lane)
        if log is not None:
            verify_state(self)
        return starts

    def segment_failed(self, segment: int) -> tuple[Start, ...]:
        """A running segment raised, or was given up. Nothing starts any more; always returns ()."""
        lane = self._running.pop(segment, -1)
        if lane < 0:
            raise self._illegal("segment_failed", segment)
        if self._log is not None:
            self._note(segment, SegmentState.FAILED, f"segment_failed on lane {lane}")
        self._states[segment] = _FAILED
        self._free_cores += self._table.widths[segment]
        self._free_bytes += self._table.peaks[segment]
        self._idle |= 1 << lane
        self._pending -= 1
        self._failed += (segment,)
        self._stop(f"segment {segment} failed")
        if self._log is not None:
            verify_state(self)
        return ()

    def budget_changed(self, budget_bytes: int | None) -> tuple[Start, ...]:
        """Change how many bytes what runs may hold from now on (None: no limit). What runs is never stopped."""
        if budget_bytes is not None and budget_bytes < 0:
            raise _bad_capacity(self._cores, self._lanes, budget_bytes)
        budget = UNLIMITED_BYTES if budget_bytes is None else budget_bytes
        self._free_bytes += budget - self._budget_bytes
        self._budget_bytes = budget
        if budget_bytes is not None and self._fits is None and self._table.has_peaks:
            self._queue_by_size()
        self._squeezed = self._free_bytes < 0
        starts = self._admit(ANY_LANE) if self._ready and self._started else ()
        if self._log is not None:
            verify_state(self)
        return starts

    # -- readings -------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Nothing runs, and nothing will: all is done, or the run was stopped and what ran has ended."""
        return not self._pending

    @property
    def running(self) -> tuple[int, ...]:
        """Segments started and not yet answered for, in order of start."""
        return tuple(self._running)

    @property
    def failed(self) -> tuple[int, ...]:
        """Segments that failed, in order of failure; empty (false) while all goes well."""
        return self._failed

    @property
    def stopped(self) -> bool:
        """Whether a failure stopped the run before all segments were done."""
        return self._stopped

    @property
    def states(self) -> tuple[SegmentState, ...]:
        """A snapshot: the state of each segment."""
        return tuple(map(SegmentState, self._states))

    def history(self, segment: int) -> tuple[str, ...]:
        """What happened to that segment so far, oldest first. Recorded in strict mode only, else empty."""
        if self._log is None:
            return ()
        return tuple(f"{number}: {text}" for number, (of, text) in enumerate(self._log) if of == segment)

    # -- decisions ------------------------------------------------------------------------------------

    def _admit(self, lane: int) -> tuple[Start, ...]:
        """Start all that may start; ``lane`` has just reported, or is `ANY_LANE`."""
        preferred = 0 if lane < 0 else 1 << lane
        if self._fits is not None:
            return self._admit_within_budget(self._fits, preferred)
        table = self._table
        order = table.order
        backfill = table.backfill
        nothing = len(order)
        starts: tuple[Start, ...] = ()
        queue: list[int] = []
        width = usable = 0
        while self._ready and self._idle:
            free_cores = self._free_cores
            idle = self._idle
            best = nothing
            for ranks, asked, mask in self._classes:
                # In order, the head counts even where it does not fit.
                if ranks and ranks[0] < best and ((asked <= free_cores and mask & idle) or not backfill):
                    best, queue, width, usable = ranks[0], ranks, asked, mask & idle
            if best == nothing or (not backfill and not (width <= free_cores and usable)):
                break
            heappop(queue)
            starts += (self._launch(order[best], width, usable & preferred or usable & -usable),)
        if self._ready and not self._running:
            # Rule 6, and only widths are too large.
            ranks, width, usable = min(heap for heap in self._classes if heap[0])
            starts = (self._launch(order[heappop(ranks)], width, usable & preferred or usable & -usable),)
        return starts

    def _admit_within_budget(self, fits: list[FitQueue], preferred: int) -> tuple[Start, ...]:
        """`_admit` where bytes count as well: the same rules over queues that can be asked for what fits."""
        table = self._table
        backfill = table.backfill
        nothing = len(table.order)
        starts: tuple[Start, ...] = ()
        while self._ready and self._idle:
            best, index = nothing, -1
            limit = self._free_bytes if backfill else UNLIMITED_BYTES
            for number, (_, asked, mask) in enumerate(self._classes):
                if backfill and not (asked <= self._free_cores and mask & self._idle):
                    continue
                place = fits[number].first_fitting(limit)
                if place >= 0 and table.members[number][place] < best:
                    best, index = table.members[number][place], number
            if best == nothing:
                break
            segment = table.order[best]
            _, width, mask = self._classes[index]
            usable = mask & self._idle
            if width > self._free_cores or not usable or table.peaks[segment] > self._free_bytes:
                break
            fits[index].put(table.places[segment], EMPTY)
            starts += (self._launch(segment, width, usable & preferred or usable & -usable),)
        if self._ready and not self._running:
            # Rule 6. All lanes are idle, as nothing runs.
            limit = max(self._free_bytes, min(queue.smallest for queue in fits)) if backfill else UNLIMITED_BYTES
            found = [(number, queue.first_fitting(limit)) for number, queue in enumerate(fits)]
            rank, index = min((table.members[number][place], number) for number, place in found if place >= 0)
            segment = table.order[rank]
            fits[index].put(table.places[segment], EMPTY)
            _, width, usable = self._classes[index]
            starts = (self._launch(segment, width, usable & preferred or usable & -usable),)
        return starts

    def _queue_by_size(self) -> None:
        """From now on what is ready is held by size as well: there is a budget."""
        table = self._table
        self._fits = [FitQueue(len(members)) for members in table.members]
        for (ranks, _, _), queue in zip(self._classes, self._fits, strict=True):
            for rank in ranks:
                segment = table.order[rank]
                queue.put(table.places[segment], table.peaks[segment])
            ranks.clear()

    def _launch(self, segment: int, width: int, lane_bit: int) -> Start:
        lane = lane_bit.bit_length() - 1
        if self._log is not None:
            self._note(segment, SegmentState.RUNNING, f"started on lane {lane} at width {width}")
        self._states[segment] = _RUNNING
        self._running[segment] = lane
        self._ready -= 1
        self._free_cores -= width
        self._free_bytes -= self._table.peaks[segment]
        self._idle ^= lane_bit
        memo = self._table.starts
        key = lane * len(self._states) + segment
        start = memo.get(key)
        if start is None:
            start = memo[key] = Start(segment, lane, width)
        return start

    def _stop(self, why: str) -> None:
        if self._stopped:
            return
        self._stopped = True
        self._ready = 0
        for ranks, _, _ in self._classes:
            ranks.clear()
        if self._fits is not None:
            self._fits = [FitQueue(0) for _ in self._fits]
        states = self._states
        for segment, state in enumerate(states):
            if state in (_WAITING, _READY):
                if self._log is not None:
                    self._note(segment, SegmentState.CANCELLED, why)
                states[segment] = _CANCELLED
                self._pending -= 1

    # -- the history ----------------------------------------------------------------------------------

    def _note(self, segment: int, new: SegmentState, why: str) -> None:
        """Strict mode: record a move, and refuse it if the table of legal moves does not have it."""
        assert self._log is not None
        old = SegmentState(self._states[segment])
        self._log.append((segment, f"{old.name} -> {new.name}: {why}"))
        if new not in LEGAL_MOVES[old]:
            raise self._illegal(f"move to {new.name}", segment)

    def _illegal(self, event: str, segment: int) -> InternalError:
        if not 0 <= segment < len(self._states):
            return InternalError(f"{event} for segment {segment} of a plan of {len(self._states)}")
        state = SegmentState(self._states[segment]).name
        history = "; ".join(self.history(segment)) or "not recorded (strict=False)"
        return InternalError(
            f"{event} while the segment is {state}; its history: {history}", where=f"segment {segment}"
        )


def _bad_capacity(cores: int, lanes: int, budget_bytes: int | None) -> ConfigError:
    return ConfigError(
        f"cannot dispatch on {cores} cores, {lanes} lanes, budget {budget_bytes} bytes",
        fix="give at least 1 core and 1 lane, and a budget of 0 or more bytes (None: no limit)",
    )
