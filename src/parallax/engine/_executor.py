"""The executor: drives the dispatcher with real lanes and a real clock.

One ``Executor`` holds a plan's compiled segments and serves any number of concurrent runs. Each run
has its own dispatcher, table of values and arena; the thread that calls ``run`` is the run's lane 0, the
others are leased from the process's pool. A lane that finishes a segment asks the dispatcher what may
start now and takes the next one itself, so a chain of segments on one lane needs no hand-over.

Boundary tensors lie in the run's arena where their sizes are known beforehand. A segment whose outputs turn out
to have other sizes is run again with outputs that the runtime allocates: planned sizes can cost time, never an answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.backends.ort import AllocatorUser, shrink_shared_allocator
from parallax.engine._arenas import ArenaPool, ArenaUsage, Context, Layout, SegmentIO, sum_usage
from parallax.engine._boundary import BoundaryPlanner
from parallax.engine._delegate import DelegatedSession, SegmentSession, backend_of, transfers_of
from parallax.engine._lanes import Lanes
from parallax.engine._observers import EventStream
from parallax.engine._run import Run, RunBudget
from parallax.engine._segment import CompiledSegment
from parallax.engine._stated_types import memory_model_from_types, proven_type, stated_type
from parallax.engine._view_ops import ViewOp
from parallax.errors import InternalError
from parallax.machine import bind_here, every_core, unbind
from parallax.memory import MemoryModel
from parallax.schedule import CPU_BACKEND, DispatchTable, Plan

if TYPE_CHECKING:
    from parallax.engine._prefetcher import WeightPrefetcher
    from parallax.engine._run_events import Inside, RunEvents

logger = logging.getLogger(__name__)


class FormsBeside(Protocol):
    """What serves shapes of inputs that an executor's segments are not for; `ShapeForms` is one."""

    declared: Any
    """The runtime's session that describes the inputs as the model leaves them open."""

    def runner_for(self, values: Mapping[str, Any], runner: Any, memory: Any) -> Any:
        """Return the runner for a run that is fed this: ``runner``, or another of its class."""
        ...

    def executors(self) -> Sequence[Executor]:
        """Return the other executors."""
        ...


