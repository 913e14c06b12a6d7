"""The executor: drives the dispatcher with real lanes and a real clock.

One ``Executor`` holds a plan's compiled segments and serves any number of concurrent runs. Each run
has its own dispatcher, table of values and arena; the thread that calls ``run`` is the run's lane 0, the
others are leased from the process's pool. A lane that finishes a segment asks the dispatcher what may
start now and takes the next one itself, so a chain of segments on one lane needs no hand-over.

Boundary tensors lie in the run's arena where their sizes are known beforehand. A segment whose outputs turn out
to have other sizes is run again with outputs that the runtime allocates: planned sizes can cost time, never an answer.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.engine._advice import WeightAdvisor
from parallax.engine._arenas import ArenaPool, ArenaUsage, Context, Layout, Step, Wiring, run_bound
from parallax.engine._boundary import BoundaryPlanner, Shape
from parallax.engine._failures import is_termination, segment_failure
from parallax.engine._lanes import Lane, LanePool, Lease
from parallax.engine._mailbox import Mailbox
from parallax.engine._shared_allocator import shrink_shared_allocator
from parallax.engine._sketch import sketch_outline, stated_type
from parallax.engine._trace import SegmentSpan, TraceSink
from parallax.errors import ConfigError, InternalError, ParallaxError
from parallax.memory import MemoryOutline
from parallax.schedule import Dispatcher, DispatchTable, Plan, Start

logger = logging.getLogger(__name__)

# How long the calling thread spins for the end of its run before it parks.
CALLER_SPIN_NS = 100_000

_run_numbers = itertools.count(1)
_FINISHED = Start(segment=-1, lane=0, width=0)
_NO_LANE = -1


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


class RunBudget:
    """What segments of one run that run at the same time may need together, changed from outside while it runs.

    Args:
        limit_bytes: for the sum of their ``Segment.peak_bytes``; None: no limit.
    """

    __slots__ = ("_run", "limit_bytes")

    def __init__(self, limit_bytes: int | None) -> None:
        self.limit_bytes = limit_bytes
        self._run: _Run | None = None

    def change(self, limit_bytes: int | None) -> None:
        """From now on; what runs is not stopped. From any thread."""
        self.limit_bytes = limit_bytes
        run = self._run
        if run is not None:
            run.change_budget(limit_bytes)

    def _bind(self, run: _Run) -> None:
        self._run = run
        run.change_budget(self.limit_bytes)


class Executor:
    """Runs a plan. Thread-safe: every run has its own state.

    Args:
        plan: decides order, lanes and widths.
        segments: compiled, in the plan's order.
        inputs: names of the model's inputs (overridable initializers after them), in feed order.
        outputs: names of the model's outputs.
        pool: the lanes to lease from.
        outline: what the plan fixes of its memory, made with ``place_outputs=False``; None: what the compiled
            segments tell of their types has to do.
        advisor: is told around each segment, outside any lock. One that fails is detached and the error logged.
    """

    def __init__(
        self,
        plan: Plan,
        segments: Sequence[CompiledSegment],
        *,
        inputs: Sequence[str],
        outputs: Sequence[str],
        pool: LanePool,
        outline: MemoryOutline | None = None,
        advisor: WeightAdvisor | None = None,
    ) -> None:
        self.plan = plan
        self.segments = tuple(segments)
        self.pool = pool
        self.trace_sink: TraceSink | None = None
        self.advisor = advisor
        self.table = DispatchTable.from_plan(plan)
        slots: dict[str, int] = {}
        for name in inputs:
            slots.setdefault(name, len(slots))
        input_count = len(slots)
        for segment in self.segments:
            for name in segment.outputs:
                slots.setdefault(name, len(slots))
        self._slots = slots
        self._readers = [0] * len(slots)
        self._wiring: list[Wiring] = []
        for segment in self.segments:
            missing = [name for name in segment.inputs if name not in slots]
            if missing:
                raise InternalError(f"segment {segment.name!r} reads {missing}, which nothing produces")
            self._wiring.append(
                Wiring(
                    session=segment.session,
                    inputs=tuple((name, slots[name]) for name in segment.inputs),
                    outputs=tuple((name, slots[name]) for name in segment.outputs),
                    names=list(segment.outputs),
                )
            )
            for name in segment.inputs:
                self._readers[slots[name]] += 1
        for name in outputs:
            # Outputs are read once more at the end, by the caller.
            self._readers[slots[name]] += 1
        self._plain = Layout(self._wiring, len(slots), None, None)
        self._arenas = self._make_arenas(outline, list(slots)[:input_count], outputs)
        self._budget_bytes: int | None = None
        self._runs: set[_Run] = set()
        self._has_warned = False

    def _make_arenas(
        self, outline: MemoryOutline | None, inputs: Sequence[str], outputs: Sequence[str]
    ) -> ArenaPool | None:
        if len(self.segments) < 2:
            return None
        fed = frozenset(inputs)
        stated = {}
        types: dict[str, str] = {}
        produced = {}
        for segment in self.segments:
            session = segment.session
            for argument in (*session.inputs_meta, *session.overridable_initializers):
                if argument.name in fed:
                    stated[argument.name] = stated_type(argument)
            for argument in session.outputs_meta:
                types[argument.name] = argument.type
                produced[argument.name] = stated_type(argument)
        if outline is None:
            outline = sketch_outline(self.plan, stated, produced, outputs)
        planner = BoundaryPlanner(
            self.plan, outline, inputs=stated, input_count=len(fed), element_types=types, outputs=outputs
        )
        return ArenaPool(planner, self._wiring, len(self._slots)) if planner.is_useful else None

    def run(
        self,
        feeds: Mapping[str, Any],
        outputs: Sequence[str],
        run_options: Any = None,
        *,
        budget: RunBudget | None = None,
    ) -> list[Any]:
        """Run once.

        Args:
            feeds: model input name -> C OrtValue; absent means omitted.
            outputs: names to return, in order; they may repeat.
            run_options: the caller's RunOptions, seen by every segment, or None.
            budget: of this run, in place of that of `set_budget`.

        Returns: C OrtValues, owned by the caller: no later run writes to them.

        Raises:
            SegmentError: a segment failed; the first failure, after everything in flight ended.
            RunCancelled: ``run_options.terminate`` was set.
            KeyboardInterrupt: after everything in flight was told to stop and has ended.
        """
        arenas = self._arenas
        if arenas is not None:
            taken = arenas.take(feeds)
            if taken is not None:
                context, layout = taken
                try:
                    run = self._run(layout, feeds, run_options, budget)
                except BaseException:
                    arenas.discard(context)
                    raise
                if run.is_out_of_place:
                    arenas.discard(context)
                    self._arenas = None
                    logger.error("the runtime did not write where it was told to: no arenas for %r", self.plan.policy)
                else:
                    self._conclude(arenas, context, layout, run)
                    return self._results(run, outputs)
        return self._results(self._run(self._plain, feeds, run_options, budget), outputs)

    def memory(self) -> ArenaUsage:
        """What the arenas of this executor's runs take; all 0 for a plan without any."""
        arenas = self._arenas
        if arenas is None:
            return ArenaUsage(planned_bytes=0, reserved_bytes=0, touched_bytes=0, contexts=0)
        return arenas.usage()

    def trim(self) -> int:
        """Give the arenas of idle contexts back to the system, and what the shared allocator holds for later.

        The next run makes its arena anew.

        Returns: bytes of arenas that went back. What the allocator gave back is not known to it.
        """
        arenas = self._arenas
        returned = 0 if arenas is None else arenas.trim()
        shrink_shared_allocator()
        return returned

    def set_budget(self, budget_bytes: int | None) -> None:
        """Limit what the segments of a run that run at the same time may need together (``Segment.peak_bytes``).

        From now on, and for runs in flight, where what runs is not stopped. None: no limit. See
        `parallax.memory.admission_budget` for what a budget of a process leaves for this.

        Raises: ConfigError for a negative budget.
        """
        if budget_bytes is not None and budget_bytes < 0:
            raise ConfigError(f"a budget of {budget_bytes} bytes", fix="give 0 or more bytes, or None")
        self._budget_bytes = budget_bytes
        for run in tuple(self._runs):
            run.change_budget(budget_bytes)

    def _run(self, layout: Layout, feeds: Mapping[str, Any], run_options: Any, budget: RunBudget | None) -> _Run:
        """Run to the end, well or not: then ``failure`` says so."""
        values = layout.values.copy()
        slots = self._slots
        for name, value in feeds.items():
            values[slots[name]] = value
        lease = self.pool.lease(self.plan.cores)
        budget_bytes = self._budget_bytes if budget is None else budget.limit_bytes
        run = _Run(self, layout, values, run_options, lease, budget_bytes)
        if budget is None:
            self._runs.add(run)
        try:
            if budget is not None:
                budget._bind(run)
            elif self._budget_bytes != budget_bytes:  # it changed before this run could be told
                run.change_budget(self._budget_bytes)
            run.drive()
        except BaseException:
            run.abort()
            raise
        finally:
            self._runs.discard(run)
            self.pool.give_back(lease)
        return run

    def _results(self, run: _Run, outputs: Sequence[str]) -> list[Any]:
        if run.failure is not None:
            raise run.failure
        values, slots = run.values, self._slots
        return [values[slots[name]] for name in outputs]

    def _advise(self, tell: Callable[[int], None], segment: int) -> None:
        try:
            tell(segment)
        except Exception:
            self.advisor = None
            logger.exception("the advisor failed and is detached; the run goes on")

    def _conclude(self, arenas: ArenaPool, context: Context, layout: Layout, run: _Run) -> None:
        """Learn from a run that ended, and give its context back."""
        plan = layout.plan
        if run.aborted or plan is None:
            arenas.discard(context)
            return
        if run.misplaced:
            if not self._has_warned:
                self._has_warned = True
                logger.warning(
                    "tensors %s have other sizes than planned; their segments were run again, and they are kept "
                    "out of arenas from now on",
                    ", ".join(sorted(run.misplaced)[:8]),
                )
            arenas.planner.misplaced(plan, run.misplaced)
        if run.failure is None:
            layout.is_proven = True
            if run.seen:
                arenas.planner.observe(plan, run.seen)
        arenas.give_back(context)


