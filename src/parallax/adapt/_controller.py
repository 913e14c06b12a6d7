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

from parallax.adapt._decision import (
    CHANGED,
    PROBE_SHARE,
    PROBE_SHARE_IF_SLOW,
    SAVED_S,
    Dwell,
    ProbePlan,
    better_plan,
    least_gain,
)
from parallax.adapt._meter import MeteredRun, RunMeter
from parallax.adapt._slowdown import Slowdown, SlowdownEstimator
from parallax.adapt._state import CPU_NARROW, CPU_WIDE, NOMINAL, HardwareState, predict_ns, processors_of
from parallax.adapt._trial import LEAST_RUNS_BEFORE, Setback, Trial, Verdict
from parallax.events import Event
from parallax.schedule import Plan
from parallax.schedule.placement import Machine

_NOTICEABLE: Final = 0.02
"""A slow-down that changed by less since plans were compared last is no reason to compare them again."""

_FRESH_RUNS: Final = 2
"""Of a plan, after it came into force, before it may be left: its first runs are those of cold caches. They, and what
began before they had ended, tell nothing of the machine."""

_ALIKE: Final = 1.25
"""A plan that is predicted to take at most so many times as long as the first one in the nominal state may be quicker
there in truth."""

_NOMINAL_WITHIN: Final = 1.15
"""In the nominal state processors take at most so many times as long as the least that they were seen to take, ..."""

_NOMINAL_NOISE: Final = 0.2
"""... and runs differ by at most this standard deviation of the logarithm."""

