"""What runs a model, as one value that never changes, and the handle by which its callers reach the one in force.

Whoever calls a model (a session, a server, a batcher) holds a `RunnerHandle` and takes its runner once per run. Whoever
finds a better plan makes a `Runner` of it and swaps: runs in flight end on the runner that they took, later ones take
the new one. Nothing waits for that, and no run counts itself: a run holds its runner as any Python object is held, and
with the last of them its sessions, arenas and weights go.
"""

from __future__ import annotations

import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax._record import dataclass
from parallax.backends.ort import both
from parallax.engine._observers import EventStream
from parallax.errors import ConfigError, PlanError

if TYPE_CHECKING:
    from parallax.admission import Reservation, SessionMemory
    from parallax.memory import MemoryRequirement
    from parallax.schedule import Plan

T = TypeVar("T")


class Estimator(Protocol):
    """Tells what runs of a plan hold; the planner makes them."""

    @property
    def open_inputs(self) -> Sequence[str]:
        """Inputs on whose shapes a requirement depends."""
        ...

    def requirement(self, shapes: Mapping[str, Sequence[int]]) -> MemoryRequirement:
        """Return what a run holds whose inputs have these shapes."""
        ...


Require = Callable[[Mapping[str, Sequence[int]]], "MemoryRequirement"]
"""Says what a run holds whose inputs have these shapes, by name."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class Runner(ABC):
    """A model made ready to run by one plan. It never changes: another plan is another runner. Thread-safe.

    Outputs and errors are those of ``onnxruntime.InferenceSession``.
    """

    is_split: ClassVar[bool]
    """Whether the engine runs the plan's segments, and not ONNX Runtime the whole model."""

    plan: Plan
    input_names: tuple[str, ...]
    """Of the model's inputs that must be fed, in their order."""
    output_names: Sequence[str]
    """Of the model's outputs, in their order."""
    events: EventStream
    """What those who observe its runs are attached to."""
    estimator: Estimator | None = None
    """Tells what runs hold, where that was asked for; None: it is not known."""

    @abstractmethod
    def run(
        self, output_names: Any, input_feed: Any, run_options: Any = None, memory: SessionMemory | None = None
    ) -> Any:
        """Compute outputs, once.

        Args:
            output_names: which, in which order; None or empty means all.
            input_feed: input name -> array, nested list or OrtValue.
            run_options: ``onnxruntime.RunOptions`` or None.
            memory: admits the run within its budget; None admits it at once.

        Returns: one array for each, as ONNX Runtime makes them.

        Raises: as ``InferenceSession.run``.
        """

    @abstractmethod
    def run_values(
        self,
        output_names: Any,
        input_feed: Mapping[str, Any],
        run_options: Any = None,
        memory: SessionMemory | None = None,
    ) -> Any:
        """Compute outputs like `run`, with ``onnxruntime.OrtValue`` on both sides and no copies."""

    @abstractmethod
    def check_complete(self, input_feed: Mapping[str, Any]) -> None:
        """Raises: ValueError (and for a split model InputError) if a required input is missing."""

    def requirement(self, shapes: Mapping[str, Sequence[int]]) -> MemoryRequirement:
        """Return what a run holds whose inputs have these shapes; for sessions with a budget."""
        if self.estimator is not None:
            return self.estimator.requirement(shapes)
        from parallax.memory import MemoryRequirement

        return MemoryRequirement.UNKNOWN

    @property
    @abstractmethod
    def sessions(self) -> list[Any]:
        """The C sessions that it calls, one per segment."""

    def trim(self) -> int:
        """Give back what it keeps for its next run; returns bytes of arenas. Runs in flight keep what they use."""
        from parallax.backends.ort import shrink_arena

        for session in self.sessions:
            shrink_arena(session)
        return 0

    @property
    def is_direct(self) -> bool:
        """Whether it calls one C session, with nothing around that."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WholeRunner(Runner):
    """Has ONNX Runtime run the whole model, in one session."""

    is_split: ClassVar[bool] = False

    stock: Any
    """The session, of the class `parallax.backends.ort.StockSession`."""
    direct: Any = None
    """The C session's ``run``, where nothing is needed of what the class does around that; else None."""
    required: frozenset[str] | None = None
    """Names that must be fed, where a feed may hold others: initializers that may be overridden. None: it may not."""

    def run(
        self, output_names: Any, input_feed: Any, run_options: Any = None, memory: SessionMemory | None = None
    ) -> Any:
        direct = self.direct
        # The runtime checks names, but not that inputs which no operator reads are there: where no others may be fed, a
        # count tells.
        if (
            direct is None
            or len(input_feed) < len(self.input_names)
            or (self.required is not None and not self.required <= input_feed.keys())
        ):
            return self._run_stock(self.stock.run, output_names, input_feed, run_options, memory)
        names = output_names or self.output_names
        try:
            if memory is None and not self.events.attached:
                return direct(names, input_feed, run_options)
            return self._run_stock(direct, names, input_feed, run_options, memory)
        except C.InvalidArgument:
            # The class looks for what is missing before the runtime looks at what is there.
            self.check_complete(input_feed)
            raise

    def run_values(
        self,
        output_names: Any,
        input_feed: Mapping[str, Any],
        run_options: Any = None,
        memory: SessionMemory | None = None,
    ) -> Any:
        return self._run_stock(self.stock.run_with_ort_values, output_names, input_feed, run_options, memory)

    def run_async(
        self, output_names: Any, input_feed: Mapping[str, Any], callback: Any, user_data: Any, run_options: Any
    ) -> None:
        """Return at once, and have a thread of the runtime compute outputs, as ``InferenceSession.run_async``."""
        if max(segment.width for segment in self.plan.segments) == 1 < self.plan.cores:
            # By a plan for one of several cores the runtime's session has no thread to do it.
            self.check_complete(input_feed)
            from parallax.engine._background import run_in_background

            call = partial(WholeRunner.run, self, output_names, input_feed, run_options)
            run_in_background(call, callback, user_data)
            return
        run_async = self.stock.run_async
        if self.events.attached:
            from parallax.engine._whole_run import observed_in_background

            run_async = observed_in_background(run_async, self.events, self.plan, output_names or self.output_names)
        run_async(output_names, input_feed, callback, user_data, run_options)

    def _run_stock(
        self, call: Any, output_names: Any, input_feed: Any, run_options: Any, memory: SessionMemory | None
    ) -> Any:
        return run_whole(
            partial(call, output_names, input_feed, run_options),
            memory,
            self.events,
            self.plan,
            feeds=input_feed,
            outputs=output_names or self.output_names,
            run_options=run_options,
            require=self.requirement,
        )

    def check_complete(self, input_feed: Mapping[str, Any]) -> None:
        self.stock._validate_input(list(input_feed.keys()))

    @property
    def sessions(self) -> list[Any]:
        return [self.stock._sess]

    @property
    def is_direct(self) -> bool:
        return self.direct is not None


