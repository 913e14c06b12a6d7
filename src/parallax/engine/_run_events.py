"""The events of one run: made where it is observed, numbered while its dispatcher's lock is held, given out after that.

Loaded when the first observed run begins.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from parallax.engine._observers import Attached, EventStream
from parallax.events import (
    BackendSetAside,
    BudgetChanged,
    Event,
    Iteration,
    PlanSwapped,
    RunAdmitted,
    RunEnded,
    RunOutcome,
    SegmentEnded,
    SegmentStarted,
    TensorMoved,
)
from parallax.schedule import Plan, Start

_run_numbers = itertools.count(1)


class Stamp(NamedTuple):
    """The first of some numbers in a row, and the time of all the events that have them."""

    first: int
    time_ns: int


class Inside(NamedTuple):
    """Where a run inside an observed run belongs, and who observes it."""

    stream: EventStream
    attached: tuple[Attached, ...]
    parent: Iteration


class Scope(NamedTuple):
    """A segment of an observed run, which runs plans of its own."""

    run: RunEvents
    segment: int

    def inside(self, body: str, number: int) -> Inside:
        """For the run of a body, named by its attribute, in an iteration."""
        return self.run.inside(self.segment, body, number)


Values = Sequence[tuple[str, Any]]
"""Names of tensors, and OrtValues or arrays; None for one that was omitted."""


class Transfer(NamedTuple):
    """A tensor that went from one memory to another; memories by their names."""

    tensor: str
    value: Any
    source: str
    target: str


class EndedSegment(NamedTuple):
    """What there is to tell of a segment that ended."""

    start: Start
    begin_ns: int
    end_ns: int
    input_bytes: int
    output_bytes: int
    backend: str | None
    failure: Exception | None


class RunEvents:
    """Tells the observers of one run what happens in it.

    Args:
        stream: numbers the events.
        plan: of the run.
        inside: None for a run that a caller asked for.
        waited_ns: before the run was admitted.
    """

    __slots__ = (
        "_attached",
        "_is_admitted",
        "_is_over",
        "_noted",
        "_parent",
        "_started",
        "_stream",
        "_telling",
        "number",
        "plan",
        "waited_ns",
    )

    def __init__(self, stream: EventStream, plan: Plan, inside: Inside | None = None, *, waited_ns: int = 0) -> None:
        if inside is None:
            self._stream, self._attached, self._parent = stream, stream.attached, None
        else:
            self._stream, self._attached, self._parent = inside
        self.plan = plan
        self.waited_ns = waited_ns
        self._started: dict[int, int] = {}  # segment -> when the dispatcher started it
        self._noted: deque[tuple[Stamp, Sequence[Start], int | None]] = deque()
        self._telling = threading.Lock()
        self._is_admitted = False
        self._is_over = False
        self.number = next(_run_numbers)

    def scope(self, segment: int) -> Scope:
        """For a segment that runs plans of its own."""
        return Scope(self, segment)

    def inside(self, segment: int, body: str, number: int) -> Inside:
        """See `Scope.inside`."""
        parent = Iteration(run=self.number, segment=segment, body=body, number=number)
        return Inside(self._stream, self._attached, parent)

    def stamp(self, starts: Sequence[Start]) -> Stamp:
        """Numbers for one event and for the starts that it brought. Quick, as it is called with the run's lock held."""
        return Stamp(self._stream.reserve(1 + len(starts)), time.perf_counter_ns())

    def admit(
        self,
        stamp: Stamp,
        starts: Sequence[Start],
        *,
        cores: int,
        lanes: int,
        absent: tuple[int, ...] = (),
        budget_bytes: int | None = None,
    ) -> None:
        """The run begins with these starts."""
        self._is_admitted = True
        self._deliver(
            RunAdmitted(
                **self._head(stamp),
                plan=self.plan,
                cores=cores,
                lanes=lanes,
                absent=absent,
                budget_bytes=budget_bytes,
                waited_ns=self.waited_ns,
            )
        )
        self._start(stamp, starts)

    def note_end(
        self,
        start: Start,
        read: Values,
        made: Values,
        *,
        begin_ns: int,
        end_ns: int,
        transfers: Sequence[Transfer] = (),
        backend: str | None = None,
        failure: Exception | None = None,
    ) -> EndedSegment:
        """A segment ended, of which the dispatcher is not told yet: tell of what moved, and keep the rest for then.

        Args:
            read: what it was given.
            made: its outputs.
            backend: what computed it; None: as planned.
        """
        for transfer in transfers:
            self._deliver(
                TensorMoved(
                    **self._head(self.stamp(())),
                    segment=start.segment,
                    tensor=transfer.tensor,
                    size_bytes=_size_bytes(transfer.value),
                    source=transfer.source,
                    target=transfer.target,
                )
            )
        input_bytes, output_bytes = (sum(_size_bytes(value) for _, value in values) for values in (read, made))
        return EndedSegment(start, begin_ns, end_ns, input_bytes, output_bytes, backend, failure)

    def end_segment(self, stamp: Stamp, starts: Sequence[Start], ended: EndedSegment) -> None:
        """The dispatcher was told of the end of a segment, which brought these starts."""
        segment = self.plan.segments[ended.start.segment]
        waited_ns = ended.begin_ns - self._started.pop(segment.index, ended.begin_ns)
        self._deliver(
            SegmentEnded(
                **self._head(stamp),
                segment=segment.index,
                name=segment.name,
                lane=ended.start.lane,
                width=ended.start.width,
                backend=ended.backend or segment.backend,
                waited_ns=max(0, waited_ns),
                begin_ns=ended.begin_ns,
                end_ns=ended.end_ns,
                input_bytes=ended.input_bytes,
                output_bytes=ended.output_bytes,
                failure=_words(ended.failure),
            )
        )
        self._start(stamp, starts)

    def note_budget(self, stamp: Stamp, starts: Sequence[Start], budget_bytes: int | None) -> None:
        """The budget changed, which brought these starts; told by `tell_noted`. Called with the run's lock held."""
        for start in starts:
            self._started[start.segment] = stamp.time_ns
        self._noted.append((stamp, starts, budget_bytes))

    def tell_noted(self) -> None:
        """Tell of changes of the budget. Returns when they are told, by whichever thread: one at a time does so."""
        if self._noted:
            with self._telling:
                while self._noted:
                    stamp, starts, budget_bytes = self._noted[0]
                    try:
                        self._deliver(BudgetChanged(**self._head(stamp), budget_bytes=budget_bytes))
                        self._start(stamp, starts)
                    finally:  # not before: who finds nothing noted goes on
                        self._noted.popleft()

    def end(self, failure: BaseException | None, *, is_interrupted: bool = False) -> None:
        """The run is over. Says so once, and only of a run that began."""
        if self._is_admitted and not self._is_over:
            self._is_over = True
            outcome = RunOutcome.DONE if failure is None else RunOutcome.FAILED
            if is_interrupted:
                outcome = RunOutcome.INTERRUPTED
            self._deliver(RunEnded(**self._head(self.stamp(())), outcome=outcome, failure=_words(failure)))

    def _start(self, stamp: Stamp, starts: Sequence[Start]) -> None:
        for number, start in enumerate(starts, start=1):
            segment = self.plan.segments[start.segment]
            self._started[start.segment] = stamp.time_ns
            self._deliver(
                SegmentStarted(
                    **self._head(stamp, number),
                    segment=segment.index,
                    name=segment.name,
                    lane=start.lane,
                    width=start.width,
                    backend=segment.backend,
                )
            )

    def _head(self, stamp: Stamp, number: int = 0) -> dict[str, Any]:
        return {
            "sequence": stamp.first + number,
            "time_ns": stamp.time_ns,
            "run": self.number,
            "parent": self._parent,
        }

    def _deliver(self, event: Event) -> None:
        self._stream.deliver(self._attached, event)


