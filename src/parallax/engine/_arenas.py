"""Real arenas: reserved memory, laid out for a shape signature, with the segments' calls bound to it.

A run borrows a *context* and gives it back; runs at the same time never share one. A context holds one reservation
and, for the signatures it met last, a *layout*: for each segment that writes into the arena, an ``IOBinding`` of the
runtime's whose outputs (and inputs that lie in the arena) were bound once, so that a run binds no more than what
comes from outside. A segment that writes nothing into the arena needs no binding.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax._record import dataclass
from parallax.backends.ort import CPU_DEVICE, shrink_shared_allocator
from parallax.engine._boundary import BoundaryPlan, BoundaryPlanner, Signature
from parallax.engine._pages import PrivatePages
from parallax.errors import PlanError
from parallax.machine import trim_heap

logger = logging.getLogger(__name__)

LAYOUTS: Final = 16
"""Signatures that one context keeps bindings for, at most."""
BINDINGS: Final = 1024
"""Bindings that one context keeps, unless that were fewer than `LEAST_LAYOUTS`. Each takes some two KiB, which adds up
to more than the arena where segments are many; one is made again in some 20 us."""
LEAST_LAYOUTS: Final = 4
SHRINK_RUNS: Final = 64
"""A reservation of which that many runs in a row needed less than half is given up for a smaller one."""
IDLE_SECONDS: Final = 30.0
"""A context that no run needed for so long goes when another run ends: it served a burst."""

# What a binding holds between runs in place of a caller's tensor.
_NOTHING: Final = C.OrtValue.ortvalue_from_numpy(np.zeros(0, np.float32), CPU_DEVICE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaUsage:
    """What one executor's arenas take, in bytes."""

    planned_bytes: int
    """Arenas of the plans in use, one per context."""
    reserved_bytes: int
    """Address space held."""
    touched_bytes: int
    """Of it written to so far, which is what takes memory; an upper bound."""
    contexts: int
    """Runs that could go on at once without another arena."""


