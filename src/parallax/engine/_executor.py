"""The executor: drives the dispatcher with real lanes and a real clock.

One ``Executor`` holds a plan's compiled segments and serves any number of concurrent runs. Each run
has its own dispatcher and table of values; the thread that calls ``run`` is the run's lane 0, the
others are leased from the process's pool. A lane that finishes a segment asks the dispatcher what may
start now and takes the next one itself, so a chain of segments on one lane needs no hand-over.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.engine._failures import segment_failure
from parallax.engine._lanes import Lane, LanePool, Lease
from parallax.engine._mailbox import Mailbox
from parallax.engine._trace import SegmentSpan, TraceSink
from parallax.errors import InternalError, ParallaxError
from parallax.schedule import Dispatcher, DispatchTable, Plan, Start

logger = logging.getLogger(__name__)

# How long the calling thread spins for the end of its run before it parks.
CALLER_SPIN_NS = 100_000

_run_numbers = itertools.count(1)
_FINISHED = Start(segment=-1, lane=0, width=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledSegment:
    """A segment ready to run: the wrapped runtime's session and the names it is called with."""

    name: str
    node_names: tuple[str, ...]
    width: int
    session: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: Mapping[str, np.ndarray[Any, Any]]
    """Memory the session reads its weights from; held here because the session does not."""


class Executor:
    """Runs a plan. Thread-safe: every run has its own state.

    Args:
        plan: decides order, lanes and widths.
        segments: compiled, in the plan's order.
        inputs: names of the model's inputs (overridable initializers after them), in feed order.
        outputs: names of the model's outputs.
        pool: the lanes to lease from.
    """

    def __init__(
        self,
        plan: Plan,
        segments: Sequence[CompiledSegment],
        *,
        inputs: Sequence[str],
        outputs: Sequence[str],
        pool: LanePool,
    ) -> None:
        self.plan = plan
        self.segments = tuple(segments)
        self.pool = pool
        self.trace_sink: TraceSink | None = None
        self.table = DispatchTable.from_plan(plan)
        slots: dict[str, int] = {}
        for name in inputs:
            slots.setdefault(name, len(slots))
        for segment in self.segments:
            for name in segment.outputs:
                slots.setdefault(name, len(slots))
        self._slots = slots
        self._readers = [0] * len(slots)
        self._feeds: list[tuple[tuple[str, int], ...]] = []
        self._fetches: list[tuple[list[str], tuple[int, ...]]] = []
        for segment in self.segments:
            missing = [name for name in segment.inputs if name not in slots]
            if missing:
                raise InternalError(f"segment {segment.name!r} reads {missing}, which nothing produces")
            self._feeds.append(tuple((name, slots[name]) for name in segment.inputs))
            self._fetches.append((list(segment.outputs), tuple(slots[name] for name in segment.outputs)))
            for name in segment.inputs:
                self._readers[slots[name]] += 1
        for name in outputs:
            # Outputs are read once more at the end, by the caller.
            self._readers[slots[name]] += 1

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str], run_options: Any = None) -> list[Any]:
        """Run once.

        Args:
            feeds: model input name -> C OrtValue; absent means omitted.
            outputs: names to return, in order; they may repeat.
            run_options: the caller's RunOptions, seen by every segment, or None.

        Returns: C OrtValues, owned by the caller: no later run writes to them.

        Raises:
            SegmentError: a segment failed; the first failure, after everything in flight ended.
            RunCancelled: ``run_options.terminate`` was set.
            KeyboardInterrupt: after everything in flight was told to stop and has ended.
        """
        values: list[Any] = [None] * len(self._slots)
        for name, value in feeds.items():
            values[self._slots[name]] = value
        lease = self.pool.lease(self.plan.cores)
        run = _Run(self, values, run_options, lease)
        try:
            run.drive()
        except BaseException:
            run.abort()
            raise
        finally:
            self.pool.give_back(lease)
        if run.failure is not None:
            raise run.failure
        return [values[self._slots[name]] for name in outputs]


