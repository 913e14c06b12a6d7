"""Runs a split model: from what callers feed to segments in the engine, and back."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax._record import dataclass
from parallax.backends.ort import both
from parallax.engine._feeds import BoundFeeds, FeedBinder, FeedSpec
from parallax.engine._run import RunBudget
from parallax.engine._runner import Runner
from parallax.errors import InputError

if TYPE_CHECKING:
    from parallax.admission import Reservation, SessionMemory
    from parallax.engine._executor import Executor
    from parallax.engine._observers import EventStream
    from parallax.engine._runner import Estimator
    from parallax.graph import TensorInfo
    from parallax.model import HeldFiles
    from parallax.schedule import Plan


class ModelInterface(Protocol):
    """A model's inputs and outputs, as far as feeding it goes; an `OpGraph` has them."""

    @property
    def inputs(self) -> Sequence[TensorInfo]:
        """What must be fed."""
        ...

    @property
    def overridable(self) -> Sequence[TensorInfo]:
        """Initializers that may be fed."""
        ...

    @property
    def outputs(self) -> Sequence[TensorInfo]:
        """What can be asked for."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SplitRunner(Runner):
    """Has the engine run a plan's segments. See `SplitRunner.of`."""

    is_split: ClassVar[bool] = True

    executor: Executor
    binder: FeedBinder
    known_outputs: frozenset[str] = field(repr=False)
    read_files: HeldFiles | None = None
    """Mapped files that segments read their weights from, if they do."""

    @classmethod
    def of(
        cls,
        executor: Executor,
        plan: Plan,
        interface: ModelInterface,
        events: EventStream,
        *,
        read_files: HeldFiles | None = None,
        estimator: Estimator | None = None,
    ) -> SplitRunner:
        """Make a runner of an executor, whose runs are observed by way of ``events`` from now on.

        Args:
            executor: of the plan.
            plan: with the peaks of its segments.
            interface: the model's inputs and outputs.
            read_files: mapped files that segments read their weights from, if they do.
            estimator: tells what runs hold.
        """
        executor.observe(events)
        output_names = [info.name for info in interface.outputs]
        return cls(
            plan=plan,
            input_names=tuple(info.name for info in interface.inputs),
            output_names=output_names,
            events=events,
            estimator=estimator,
            executor=executor,
            binder=FeedBinder(
                [
                    *(FeedSpec.from_tensor(info, required=True) for info in interface.inputs),
                    *(FeedSpec.from_tensor(info, required=False) for info in interface.overridable),
                ]
            ),
            known_outputs=frozenset(output_names),
            read_files=read_files,
        )

    def beside(self, executor: Executor, plan: Plan, estimator: Estimator | None) -> SplitRunner:
        """The same model by another executor, which its runs in other shapes take."""
        executor.observe(self.events)
        return replace(self, executor=executor, plan=plan, estimator=estimator)

    def trim(self) -> int:
        return self.executor.trim()

    @property
    def sessions(self) -> list[Any]:
        return [segment.session for segment in self.executor.segments]

    def check_complete(self, input_feed: Mapping[str, Any]) -> None:
        self.binder.check_complete(input_feed)

    def run(
        self, output_names: Any, input_feed: Any, run_options: Any = None, memory: SessionMemory | None = None
    ) -> Any:
        return [value.numpy() for value in self._run(output_names, input_feed, run_options, memory)]

    def run_values(
        self,
        output_names: Any,
        input_feed: Mapping[str, Any],
        run_options: Any = None,
        memory: SessionMemory | None = None,
    ) -> Any:
        feeds = {name: value._get_c_value() for name, value in input_feed.items()}
        return [onnxruntime.OrtValue(value) for value in self._run(output_names, feeds, run_options, memory)]

    def _run(
        self, output_names: Any, input_feed: Mapping[str, Any], run_options: Any, memory: SessionMemory | None
    ) -> list[Any]:
        """The outputs of one run, as C OrtValues."""
        bound = self.binder.bind(input_feed)
        names = self._checked_names(output_names)
        forms = self.executor.forms
        runner: SplitRunner = self if forms is None else forms.runner_for(bound.values, self, memory)
        return runner._run_bound(bound, names, run_options, memory)

    def _run_bound(
        self, bound: BoundFeeds, names: Sequence[str], run_options: Any, memory: SessionMemory | None
    ) -> list[Any]:
        read = self.read_files
        if read is not None:
            read.check_intact()
        if memory is None:
            results = self.executor.run(bound.values, names, run_options)
        else:
            shapes = {name: tuple(value.shape()) for name, value in bound.values.items()}
            asked_ns = time.perf_counter_ns()
            requirement = None if memory.controller is None else self.requirement(shapes)
            with memory.run(shapes, requirement, run_options) as reservation:
                budget = self._limited(reservation, waited_ns=time.perf_counter_ns() - asked_ns)
                results = self.executor.run(bound.values, names, run_options, budget=budget)
        if read is not None:
            read.check_intact()
        return results

    def _checked_names(self, output_names: Any) -> Sequence[str]:
        if not output_names:
            return self.output_names
        if isinstance(output_names, str):
            raise TypeError("output names are a list of strings, not one string")
        for name in output_names:
            if name not in self.known_outputs:
                if not isinstance(name, str):
                    raise TypeError(f"output names are strings, not {type(name).__name__}")
                raise both(InputError, C.InvalidArgument)(
                    f"Invalid output name: {name}", fix=f"the model's outputs are {list(self.output_names)}"
                )
        names: Sequence[str] = output_names
        return names

    def _limited(self, reservation: Reservation | None, *, waited_ns: int) -> RunBudget | None:
        """What a reservation leaves for segments running at the same time, kept up to date."""
        if reservation is None:
            return None
        plan, requirement = self.plan, reservation.requirement

        def limit() -> int | None:
            return requirement.dispatcher_budget(plan, reservation.granted_bytes)

        budget = RunBudget(limit(), waited_ns=waited_ns)
        reservation.on_change(lambda: budget.change(limit()))
        budget.change(limit())  # it may have changed in between
        return budget