_LONGEST_HISTORY: Final = 64
"""Switches that are remembered for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyPlan:
    """A plan that could run at once."""

    label: str
    """How it was found, for people."""
    plan: Plan
    cost_ns: tuple[int, ...]
    """What each segment takes in the nominal state."""
    switch_ns: int = 0
    """What going over to it costs: its first runs that take longer."""
    input_bytes: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    """Segment -> bytes of what it is given in the shapes that were planned for. Runs in others tell nothing. Empty
    where there are no others."""

    def predict_ns(self, state: HardwareState, machine: Machine) -> int:
        """What a run takes in a state. ``machine``: see `parallax.adapt.predict_ns`."""
        return predict_ns(self.plan, state, machine=machine, cost_ns=self.cost_ns)

    def no_better_when_nominal(self, first: ReadyPlan, machine: Machine) -> ReadyPlan:
        """The same with costs by which it takes no less than ``first`` in the nominal state.

        The plan that a session opens with was chosen for that state, with more care (and perhaps measured), so that
        no prediction is a reason to leave it there; a measurement is (`Controller.compare_in_nominal`).
        """
        own_ns, least_ns = self.predict_ns(NOMINAL, machine), first.predict_ns(NOMINAL, machine)
        if own_ns >= least_ns:
            return self
        factor = least_ns / max(1, own_ns)
        return self.scaled(factor)

    def scaled(self, factor: float) -> ReadyPlan:
        """The same, which takes so many times as long in every state."""
        return replace(self, cost_ns=tuple(math.ceil(ns * factor) for ns in self.cost_ns))

    def is_expected(self, run: MeteredRun) -> bool:
        """Whether a run was given what was planned for."""
        return all(run.input_bytes.get(segment, size) == size for segment, size in self.input_bytes.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """Describes one change of the plan in force."""

    at_s: float
    before: str
    after: str
    """Labels of the plans."""
    before_ns: int
    after_ns: int
    """What a run takes by either, predicted for the state."""
    state: HardwareState
    measured_ns: tuple[int, int] | None = None
    """What a run took by the plan before, and by the one after when that was in force last; None where nothing but
    predictions led to the switch."""
    is_comparison: bool = False
    """Whether the plan after is to be measured once in the nominal state, whatever is predicted of it."""

    @property
    def reason(self) -> str:
        """Why, for people."""
        if self.measured_ns is not None:
            before_ns, after_ns = self.measured_ns
            return f"{after_ns / 1e6:.2f} ms measured, {before_ns / 1e6:.2f} ms by {self.before}"
        if self.is_comparison:
            return f"compared once with {self.before}, which takes {self.before_ns / 1e6:.2f} ms, with nothing slowed"
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
    nominal_ns: int
    """What a run takes by it in the nominal state."""
    predicted_ns: int = 0
    """What it takes in the state in which plans were compared last."""


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
    _next_probe_s: float = field(init=False, default=-math.inf)
    """Before, probes of all processors together would take more than their share of the time."""
    _compared: HardwareState | None = field(init=False, default=None)
    """The state in which plans were compared last."""
    _compared_s: float = field(init=False, default=-math.inf)
    """When that was."""
    _compared_gain: float = field(init=False, default=1.0)
    """What another plan had to save then."""
    _fresh: int = field(init=False, default=0)
    _warm_ns: int = field(init=False, default=0)
    _pace: Slowdown = field(init=False, default_factory=Slowdown)
    """How long whole runs by the plan in force take, against what they take in the nominal state."""
    _paced: int = field(init=False, default=0)
    """Runs that this is made of."""
    _trial: Trial | None = field(init=False, default=None)
    """What the plan in force has to prove."""
    _setbacks: dict[int, Setback] = field(init=False, default_factory=dict)
    """Of plans that were measured to be slower than another; also those that are over, since the next one is longer."""
    _goes_back: bool = field(init=False, default=False)
    """Whether the plan that was decided on is one to go back to."""
    _to_compare: list[int] = field(init=False, default_factory=list)
    """Plans that are to be measured once in the nominal state."""
    _compares: bool = field(init=False, default=False)
    """Whether the plan that was decided on is one of these."""

    @property
    def plans(self) -> tuple[ReadyPlan, ...]:
        """Return the plans that are ready, the first one first."""
        return tuple(known.ready for known in self._plans)

    @property
    def state(self) -> HardwareState:
        """The machine's, by all runs and probes so far."""
        return self._estimator.state()

    def least_slowdown(self, processor: str) -> float | None:
        """See `SlowdownEstimator.least`."""
        return self._estimator.least(processor)

    def add(self, ready: ReadyPlan) -> int:
        """Another plan is ready; returns its index. The first one added is in force."""
        self._plans.append(_Known(ready, nominal_ns=max(1, ready.predict_ns(NOMINAL, self.machine))))
        self._compared = None
        return len(self._plans) - 1

    def compare_in_nominal(self) -> None:
        """Have each plan that may be as quick as the first one in the nominal state be measured there once.

        To be called when all plans are ready, since runs take longer while others are compiled. A plan that proves
        quicker stays in force, and its predictions are scaled to what was measured.
        """
        most_ns = _ALIKE * self._plans[0].nominal_ns if self._plans else 0
        self._to_compare = [index for index, known in enumerate(self._plans) if known.nominal_ns <= most_ns]

    def observe(self, event: Event) -> MeteredRun | None:
        """Take in an event; returns the run that it ended, if it was one by the plan in force."""
        run = self._meter.read(event)
        if run is None:
            return None
        index = self._index_of(run.plan)
        if index is None or not self._plans[index].ready.is_expected(run):
            return None
        known = self._plans[index]
        self.runs += 1
        if index == self.current and self._fresh < _FRESH_RUNS:
            self._fresh, self._warm_ns = self._fresh + 1, event.time_ns
        elif event.time_ns - run.duration_ns >= self._warm_ns:
            if index == self.current:
                self._pace = self._pace.updated(max(1, run.duration_ns) / run.concurrent / known.nominal_ns)
                self._paced += 1
            self._count(run.ratios(known.ready.cost_ns), event.time_ns / 1e9)
        return run

    def _index_of(self, plan: Plan) -> int | None:
        # All of them by identity first: to compare two plans takes as long as they are alike.
        for index, known in enumerate(self._plans):
            if known.ready.plan is plan:
                return index
        return next((index for index, known in enumerate(self._plans) if known.ready.plan == plan), None)

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
        """The plan to switch to, or None. Whoever switches calls `switched`."""
        if len(self._plans) < 2 or self._fresh < _FRESH_RUNS:
            return None
        state = self.state
        if self._trial is not None:
            return self._judge(self._trial, state, now_s)
        gain = least_gain(self._deviation)
        if not self._dwell.may_switch(now_s):
            return None
        if self.current in self._to_compare:
            self._to_compare.remove(self.current)
        if self._to_compare and self.is_nominal:
            self._predict(state)
            self._compares = True
            return self._to_compare.pop(0)
        if not self._is_worth_comparing(state, gain, now_s):
            return None
        self._compared, self._compared_gain, self._compared_s = state, gain, now_s
        self._predict(state)
        now_ns = self._plans[self.current].predicted_ns
        chosen = better_plan(
            self.current,
            [
                now_ns if self._is_held_back(index, now_s) else known.predicted_ns
                for index, known in enumerate(self._plans)
            ],
            switch_ns=[known.ready.switch_ns for known in self._plans],
            gain=gain,
        )
        return None if chosen == self.current else chosen

    @property
    def _deviation(self) -> float:
        """Standard deviation of the logarithm of the slow-downs that the plan in force shows."""
        seen = processors_of(self._plans[self.current].ready.plan)
        return math.sqrt(max((self._estimator.estimate(name).variance for name in seen), default=0.0))

    def _is_worth_comparing(self, state: HardwareState, gain: float, now_s: float) -> bool:
        """Whether anything is another than when plans were compared last."""
        void = [index for index, setback in self._setbacks.items() if setback.is_void(state, self._deviation)]
        for index in void:
            del self._setbacks[index]
        is_over = any(self._compared_s < setback.until_s <= now_s for setback in self._setbacks.values())
        is_surer = gain < self._compared_gain - _NOTICEABLE
        return bool(void) or is_over or is_surer or self._compared is None or _differs(state, self._compared)

    def _seen(self, state: HardwareState) -> HardwareState:
        """Of a state, what runs of the plan in force tell: what others told may be forgotten, or wrong for it."""
        hidden = self.hidden
        kept = {name: factor for name, factor in state.slowdowns.items() if name not in hidden}
        return replace(state, slowdowns=MappingProxyType(kept))

    def _is_held_back(self, index: int, now_s: float) -> bool:
        setback = self._setbacks.get(index)
        return setback is not None and not setback.is_over(now_s)

    @property
    def _pace_ns(self) -> float:
        """What a run by the plan in force takes, as measured."""
        return self._pace.value * self._plans[self.current].nominal_ns

    def _judge(self, trial: Trial, state: HardwareState, now_s: float) -> int | None:
        """The plan before, if it was quicker; else the one in force stays, or goes on being tried."""
        verdict = trial.verdict(self._pace_ns, self._pace, self._paced)
        if verdict is None:
            return None
        if verdict is Verdict.KEPT:
            self._trial, self._compared = None, None
            if trial.is_comparison:
                self._scale_to(trial)
                return None
            lost = self._setbacks.get(trial.before)
            if lost is None or lost.state is not None:
                self._setbacks[trial.before] = Setback.after(lost, now_s)
            for index, setback in self._setbacks.items():
                if setback.state is None:
                    self._setbacks[index] = replace(setback, state=self._seen(state), deviation=self._deviation)
            return None
        self._setbacks.pop(trial.before, None)
        if trial.is_return and not self._dwell.may_switch(now_s):
            # It was right to try the other one, since when the machine has changed: what is predicted decides again.
            self._trial, self._compared = None, None
            return None
        self._setbacks[self.current] = Setback.after(self._setbacks.get(self.current), now_s)
        self._goes_back = True
        self._predict(state)
        return trial.before

    def _scale_to(self, trial: Trial) -> None:
        """The plan in force was measured to be quicker in the nominal state: have predictions say so, too.

        What its runs showed of processors is as wrong as its prediction was.
        """
        known, before = self._plans[self.current], self._plans[trial.before]
        factor = self._pace_ns / trial.before_ns * before.nominal_ns / known.nominal_ns
        scaled = known.ready.scaled(factor)
        nominal_ns = max(1, scaled.predict_ns(NOMINAL, self.machine))
        self._pace = replace(self._pace, value=self._pace_ns / nominal_ns)
        self._plans[self.current] = _Known(scaled, nominal_ns=nominal_ns)
        self._estimator.restore(trial.estimates)

    def _predict(self, state: HardwareState) -> None:
        for known in self._plans:
            known.predicted_ns = known.ready.predict_ns(state, self.machine)

    @property
    def is_trying(self) -> bool:
        """Whether the plan in force is being compared with the one before, so that its runs are not to be disturbed."""
        return self._trial is not None

    @property
    def is_suspicious(self) -> bool:
        """Whether a processor that the plan in force uses may just have changed: its next runs should be seen soon."""
        seen = processors_of(self._plans[self.current].ready.plan) if self._plans else ()
        return any(self._estimator.estimate(name).is_suspected for name in seen)

    @property
    def is_nominal(self) -> bool:
        """Whether runs enough by the plan in force lie close together, and as low as they ever did."""
        if self._paced < LEAST_RUNS_BEFORE or self.is_suspicious or self._pace.noise > _NOMINAL_NOISE**2:
            return False
        state, seen = self.state, processors_of(self._plans[self.current].ready.plan)
        least = {name: self._estimator.least(name) for name in seen}
        return all(ns is not None and state.slowdown(name) <= _NOMINAL_WITHIN * ns for name, ns in least.items())

    def switched(self, index: int, now_s: float) -> Switch:
        """The plan ``index`` is in force now."""
        before, after = self._plans[self.current], self._plans[index]
        former, goes_back = self._trial, self._goes_back
        switch = Switch(
            at_s=now_s,
            before=before.ready.label,
            after=after.ready.label,
            before_ns=before.predicted_ns,
            after_ns=after.predicted_ns,
            state=self.state,
            measured_ns=(round(self._pace_ns), round(former.before_ns)) if former and goes_back else None,
            is_comparison=self._compares,
        )
        self.switches = [*self.switches, switch][-_LONGEST_HISTORY:]
        estimates = self._estimator.estimates
        if former is not None and goes_back:
            self._estimator.restore(former.estimates)
        self._trial = None
        if self._paced:
            self._trial = Trial(
                before=self.current,
                before_ns=self._pace_ns,
                before_variance=self._pace.variance,
                dwell=self._dwell,
                is_return=goes_back,
                is_comparison=self._compares,
                estimates=estimates,
            )
        if former is not None and goes_back and not former.is_return:
            self._dwell = former.dwell  # the plan is in force for as long as if it had not been left
        else:
            self._dwell = self._dwell.switched(now_s)
        self.current, self._fresh, self._compared, self._goes_back, self._compares = index, 0, None, False, False
        self._pace, self._paced = Slowdown(noise=self._pace.noise), 0  # runs differ as much by one plan as by the other
        return switch

    def probe_due(self, now_s: float) -> str | None:
        """A processor that another plan uses and the one in force does not, and that it is time to look at."""
        if self.is_trying or now_s < self._next_probe_s:
            return None
        hidden = self.hidden
        for processor in sorted(hidden):
            planned = self._probes.setdefault(processor, ProbePlan(next_s=now_s))
            if planned.is_due(now_s):
                return processor
        for processor in [name for name in self._probes if name not in hidden]:
            del self._probes[processor]
        return None

    @property
    def processors(self) -> frozenset[str]:
        """All that any plan uses."""
        each: Sequence[frozenset[str]] = [processors_of(known.ready.plan) for known in self._plans]
        return frozenset().union(*each)

    @property
    def hidden(self) -> frozenset[str]:
        """Processors that another plan uses and the one in force does not: its runs tell nothing of them."""
        if not self._plans:
            return frozenset()
        return self.processors - processors_of(self._plans[self.current].ready.plan)

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
        for index, setback in self._setbacks.items():
            if ratio is not None and setback.state is not None and processor not in setback.state.slowdowns:
                self._setbacks[index] = replace(setback, state=setback.state.slowed(processor, after))
        # One that is slow is not used for that reason, so that it matters when it is quick again.
        is_slow = after > (1 + CHANGED) * (self._estimator.least(processor) or 1.0)
        share = PROBE_SHARE_IF_SLOW if is_slow else PROBE_SHARE
        self._next_probe_s = max(self._next_probe_s, now_s - SAVED_S) + took_s / share
        planned = self._probes.get(processor, ProbePlan(next_s=now_s))
        self._probes[processor] = planned.probed(now_s, took_s=took_s, before=before, after=after, is_slow=is_slow)


_OTHER_WIDTH: Final = {CPU_NARROW: CPU_WIDE, CPU_WIDE: CPU_NARROW}


def _is_change(before: float, after: float) -> bool:
    return abs(after - before) > CHANGED * before


def _differs(state: HardwareState, other: HardwareState) -> bool:
    names: Mapping[str, None] = dict.fromkeys((*state.slowdowns, *other.slowdowns))
    return any(abs(state.slowdown(name) - other.slowdown(name)) > _NOTICEABLE * other.slowdown(name) for name in names)
