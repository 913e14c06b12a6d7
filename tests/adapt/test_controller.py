"""The controller in a world of its own: runs that take what a true state makes of them, and noise."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.adapt import (
    CPU_NARROW,
    CPU_WIDE,
    NOMINAL,
    Controller,
    HardwareState,
    ReadyPlan,
    predict_ns,
    processor_of,
)
from parallax.adapt._decision import SAVED_S
from parallax.events import Event, RunAdmitted, RunEnded, RunOutcome, SegmentEnded
from parallax.schedule import Plan
from parallax.schedule.placement import Machine
from tests.schedule.test_plan_json import make_plan, make_segment

MS = 1_000_000
PAUSE_NS = 50 * MS
MACHINE = Machine(cores=2)


def shared_plan() -> Plan:
    """6 ms on a device beside 5 ms on a core."""
    segments = (
        make_segment(0, backend="gpu", width=0, lane=2, cost_ns=6 * MS),
        make_segment(1, predecessors=(), inputs=("x",), width=1, cost_ns=5 * MS),
    )
    return make_plan(segments, cores=2, lanes=3)


def cpu_plan() -> Plan:
    """12 ms on both cores."""
    return make_plan((make_segment(0, width=2, cost_ns=12 * MS),), cores=2, lanes=1)


def device_plan(ms: int = 8) -> Plan:
    """So many milliseconds on the device."""
    return make_plan((make_segment(0, backend="gpu", width=0, lane=0, cost_ns=ms * MS),), cores=2, lanes=1)


def ready(label: str, plan: Plan) -> ReadyPlan:
    return ReadyPlan(label=label, plan=plan, cost_ns=tuple(segment.cost_ns for segment in plan.segments))


class World:
    """A machine in a true state, on which the plan in force runs."""

    def __init__(self, seed: int = 0, noise: float = 0.03) -> None:
        self.controller = Controller(machine=MACHINE)
        for label, plan in (("shared", shared_plan()), ("CPU", cpu_plan()), ("device", device_plan())):
            self.controller.add(ready(label, plan))
        self.now_ns = 0
        self.state = NOMINAL
        self.wrong: dict[str, float] = {}
        """Plan -> how many times as long as the state explains it takes in truth."""
        self.spread = 0.0
        """Standard deviation of the logarithm of what all segments of a run take together."""
        self.events: list[Event] = []
        self.probed_s = 0.0
        self._random = random.Random(seed)
        self._noise = noise
        self._numbers = itertools.count(1)

    @property
    def label(self) -> str:
        return self.controller.plans[self.controller.current].label

    def emit(self, event: Event) -> None:
        self.events.append(event)
        self.controller.observe(event)

    def run(self, probes: bool = True) -> None:
        """One run, and what the owner of the controller does after it."""
        plan = self.controller.plans[self.controller.current].plan
        number = next(self._numbers)
        took = []
        common = self.wrong.get(self.label, 1.0) * math.exp(self._random.gauss(0, self.spread))
        for segment in plan.segments:
            factor = common * self.factor(processor_of(segment))
            took.append(round(segment.cost_ns * factor))
        for event in run_events(plan, number, self.now_ns, took):
            self.emit(event)
        self.now_ns += max(took)
        now_s = self.now_ns / 1e9
        chosen = self.controller.decide(now_s)
        if chosen is not None:
            self.controller.switched(chosen, now_s)
        due = self.controller.probe_due(now_s) if probes else None
        if due is not None:
            took_s = 0.0005 * self.state.slowdown(due)
            self.now_ns += round(took_s * 1e9)
            self.probed_s += took_s
            self.controller.probed(due, self.state.slowdown(due), took_s=took_s, now_s=self.now_ns / 1e9)

    def factor(self, processor: str) -> float:
        """How many times as long as predicted a segment takes there, this time."""
        return self.state.slowdown(processor) * max(0.5, self._random.gauss(1, self._noise))

    def run_for(self, seconds: float) -> int:
        """Runs in so many seconds; returns how many. Two are watched at a time, then none for a twentieth of a second,
        as sessions do it."""
        end, runs = self.now_ns + seconds * 1e9, 0
        while self.now_ns < end:
            before_ns = self.now_ns
            self.run()
            runs += 1
            if runs % 2 == 0 and not self.controller.is_trying:
                unseen = round(PAUSE_NS / (self.now_ns - before_ns))
                self.now_ns += unseen * (self.now_ns - before_ns)
                runs += unseen
        return runs

    def best(self) -> str:
        plans = self.controller.plans
        return min(
            plans,
            key=lambda plan: predict_ns(plan.plan, self.state, cost_ns=plan.cost_ns) * self.wrong.get(plan.label, 1.0),
        ).label


def run_events(plan: Plan, run: int, begin_ns: int, took: list[int]) -> Iterator[Event]:
    head = {"run": run, "parent": None}
    yield RunAdmitted(
        sequence=0,
        time_ns=begin_ns,
        plan=plan,
        cores=2,
        lanes=plan.lanes,
        absent=(),
        budget_bytes=None,
        waited_ns=0,
        run=run,
        parent=None,
    )
    for segment, ns in zip(plan.segments, took, strict=True):
        yield SegmentEnded(
            sequence=0,
            time_ns=begin_ns + ns,
            segment=segment.index,
            name=segment.name,
            lane=0,
            width=segment.width,
            backend=segment.backend,
            waited_ns=0,
            begin_ns=begin_ns,
            end_ns=begin_ns + ns,
            input_bytes=0,
            output_bytes=0,
            failure=None,
            run=run,
            parent=None,
        )
    yield RunEnded(
        sequence=0, time_ns=begin_ns + max(took), outcome=RunOutcome.DONE, failure=None, run=head["run"], parent=None
    )


def state_of(factors: Mapping[str, float]) -> HardwareState:
    return HardwareState(slowdowns=factors)


SLOW_DEVICE = state_of({"gpu": 4.0})
BUSY_CPU = state_of({CPU_NARROW: 5.0, CPU_WIDE: 5.0})
BOTH = state_of({"gpu": 4.0, CPU_NARROW: 5.0, CPU_WIDE: 5.0})


@pytest.mark.parametrize("seed", range(5))
def test_it_keeps_the_plan_of_the_nominal_state_while_that_lasts(seed: int) -> None:
    world = World(seed)
    world.run_for(20)
    assert world.label == "shared"
    assert world.controller.switches == []


@pytest.mark.parametrize("state", [SLOW_DEVICE, BUSY_CPU, BOTH])
def test_it_goes_over_within_twenty_runs_and_comes_back(state: HardwareState) -> None:
    world = World()
    world.run_for(5)
    world.state = state
    for _ in range(20):
        world.run()
    assert world.label == world.best()
    before = len(world.controller.switches)
    world.run_for(30)
    assert world.label == world.best()
    assert len(world.controller.switches) == before, "one that has gone over stays"
    world.state = NOMINAL
    # The side that is not used is found to be quick again by a probe, whose pauses have doubled meanwhile.
    world.run_for(70)
    assert world.label == "shared"


def test_one_slow_run_is_no_reason() -> None:
    world = World()
    world.run_for(3)
    for _ in range(10):
        world.state = SLOW_DEVICE
        world.run()
        world.state = NOMINAL
        world.run_for(0.5)
    assert world.controller.switches == []


@settings(max_examples=25)  # half a minute of runs each
@given(seed=st.integers(0, 10**6), noise=st.floats(0.0, 0.2))
def test_in_a_steady_state_it_does_not_alternate(seed: int, noise: float) -> None:
    world = World(seed, noise)
    # Here two plans are equally quick: 6 ms and 5 ms times 1.3333 beside the device, 8 ms on the device.
    world.state = state_of({"gpu": 1.0, CPU_NARROW: 1.6, CPU_WIDE: 1.6})
    world.run_for(30)
    assert len(world.controller.switches) <= 30 / 5


def test_probes_cost_at_most_a_hundredth_and_a_processor_that_is_slow_is_probed_every_second() -> None:
    world = World()
    world.run_for(20)
    assert world.probed_s <= 0.01 * (20 + SAVED_S)
    world.state = SLOW_DEVICE
    before_s = world.probed_s
    world.run_for(20)
    assert world.probed_s - before_s <= 0.04 * (20 + SAVED_S)
    assert world.controller.hidden == {"gpu", CPU_NARROW}
    assert world.controller._probes["gpu"].pause_s == 1
    assert world.controller._probes[CPU_NARROW].pause_s > 1


def test_the_same_events_lead_to_the_same_decisions() -> None:
    world = World(seed=3)
    world.run_for(2)
    world.state = SLOW_DEVICE
    for _ in range(30):
        world.run(probes=False)
    assert world.controller.switches
    again = Controller(machine=MACHINE)
    for plan in world.controller.plans:
        again.add(plan)
    for event in world.events:
        again.observe(event)
        if isinstance(event, RunEnded):
            chosen = again.decide(event.time_ns / 1e9)
            if chosen is not None:
                again.switched(chosen, event.time_ns / 1e9)
    assert [(switch.before, switch.after) for switch in again.switches] == [
        (switch.before, switch.after) for switch in world.controller.switches
    ]


def test_a_switch_says_why() -> None:
    world = World()
    world.run_for(2)
    world.state = SLOW_DEVICE
    for _ in range(20):
        world.run()
    (switch,) = world.controller.switches
    assert switch.before == "shared"
    assert switch.after == "CPU"
    assert re.fullmatch(r"12\.\d+ ms predicted, \d+\.\d+ ms by shared \(gpu at [34]\S* times .*\)", switch.reason)


def test_a_failed_probe_says_nothing_and_is_not_repeated_at_once() -> None:
    world = World()
    world.run_for(1)
    before = world.controller.state.slowdown(CPU_WIDE)
    world.controller.probed(CPU_WIDE, None, took_s=0.1, now_s=world.now_ns / 1e9)
    assert world.controller.state.slowdown(CPU_WIDE) == before
    assert world.controller.probe_due(world.now_ns / 1e9 + 9) is None
    assert world.controller.probe_due(world.now_ns / 1e9 + 11) == CPU_WIDE


def test_with_one_plan_there_is_nothing_to_decide() -> None:
    controller = Controller(machine=MACHINE)
    controller.add(ready("shared", shared_plan()))
    for event in run_events(shared_plan(), 1, 0, [60 * MS, 5 * MS]):
        controller.observe(event)
    assert controller.decide(10.0) is None
    assert controller.hidden == frozenset()
    assert controller.probe_due(10.0) is None
