"""When plans are switched, and when a processor that is not used is looked at."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from parallax.adapt import Dwell, ProbePlan, better_plan

MS = 1_000_000


def test_a_gain_below_a_twentieth_is_none() -> None:
    assert better_plan(0, [100 * MS, 96 * MS], switch_ns=[0, 0]) == 0
    assert better_plan(0, [100 * MS, 94 * MS], switch_ns=[0, 0]) == 1


def test_a_switch_must_pay_within_a_second() -> None:
    # Ten runs a second save 10 ms each.
    assert better_plan(0, [100 * MS, 90 * MS], switch_ns=[0, 110 * MS]) == 0
    assert better_plan(0, [100 * MS, 90 * MS], switch_ns=[0, 90 * MS]) == 1


def test_the_plan_that_saves_most_is_taken_not_the_quickest() -> None:
    assert better_plan(0, [100 * MS, 80 * MS, 70 * MS], switch_ns=[0, 0, 200 * MS]) == 1


@given(
    times=st.lists(st.integers(0, 10**10), min_size=1, max_size=4),
    switch=st.lists(st.integers(0, 10**10), min_size=4, max_size=4),
    current=st.integers(0, 3),
)
def test_it_never_goes_to_a_slower_plan(times: list[int], switch: list[int], current: int) -> None:
    current %= len(times)
    chosen = better_plan(current, times, switch_ns=switch[: len(times)])
    assert chosen == current or times[chosen] < times[current]


def test_plans_that_alternate_dwell_longer_each_time() -> None:
    dwell, now, pauses = Dwell(), 0.0, []
    for _ in range(8):
        begin = now
        while not dwell.may_switch(now):
            now += 0.25
        pauses.append(now - begin)
        dwell = dwell.switched(now)
    assert pauses[0] == 0, "the first switch waits for nothing"
    assert pauses[1:6] == [1, 2, 4, 8, 16]
    assert dwell.least_s == 60
    # In five seconds of alternating, no more than one switch after the first few.
    settled = dwell.switched(now + 1000)
    assert settled.least_s == 1


@given(st.lists(st.tuples(st.floats(0, 0.5), st.booleans()), min_size=1, max_size=40))
def test_probes_take_at_most_a_hundredth_of_the_time(probes: list[tuple[float, bool]]) -> None:
    plan, now, spent = ProbePlan(next_s=0.0), 0.0, 0.0
    last = 0.0
    for took, changes in probes:
        now = max(now, plan.next_s)
        assert plan.is_due(now)
        now += took
        spent += took
        last = took
        plan = plan.probed(now, took_s=took, before=1.0, after=2.0 if changes else 1.0)
        assert not plan.is_due(now)
    # All but the last have been paid for by the pause that followed.
    assert spent - last <= 0.01 * now + 1e-9


def test_pauses_double_while_nothing_changes() -> None:
    plan, pauses = ProbePlan(next_s=0.0), []
    for _ in range(9):
        now = plan.next_s
        plan = plan.probed(now, took_s=0.0, before=1.0, after=1.1)
        pauses.append(plan.next_s - now)
    assert pauses == [2, 4, 8, 16, 32, 64, 64, 64, 64]
    changed = plan.probed(plan.next_s, took_s=0.0, before=4.0, after=1.0)
    assert changed.pause_s == 1
