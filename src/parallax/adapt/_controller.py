"""Decides from events which of the plans that are ready should run, without a clock or a thread of its own.

It is given the events of runs, and asked now and then. All times come from the caller, in seconds on the clock of the
events, so that a recorded stream of events leads to the same decisions again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from parallax.adapt._decision import CHANGED, Dwell, ProbePlan, better_plan
from parallax.adapt._meter import MeteredRun, RunMeter
from parallax.adapt._slowdown import SlowdownEstimator
from parallax.adapt._state import CALM, CPU_NARROW, CPU_WIDE, HardwareState, predict_ns, processors_of
from parallax.events import Event
from parallax.schedule import Plan
from parallax.schedule.placement import Machine

_NOTICEABLE: Final = 0.02
"""A slow-down that changed by less since plans were compared last is no reason to compare them again."""

_FRESH_RUNS: Final = 2
"""Of a plan, after it came into force, before it may be left: its first runs are those of cold caches. They, and what
began before they had ended, tell nothing of the machine."""

_LONGEST_HISTORY: Final = 64
"""Switches that are remembered for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyPlan:
    """A plan that could run at once."""

    label: str
    """How it was found, for people."""
    plan: Plan
    cost_ns: tuple[int, ...]
    """What each segment takes when all is calm."""
    switch_ns: int = 0
    """What going over to it costs: its first runs that take longer."""
    input_bytes: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    """Segment -> bytes of what it is given in the shapes that were planned for. Runs in others tell nothing. Empty
    where there are no others."""

    def predict_ns(self, state: HardwareState, machine: Machine) -> int:
        """What a run takes in a state. ``machine``: see `parallax.adapt.predict_ns`."""
        return predict_ns(self.plan, state, machine=machine, cost_ns=self.cost_ns)

    def no_better_when_calm(self, first: ReadyPlan, machine: Machine) -> ReadyPlan:
        """The same with costs by which it takes no less than ``first`` in the calm state.

        The plan that a session opens with was chosen for that state, with more care (and perhaps measured), so that
        nothing but another state is a reason to leave it.
        """
        own_ns, least_ns = self.predict_ns(CALM, machine), first.predict_ns(CALM, machine)
        if own_ns >= least_ns:
            return self
        factor = least_ns / max(1, own_ns)
        return replace(self, cost_ns=tuple(math.ceil(ns * factor) for ns in self.cost_ns))

    def is_expected(self, run: MeteredRun) -> bool:
        """Whether a run was given what was planned for."""
        return all(run.input_bytes.get(segment, size) == size for segment, size in self.input_bytes.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """One change of the plan in force."""

    at_s: float
    before: str
    after: str
    """Labels of the plans."""
    before_ns: int
    after_ns: int
    """What a run takes by either, predicted for the state."""
    state: HardwareState

    @property
    def reason(self) -> str:
        """Why, for people."""
        slow = ", ".join(
            f"{name} at {factor:.2g} times its predicted time"
            for name, factor in sorted(self.state.slowdowns.items())
            if abs(factor - 1) > _NOTICEABLE
        )
        times = f"{self.after_ns / 1e6:.2f} ms predicted, {self.before_ns / 1e6:.2f} ms by {self.before}"
        return f"{times} ({slow or 'nothing is slowed'})"


@dataclass(slots=True)
class _Known:
    """What is kept of each ready plan."""

    ready: ReadyPlan
    predicted_ns: int = 0


@dataclass(slots=True)
class Controller:
    """Follows the machine's state, and says when another plan should run. Not thread-safe: its owner locks.

    Args:
        machine: that plans are simulated on.
    """

    machine: Machine
    current: int = field(init=False, default=0)
    """Index of the plan in force."""
    runs: int = field(init=False, default=0)
    """That were metered."""
    switches: list[Switch] = field(init=False, default_factory=list)
    """The latest, at most 64."""
    _plans: list[_Known] = field(init=False, default_factory=list)
    _meter: RunMeter = field(init=False, default_factory=RunMeter)
    _estimator: SlowdownEstimator = field(init=False, default_factory=SlowdownEstimator)
    _dwell: Dwell = field(init=False, default_factory=Dwell)
    _probes: dict[str, ProbePlan] = field(init=False, default_factory=dict)
    _compared: HardwareState | None = field(init=False, default=None)
    _fresh: int = field(init=False, default=0)
    _warm_ns: int = field(init=False, default=0)

    @property
    def plans(self) -> tuple[ReadyPlan, ...]:
        """Those that are ready, the first one first."""
        return tuple(known.ready for known in self._plans)

    @property
    def state(self) -> HardwareState:
        """The machine's, by all runs and probes so far."""
        return self._estimator.state()

    def add(self, ready: ReadyPlan) -> int:
        """Another plan is ready; returns its index. The first one added is in force."""
        self._plans.append(_Known(ready))
        self._compared = None
        return len(self._plans) - 1

    def observe(self, event: Event) -> MeteredRun | None:
        """Take in an event; returns the run that it ended, if it was one by the plan in force."""
        run = self._meter.read(event)
        if run is None:
            return None
        for index, known in enumerate(self._plans):
            if known.ready.plan is run.plan or known.ready.plan == run.plan:
                if not known.ready.is_expected(run):
                    return None
                self.runs += 1
                if index == self.current and self._fresh < _FRESH_RUNS:
                    self._fresh, self._warm_ns = self._fresh + 1, event.time_ns
                elif event.time_ns - run.duration_ns >= self._warm_ns:
                    self._count(run.ratios(known.ready.cost_ns), event.time_ns / 1e9)
                return run
        return None

    def forget_runs(self) -> None:
        """Runs that were in flight are not heard of any more: those who watch were away."""
        self._meter = RunMeter()

    def _count(self, ratios: Mapping[str, float], now_s: float) -> None:
        before = self.state
        self._estimator.update(ratios)
        after = self.state
        jumped = [name for name in ratios if _is_change(before.slowdown(name), after.slowdown(name))]
        if not jumped:
            return
        # What is true of the machine may be true of what is hidden, too: that is to be looked at soon.
        hidden = self.hidden
        for name in jumped:
            other = _OTHER_WIDTH.get(name)
            if other in hidden:
                self._estimator.forget(other)  # until then it is taken to be as slow as this one
        for name in hidden & self._probes.keys():
            self._probes[name] = self._probes[name].hastened(now_s)

    def decide(self, now_s: float) -> int | None:
        """The plan to go over to, or None. Whoever goes over calls `switched`."""
        if len(self._plans) < 2 or self._fresh < _FRESH_RUNS or not self._dwell.may_switch(now_s):
            return None
        state = self.state
        if self._compared is not None and not _differs(state, self._compared):
            return None
        self._compared = state
        for known in self._plans:
            known.predicted_ns = known.ready.predict_ns(state, self.machine)
        chosen = better_plan(
            self.current,
            [known.predicted_ns for known in self._plans],
            switch_ns=[known.ready.switch_ns for known in self._plans],
        )
        return None if chosen == self.current else chosen

    def switched(self, index: int, now_s: float) -> Switch:
        """The plan ``index`` is in force now."""
        before, after = self._plans[self.current], self._plans[index]
        switch = Switch(
            at_s=now_s,
            before=before.ready.label,
            after=after.ready.label,
            before_ns=before.predicted_ns,
            after_ns=after.predicted_ns,
            state=self.state,
        )
        self.switches = [*self.switches, switch][-_LONGEST_HISTORY:]
        self.current, self._fresh, self._compared = index, 0, None
        self._dwell = self._dwell.switched(now_s)
        return switch

    def probe_due(self, now_s: float) -> str | None:
        """A processor that another plan uses and the one in force does not, and that it is time to look at."""
        hidden = self.hidden
        for processor in sorted(hidden):
            planned = self._probes.setdefault(processor, ProbePlan(next_s=now_s))
            if planned.is_due(now_s):
                return processor
        for processor in [name for name in self._probes if name not in hidden]:
            del self._probes[processor]
        return None

    @property
    def hidden(self) -> frozenset[str]:
        """Processors that another plan uses and the one in force does not: its runs tell nothing of them."""
        if not self._plans:
            return frozenset()
        used = processors_of(self._plans[self.current].ready.plan)
        others: Sequence[frozenset[str]] = [processors_of(known.ready.plan) for known in self._plans]
        return frozenset().union(*others) - used

    def probed(self, processor: str, ratio: float | None, *, took_s: float, now_s: float) -> None:
        """A probe of a processor ended now.

        Args:
            ratio: observed over predicted time; None where the probe failed, which says nothing.
            took_s: the time that it took.
        """
        before = self._estimator.estimate(processor).value
        if ratio is not None:
            # Probes are rare: each is believed, rather than that two of them must agree.
            self._estimator.forget(processor)
            self._estimator.update({processor: ratio})
        after = self._estimator.estimate(processor).value
        planned = self._probes.get(processor, ProbePlan(next_s=now_s))
        self._probes[processor] = planned.probed(now_s, took_s=took_s, before=before, after=after)


_OTHER_WIDTH: Final = {CPU_NARROW: CPU_WIDE, CPU_WIDE: CPU_NARROW}


def _is_change(before: float, after: float) -> bool:
    return abs(after - before) > CHANGED * before


def _differs(state: HardwareState, other: HardwareState) -> bool:
    names: Mapping[str, None] = dict.fromkeys((*state.slowdowns, *other.slowdowns))
    return any(abs(state.slowdown(name) - other.slowdown(name)) > _NOTICEABLE * other.slowdown(name) for name in names)
