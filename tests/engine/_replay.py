"""Runs decided again from their events alone, and the judge that compares.

Written apart from the engine: it knows the events, and `Dispatcher`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from parallax.events import (
    BackendSetAside,
    BudgetChanged,
    Event,
    PlanSwapped,
    RunAdmitted,
    RunEnded,
    RunEvent,
    RunOutcome,
    SegmentEnded,
    SegmentStarted,
    TensorMoved,
)
from parallax.schedule import Dispatcher, DispatchTable, Start


@dataclass
class Replayed:
    """One run, decided again."""

    admitted: RunAdmitted
    dispatcher: Dispatcher
    decided: list[Start] = field(default_factory=list)
    """Decided by the event before, and not compared yet."""
    starts: list[Start] = field(default_factory=list)
    in_progress: dict[int, SegmentStarted] = field(default_factory=dict)
    time_ns: int = 0
    ended: RunEnded | None = None


def verify_events(events: Sequence[Event]) -> Mapping[int, Replayed]:
    """Judge all events of a stream, in their order: that the dispatcher, told the same, decides the same.

    Every `SegmentStarted` must be the next instruction of a fresh `Dispatcher`, right after the event that brought it,
    and no instruction may lack its event. Numbers have no gaps, times of a run do not descend, each run begins and ends
    once, a run inside another lies within the segment that it names, and the iterations of a body are counted from 0.

    Returns: what was decided, by run.

    Raises: AssertionError naming the event.
    """
    runs: dict[int, Replayed] = {}
    iterations: dict[tuple[int, int, str], int] = defaultdict(int)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1)), "numbers with gaps, or in disorder"
    for event in events:
        if isinstance(event, BackendSetAside | PlanSwapped):
            continue
        assert isinstance(event, RunEvent), event
        if isinstance(event, RunAdmitted):
            assert event.run not in runs, event
            if event.parent is not None:
                outer = runs[event.parent.run]
                assert outer.ended is None, event
                assert event.parent.segment in outer.in_progress, event
                place = (event.parent.run, event.parent.segment, event.parent.body)
                assert event.parent.number == iterations[place], event
                iterations[place] += 1
            runs[event.run] = _begin(event)
            continue
        run = runs[event.run]
        assert run.ended is None, event
        assert event.parent == run.admitted.parent, event
        assert event.time_ns >= run.time_ns, event
        run.time_ns = event.time_ns
        _step(run, event)
    for replayed in runs.values():
        assert replayed.ended is not None, replayed.admitted
        if replayed.ended.outcome is not RunOutcome.INTERRUPTED:
            assert replayed.dispatcher.finished, replayed.ended
            assert bool(replayed.dispatcher.failed) is (replayed.ended.outcome is RunOutcome.FAILED), replayed.ended
    return runs


def _begin(event: RunAdmitted) -> Replayed:
    dispatcher = Dispatcher(
        DispatchTable.from_plan(event.plan),
        cores=event.cores,
        lanes=event.lanes,
        absent=event.absent,
        budget_bytes=event.budget_bytes,
        strict=True,
    )
    return Replayed(event, dispatcher, decided=list(dispatcher.start()), time_ns=event.time_ns)


def _step(run: Replayed, event: RunEvent) -> None:
    if isinstance(event, SegmentStarted):
        assert run.decided, f"nothing decided this: {event}"
        decided = run.decided.pop(0)
        assert decided == Start(event.segment, event.lane, event.width), event
        segment = run.admitted.plan.segments[event.segment]
        assert (event.name, event.backend) == (segment.name, segment.backend), event
        run.in_progress[event.segment] = event
        run.starts.append(decided)
        return
    if isinstance(event, TensorMoved):
        assert event.segment in run.in_progress, event
        return
    assert not run.decided, f"not said to have started before {event}: {run.decided}"
    if isinstance(event, SegmentEnded):
        started = run.in_progress.pop(event.segment)
        assert (event.lane, event.width, event.name) == (started.lane, started.width, started.name), event
        assert event.begin_ns >= started.time_ns, event
        assert event.waited_ns == event.begin_ns - started.time_ns, event
        assert event.begin_ns <= event.end_ns <= event.time_ns, event
        tell = run.dispatcher.segment_done if event.failure is None else run.dispatcher.segment_failed
        run.decided = list(tell(event.segment))
    elif isinstance(event, BudgetChanged):
        run.decided = list(run.dispatcher.budget_changed(event.budget_bytes))
    else:
        assert isinstance(event, RunEnded), event
        run.ended = event


def of_kind(events: Iterable[Event], kind: type[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, kind)]