class _Run:
    """State of one run. Fields marked (lock) are touched only while ``_lock`` is held."""

    __slots__ = (
        "_advisor",
        "_busy",
        "_caller",
        "_dispatcher",
        "_executor",
        "_lanes",
        "_layout",
        "_lock",
        "_loose",
        "_number",
        "_options",
        "_readers",
        "aborted",
        "failure",
        "is_out_of_place",
        "misplaced",
        "seen",
        "values",
    )

    def __init__(
        self,
        executor: Executor,
        layout: Layout,
        values: list[Any],
        run_options: Any,
        lease: Lease,
        budget_bytes: int | None,
    ) -> None:
        self._executor = executor
        self._layout = layout
        self._readers = executor._readers.copy()  # (lock)
        self._options = C.RunOptions() if run_options is None else run_options
        self._lanes: tuple[Lane, ...] = lease.lanes
        self._lock = threading.Lock()
        self._caller: Mailbox[Start] = Mailbox()
        self._busy = 0  # (lock) helper lanes at work on this run
        self._number = next(_run_numbers)
        # Slots of the arena that this run does not use. A segment adds to it before its successors start.
        self._loose: set[int] = set()
        lanes = min(executor.plan.lanes, 1 + len(lease.lanes))
        self._dispatcher = Dispatcher(  # (lock)
            executor.table, cores=lease.cores, lanes=lanes, budget_bytes=budget_bytes
        )
        self.values = values
        self.failure: ParallaxError | None = None
        self.aborted = False
        self.is_out_of_place = False
        """The runtime wrote elsewhere than it was told to; the run ends as failed."""
        self.misplaced: dict[str, Shape] = {}
        """Tensors that did not fit their place -> their shapes."""
        self.seen: dict[str, Shape] = {}
        """Shapes of watched tensors."""

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

    def change_budget(self, budget_bytes: int | None) -> None:
        """Tell the dispatcher, and hand out what may start now. From any thread."""
        with self._lock:
            if not self.aborted and not self._dispatcher.finished:
                self._take_own(self._dispatcher.budget_changed(budget_bytes), _NO_LANE)

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
        steps = self._layout.steps
        values = self.values
        readers = self._readers
        dispatcher = self._dispatcher
        loose = self._loose
        sink = executor.trace_sink
        advisor = executor.advisor
        while start is not None:
            index, lane = start.segment, start.lane
            step = steps[index]
            failure: ParallaxError | None = None
            if advisor is not None:
                executor._advise(advisor.will_start, index)
            begin = time.perf_counter_ns() if sink is not None else 0
            try:
                if step.binding is None or (loose and not loose.isdisjoint(step.arena_inputs)):
                    self._call_by_name(index, step)
                else:
                    self._call_bound(index, step)
            except Exception as error:
                segment = executor.segments[index]
                failure = segment_failure(error, segment=segment.name, nodes=segment.node_names)
                failure.__cause__ = error
            if sink is not None:
                self._record(sink, start, begin)
            if advisor is not None:
                executor._advise(advisor.has_ended, index)
            with self._lock:
                if self.aborted:
                    return False
                if failure is not None:
                    self.failure = self.failure or failure
                    starts = dispatcher.segment_failed(index)
                else:
                    for slot in step.dropped:
                        readers[slot] -= 1
                        if not readers[slot]:
                            values[slot] = None
                    starts = dispatcher.segment_done(index)
                start = self._take_own(starts, lane)
                if start is None and dispatcher.finished:
                    return True
        return False

    def _call_bound(self, index: int, step: Step) -> None:
        """Run a segment whose outputs have places in the arena."""
        try:
            run_bound(step, self.values, self._options)
        except Exception as error:
            if is_termination(error):
                raise C.Fail(str(error)) from error  # as a call by name would
            # If it is not the places' fault, this fails as well, with the error the caller is to see.
            self._call_by_name(index, step)
            return
        if step.watched:
            self._watch(step)
        if not self._layout.is_proven and not self._layout.proves(step, self.values):
            self.is_out_of_place = True
            raise InternalError("outputs do not lie where they were bound")

    def _call_by_name(self, index: int, step: Step) -> None:
        """Run a segment whose outputs the runtime allocates."""
        wiring = self._executor._wiring[index]
        values = self.values
        feeds = {name: values[slot] for name, slot in wiring.inputs if values[slot] is not None}
        fetched = wiring.session.run_with_ort_values(feeds, wiring.names, self._options)
        for position, (_, slot) in enumerate(wiring.outputs):
            values[slot] = fetched[position]
        del fetched
        for position, slot, _ in step.placed:
            self._loose.add(slot)
            name = wiring.names[position]
            shape = tuple(values[slot].shape())
            assert self._layout.plan is not None
            if shape != self._layout.plan.places[name].shape:
                self.misplaced[name] = shape
        if step.watched:
            self._watch(step)
        if not self._layout.is_proven and not self._layout.proves(step, values, is_bound=False):
            self.is_out_of_place = True
            raise InternalError("an output lies in the arena, where it was not bound")

    def _watch(self, step: Step) -> None:
        for name, slot in step.watched:
            self.seen[name] = tuple(self.values[slot].shape())

    def _record(self, sink: TraceSink, start: Start, begin_ns: int) -> None:
        end_ns = time.perf_counter_ns()
        executor = self._executor
        segment = executor.segments[start.segment]
        values = self.values
        wiring = executor._wiring[start.segment]
        span = SegmentSpan(
            run=self._number,
            segment=start.segment,
            name=segment.name,
            lane=start.lane,
            width=start.width,
            start_ns=begin_ns,
            end_ns=end_ns,
            input_bytes=sum(_size_bytes(values[slot]) for _, slot in wiring.inputs),
            output_bytes=sum(_size_bytes(values[slot]) for _, slot in wiring.outputs),
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
