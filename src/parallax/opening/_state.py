"""What a session has open: one record, which is replaced as a whole and never changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, cast

from parallax._record import dataclass
from parallax.errors import InternalError

if TYPE_CHECKING:
    from parallax.backends import Backend
    from parallax.bundle import Bundle
    from parallax.engine import Estimator, Executor, ModelInterface, Runner, SplitRunner
    from parallax.memory import Budget
    from parallax.model import Model, ModelSummary
    from parallax.options import Device
    from parallax.partition.padding import Trimming
    from parallax.schedule import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleDevices:
    """Devices of a bundle, opened."""

    shown: tuple[Device, ...]
    """Those that the session has: the ones that its caller named, or that its plan uses."""
    backends: Mapping[str, Backend]
    """Of those that its plan uses, by the names in its manifest."""


NO_DEVICES: Final = BundleDevices(shown=(), backends={})


class SessionState(Enum):
    """How a session runs its model."""

    OPENING = "opening"
    """Not at all yet: the constructor, ``set_providers`` or the first run in a forked child is opening it."""
    WHOLE = "whole"
    """The base class runs it."""
    DIRECT = "direct"
    """Its C session runs it, since nothing is needed of what the base class does around that."""
    SPLIT = "split"
    """The engine runs it in segments."""
    CLOSED = "closed"
    """No more: what ran it is given back."""


LEGAL_TRANSITIONS: Final[Mapping[SessionState, frozenset[SessionState]]] = {
    # Opening may fail, and begin again.
    SessionState.OPENING: frozenset(SessionState),
    SessionState.WHOLE: frozenset({SessionState.OPENING, SessionState.CLOSED}),
    SessionState.DIRECT: frozenset({SessionState.OPENING, SessionState.CLOSED}),
    SessionState.SPLIT: frozenset({SessionState.OPENING, SessionState.CLOSED}),
    SessionState.CLOSED: frozenset(),
}
"""The states that may follow each: what is open is closed before something else is opened. A swap of plans alone leads
from one to another at once, for what is open stays so until its runs have ended."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Opened:
    """What a session runs."""

    state: SessionState
    runner: Runner | None = None
    """None in the states OPENING and CLOSED, and only there."""
    bundle: Bundle | None = None
    shared_bundle: Bundle | None = None
    """Of a session that was given a model, the one whose weights it maps, so that what is opened beside it shares them.
    """
    devices: tuple[Device, ...] | None = None
    """Of a bundle, those of which its session tells; None elsewhere."""
    stored_declaration: bytes | None = None
    """A bundle's description of the model's outputs."""
    budget: Budget | None = None
    is_unbounded: bool = False
    """How long a run takes depends on data."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """What the base class keeps of its C session, by the names of its attributes, as far as it is to be overwritten."""
    trimming: Trimming | None = None
    """How runs leave out padding; None where they do not."""

    def __post_init__(self) -> None:
        runner = self.runner
        if (runner is None) is not (self.state in (SessionState.OPENING, SessionState.CLOSED)):
            raise InternalError(f"a session in state {self.state.value!r} with a model to run: {runner is not None}")
        if runner is None:
            return
        if runner.is_split is not (self.state is SessionState.SPLIT):
            raise InternalError(f"a session in state {self.state.value!r} with a split model: {runner.is_split}")
        if runner.is_direct is not (self.state is SessionState.DIRECT):
            raise InternalError(f"a session in state {self.state.value!r} with a C session: {runner.is_direct}")

    @property
    def plan(self) -> Plan | None:
        """What runs where; None in state OPENING."""
        return None if self.runner is None else self.runner.plan

    @property
    def split(self) -> SplitRunner | None:
        """The runner, in state SPLIT."""
        return cast("SplitRunner | None", self.runner if self.state is SessionState.SPLIT else None)

    @property
    def mapped_bundle(self) -> Bundle | None:
        """The one whose weights are mapped: that of the session, or the one that it shares weights by."""
        return self.bundle or self.shared_bundle

    @property
    def estimator(self) -> Estimator | None:
        """What tells how much memory runs take, where that was asked for."""
        return None if self.runner is None else self.runner.estimator

    def within(self, budget: Budget | None, estimator: Estimator | None) -> Opened:
        """The same, of which is known what it takes and may take. Not in state OPENING."""
        assert self.runner is not None
        return replace(self, runner=replace(self.runner, estimator=estimator), budget=budget)

    def with_trimming(self, trimming: Trimming | None) -> Opened:
        """The same, whose runs leave out padding; itself for None. Not in state OPENING."""
        if trimming is None:
            return self
        from parallax.engine import trimmed_runner  # few sessions do

        assert self.runner is not None
        return replace(self, runner=trimmed_runner(self.runner, trimming), trimming=trimming)

    def with_plan(self, plan: Plan) -> Opened:
        """The same with another description of its plan. Not in state OPENING."""
        assert self.runner is not None
        return replace(self, runner=replace(self.runner, plan=plan))

    def weight_bytes(self, model: Model | ModelSummary | None) -> int | None:
        """Return the bytes of weights of what is open; None where that is not known. ``model``: what the session
        loaded or looked at, if it did."""
        if self.bundle is not None:
            return self.bundle.manifest.weight_bytes
        return None if model is None else model.weight_bytes


NOT_OPEN: Final[Opened] = Opened(state=SessionState.OPENING)
"""What a session has before it has anything."""

CLOSED: Final[Opened] = Opened(state=SessionState.CLOSED)
"""What it has when it has given everything back."""


def check_transition(before: Opened, after: Opened) -> None:
    """Raises: InternalError if a session must not go from one to the other."""
    if after.state not in LEGAL_TRANSITIONS[before.state]:
        raise InternalError(f"a session went from {before.state.value!r} to {after.state.value!r}")


def split_attributes(executor: Executor, interface: ModelInterface, session_options: Any) -> dict[str, Any]:
    """What the base class would keep of a C session of the whole model, by the names of its attributes, taken from the
    segments' sessions. ``session_options``: the caller's, or None."""
    import onnxruntime

    sessions = [segment.session for segment in executor.segments]
    inputs = {
        arg.name: (arg, info) for s in sessions for arg, info in zip(s.inputs_meta, s.input_meminfos, strict=True)
    }
    outputs = {
        arg.name: (arg, info) for s in sessions for arg, info in zip(s.outputs_meta, s.output_meminfos, strict=True)
    }
    if executor.forms is not None:
        # These describe the shapes that they were made for, of all that the model takes.
        for described in executor.forms.declared.inputs_meta:
            if described.name in inputs:  # it declares those that need not be fed, too
                inputs[described.name] = (described, inputs[described.name][1])
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
    from parallax.options import copied_options

    return copied_options(session_options)