class _Run:
    """State of one run. Fields marked (lock) are touched only while ``_lock`` is held."""

    __slots__ = (
        "_busy",
        "_caller",
        "_dispatcher",
        "_executor",
        "_lanes",
        "_lock",
        "_number",
        "_options",
        "_readers",
        "_values",
        "aborted",
        "failure",
    )

    def __init__(self, executor: Executor, values: list[Any], run_options: Any, lease: Lease) -> None:
        self._executor = executor
        self._values = values
        self._readers = executor._readers.copy()  # (lock)
        self._options = C.RunOptions() if run_options is None else run_options
        self._lanes: tuple[Lane, ...] = lease.lanes
        self._lock = threading.Lock()
        self._caller: Mailbox[Start] = Mailbox()
        self._busy = 0  # (lock) helper lanes at work on this run
        self._number = next(_run_numbers)
        lanes = min(executor.plan.lanes, 1 + len(lease.lanes))
        self._dispatcher = Dispatcher(executor.table, cores=lease.cores, lanes=lanes)  # (lock)
        self.failure: ParallaxError | None = None
        self.aborted = False

    def drive(self) -> None:
        """Lane 0: run what the dispatcher gives it until the run is over."""
        with self._lock:
            start = self._take_own(self._dispatcher.start(), 0)
        take = self._caller.take
        work = self._work
        while start is not _FINISHED:
            if start is not None and work(start):
                break
            start = take(CALLER_SPIN_NS)
        if self.aborted:  # a lane hit a bug of ours; the others may still be at work
            self.abort()

    def abort(self) -> None:
        """Tell every lane to stop and wait until none works on this run (a Ctrl-C in the caller)."""
        self.aborted = True
        options = self._options
        options.terminate = True
        try:
            while self._busy:
                time.sleep(0.0005)
        finally:
            options.terminate = False  # the options may be the caller's own: leave them usable

    def _lane_job(self, start: Start) -> None:
        """What a helper lane runs: a chain of segments, then back to its pool."""
        with self._lock:
            # Checked and counted in one step: after ``abort`` has seen zero, no lane can begin.
            if self.aborted:
                return
            self._busy += 1
        over = False
        try:
            over = self._work(start)
        except BaseException as error:  # the lane must survive, and the caller must hear of it
            self.failure = InternalError(
                f"a lane failed outside any segment: {error!r}",
                where=self._executor.segments[start.segment].name,
                fix="please report this with the traceback",
            )
            self.failure.__cause__ = error
            self.aborted = over = True
        finally:
            with self._lock:
                self._busy -= 1
            if over:
                self._caller.put(_FINISHED)

    def _take_own(self, starts: Sequence[Start], lane: int) -> Start | None:
        """Hand starts to their lanes; return the one for ``lane`` itself. Called with the lock held."""
        own = None
        for start in starts:
            if start.lane == lane:
                own = start
            elif start.lane == 0:
                self._caller.put(start)
            else:
                self._lanes[start.lane - 1].mailbox.put((self._lane_job, start))
        return own

    def _work(self, start: Start | None) -> bool:
        """Run ``start`` and whatever the dispatcher gives this lane next; True if the run is over."""
        executor = self._executor
        values = self._values
        readers = self._readers
        dispatcher = self._dispatcher
        sink = executor.trace_sink
        while start is not None:
            index, lane = start.segment, start.lane
            segment = executor.segments[index]
            feeds = executor._feeds[index]
            names, slots = executor._fetches[index]
            failure: ParallaxError | None = None
            begin = time.perf_counter_ns() if sink is not None else 0
            try:
                fetched = segment.session.run_with_ort_values(
                    {name: values[slot] for name, slot in feeds if values[slot] is not None}, names, self._options
                )
            except Exception as error:
                failure = segment_failure(error, segment=segment.name, nodes=segment.node_names)
                failure.__cause__ = error
            else:
                for position, slot in enumerate(slots):
                    values[slot] = fetched[position]
                del fetched
            if sink is not None:
                self._record(sink, start, begin)
            with self._lock:
                if self.aborted:
                    return False
                if failure is not None:
                    self.failure = self.failure or failure
                    starts = dispatcher.segment_failed(index)
                else:
                    for _, slot in feeds:
                        readers[slot] -= 1
                        if not readers[slot]:
                            values[slot] = None
                    starts = dispatcher.segment_done(index)
                start = self._take_own(starts, lane)
                if start is None and dispatcher.finished:
                    return True
        return False

    def _record(self, sink: TraceSink, start: Start, begin_ns: int) -> None:
        end_ns = time.perf_counter_ns()
        executor = self._executor
        segment = executor.segments[start.segment]
        values = self._values
        span = SegmentSpan(
            run=self._number,
            segment=start.segment,
            name=segment.name,
            lane=start.lane,
            width=start.width,
            start_ns=begin_ns,
            end_ns=end_ns,
            input_bytes=sum(_size_bytes(values[slot]) for _, slot in executor._feeds[start.segment]),
            output_bytes=sum(_size_bytes(values[slot]) for slot in executor._fetches[start.segment][1]),
        )
        try:
            sink.record(span)
        except Exception:
            executor.trace_sink = None
            logger.exception("the trace sink %r failed and is detached; the run goes on", sink)


def _size_bytes(value: Any) -> int:
    """Bytes of a tensor; 0 for an omitted value and for what has no flat size (sequences, strings)."""
    if value is None or not value.is_tensor() or value.data_type() == "tensor(string)":
        return 0
    return int(value.tensor_size_in_bytes())