class Executor:
    """Runs a plan. Thread-safe: every run has its own state.

    Args:
        plan: decides order, lanes and widths.
        segments: compiled, in the plan's order.
        inputs: names of the model's inputs (overridable initializers after them), in feed order.
        outputs: names of the model's outputs.
        pool: the lanes to lease from.
        memory_model: what the plan fixes of its memory, made with ``place_outputs=False``; None: what the compiled
            segments tell of their types has to do.
        view_ops: segments that need not run where their tensors lie well in the arena (`find_view_ops`).
        has_arenas: whether boundary tensors may lie in arenas.
        events: what observers are attached to; a stream of its own by default.
        prefetcher: is told around each segment, outside any lock. One that fails is detached and the error logged.

    Attributes:
        forms: what serves shapes of inputs that the segments are not for; None where they are for all.
    """

    def __init__(
        self,
        plan: Plan,
        segments: Sequence[CompiledSegment],
        *,
        inputs: Sequence[str],
        outputs: Sequence[str],
        pool: Lanes,
        memory_model: MemoryModel | None = None,
        prefetcher: WeightPrefetcher | None = None,
        view_ops: Sequence[ViewOp] = (),
        has_arenas: bool = True,
        events: EventStream | None = None,
    ) -> None:
        self.plan = plan
        self.forms: FormsBeside | None = None
        self.segments = tuple(segments)
        self.pool = pool
        self.prefetcher = prefetcher
        self.table = DispatchTable.from_plan(plan)
        self._runs_alone = (
            len(self.segments) == 1
            and plan.lanes == 1
            and prefetcher is None
            and isinstance(self.segments[0].session, DelegatedSession)
        )
        self._has_lanes = plan.lanes - len(self.table.queues) > 1
        slots: dict[str, int] = {}
        for name in inputs:
            slots.setdefault(name, len(slots))
        input_count = len(slots)
        for segment in self.segments:
            for name in segment.outputs:
                slots.setdefault(name, len(slots))
        self._slots = slots
        self.readers = [0] * len(slots)
        self.segment_io: list[SegmentIO] = []
        for segment in self.segments:
            missing = [name for name in segment.inputs if name not in slots]
            if missing:
                raise InternalError(f"segment {segment.name!r} reads {missing}, which nothing produces")
            self.segment_io.append(
                SegmentIO(
                    session=segment.session,
                    inputs=tuple((name, slots[name]) for name in segment.inputs),
                    outputs=tuple((name, slots[name]) for name in segment.outputs),
                    names=list(segment.outputs),
                )
            )
            for name in segment.inputs:
                self.readers[slots[name]] += 1
        for name in outputs:
            # Outputs are read once more at the end, by the caller.
            self.readers[slots[name]] += 1
        self.cores = every_core(plan.cores)
        """Those of the process, if the plan is for all of them and threads can be moved among them."""
        self.on_all_cores = frozenset(
            index
            for index, segment in enumerate(self.segments)
            if segment.width == len(self.cores) > 1 and not isinstance(segment.session, DelegatedSession)
        )
        self._is_mixed = any(segment.backend != CPU_BACKEND or segment.bodies for segment in plan.segments)
        self._outputs = tuple(outputs)
        self.observe(EventStream() if events is None else events)
        self._plain = Layout(self.segment_io, len(slots), None, None)
        self._arenas = (
            self._make_arenas(memory_model, list(slots)[:input_count], outputs, view_ops) if has_arenas else None
        )
        self._has_warned = False
        # Last, so that it goes after what uses the allocator: an object's attributes end in the order they were made.
        self._allocator_user = AllocatorUser()

    def _make_arenas(
        self,
        memory_model: MemoryModel | None,
        inputs: Sequence[str],
        outputs: Sequence[str],
        view_ops: Sequence[ViewOp],
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
        for segment in self.segments:
            if not isinstance(segment.session, C.InferenceSession):
                # Only the runtime's sessions can be bound to places, and another backend may go on reading what it was
                # given after its call was given up.
                for name in (*segment.inputs, *segment.outputs):
                    types.pop(name, None)
        if memory_model is None:
            proven = {name: proven_type(info, stated) for name, info in produced.items()}
            memory_model = memory_model_from_types(self.plan, stated, proven, outputs)
        planner = BoundaryPlanner(
            self.plan,
            memory_model,
            inputs=stated,
            input_count=len(fed),
            element_types=types,
            outputs=outputs,
            view_ops=view_ops,
        )
        return ArenaPool(planner, self.segment_io, len(self._slots)) if planner.is_useful else None

    def run(
        self,
        feeds: Mapping[str, Any],
        outputs: Sequence[str],
        run_options: Any = None,
        *,
        budget: RunBudget | None = None,
        inside: Inside | None = None,
    ) -> list[Any]:
        """Run once.

        Args:
            feeds: model input name -> C OrtValue; absent means omitted.
            outputs: names to return, in order; they may repeat.
            run_options: the caller's RunOptions, seen by every segment, or None.
            budget: what segments that run at the same time may need together (`Segment.peak_bytes`); None: no limit.
            inside: the observed run that this one is part of, and its observers; None: those that are attached here.

        Returns: C OrtValues, owned by the caller: no later run writes to them.

        Raises:
            SegmentError: a segment failed; the first failure, after everything in flight ended.
            RunCancelled: ``run_options.terminate`` was set.
            KeyboardInterrupt: after everything in flight was told to stop and has ended.
        """
        if self._runs_alone:
            return self._run_alone(feeds, outputs, run_options, inside)
        arenas = self._arenas
        if arenas is not None:
            taken = arenas.take(feeds)
            if taken is not None:
                context, layout = taken
                try:
                    run = self._run(layout, feeds, run_options, budget, inside)
                except BaseException:
                    arenas.discard(context)
                    raise
                if run.ignored_binding:
                    arenas.discard(context)
                    self._arenas = None
                    logger.error("the runtime ignored where outputs were bound: no arenas for %r", self.plan.policy)
                else:
                    self._conclude(arenas, context, layout, run)
                    return self._results(run, outputs)
        return self._results(self._run(self._plain, feeds, run_options, budget, inside), outputs)

    def observe(self, events: EventStream) -> None:
        """Tell the observers of this stream what happens in runs that begin from now on."""
        self.events = events
        self.report_to(events)

    def report_to(self, events: EventStream) -> None:
        """Tell this stream what happens beside runs, also in plans inside segments."""
        if self._is_mixed:
            from parallax.engine._transfers import find_transfers

            for segment, transfers in zip(self.segments, find_transfers(self.plan, self._outputs), strict=True):
                if isinstance(segment.session, SegmentSession):
                    segment.session.report_to(events, segment.name, transfers)

    def _observed(self, inside: Inside | None, budget: RunBudget | None = None) -> RunEvents:
        from parallax.engine._run_events import RunEvents

        return RunEvents(self.events, self.plan, inside, waited_ns=0 if budget is None else budget.waited_ns)

    def _run_alone(
        self, feeds: Mapping[str, Any], outputs: Sequence[str], run_options: Any, inside: Inside | None
    ) -> list[Any]:
        """A whole model on another backend: there is nothing to dispatch, and cold code costs more than it looks."""
        (segment,) = self.segments
        inputs = {name: feeds[name] for name in segment.inputs if name in feeds}
        # Backends refuse to run for nothing, though a caller may only want to know that it runs.
        names = [name for name in dict.fromkeys(outputs) if name in segment.outputs] or list(segment.outputs)
        made = self.run_single(inputs, names, run_options, inside)
        values = {**feeds, **dict(zip(names, made, strict=True))}
        return [values[name] for name in outputs]

    def run_single(
        self, feeds: Mapping[str, Any], outputs: Sequence[str], run_options: Any, inside: Inside | None
    ) -> Sequence[Any]:
        """Run a plan of one segment, without a dispatcher.

        Args:
            feeds: of the segment, and no others.
            outputs: of the segment, without repetitions.
            inside: see `run`.

        Raises: SegmentError, RunCancelled as `run`.
        """
        (segment,) = self.segments
        if inside is None and not self.events.attached:
            return segment.run(feeds, outputs, run_options)
        from parallax.engine._run_events import SingleRun

        observed = SingleRun(self._observed(inside))
        try:
            made = segment.run(feeds, outputs, run_options)
        except BaseException as error:
            observed.fail(error)
            raise
        session, read, results = segment.session, tuple(feeds.items()), tuple(zip(outputs, made, strict=False))
        observed.end(read, results, transfers=transfers_of(session, read, results), backend=backend_of(session))
        return made

    def memory(self) -> ArenaUsage:
        """What the arenas of this executor's runs take, its forms' too; all 0 for a plan without any."""
        arenas = self._arenas
        own = (
            ArenaUsage(planned_bytes=0, reserved_bytes=0, touched_bytes=0, contexts=0)
            if arenas is None
            else arenas.usage()
        )
        if self.forms is None:
            return own
        return sum_usage([own, *(executor.memory() for executor in self.forms.executors())])

    def trim(self) -> int:
        """Give the arenas of idle contexts back to the system, and what the shared allocator holds for later.

        The next run makes its arena anew.

        Returns: bytes of arenas that went back. What the allocator gave back is not known to it.
        """
        arenas = self._arenas
        returned = 0 if arenas is None else arenas.trim()
        if self.forms is not None:
            returned += sum(executor.trim() for executor in self.forms.executors())
        shrink_shared_allocator()
        return returned

    def _run(
        self,
        layout: Layout,
        feeds: Mapping[str, Any],
        run_options: Any,
        budget: RunBudget | None,
        inside: Inside | None,
    ) -> Run:
        """Run to the end, well or not: then ``failure`` says so."""
        values = layout.values.copy()
        slots = self._slots
        for name, value in feeds.items():
            values[slots[name]] = value
        # A queue that the caller's own lane would have to serve needs no thread of its own.
        lease = self.pool.lease(self.plan.cores, queues=sum(lane > 0 for lane in self.table.queues))
        run: Run | None = None
        bound = None
        events = self._observed(inside, budget) if self.events.attached or inside is not None else None
        try:
            if lease.is_all and self._has_lanes:
                # Lanes keep off the caller's core, so it must not be put on theirs in the middle of the run.
                bound = bind_here()
            limit_bytes = None if budget is None else budget.limit_bytes
            run = Run(self, layout, values, run_options, lease, limit_bytes, events)
            if budget is not None:
                budget._bind(run)
            run.drive()
        except BaseException as error:
            if run is not None:
                run.abort()
                run.tell_ended(error)
            raise
        finally:
            self.pool.give_back(lease)
            if bound is not None:
                unbind(bound)
        return run

    def _results(self, run: Run, outputs: Sequence[str]) -> list[Any]:
        if run.failure is not None:
            raise run.failure
        values, slots = run.values, self._slots
        return [values[slots[name]] for name in outputs]

    def advise(self, tell: Callable[[int], None], segment: int) -> None:
        """Tell the prefetcher; detach it if it fails."""
        try:
            tell(segment)
        except Exception:
            self.prefetcher = None
            logger.exception("the prefetcher failed and is detached; the run goes on")

    def _conclude(self, arenas: ArenaPool, context: Context, layout: Layout, run: Run) -> None:
        """Learn from a run that ended, and give its context back."""
        plan = layout.plan
        if run.aborted or plan is None:
            arenas.discard(context)
            return
        try:
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
                layout.is_proven = layout.is_proven or not run.has_unplaced
                if run.seen:
                    arenas.planner.observe(plan, run.seen)
        finally:
            arenas.give_back(context)
