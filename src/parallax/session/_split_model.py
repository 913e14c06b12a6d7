"""A model that runs in segments, seen from outside: its feeds, its outputs, its runs, and what it shows of itself."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.backends.ort import both
from parallax.engine import FeedBinder, FeedSpec, RunBudget
from parallax.errors import InputError

if TYPE_CHECKING:
    from parallax.engine import Executor
    from parallax.graph import OpGraph
    from parallax.model import HeldFiles
    from parallax.schedule import Plan
    from parallax.session._gate import Grant
    from parallax.session._interface import Interface
    from parallax.session._memory import SessionMemory


class SplitModel:
    """Runs a split model on what callers feed. Thread-safe.

    Args:
        executor: of the plan.
        plan: with the peaks of its segments.
        interface: the model's inputs and outputs.
        read_files: mapped files that segments read their weights from, if they do.
    """

    def __init__(
        self, executor: Executor, plan: Plan, interface: OpGraph | Interface, read_files: HeldFiles | None = None
    ) -> None:
        self.executor = executor
        self._plan = plan
        self._read_files = read_files
        self._output_names = [info.name for info in interface.outputs]
        self._known_outputs = frozenset(self._output_names)
        self._binder = FeedBinder(
            [
                *(FeedSpec.from_tensor(info, required=True) for info in interface.inputs),
                *(FeedSpec.from_tensor(info, required=False) for info in interface.overridable),
            ]
        )

    @property
    def sessions(self) -> list[Any]:
        """The C sessions of the segments."""
        return [segment.session for segment in self.executor.segments]

    def check_complete(self, feeds: Mapping[str, Any]) -> None:
        """Raises: InputError (and ValueError) if a required input is missing."""
        self._binder.check_complete(feeds)

    def run(
        self, output_names: Any, input_feed: Mapping[str, Any], run_options: Any, memory: SessionMemory | None
    ) -> list[Any]:
        """The outputs of one run, as C OrtValues; within the budget of ``memory``, if there is one.

        Args:
            output_names: which, in which order; None or empty means all.

        Raises: as ``InferenceSession.run``.
        """
        bound = self._binder.bind(input_feed)
        names = self._checked_names(output_names)
        read = self._read_files
        if read is not None:
            read.check_intact()
        if memory is None:
            results = self.executor.run(bound.values, names, run_options)
        else:
            shapes = {name: tuple(value.shape()) for name, value in bound.values.items()}
            asked_ns = time.perf_counter_ns()
            with memory.run(shapes, run_options=run_options) as grant:
                budget = self._limited(grant, waited_ns=time.perf_counter_ns() - asked_ns)
                results = self.executor.run(bound.values, names, run_options, budget=budget)
        if read is not None:
            read.check_intact()
        return results

    def _checked_names(self, output_names: Any) -> Sequence[str]:
        if not output_names:
            return self._output_names
        if isinstance(output_names, str):
            raise TypeError("output names are a list of strings, not one string")
        for name in output_names:
            if name not in self._known_outputs:
                if not isinstance(name, str):
                    raise TypeError(f"output names are strings, not {type(name).__name__}")
                raise both(InputError, C.InvalidArgument)(
                    f"Invalid output name: {name}", fix=f"the model's outputs are {self._output_names}"
                )
        names: Sequence[str] = output_names
        return names

    def _limited(self, grant: Grant | None, *, waited_ns: int) -> RunBudget | None:
        """What a grant leaves for segments running at the same time, kept up to date."""
        if grant is None:
            return None
        from parallax.session._estimate import dispatcher_budget

        plan, need = self._plan, grant.need

        def limit() -> int | None:
            return dispatcher_budget(plan, need, grant.granted_bytes)

        budget = RunBudget(limit(), waited_ns=waited_ns)
        grant.on_change(lambda: budget.change(limit()))
        budget.change(limit())  # it may have changed in between
        return budget


def split_attributes(executor: Executor, interface: OpGraph | Interface, session_options: Any) -> dict[str, Any]:
    """What the base class would keep of a C session of the whole model, by the names of its attributes, taken from the
    segments' sessions. ``session_options``: the caller's, or None."""
    sessions = [segment.session for segment in executor.segments]
    inputs = {
        arg.name: (arg, info) for s in sessions for arg, info in zip(s.inputs_meta, s.input_meminfos, strict=True)
    }
    outputs = {
        arg.name: (arg, info) for s in sessions for arg, info in zip(s.outputs_meta, s.output_meminfos, strict=True)
    }
    overridable = {arg.name: arg for s in sessions for arg in s.overridable_initializers}
    first = sessions[0]
    # Whoever changes the caller's object afterwards means another session. A split model has none that a copy would
    # lose: providers and custom operators keep it whole.
    options = onnxruntime.SessionOptions() if session_options is None else _copied(session_options)
    attributes = {
        "_sess_options": options,
        "_inputs_meta": [inputs[info.name][0] for info in interface.inputs],
        "_input_meminfos": [inputs[info.name][1] for info in interface.inputs],
        "_outputs_meta": [outputs[info.name][0] for info in interface.outputs],
        "_output_meminfos": [outputs[info.name][1] for info in interface.outputs],
        "_overridable_initializers": [
            overridable[info.name] for info in interface.overridable if info.name in overridable
        ],
        "_input_epdevices": list(first.input_epdevices)[:1] * len(interface.inputs),
        "_model_meta": first.model_meta,
        "_providers": first.get_providers(),
        "_provider_options": first.get_provider_options(),
        "_profiling_start_time_ns": first.get_profiling_start_time_ns,
        "_output_names": [info.name for info in interface.outputs],
    }
    return attributes if session_options is None else {**attributes, "_sess_options_initial": options}


def _copied(session_options: Any) -> Any:
    from parallax.session._given_options import copied_options

    return copied_options(session_options)
