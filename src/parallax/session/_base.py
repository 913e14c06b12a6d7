"""What a session has beside its runs: observers, its memory, and the whole model beside segments."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from parallax import _lazy
from parallax.engine import EventStream
from parallax.opening import NOT_OPEN, Opened, OpeningRequest, WholeArguments, is_for_whole, open_beside
from parallax.options import check_observers

if TYPE_CHECKING:
    from parallax.admission import SessionMemory
    from parallax.backends.ort._declared import DeclaredSession as StockSession
    from parallax.engine import Estimator, Observer, Runner, RunnerHandle, SpanObserver, TraceSink
    from parallax.memory import MemoryRequirement
    from parallax.model import Model, ModelSummary
    from parallax.opening import MemoryUsage, SessionSource
    from parallax.options import Options, PlanningOptions
    from parallax.schedule import Plan
else:
    from parallax.backends.ort import StockSession

logger = _lazy.logger(__name__)


class SessionObservers:
    """Those of one session: the observers and the trace sink that were given with it, and who came later.

    Attributes:
        events: the stream that all of them are attached to.
    """

    def __init__(self, options: Options) -> None:
        self.events = EventStream(options.observers)
        self._trace: SpanObserver | None = None
        if options.trace is not None:
            from parallax.engine import SpanObserver

            self._trace = SpanObserver(options.trace)
            self.events.add(self._trace, what=f"trace sink {type(options.trace).__name__}")

    @property
    def trace(self) -> TraceSink | None:
        """The sink, until it fails."""
        trace = self._trace
        return None if trace is None or trace not in self.events else trace.sink


class SessionBase(StockSession):
    """The part of ``InferenceSession`` that neither opens nor runs."""

    _opened: Opened = NOT_OPEN
    _observers: SessionObservers
    _runners: RunnerHandle
    _memory: SessionMemory | None = None
    _estimator: Estimator | None = None
    _source: SessionSource | None = None
    # See `_model`.
    _loaded: Model | None = None
    _look: ModelSummary | None = None
    # Set by the untyped base class; named here for type checkers.
    _sess_options_initial: Any
    _output_names: list[str]
    _parallax_options: PlanningOptions
    _whole_arguments: WholeArguments
    _lazy_lock: Any
    _prepared: weakref.WeakSet[Runner]
    """What it could run at once, beside what it runs; each holds weights of its own."""
    _former: weakref.WeakSet[Any]
    """C sessions of the whole model that it ran before: what is bound to one of them goes on there."""

    @property
    @abstractmethod
    def plan(self) -> Plan:
        """What runs where, and why; one segment means that the model is whole."""

    @property
    def _model(self) -> Model | None:
        """The model, where the session looks into it. One that was opened at sight is read when it is asked for."""
        if self._loaded is None and self._look is not None:
            with self._lazy_lock:
                if self._loaded is None and self._look is not None:
                    self._loaded = self._look.read()
        return self._loaded

    @_model.setter
    def _model(self, model: Model | None) -> None:
        self._loaded, self._look = model, None

    # -- observers --------------------------------------------------------------------------------------

    @property
    def trace(self) -> TraceSink | None:
        """Receives a span per segment and run while set; None once it failed and was detached."""
        return self._observers.trace

    def add_observer(self, observer: Observer) -> None:
        """Have ``observer`` called with every event of the runs that begin from now on; see `parallax.Options`.

        Raises: ConfigError if it cannot be called.
        """
        check_observers([observer])
        self._observers.events.add(observer)

    def remove_observer(self, observer: Observer) -> bool:
        """Detach an observer; returns whether it was attached, which one that failed is not any more."""
        return self._observers.events.remove(observer)

    # -- memory -----------------------------------------------------------------------------------------

    def _watch(self, opened: Opened) -> SessionMemory | None:
        """What admits runs from now on; None where neither a budget nor idle time is to be watched."""
        if not self._parallax_options.is_watched:
            return None
        from parallax.opening import watch_memory

        return watch_memory(opened, self._parallax_options, self._runners, self._give_back)

    def memory(self) -> MemoryUsage:
        """Return what this session holds now, in bytes, and what it plans with. Takes milliseconds.

        A session without a budget infers the sizes of its tensors when this is first called, which takes
        longer.
        """
        from parallax.opening import describe_usage, estimate_opened

        self._check_open()
        opened = self._opened
        with self._lazy_lock:
            if self._estimator is None:
                whole = self.__dict__.get("_sess")
                self._estimator = estimate_opened(opened, self._model, whole, self._parallax_options.shapes)
            prepared = len({*self._prepared, opened.runner})
        return describe_usage(opened, self._model, self._memory, self._estimator, prepared=prepared)

    def trim(self) -> int:
        """Give memory that is kept for the next run back to the system: arenas that no run uses, what ONNX Runtime's
        arenas hold, free pages of the heap. The next run takes a little longer.

        Returns: bytes by which the process's private memory shrank meanwhile (where the system does not tell,
        those of arenas).
        """
        from parallax.machine import private_bytes

        self._check_open()
        self._trimmers()  # before memory is measured, of which modules that are loaded take some
        before = private_bytes()
        returned = self._give_back()
        after = private_bytes()
        return returned if before is None or after is None else max(0, before - after)

    @staticmethod
    def _trimmers() -> tuple[Callable[[Any], object], Callable[[], object], Callable[[], object]]:
        from parallax.backends.ort import shrink_arena, shrink_shared_allocator
        from parallax.machine import trim_heap

        return shrink_arena, shrink_shared_allocator, trim_heap

    def _give_back(self) -> int:
        """Bytes of arenas."""
        shrink_arena, shrink_shared_allocator, trim_heap = self._trimmers()
        split = self._opened.split
        returned = 0 if split is None else split.executor.trim()
        whole = self.__dict__.get("_sess")
        if whole is not None:
            shrink_arena(whole)
        with self._lazy_lock:  # others add to them
            prepared = [runner for runner in self._prepared if runner is not self._opened.runner]
        for runner in prepared:
            returned += runner.trim()
        shrink_shared_allocator()
        trim_heap()
        return returned

    def _expected_requirement(self) -> MemoryRequirement | None:
        """What a run like the last one holds; None where that is not known."""
        if self._estimator is None or self._memory is None:
            return None
        return self._estimator.requirement(self._memory.last_shapes)

    # -- the whole model beside the segments of a split one, for what only its session can do ------------

    if not TYPE_CHECKING:  # with it, every name would be an attribute, and a typo none

        def __getattr__(self, name: str) -> Any:
            # Only reached when the attribute is missing, which for _sess means: the model is cut and nobody has
            # asked for the whole-model session yet. In a whole-model session _sess is a plain attribute.
            if name == "_sess" and self._opened.split is not None:
                with self._lazy_lock:
                    if "_sess" not in self.__dict__:
                        self.__dict__["_sess"] = self._make_whole_session()
                    return self.__dict__["_sess"]
            self._refuse_if_closed(name)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _make_whole_session(self) -> Any:
        logger.info("something asked for the whole-model session of a split model; its weights are now held twice")
        opened, memory, held = self._opened, self._memory, 0
        assert self._source is not None
        if memory is not None and opened.budget is not None:
            known = opened.weight_bytes(self._look or self._loaded)
            held = opened.budget.weight_bytes if known is None else known
            memory.hold(held, self._expected_requirement())
        try:
            whole = open_beside(
                opened,
                self._source,
                self._model,
                self._sess_options_initial,
                threads=self._parallax_options.threads,
                arguments=self._whole_arguments,
            )
        except BaseException:
            if held and memory is not None:
                memory.let_go(held)
            raise
        if held and memory is not None:
            weakref.finalize(whole, memory.let_go, held).atexit = False
        return whole

    def _way_to_run(self, runner: Runner, run_options: Any) -> Callable[..., Any]:
        """What computes a run's outputs, as ``Runner.run``: the runner, or the session beside it."""
        return self._run_beside if self._is_for_whole(runner, run_options) else runner.run

    def _is_for_whole(self, runner: Runner, run_options: Any) -> bool:
        if run_options is None or not runner.is_split:
            return False
        assert self._source is not None
        return is_for_whole(run_options, self._opened, self._source, has_arena=self._sess_options.enable_cpu_mem_arena)

    def _run_beside(self, output_names: Any, input_feed: Any, run_options: Any, memory: SessionMemory | None) -> Any:
        call = partial(super().run, output_names, input_feed, run_options)
        return self._call_beside(call, output_names, input_feed, run_options, memory)

    def _call_beside(
        self,
        call: Any,
        output_names: Any,
        input_feed: Mapping[str, Any],
        run_options: Any,
        memory: SessionMemory | None,
        *,
        require: Any = None,
    ) -> Any:
        """See `run_whole`. By default the shapes of what is fed do not tell what memory the run needs."""
        from parallax.engine import run_whole

        return run_whole(
            call,
            memory,
            self._observers.events,
            self.plan,
            feeds=input_feed,
            outputs=output_names or self._output_names,
            run_options=run_options,
            require=require,
        )

    @abstractmethod
    def _check_open(self) -> None:
        """Raises: SessionClosedError once the session is closed."""

    @abstractmethod
    def _refuse_if_closed(self, name: str) -> None:
        """To be called for an attribute that is missing. Raises: SessionClosedError if it went when it was closed."""

    @abstractmethod
    def _reopen_if_forked(self) -> None:
        """Open again what is open, in a child that was forked since."""

    @abstractmethod
    def _opening_request(self, open_stock: Callable[[str | bytes, Any], Any]) -> OpeningRequest:
        """What the session was given. ``open_stock``: see there."""

    @abstractmethod
    def _open_separately(self, source: str | bytes, session_options: Any) -> Any:
        """Open a path or bytes with ONNX Runtime's class, beside what is open."""

    @abstractmethod
    def _show(self, opened: Opened) -> None:
        """Have the base class show what was opened."""
