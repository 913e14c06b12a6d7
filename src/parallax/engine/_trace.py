"""What ran where and when: one typed record per segment, for people and for programs.

Spans are made of the events of `parallax.events`, by an observer like any other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from parallax.engine._observers import EventStream, Kept
from parallax.events import Event, SegmentEnded


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentSpan:
    """Describes one execution of one segment. Times are ``time.perf_counter_ns`` readings."""

    run: int
    """Number of the run within the process, from 1; runs that nobody observes have none."""
    segment: int
    name: str
    lane: int
    """0 is the thread that called ``run``."""
    width: int
    start_ns: int
    end_ns: int
    input_bytes: int
    output_bytes: int

    @property
    def duration_ns(self) -> int:
        return self.end_ns - self.start_ns


class TraceSink(Protocol):
    """Receives spans from any lane, so it must be thread-safe. An error in a sink never breaks a run:
    the sink is detached and the error logged. `SpanObserver` makes an observer of it."""

    def record(self, span: SegmentSpan) -> None: ...


class TraceRecorder:
    """Keeps spans in memory, in order of completion."""

    def __init__(self) -> None:
        self._spans: Kept[SegmentSpan] = Kept()

    def record(self, span: SegmentSpan) -> None:
        self._spans.add(span)

    def take(self) -> tuple[SegmentSpan, ...]:
        """The spans so far; the recorder is empty afterwards."""
        return tuple(self._spans.take())


class SpanObserver:
    """An observer that gives a sink the segments of runs that callers asked for, not those of runs inside them.

    Args:
        sink: an error in it goes to the stream, which detaches this.
    """

    def __init__(self, sink: TraceSink) -> None:
        self.sink = sink

    def __call__(self, event: Event) -> None:
        if not isinstance(event, SegmentEnded) or event.parent is not None:
            return
        self.sink.record(
            SegmentSpan(
                run=event.run,
                segment=event.segment,
                name=event.name,
                lane=event.lane,
                width=event.width,
                start_ns=event.begin_ns,
                end_ns=event.end_ns,
                input_bytes=event.input_bytes,
                output_bytes=event.output_bytes,
            )
        )


class Traceable(Protocol):
    """What can be traced: the executor."""

    events: EventStream


def trace_durations(executor: Traceable, run: Callable[[], object], *, runs: int = 9) -> tuple[int, ...]:
    """What each segment takes in whole runs, in ns: medians over ``runs``, after one that is not counted.

    Args:
        executor: idle otherwise.
        run: one run of this executor.

    Raises: whatever ``run`` raises.
    """
    run()
    recorder = TraceRecorder()
    observer = SpanObserver(recorder)
    executor.events.add(observer)
    try:
        for _ in range(runs):
            run()
    finally:
        executor.events.remove(observer)
    return median_durations(recorder.take())


def median_durations(spans: Iterable[SegmentSpan]) -> tuple[int, ...]:
    """What each segment took in ns, in the order of their indices: medians over all its spans."""
    import statistics

    durations: dict[int, list[int]] = {}
    for span in spans:
        durations.setdefault(span.segment, []).append(span.duration_ns)
    return tuple(round(statistics.median(durations[segment])) for segment in sorted(durations))


def write_chrome_trace(spans: Sequence[SegmentSpan], path: str | os.PathLike[str]) -> None:
    """Write spans in the Trace Event Format that chrome://tracing and Perfetto open.

    Durations are microseconds from the first span; one row per lane. The file is written under a
    temporary name and renamed, so a reader never sees half of it.
    """
    import json

    origin = min((span.start_ns for span in spans), default=0)
    events: list[dict[str, object]] = [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": lane, "args": {"name": f"lane {lane}"}}
        for lane in sorted({span.lane for span in spans})
    ]
    events += [
        {
            "ph": "X",
            "name": span.name,
            "cat": "segment",
            "pid": 1,
            "tid": span.lane,
            "ts": (span.start_ns - origin) / 1e3,
            "dur": span.duration_ns / 1e3,
            "args": {
                "run": span.run,
                "segment": span.segment,
                "width": span.width,
                "input_bytes": span.input_bytes,
                "output_bytes": span.output_bytes,
            },
        }
        for span in spans
    ]
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))
    temporary.replace(target)
