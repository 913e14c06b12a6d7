"""What ran where and when: one typed record per segment, for people and for programs.

Tracing costs nothing while no sink is attached.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from parallax import _lazy

logger = _lazy.logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentSpan:
    """One execution of one segment. Times are ``time.perf_counter_ns`` readings."""

    run: int
    """Number of the run within the process, from 1."""
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
    the sink is detached and the error logged."""

    def record(self, span: SegmentSpan) -> None: ...


class TraceRecorder:
    """Keeps spans in memory, in order of completion."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[SegmentSpan] = []

    def record(self, span: SegmentSpan) -> None:
        with self._lock:
            self._spans.append(span)

    def take(self) -> tuple[SegmentSpan, ...]:
        """The spans so far; the recorder is empty afterwards."""
        with self._lock:
            spans, self._spans = self._spans, []
        return tuple(spans)


class Traceable(Protocol):
    """What can be traced: the executor."""

    trace_sink: TraceSink | None


class SinkHolder:
    """Holds a sink until it fails. Thread-safe: of several lanes that see it fail, one says so.

    Attributes:
        trace_sink: the sink, or None; may be set at any time.
    """

    def __init__(self, trace_sink: TraceSink | None = None) -> None:
        self.trace_sink = trace_sink
        self._sink_lock = threading.Lock()

    def record_span(self, sink: TraceSink, span: SegmentSpan) -> TraceSink | None:
        """Give the span to ``sink``; returns it, or None if it failed and is detached, which is logged once."""
        try:
            sink.record(span)
        except Exception:
            with self._sink_lock:
                is_first = self.trace_sink is sink
                if is_first:
                    self.trace_sink = None
            if is_first:
                logger.exception("the trace sink %s failed and is detached; the run goes on", type(sink).__name__)
            return None
        return sink


def trace_durations(executor: Traceable, run: Callable[[], object], *, runs: int = 9) -> tuple[int, ...]:
    """What each segment takes in whole runs, in ns: medians over ``runs``, after one that is not counted.

    Args:
        executor: idle otherwise; its sink is put back afterwards.
        run: one run of this executor.

    Raises: whatever ``run`` raises.
    """
    run()
    recorder = TraceRecorder()
    before, executor.trace_sink = executor.trace_sink, recorder
    try:
        for _ in range(runs):
            run()
    finally:
        executor.trace_sink = before
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
