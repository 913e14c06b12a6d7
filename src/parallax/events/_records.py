"""What happens in runs, as records: enough to decide again, from them alone, all that the dispatcher decided.

A stream of events numbers them. Within one run, numbers and times ascend in the order in which the dispatcher was told,
so that whoever repeats `Dispatcher`'s calls in that order gets the same instructions.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from parallax.schedule import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened."""

    sequence: int
    """Number within the stream, from 1. None is missing, but where an observer interrupted a run."""
    time_ns: int
    """When it was numbered: a reading of ``time.perf_counter_ns``, which is monotonic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """Where a run inside a run belongs: a body of an If, Loop or Scan that the engine runs itself."""

    run: int
    """The run that the operator is part of."""
    segment: int
    """The operator's segment in that run's plan."""
    body: str
    """Attribute of the operator that holds the body: "then_branch", "else_branch" or "body"."""
    number: int
    """Of the iteration, from 0; 0 in an If."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent(Event):
    """Something that happened in a run."""

    run: int
    """Number within the process."""
    parent: Iteration | None
    """None for a run that a caller asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAdmitted(RunEvent):
    """A run begins: the dispatcher is made with these capacities, and started."""

    plan: Plan
    cores: int
    """Granted to this run; the plan may be for more."""
    lanes: int
    """The run has those from 0 to ``lanes - 1``, but for the ``absent`` ones."""
    absent: tuple[int, ...]
    """Lanes that no thread was free for."""
    budget_bytes: int | None
    """For the peaks of segments that run at the same time; None: no limit."""
    waited_ns: int
    """For other runs to leave room in the session's memory budget."""


class RunOutcome(Enum):
    """How a run ended."""

    DONE = "done"
    FAILED = "failed"
    """A segment failed, or the run was stopped by ``RunOptions.terminate``."""
    INTERRUPTED = "interrupted"
    """Given up in the middle, as by Ctrl-C. Some of what had started is not reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(RunEvent):
    """A run is over. The last event of its run."""

    outcome: RunOutcome
    failure: str | None
    """The first failure, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentStarted(RunEvent):
    """The dispatcher started a segment: it is handed to its lane, which begins it as soon as it gets to it."""

    segment: int
    name: str
    lane: int
    """0 is the thread that called ``run``."""
    width: int
    backend: str
    """As planned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentEnded(RunEvent):
    """A segment ended, and the dispatcher was told."""

    segment: int
    name: str
    lane: int
    width: int
    backend: str
    """What computed it: where a backend fails, the CPU does."""
    waited_ns: int
    """From its start by the dispatcher until the lane began it."""
    begin_ns: int
    """When the lane began it. On the clock of ``time_ns``, which comes after ``end_ns``."""
    end_ns: int
    input_bytes: int
    output_bytes: int
    failure: str | None
    """None if it ended well."""

    @property
    def duration_ns(self) -> int:
        """How long the lane took for it."""
        return self.end_ns - self.begin_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorMoved(RunEvent):
    """A tensor went from one memory to another, with a segment that was started and has not ended yet."""

    segment: int
    tensor: str
    size_bytes: int
    source: str
    """Name of a memory: "cpu", or that of a backend."""
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetChanged(RunEvent):
    """What segments of a run that run at the same time may hold together has changed."""

    budget_bytes: int | None
    """None: no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSetAside(Event):
    """A backend failed a part of the model too often, and the CPU computes that part for the time being."""

    backend: str
    segment: str
    """Name of the part."""
    retry_s: float | None
    """Seconds after which the backend may try again; None: never."""
    reason: str
    """What it failed with last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSwapped(Event):
    """Another plan of the model was put in force: runs that begin from now on run it, those in flight end on the one
    before."""

    plan: Plan
    previous: Plan
    reason: str
    """Why, in words; "" where nobody said."""
