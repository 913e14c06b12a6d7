"""One run of a plan: its dispatcher, its values, and the loop that every lane at work on it is in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.backends.ort import is_termination
from parallax.engine._arenas import BoundCall, Layout, SegmentIO, run_bound
from parallax.engine._delegate import SegmentSession, backend_of, transfers_of
from parallax.engine._failures import segment_failure
from parallax.engine._lanes import Lane, Lease
from parallax.engine._mailbox import Mailbox
from parallax.engine._segment import CompiledSegment
from parallax.engine._view_ops import Shape
from parallax.errors import InternalError, ParallaxError
from parallax.machine import move_to_first_of, unbind
from parallax.schedule import Dispatcher, DispatchTable, Plan, Start

if TYPE_CHECKING:
    from parallax.engine._prefetcher import WeightPrefetcher
    from parallax.engine._run_events import EndedSegment, RunEvents

# How long the calling thread spins for the end of its run before it parks.
CALLER_SPIN_NS = 100_000

_FINISHED = Start(segment=-1, lane=0, width=0)
_NO_LANE = -1

# Severities in ONNX Runtime.
_FATAL = 4
_AS_THE_SESSION = -1


class RunBudget:
    """What segments of one run that run at the same time may need together, changed from outside while it runs.

    Args:
        limit_bytes: for the sum of their ``Segment.peak_bytes``; None: no limit.
        waited_ns: how long the run waited to be admitted, for its observers.
    """

    __slots__ = ("_run", "limit_bytes", "waited_ns")

    def __init__(self, limit_bytes: int | None, *, waited_ns: int = 0) -> None:
        self.limit_bytes = limit_bytes
        self.waited_ns = waited_ns
        self._run: Run | None = None

    def change(self, limit_bytes: int | None) -> None:
        """Change the limit from now on; what runs is not stopped. From any thread."""
        self.limit_bytes = limit_bytes
        run = self._run
        if run is not None:
            run.change_budget(limit_bytes)

    def _bind(self, run: Run) -> None:
        self._run = run
        run.change_budget(self.limit_bytes)


def _assign_lanes(lanes: int, queues: tuple[int, ...], lease: Lease) -> tuple[tuple[Lane | None, ...], tuple[int, ...]]:
    """Which leased thread serves which of a plan's lanes, and which lanes none serves. Lane 0 is the caller's."""
    if not queues:
        granted = min(lanes, 1 + len(lease.lanes))
        return (None, *lease.lanes), tuple(range(granted, lanes))
    assigned: list[Lane | None] = [None] * lanes
    threads, queue_threads = iter(lease.lanes), iter(lease.queues)
    absent = []
    for lane in range(1, lanes):
        assigned[lane] = next(queue_threads if lane in queues else threads, None)
        if assigned[lane] is None:
            absent.append(lane)
    return tuple(assigned), tuple(absent)


def _quiet_options() -> Any:
    """The runtime's log would call it an error that an output does not fit its place."""
    options = C.RunOptions()
    options.log_severity_level = _FATAL
    return options


class Compiled(Protocol):
    """What runs have in common: the part of their `Executor` that they read."""

    prefetcher: WeightPrefetcher | None

    @property
    def plan(self) -> Plan:
        """What is run."""
        ...

    @property
    def table(self) -> DispatchTable:
        """The plan's table for dispatchers."""
        ...

    @property
    def segments(self) -> Sequence[CompiledSegment]:
        """Compiled, in the plan's order."""
        ...

    @property
    def segment_io(self) -> Sequence[SegmentIO]:
        """Per segment: its session, and the slots of its inputs and outputs."""
        ...

    @property
    def readers(self) -> list[int]:
        """Per slot: how often it is read in a run."""
        ...

    @property
    def cores(self) -> frozenset[int]:
        """Those that threads of a run are moved among; empty where they are not moved."""
        ...

    @property
    def on_all_cores(self) -> frozenset[int]:
        """Segments that run on all of them."""
        ...

    def advise(self, tell: Callable[[int], None], segment: int) -> None:
        """Tell the prefetcher; detach it if it fails."""
        ...


