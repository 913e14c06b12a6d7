"""The observers of a session, and its runs of the whole model, as they see them: a plan of one segment on one lane."""

from __future__ import annotations

import contextlib
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from parallax.backends.ort import StockSession
from parallax.engine import EventStream

if TYPE_CHECKING:
    from parallax.engine import Observer, SpanObserver, TraceSink
    from parallax.schedule import Plan
    from parallax.session._gate import Grant
    from parallax.session._memory import SessionMemory
    from parallax.session._options import Options

T = TypeVar("T")


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

    def renew(self) -> None:
        """In a forked child, where a thread of the parent may have held a lock."""
        self.events = self.events.copy()


class ObservableSession(StockSession):  # type: ignore[misc]
    """What a session shows to those who watch its runs, and how it runs the whole model before their eyes."""

    _observers: SessionObservers
    _memory: SessionMemory | None = None
    _output_names: list[str]

    @property
    @abstractmethod
    def plan(self) -> Plan:
        """What runs where, and why; one segment means that the model is uncut."""

    @property
    def trace(self) -> TraceSink | None:
        """Receives a span per segment and run while set; None once it failed and was detached."""
        return self._observers.trace

    def add_observer(self, observer: Observer) -> None:
        """Have ``observer`` called with every event of the runs that begin from now on; see `parallax.Options`."""
        self._observers.events.add(observer)

    def remove_observer(self, observer: Observer) -> bool:
        """Call it no more; returns whether it was attached, which one that failed is not any more."""
        return self._observers.events.remove(observer)

    def _call_whole(
        self, call: Any, names: Any, feeds: Mapping[str, Any], run_options: Any, *, is_unknown: bool = False
    ) -> Any:
        """See `run_whole`. ``names``: of outputs; None or empty means all."""
        return run_whole(
            call,
            self._memory,
            self._observers.events,
            self.plan,
            feeds=feeds,
            outputs=names or self._output_names,
            run_options=run_options,
            is_unknown=is_unknown,
        )


def admitted(
    memory: SessionMemory | None, feeds: Any, run_options: Any, *, is_unknown: bool = False
) -> contextlib.AbstractContextManager[Grant | None]:
    """Around one run of a whole model; waits until the budget allows it. ``memory``: None admits it at once.

    Args:
        is_unknown: the shapes of what is fed do not tell what the run needs.

    Raises: as ``SessionMemory.run``.
    """
    if memory is None:
        return contextlib.nullcontext()
    from parallax.session._estimate import UNKNOWN_NEED
    from parallax.session._memory import shapes_of

    return memory.run(shapes_of(feeds), need=UNKNOWN_NEED if is_unknown else None, run_options=run_options)


def run_whole(
    call: Callable[[], T],
    memory: SessionMemory | None,
    events: EventStream,
    plan: Plan,
    *,
    feeds: Mapping[str, Any],
    outputs: Sequence[str],
    run_options: Any,
    is_unknown: bool = False,
) -> T:
    """Return ``call()``, which runs the whole model in this thread: once ``memory`` admits it, and told to observers.

    Args:
        plan: of the session.
        feeds: arrays and tensors; {} where it is not known what is fed.
        outputs: names of what ``call`` returns, if it returns outputs.
        is_unknown: the shapes of what is fed do not tell what memory the run needs.

    Raises: as ``SessionMemory.run``, and what ``call`` raises.
    """
    asked_ns = time.perf_counter_ns()
    with admitted(memory, {} if is_unknown else feeds, run_options, is_unknown=is_unknown):
        if not events.attached:
            return call()
        from parallax.engine import begin_whole_run

        waited_ns = 0 if memory is None else time.perf_counter_ns() - asked_ns
        observed = begin_whole_run(events, as_whole(plan), waited_ns=waited_ns)
        try:
            made = call()
        except BaseException as error:
            observed.fail(error)
            raise
        observed.end(tuple(feeds.items()), _named(outputs, made))
        return made


def observed_in_background(
    run_async: Callable[..., None], events: EventStream, plan: Plan, outputs: Sequence[str]
) -> Callable[..., None]:
    """ONNX Runtime's ``run_async`` of the whole model, with its runs told to observers before the callback is called.

    Args:
        plan: of the session.
        outputs: names of what the callback gets.
    """

    def run(names: Any, feeds: Mapping[str, Any], callback: Any, user_data: Any, run_options: Any) -> None:
        from parallax.engine import begin_whole_run

        observed = begin_whole_run(events, as_whole(plan))

        def ended(made: Any, user_data: Any, error: str) -> None:
            if error:
                observed.fail(RuntimeError(error))
            else:
                observed.end(tuple(feeds.items()), _named(outputs, made))
            callback(made, user_data, error)

        try:
            run_async(names, feeds, ended, user_data, run_options)
        except BaseException as error:
            observed.fail(error)
            raise

    return run


def as_whole(plan: Plan) -> Plan:
    """A plan of one segment of the CPU's, for what runs beside the segments of this one; or this one, if it is that."""
    from parallax.schedule import CPU_BACKEND, Segment

    if len(plan.segments) == 1 and plan.segments[0].backend == CPU_BACKEND and not plan.segments[0].bodies:
        return plan
    made = {name for segment in plan.segments for name in segment.outputs}
    read = dict.fromkeys(name for segment in plan.segments for name in segment.inputs if name not in made)
    whole = Segment(
        index=0,
        name="whole_model",
        nodes=tuple(sorted({node for segment in plan.segments for node in segment.nodes})),
        inputs=tuple(read),
        outputs=(),
        predecessors=(),
        width=plan.cores,
        priority=0,
        lane=0,
        cost_ns=0,
        reason="what this run asked for takes the whole model's session",
    )
    return replace(plan, lanes=1, segments=(whole,))


def _named(names: Sequence[str], made: Any) -> Sequence[tuple[str, Any]]:
    return tuple(zip(names, made, strict=False)) if isinstance(made, Sequence) else ()