def run_whole(
    call: Callable[[], T],
    memory: SessionMemory | None,
    events: EventStream,
    plan: Plan,
    *,
    feeds: Mapping[str, Any],
    outputs: Sequence[str],
    run_options: Any,
    require: Require | None,
) -> T:
    """Return ``call()``, which runs the whole model in this thread: once ``memory`` admits it, and told to observers.

    Args:
        plan: of the session.
        feeds: arrays and tensors; {} where it is not known what is fed.
        outputs: names of what ``call`` returns, if it returns outputs.
        require: None where the shapes of what is fed do not tell what memory the run needs.

    Raises: as ``SessionMemory.run``, and what ``call`` raises.
    """
    asked_ns = time.perf_counter_ns()
    with _admitted(memory, feeds, run_options, require):
        if not events.attached:
            return call()
        from parallax.engine._run_events import begin_whole_run
        from parallax.engine._whole_run import as_whole, named_outputs

        waited_ns = 0 if memory is None else time.perf_counter_ns() - asked_ns
        observed = begin_whole_run(events, as_whole(plan), waited_ns=waited_ns)
        try:
            made = call()
        except BaseException as error:
            observed.fail(error)
            raise
        observed.end(tuple(feeds.items()), named_outputs(outputs, made))
        return made


def _admitted(
    memory: SessionMemory | None, feeds: Mapping[str, Any], run_options: Any, require: Require | None
) -> contextlib.AbstractContextManager[Reservation | None]:
    """Around one run of a whole model; waits until the budget allows it. ``memory``: None admits it at once."""
    if memory is None:
        return contextlib.nullcontext()
    from parallax.admission import shapes_of

    shapes = {} if require is None else shapes_of(feeds)
    requirement = None if require is None or memory.controller is None else require(shapes)
    return memory.run(shapes, requirement, run_options)


