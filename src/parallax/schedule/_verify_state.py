"""The judge of a run in progress, written apart from the moves it judges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from parallax.errors import InternalError
from parallax.schedule._fit_queue import FitQueue
from parallax.schedule._table import DispatchTable, SegmentState


class RunState(Protocol):
    """What `verify_state` looks at: the fields of a `Dispatcher`, whose comments say what they mean."""

    _table: DispatchTable
    _cores: int
    _every: int
    _budget_bytes: int
    _free_cores: int
    _free_bytes: int
    _idle: int
    _remaining: list[int]
    _classes: list[tuple[list[int], int, int]]
    _ready: int
    _fits: list[FitQueue] | None
    _pending: int
    _running: dict[int, int]
    _failed: tuple[int, ...]
    _started: bool
    _stopped: bool
    _squeezed: bool

    @property
    def states(self) -> Sequence[SegmentState]:
        """The state of each segment."""
        ...

    @property
    def finished(self) -> bool:
        """Whether nothing runs and nothing will."""
        ...


def verify_state(dispatcher: RunState) -> None:
    """Judge the whole state of a run against its table alone; O(segments + edges).

    Written apart from the moves: it recomputes every counter from the states of the segments.

    Raises: InternalError saying which invariant is broken.
    """
    d, table = dispatcher, dispatcher._table
    states = d.states
    running = dict(d._running)
    by_state = {state: {s for s, at in enumerate(states) if at is state} for state in SegmentState}

    def require(holds: bool, what: str) -> None:
        if not holds:
            raise InternalError(f"dispatcher state is inconsistent: {what}")

    require(by_state[SegmentState.RUNNING] == set(running), "RUNNING segments are not those holding a lane")
    require(len(set(running.values())) == len(running), "two segments run on one lane")
    require(
        all(lane >= 0 and d._every >> lane & 1 for lane in running.values()),
        "a segment runs on a lane that is not there",
    )
    busy = sum(1 << lane for lane in running.values())
    require(d._idle == d._every ^ busy, "idle lanes are not those without a segment")
    require(d._free_cores == d._cores - sum(table.widths[s] for s in running), "free cores miscounted")
    require(d._free_bytes == d._budget_bytes - sum(table.peaks[s] for s in running), "free bytes miscounted")
    require(len(running) <= 1 or d._free_cores >= 0, "more cores in use than allowed")
    require(len(running) <= 1 or d._squeezed or d._free_bytes >= 0, "more bytes in use than the budget")
    for segment, state in enumerate(states):
        missing = sum(states[p] is not SegmentState.DONE for p in table.predecessors[segment])
        if state in (SegmentState.READY, SegmentState.RUNNING, SegmentState.DONE, SegmentState.FAILED):
            require(missing == 0, f"segment {segment} is {state.name} before {missing} of its predecessors are done")
        elif state is SegmentState.WAITING:
            require(missing == d._remaining[segment] > 0, f"segment {segment} waits for the wrong number")
        if segment in running:
            mask = d._classes[table.class_of[segment]][2]
            require(bool(mask >> running[segment] & 1), f"segment {segment} runs off its fixed lane")
    queued = sorted(rank for ranks, _, _ in d._classes for rank in ranks)
    if d._fits is not None:
        require(not queued, "ready segments are held twice")
        held = zip(table.members, d._fits, strict=True)
        queued = sorted(members[place] for members, queue in held for place in queue.held)
    require(
        queued == sorted(table.ranks[s] for s in by_state[SegmentState.READY]), "READY segments are not those queued"
    )
    require(d._ready == len(queued), "ready segments miscounted")
    unsettled = (SegmentState.WAITING, SegmentState.READY, SegmentState.RUNNING)
    require(d._pending == sum(len(by_state[state]) for state in unsettled), "pending segments miscounted")
    require(by_state[SegmentState.FAILED] == set(d._failed), "FAILED segments are not those reported")
    require(
        d._stopped or not (by_state[SegmentState.FAILED] | by_state[SegmentState.CANCELLED]), "failed, yet going on"
    )
    if d._stopped:
        require(not queued and not by_state[SegmentState.WAITING], "stopped, yet segments are to start")
    elif d._started:
        require(bool(running) or d.finished, "nothing runs and nothing will")
        for rank in queued:
            segment = table.order[rank]
            _, width, mask = d._classes[table.class_of[segment]]
            fits = width <= d._free_cores and table.peaks[segment] <= d._free_bytes and bool(mask & d._idle)
            require(not fits, f"segment {segment} fits and was not started")
            if not table.backfill:
                break