class Run:
    """State of one run. Fields marked (lock) are touched only while ``_lock`` is held."""

    __slots__ = (
        "_absent",
        "_budget_bytes",
        "_busy",
        "_caller",
        "_cores",
        "_dispatcher",
        "_events",
        "_executor",
        "_has_started",
        "_is_quiet",
        "_lanes",
        "_layout",
        "_lock",
        "_on_all_cores",
        "_options",
        "_readers",
        "_unplaced",
        "aborted",
        "failure",
        "ignored_binding",
        "misplaced",
        "seen",
        "values",
    )

    def __init__(
        self,
        executor: Compiled,
        layout: Layout,
        values: list[Any],
        run_options: Any,
        lease: Lease,
        budget_bytes: int | None,
        events: RunEvents | None = None,
    ) -> None:
        self._executor = executor
        self._events = events
        self._layout = layout
        self._readers = executor.readers.copy()  # (lock)
        self._options = _quiet_options() if run_options is None else run_options
        table = executor.table
        self._lanes: tuple[Lane | None, ...]  # by lane; None: the caller, or one that this run does not have
        self._lanes, self._absent = _assign_lanes(executor.plan.lanes, table.queues, lease)
        self._cores = lease.cores
        self._lock = threading.Lock()
        self._caller: Mailbox[Start] = Mailbox()
        self._busy = 0  # (lock) helper lanes at work on this run
        self._has_started = False  # (lock)
        self._budget_bytes = budget_bytes  # (lock)
        # Slots of the arena that this run does not use. A segment adds to it before its successors start.
        self._unplaced: set[int] = set()
        self._dispatcher = Dispatcher(  # (lock)
            table, cores=lease.cores, lanes=executor.plan.lanes, absent=self._absent, budget_bytes=budget_bytes
        )
        # Beside other runs, a thread goes where there is room: all callers would share the one core.
        self._on_all_cores = executor.on_all_cores if lease.is_all else frozenset()
        self._is_quiet = run_options is None
        self.values = values
        self.failure: ParallaxError | None = None
        self.aborted = False
        self.ignored_binding = False
        """The runtime wrote elsewhere than it was told to; the run ends as failed."""
        self.misplaced: dict[str, Shape] = {}
        """Tensors that did not fit their place -> their shapes."""
        self.seen: dict[str, Shape] = {}
        """Shapes of watched tensors."""

    @property
    def has_unplaced(self) -> bool:
        """Whether any tensor that has a place in the arena was kept outside."""
        return bool(self._unplaced)

    def drive(self) -> None:
        """Lane 0: run what the dispatcher gives it until the run is over."""
        events = self._events
        with self._lock:
            starts = self._dispatcher.start()
            self._has_started = True
            budget_bytes = self._budget_bytes
            stamp = None if events is None else events.stamp(starts)
        if events is not None and stamp is not None:
            lanes = self._executor.plan.lanes
            events.admit(stamp, starts, cores=self._cores, lanes=lanes, absent=self._absent, budget_bytes=budget_bytes)
        to_notify: Sequence[Mailbox[Any]] | None
        start, to_notify = self._hand_out(starts, 0)
        take = self._caller.take
        work = self._work
        while start is not _FINISHED:
            if start is not None:
                to_notify = work(start, to_notify)
            if to_notify is None or self.aborted:
                break
            start = take(CALLER_SPIN_NS, to_notify)
            to_notify = ()
        if self.aborted:  # a lane hit a bug of ours; the others may still be at work
            self.abort()
        if events is not None:
            self.tell_ended(self.failure)

    def abort(self) -> None:
        """Tell every lane to stop and wait until none works on this run (a Ctrl-C in the caller)."""
        self.aborted = True
        options = self._options
        options.terminate = True
        try:
            for helper in self._lanes:
                if helper is not None:
                    helper.mailbox.wake()  # whoever placed a start there may have been interrupted before it woke it
            while self._busy or not all(helper is None or helper.mailbox.is_empty for helper in self._lanes):
                time.sleep(0.0005)
        finally:
            options.terminate = False  # the options may be the caller's own: leave them usable

    def change_budget(self, budget_bytes: int | None) -> None:
        """Tell the dispatcher, and hand out what may start now. From any thread."""
        with self._lock:
            if self.aborted or self._dispatcher.finished:
                return
            starts = self._dispatcher.budget_changed(budget_bytes)
            self._budget_bytes = budget_bytes
            # Who begins a run is told of the budget that it begins with.
            events = self._events if self._has_started else None
            stamp = None if events is None else events.stamp(starts)
            if events is not None and stamp is not None:
                # Whoever calls this may hold locks, so that a lane tells it, before it runs what this starts.
                events.note_budget(stamp, starts, budget_bytes)
        for other in self._hand_out(starts, _NO_LANE)[1]:
            other.wake()

    def _lane_job(self, start: Start) -> Sequence[Mailbox[Any]]:
        """What a helper lane runs: a chain of segments, then back to its pool. Returns whom to wake after that."""
        with self._lock:
            # Checked and counted in one step: after ``abort`` has seen zero, no lane can begin.
            if self.aborted:
                return ()
            self._busy += 1
        to_notify: Sequence[Mailbox[Any]] | None = None
        try:
            to_notify = self._work(start, ())
        except BaseException as error:  # the lane must survive, and the caller must hear of it
            self.failure = InternalError(
                f"a lane failed outside any segment: {error!r}",
                where=self._executor.segments[start.segment].name,
                fix="please report this with the traceback",
            )
            self.failure.__cause__ = error
            self.aborted = True
        finally:
            with self._lock:
                self._busy -= 1
        if to_notify is None:
            self._caller.place(_FINISHED)
            to_notify = (self._caller,)
        return to_notify

    def _hand_out(self, starts: Sequence[Start], lane: int) -> tuple[Start | None, Sequence[Mailbox[Any]]]:
        """Hand starts to their lanes; return the one for ``lane`` itself, and whom to wake.

        That is put off until the GIL is let go anyhow: who finds it held is parked, which takes longer than all this.
        """
        own = None
        to_notify: Sequence[Mailbox[Any]] = ()
        for start in starts:
            if start.lane == lane:
                own = start
                continue
            if start.lane == 0:
                self._caller.place(start)
                to_notify = (*to_notify, self._caller)
            else:
                helper = self._lanes[start.lane]
                assert helper is not None  # the dispatcher knows which are absent
                helper.mailbox.place((self._lane_job, start))
                to_notify = (*to_notify, helper.mailbox)
        return own, to_notify

    def _work(self, start: Start | None, to_notify: Sequence[Mailbox[Any]]) -> Sequence[Mailbox[Any]] | None:
        """Run ``start`` and whatever the dispatcher gives this lane next.

        Args:
            to_notify: are woken as late as possible.

        Returns: whom to wake after it, or None if the run is over.
        """
        executor = self._executor
        steps = self._layout.steps
        values = self.values
        readers = self._readers
        dispatcher = self._dispatcher
        unplaced = self._unplaced
        on_all_cores = self._on_all_cores
        events = self._events
        prefetcher = executor.prefetcher
        while start is not None:
            index, lane = start.segment, start.lane
            step = steps[index]
            failure: ParallaxError | None = None
            if prefetcher is not None:
                executor.advise(prefetcher.will_start, index)
            begin_ns = 0
            if events is not None:
                events.tell_noted()
                begin_ns = time.perf_counter_ns()
            for other in to_notify:
                other.wake()
            bound = move_to_first_of(executor.cores) if index in on_all_cores else None
            try:
                if step.binding is None or (unplaced and not unplaced.isdisjoint(step.arena_inputs)):
                    self._call_by_name(index, step)
                elif not step.is_skipped:
                    self._call_bound(index, step)
            except Exception as error:
                segment = executor.segments[index]
                failure = segment_failure(error, segment=segment.name, nodes=segment.node_names)
                failure.__cause__ = error
            finally:
                if bound is not None:
                    unbind(bound)
            ended = None if events is None else self._note_end(events, start, begin_ns, failure)
            if prefetcher is not None:
                executor.advise(prefetcher.has_ended, index)
            with self._lock:
                if self.aborted:
                    return ()
                if failure is not None:
                    self.failure = self.failure or failure
                    starts = dispatcher.segment_failed(index)
                else:
                    for slot in step.dropped:
                        readers[slot] -= 1
                        if not readers[slot]:
                            values[slot] = None
                    starts = dispatcher.segment_done(index)
                over = dispatcher.finished
                stamp = None if events is None else events.stamp(starts)
            if events is not None and stamp is not None and ended is not None:
                events.end_segment(stamp, starts, ended)
            start, to_notify = self._hand_out(starts, lane)
            if over:
                return None
        return to_notify

    def _call_bound(self, index: int, step: BoundCall) -> None:
        """Run a segment whose outputs have places in the arena."""
        try:
            run_bound(step, self.values, self._options)
        except Exception as error:
            if is_termination(error):
                raise C.Fail(str(error)) from error  # as a call by name would
            # If it is not the places' fault, this fails as well, with the error the caller is to see.
            if self._is_quiet:
                self._options.log_severity_level = _AS_THE_SESSION
            self._call_by_name(index, step)
            self._note_misplaced(index, step)
            return
        if step.watched:
            self._watch(step)
        if not self._layout.is_proven and not self._layout.proves(step, self.values):
            self.ignored_binding = True
            raise InternalError("outputs do not lie where they were bound")

    def _call_by_name(self, index: int, step: BoundCall) -> None:
        """Run a segment whose outputs the runtime allocates."""
        segment_io = self._executor.segment_io[index]
        values = self.values
        feeds = {name: values[slot] for name, slot in segment_io.inputs if values[slot] is not None}
        session, events = segment_io.session, self._events
        if events is not None and isinstance(session, SegmentSession):
            fetched = session.run_within(events.scope(index), feeds, segment_io.names, self._options)
        else:
            fetched = session.run_with_ort_values(feeds, segment_io.names, self._options)
        for position, (_, slot) in enumerate(segment_io.outputs):
            values[slot] = fetched[position]
        del fetched
        for _, slot, _ in step.placed:
            self._unplaced.add(slot)
        if step.watched:
            self._watch(step)
        if not self._layout.is_proven and not self._layout.proves(step, values, is_bound=False):
            self.ignored_binding = True
            raise InternalError("an output lies in the arena, where it was not bound")

    def _note_misplaced(self, index: int, step: BoundCall) -> None:
        """Why a call with places failed that went well without: outputs of other shapes, or places as such."""
        names = self._executor.segment_io[index].names
        plan = self._layout.plan
        assert plan is not None
        made = {names[position]: tuple(self.values[slot].shape()) for position, slot, _ in step.placed}
        self.misplaced.update({n: shape for n, shape in made.items() if shape != plan.places[n].shape} or made)

    def _watch(self, step: BoundCall) -> None:
        for name, slot in step.watched:
            self.seen[name] = tuple(self.values[slot].shape())

    # -- what observers are told, where there are any ----------------------------------------------------

    def tell_ended(self, failure: BaseException | None) -> None:
        """Tell observers that the run is over, after they were told of all that happened in it."""
        events = self._events
        if events is None:
            return
        while self._busy:  # other lanes are about to have told what they did
            time.sleep(0.00002)
        events.tell_noted()
        events.end(failure, is_interrupted=self.aborted)

    def _note_end(self, events: RunEvents, start: Start, begin_ns: int, failure: ParallaxError | None) -> EndedSegment:
        """What there is to tell of a segment that has just ended in this thread."""
        end_ns = time.perf_counter_ns()
        segment_io, values = self._executor.segment_io[start.segment], self.values
        read = [(name, values[slot]) for name, slot in segment_io.inputs]
        made = [(name, values[slot]) for name, slot in segment_io.outputs]
        return events.note_end(
            start,
            read,
            made,
            begin_ns=begin_ns,
            end_ns=end_ns,
            transfers=transfers_of(segment_io.session, read, made, has_failed=failure is not None),
            backend=backend_of(segment_io.session),
            failure=failure,
        )