class SingleRun:
    """An observed run of a plan of one segment, for which nothing needs to be dispatched. It begins when this is made.

    The events are those of a dispatcher with one lane.
    """

    __slots__ = ("_begin_ns", "_events", "_start")

    def __init__(self, events: RunEvents) -> None:
        self._events = events
        self._start = start = Start(segment=0, lane=0, width=events.plan.segments[0].width)
        events.admit(events.stamp((start,)), (start,), cores=events.plan.cores, lanes=1)
        self._begin_ns = time.perf_counter_ns()

    def end(
        self, read: Values, made: Values, *, transfers: Sequence[Transfer] = (), backend: str | None = None
    ) -> None:
        """It ended well. See `RunEvents.note_end`."""
        events, begin_ns, end_ns = self._events, self._begin_ns, time.perf_counter_ns()
        ended = events.note_end(
            self._start, read, made, begin_ns=begin_ns, end_ns=end_ns, transfers=transfers, backend=backend
        )
        events.end_segment(events.stamp(()), (), ended)
        events.end(None)

    def fail(self, error: BaseException) -> None:
        """It raised this: it failed, or was interrupted."""
        events, begin_ns, end_ns = self._events, self._begin_ns, time.perf_counter_ns()
        if isinstance(error, Exception):
            ended = events.note_end(self._start, (), (), begin_ns=begin_ns, end_ns=end_ns, failure=error)
            events.end_segment(events.stamp(()), (), ended)
        events.end(error, is_interrupted=not isinstance(error, Exception))


def begin_whole_run(stream: EventStream, plan: Plan, *, waited_ns: int = 0) -> SingleRun:
    """An observed run of a whole model, which a caller makes without the engine. ``plan``: of one segment."""
    return SingleRun(RunEvents(stream, plan, waited_ns=waited_ns))


def _size_bytes(value: Any) -> int:
    """Bytes of an array or an OrtValue; 0 for an omitted value and for what has no flat size (sequences, strings)."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if not hasattr(value, "is_tensor") or not value.is_tensor() or value.data_type() == "tensor(string)":
        return 0
    return int(value.tensor_size_in_bytes())


def tell_set_aside(stream: EventStream, backend: str, segment: str, reason: str, retry_s: float | None) -> None:
    """Tell those who observe now that a backend was disabled."""
    if stream.attached:
        event = BackendSetAside(
            sequence=stream.reserve(1),
            time_ns=time.perf_counter_ns(),
            backend=backend,
            segment=segment,
            retry_s=retry_s,
            reason=reason,
        )
        stream.deliver(stream.attached, event)


def tell_swapped(stream: EventStream, plan: Plan, previous: Plan, reason: str, *, sequence: int, time_ns: int) -> None:
    """Tell those who observe now that another plan is in force. The event was numbered when that came to be."""
    event = PlanSwapped(sequence=sequence, time_ns=time_ns, plan=plan, previous=previous, reason=reason)
    stream.deliver(stream.attached, event)


def _words(error: BaseException | None) -> str | None:
    return None if error is None else f"{type(error).__name__}: {error}"
