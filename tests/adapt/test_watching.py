"""What a controller makes of what it sees: runs side by side, other shapes, cold caches, and what it cannot see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType

import pytest

from parallax.adapt import CPU_NARROW, CPU_WIDE, NOMINAL, Controller, MeteredRun, ProbePlan, ReadyPlan
from parallax.events import Event
from parallax.schedule import Plan
from tests.adapt.test_controller import MACHINE, MS, cpu_plan, device_plan, ready, run_events, shared_plan
from tests.schedule.test_plan_json import make_plan, make_segment


def narrow_plan() -> Plan:
    """16 ms on one core."""
    return make_plan((make_segment(0, width=1, cost_ns=16 * MS),), cores=2, lanes=1)


def controller_of(*plans: ReadyPlan) -> Controller:
    controller = Controller(machine=MACHINE)
    for plan in plans:
        controller.add(plan)
    return controller


def observe_runs(controller: Controller, plan: Plan, took: Sequence[int], *, begin_ns: int, count: int = 4) -> int:
    """Runs one after the other; returns when the last of them ended, in ns."""
    for number in range(count):
        for event in run_events(plan, begin_ns + number + 1, begin_ns, list(took)):
            controller.observe(event)
        begin_ns += max(took)
    return begin_ns


@pytest.mark.parametrize(("factor", "seen"), [(8.0, 1.0), (32.0, 4.0), (0.8, 0.8), (3.0, 1.0)])
def test_runs_that_wait_for_each_other_do_not_make_a_processor_slow(factor: float, seen: float) -> None:
    run = MeteredRun(plan=device_plan(), duration_ns=1, segment_ns={0: round(8 * MS * factor)}, concurrent=8)
    assert run.ratios() == {"gpu": pytest.approx(seen)}


def test_runs_in_flight_together_are_counted() -> None:
    controller = controller_of(ready("device", device_plan()), ready("CPU", cpu_plan()))
    now = observe_runs(controller, device_plan(), [8 * MS], begin_ns=0)
    # Eight begin at once, and the device takes one after the other.
    begun: list[list[Event]] = [
        list(run_events(device_plan(), 1000 + number, now, [8 * MS * (number + 1)])) for number in range(8)
    ]
    for events in begun:
        controller.observe(events[0])
    for events in begun:
        for event in events[1:]:
            controller.observe(event)
    assert controller.state.slowdown("gpu") == pytest.approx(1.0, abs=0.1)
    assert controller.decide(10.0) is None


def test_runs_in_other_shapes_tell_nothing() -> None:
    planned = replace(ready("CPU", cpu_plan()), input_bytes=MappingProxyType({0: 100}))
    controller = controller_of(planned, ready("device", device_plan()))
    observe_runs(controller, cpu_plan(), [48 * MS], begin_ns=0)  # fed 0 bytes
    assert controller.runs == 0
    assert controller.state == NOMINAL


def test_first_runs_of_a_plan_tell_nothing_nor_what_began_before_they_ended() -> None:
    controller = controller_of(ready("device", device_plan()), ready("CPU", cpu_plan()))
    observe_runs(controller, device_plan(), [800 * MS], begin_ns=0, count=2)
    assert controller.state == NOMINAL
    late = list(run_events(device_plan(), 99, 800 * MS, [1600 * MS]))
    for event in late:
        controller.observe(event)
    assert controller.state == NOMINAL
    assert controller.runs == 3
    observe_runs(controller, device_plan(), [8 * MS], begin_ns=2400 * MS, count=1)
    assert controller.state.slowdown("gpu") == pytest.approx(1.0)


def test_after_a_change_what_is_hidden_is_taken_to_be_as_slow_and_looked_at_soon() -> None:
    controller = controller_of(ready("wide", cpu_plan()), ready("narrow", narrow_plan()))
    now = observe_runs(controller, cpu_plan(), [12 * MS], begin_ns=0, count=6)
    assert controller.probe_due(now / 1e9) == CPU_NARROW
    for _ in range(4):  # nothing changes, and pauses grow
        controller.probed(CPU_NARROW, 1.0, took_s=0.001, now_s=now / 1e9)
    assert controller.probe_due(now / 1e9 + 8) is None
    now = observe_runs(controller, cpu_plan(), [60 * MS], begin_ns=now, count=4)
    assert controller.state.slowdown(CPU_WIDE) == pytest.approx(5.0, rel=0.1)
    assert controller.state.slowdown(CPU_NARROW) == controller.state.slowdown(CPU_WIDE)
    assert controller.decide(now / 1e9) is None
    assert controller.probe_due(now / 1e9) == CPU_NARROW
    controller.probed(CPU_NARROW, 1.2, took_s=0.001, now_s=now / 1e9)
    assert controller.decide(now / 1e9) == 1


def test_a_hastened_probe_keeps_to_its_share_of_the_time() -> None:
    planned = ProbePlan(next_s=0.0, pause_s=32.0).probed(10.0, took_s=0.05, before=1.0, after=1.0)
    assert planned.next_s == 10.0 + 64
    hastened = planned.hastened(11.0)
    assert hastened.next_s == pytest.approx(10.0 + 5.0)
    assert planned.hastened(20.0).next_s == 20.0


def test_no_plan_is_better_than_the_first_in_the_nominal_state() -> None:
    first, other = ready("shared", shared_plan()), ready("device", device_plan())
    assert other.no_better_when_nominal(first, MACHINE) == other
    raised = first.no_better_when_nominal(other, MACHINE)
    assert (
        raised.predict_ns(NOMINAL, MACHINE) >= other.predict_ns(NOMINAL, MACHINE) > first.predict_ns(NOMINAL, MACHINE)
    )
    assert raised.plan == first.plan


def test_probes_of_all_processors_together_keep_to_their_share_of_the_time() -> None:
    controller = controller_of(
        ready("device", device_plan()), ready("wide", cpu_plan()), ready("narrow", narrow_plan())
    )
    now, spent, probed = 0.0, 0.0, set[str]()
    while now < 1000:
        due = controller.probe_due(now)
        if due is not None:
            now += 0.05
            spent += 0.05
            probed.add(due)
            controller.probed(due, 1.0 if int(now) % 20 else 3.0, took_s=0.05, now_s=now)  # it changes now and then
        now += 0.1
    assert probed == {CPU_NARROW, CPU_WIDE}
    assert 0 < spent <= 0.01 * (now + 10) + 0.05