class RunnerHandle:
    """Holds the runner in force. Thread-safe.

    A run takes ``current`` once and keeps to it until it ends.

    Args:
        events: stream of those who are told of swaps.
        runner: the first; None where nothing is open yet.

    Attributes:
        current: the runner that runs take which begin now; None while nothing is open.
    """

    __slots__ = ("__weakref__", "_events", "_lock", "current")

    def __init__(self, events: EventStream, runner: Runner | None = None) -> None:
        self.current = runner
        self._events = events
        self._lock = threading.Lock()

    def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> Any:
        """Compute outputs on the runner in force; see `Runner.run`. Raises: ConfigError if there is none."""
        runner = self.current
        if runner is None:
            raise nothing_open()
        return runner.run(output_names, input_feed, run_options)

    def put(self, runner: Runner | None) -> None:
        """Put in force what was opened, or nothing: of any model, and without a word to observers."""
        with self._lock:
            self.current = runner

    def swap(self, runner: Runner, *, reason: str = "") -> Runner:
        """Put another runner of the same model in force, for all runs that begin from now on.

        Runs in flight end on the one before. That is freed when the last of them has ended and nobody else holds it.

        Args:
            reason: why, in words, for observers.

        Returns: the one before. Whoever keeps it keeps its memory.

        Raises:
            PlanError: its inputs or outputs are not those of the one before; then nothing is changed.
            ConfigError: there is none before.
        """
        before = self._swap(runner, reason, None)
        if before is None:
            raise nothing_open()
        return before

    def swap_if(self, before: Runner, runner: Runner, *, reason: str = "") -> bool:
        """Do as `swap` does if ``before`` is in force at that moment; returns whether it was.

        Raises: PlanError: as `swap`.
        """
        return self._swap(runner, reason, before) is not None

    def _swap(self, runner: Runner, reason: str, expected: Runner | None) -> Runner | None:
        """The one before; None where there is none, or another than is expected, and nothing was changed."""
        with self._lock:
            before = self.current
            if before is None or (expected is not None and before is not expected):
                return None
            if (before.input_names, *before.output_names) != (runner.input_names, *runner.output_names):
                raise PlanError(
                    f"a runner with the inputs {list(runner.input_names)} and the outputs {list(runner.output_names)} "
                    f"cannot take the place of one with {list(before.input_names)} and {list(before.output_names)}",
                    fix="swap in a runner that was made of the same model",
                )
            # Numbered before any run of the new plan is, and with the lock held, so that events come in the order of
            # swaps; told without.
            sequence = self._events.reserve(1) if self._events.attached else None
            time_ns = time.perf_counter_ns()
            self.current = runner
        if sequence is not None:
            from parallax.engine._run_events import tell_swapped

            tell_swapped(self._events, runner.plan, before.plan, reason, sequence=sequence, time_ns=time_ns)
        return before

    def renew(self) -> None:
        """Make the lock anew, in a forked child: a thread of the parent may have held it."""
        self._lock = threading.Lock()


def nothing_open() -> Exception:
    """Return the error of a run while no model is open: also of the class that ONNX Runtime's session raises then."""
    return both(ConfigError, AttributeError)(
        "no model is open: opening one failed, or is under way", fix="open it again (set_providers), or a new session"
    )