def sum_usage(usages: Sequence[ArenaUsage]) -> ArenaUsage:
    """What several executors' arenas take together."""
    return ArenaUsage(
        planned_bytes=sum(usage.planned_bytes for usage in usages),
        reserved_bytes=sum(usage.reserved_bytes for usage in usages),
        touched_bytes=sum(usage.touched_bytes for usage in usages),
        contexts=sum(usage.contexts for usage in usages),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentIO:
    """How values go through one segment. A *slot* is a value's index in a run's table."""

    session: Any
    inputs: tuple[tuple[str, int], ...]
    """(name, slot)."""
    outputs: tuple[tuple[str, int], ...]
    names: list[str]
    """Of the outputs; a list, as the runtime wants it."""


@dataclass(slots=True, kw_only=True)
class BoundCall:
    """One segment's call within a layout."""

    binding: Any = None
    """None: called with values by name, and the runtime allocates all outputs."""
    is_skipped: bool = False
    """Its outputs lie where its inputs do: nothing to call."""
    call: Any = None
    rebound: tuple[tuple[str, int], ...] = ()
    """Inputs from outside the arena, bound for the call and released after it."""
    arena_inputs: frozenset[int] = frozenset()
    fetched: tuple[tuple[int, str, int], ...] = ()
    """(position among the outputs, name, slot) of outputs outside the arena."""
    placed: tuple[tuple[int, int, int], ...] = ()
    """(position, slot, address) of outputs in the arena."""
    outside: tuple[int, ...] = ()
    """Slots of outputs outside the arena."""
    watched: tuple[tuple[str, int], ...] = ()
    """(name, slot) of outputs whose shapes are to be learnt."""
    dropped: tuple[int, ...] = ()
    """Slots it reads that hold values outside the arena, to be let go when their last reader is done."""


class Layout:
    """What a run needs to know where values live: one step per segment, and the table of values to start with."""

    __slots__ = ("arena", "is_proven", "plan", "steps", "values")

    def __init__(
        self, segment_io: Sequence[SegmentIO], slots: int, plan: BoundaryPlan | None, arena: PrivatePages | None
    ):
        self.plan = plan
        self.arena = arena
        self.is_proven = plan is None or arena is None or not plan.places
        """Whether a run has shown that outputs lie where they were bound."""
        self.values: list[Any] = [None] * slots
        self.steps: list[BoundCall] = []
        for index, segment in enumerate(segment_io):
            self.steps.append(self._bind(segment, plan is not None and index in plan.skipped))

    def _bind(self, segment: SegmentIO, is_skipped: bool) -> BoundCall:
        plan, arena, values = self.plan, self.arena, self.values
        outside = tuple([entry for entry in segment.inputs if values[entry[1]] is None])
        dropped = tuple([slot for _, slot in outside])
        watched = () if plan is None else tuple([entry for entry in segment.outputs if entry[0] in plan.watched])
        if plan is None or arena is None or not any(name in plan.places for name, _ in segment.outputs):
            outputs = tuple([slot for _, slot in segment.outputs])
            return BoundCall(outside=outputs, watched=watched, dropped=dropped)
        binding = C.SessionIOBinding(segment.session)
        for name, slot in segment.inputs:
            if values[slot] is not None:
                binding.bind_ortvalue_input(name, values[slot])
        fetched = []
        placed = []
        for position, (name, slot) in enumerate(segment.outputs):
            place = plan.places.get(name)
            if place is None:
                binding.bind_output(name, CPU_DEVICE)
                fetched.append((position, name, slot))
            else:
                address = arena.address + place.offset
                binding.bind_output(name, CPU_DEVICE, place.element_type, place.shape, address)
                placed.append((position, slot, address))
        views = binding.get_outputs()
        for position, slot, _ in placed:
            values[slot] = views[position]
        return BoundCall(
            binding=binding,
            is_skipped=is_skipped,
            call=segment.session.run_with_iobinding,
            rebound=outside,
            arena_inputs=frozenset([slot for _, slot in segment.inputs if values[slot] is not None]),
            fetched=tuple(fetched),
            placed=tuple(placed),
            outside=tuple([slot for _, _, slot in fetched]),
            watched=watched,
            dropped=dropped,
        )

    def proves(self, step: BoundCall, values: Sequence[Any], *, is_bound: bool = True) -> bool:
        """Whether outputs lie where they belong: placed ones in their places, the others outside the arena.

        The runtime decides that when it compiles a segment, so one run of a layout shows it for all.
        """
        arena = self.arena
        if arena is None:
            return True
        if is_bound:
            results = step.binding.get_outputs()
            for position, _, address in step.placed:
                result = results[position]
                if result.data_ptr() != address and result.tensor_size_in_bytes():  # an empty one has no address
                    return False
        return not any(values[slot].is_tensor() and values[slot].data_ptr() in arena for slot in step.outside)


def run_bound(step: BoundCall, values: list[Any], options: Any) -> None:
    """Call a segment through its binding; outputs outside the arena are put into ``values``.

    Raises: what the runtime raises, as a RuntimeError; values are then as before.
    """
    binding = step.binding
    rebound = step.rebound
    for name, slot in rebound:
        value = values[slot]
        if value is not None:  # an input that was omitted is omitted from the binding too
            binding.bind_ortvalue_input(name, value)
    try:
        step.call(binding, options)
        if step.fetched:
            results = binding.get_outputs()
            for position, _, slot in step.fetched:
                values[slot] = results[position]
    finally:
        for name, slot in rebound:
            if values[slot] is not None:
                binding.bind_ortvalue_input(name, _NOTHING)
        for _, name, _ in step.fetched:
            # Or the next call would write into this one's result.
            binding.bind_output(name, CPU_DEVICE)


class Context:
    """An arena that one run at a time uses, and its layouts."""

    __slots__ = ("_high_bytes", "_layouts", "_needed_bytes", "_runs", "arena", "idle_since", "planned_bytes")

    def __init__(self) -> None:
        self.arena: PrivatePages | None = None
        self.planned_bytes = 0
        self.idle_since = 0.0
        self._layouts: OrderedDict[Signature, Layout] = OrderedDict()
        self._high_bytes = 0  # of the reservation, written to by any run
        self._needed_bytes = 0  # by any of the last runs
        self._runs = 0

    @property
    def reserved_bytes(self) -> int:
        arena = self.arena  # another thread may be replacing it
        return 0 if arena is None else arena.nbytes

    @property
    def touched_bytes(self) -> int:
        return self._high_bytes

    def knows(self, signature: Signature) -> bool:
        return signature in self._layouts

    def layout(
        self, signature: Signature, planner: BoundaryPlanner, segment_io: Sequence[SegmentIO], slots: int
    ) -> Layout:
        """The layout for a signature, made if need be, with the arena grown or shrunk to fit."""
        found = self._layouts.get(signature)
        if found is not None and found.plan is not None and not found.plan.stale:
            self._layouts.move_to_end(signature)
            plan = found.plan
        else:
            found = None
            plan = planner.plan(signature)
        needed = plan.arena_bytes
        self._needed_bytes = max(self._needed_bytes, needed)
        self._runs += 1
        if self._runs >= SHRINK_RUNS:
            if 2 * self._needed_bytes < self.reserved_bytes:
                self.clear()
                found = None
            self._runs = self._needed_bytes = 0
        if plan.places and needed > self.reserved_bytes:
            self.clear()  # first, so that the two are never held at once
            self.arena = PrivatePages(needed)
            # What moves into the arena (its size was learnt, or nothing so large was run) was the allocator's before,
            # which would keep the room for it, and the C library in its turn.
            shrink_shared_allocator()
            trim_heap()
        if found is None:
            arena = self.arena if plan.places else None
            found = self._layouts[signature] = Layout(segment_io, slots, plan, arena)
            self._layouts.move_to_end(signature)
            if len(self._layouts) > _kept_layouts(len(segment_io)):
                self._layouts.popitem(last=False)
        self.planned_bytes = needed
        self._high_bytes = max(self._high_bytes, needed)
        return found

    def clear(self) -> None:
        """Give the memory back. Only while no run uses it."""
        self._layouts.clear()
        self.arena = None
        self._high_bytes = self.planned_bytes = 0


def _kept_layouts(segments: int) -> int:
    return max(LEAST_LAYOUTS, min(LAYOUTS, BINDINGS // max(1, segments)))


class ArenaPool:
    """The contexts of one executor. Thread-safe.

    Args:
        planner: plans per signature.
        segment_io: of the segments, in the plan's order.
        slots: length of a run's table of values.
    """

    def __init__(self, planner: BoundaryPlanner, segment_io: Sequence[SegmentIO], slots: int) -> None:
        self.planner = planner
        self._segment_io = tuple(segment_io)
        self._slots = slots
        self._lock = threading.Lock()
        self._idle: list[Context] = []  # (lock) by when they became idle
        self._contexts: set[Context] = set()  # (lock)

    def take(self, feeds: Mapping[str, Any]) -> tuple[Context, Layout] | None:
        """A context for one run and its layout for these feeds; None where there can be no arena.

        Give it back with `give_back`, or with `discard` if the run did not end well.
        """
        signature = self.planner.signature(feeds)
        with self._lock:
            context = None
            for position in range(len(self._idle) - 1, -1, -1):
                if self._idle[position].knows(signature):
                    context = self._idle.pop(position)
                    break
            if context is None and self._idle:
                context = self._idle.pop()
            if context is None:
                context = Context()
                self._contexts.add(context)
        try:
            return context, context.layout(signature, self.planner, self._segment_io, self._slots)
        except (PlanError, OSError, OverflowError, MemoryError, ValueError) as error:
            self.discard(context)
            logger.warning("a run goes on without a planned arena: %s", error)
            return None
        except BaseException:
            self.discard(context)
            raise

    def give_back(self, context: Context) -> None:
        """Return a context whose run is over."""
        now = time.monotonic()
        with self._lock:
            context.idle_since = now
            self._idle.append(context)
            if now - self._idle[0].idle_since > IDLE_SECONDS:
                self._contexts.discard(self._idle.pop(0))

    def discard(self, context: Context) -> None:
        """Never use a context again; its memory goes when the last that still works on it ends."""
        with self._lock:
            self._contexts.discard(context)

    def trim(self) -> int:
        """Give the memory of idle contexts back to the system. Returns: bytes that had been written to."""
        with self._lock:
            idle, self._idle = self._idle, []
            self._contexts.difference_update(idle)
        return sum(context.touched_bytes for context in idle)

    def usage(self) -> ArenaUsage:
        """A snapshot."""
        with self._lock:
            contexts = tuple(self._contexts)
        return ArenaUsage(
            planned_bytes=sum(context.planned_bytes for context in contexts),
            reserved_bytes=sum(context.reserved_bytes for context in contexts),
            touched_bytes=sum(context.touched_bytes for context in contexts),
            contexts=len(contexts),
        )
