"""Arenas and budgets while the real dispatcher runs plans, its segments ending in any order."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.memory import Effort, find_lifetimes, peak_of_schedule, plan_arena
from parallax.memory._budget import admission_budget, least_budget
from parallax.memory._lifetimes import fixed_order
from parallax.schedule import Dispatcher, DispatchTable
from tests.memory._plans import alive_tensors, plans, sizes_of, with_peaks


def drive(plan, data, *, cores, lanes, budget=None):
    """Run the plan; which running segment ends next is drawn. Yields (started, done, running) after each event."""
    dispatcher = Dispatcher(DispatchTable.from_plan(plan), cores=cores, lanes=lanes, budget_bytes=budget, strict=True)
    started: list[int] = [start.segment for start in dispatcher.start()]
    done: list[int] = []
    yield started, done, dispatcher.running
    while not dispatcher.finished:
        assert dispatcher.running, "a run that is not over has something running"
        segment = data.draw(st.sampled_from(sorted(dispatcher.running)))
        done.append(segment)
        # The moment between its end and the starts that follow is a moment, too.
        following = dispatcher.segment_done(segment)
        yield started, done, tuple(other for other in started if other not in done)
        started += [start.segment for start in following]
        yield started, done, dispatcher.running
    assert sorted(done) == list(range(len(plan.segments)))


@given(case=plans(max_segments=12), data=st.data())
@settings(max_examples=150)
def test_tensors_alive_at_once_never_share_bytes(case, data):
    plan, outputs = case
    sizes = sizes_of(plan, data.draw)
    lifetimes = find_lifetimes(plan, outputs)
    arena = plan_arena(
        lifetimes, [sizes[name] for name in lifetimes.tensors], effort=data.draw(st.sampled_from(Effort))
    )
    slots = {slot.tensor: slot for slot in arena.slots if slot.size_bytes}
    # A lease may grant fewer cores and lanes than planned; a plan of one lane is never given more.
    lanes = data.draw(st.integers(1, plan.lanes))
    cores = data.draw(st.integers(1, plan.cores))
    for started, done, _ in drive(plan, data, cores=cores, lanes=lanes):
        alive = sorted(
            (slots[name] for name in alive_tensors(plan, outputs, started, done) if name in slots),
            key=lambda slot: slot.offset,
        )
        for low, high in pairwise(alive):
            assert low.offset + low.size_bytes <= high.offset, (low, high)
        assert not alive or alive[-1].offset + alive[-1].size_bytes <= arena.arena_bytes


@given(case=plans(max_segments=12), data=st.data())
@settings(max_examples=150)
def test_no_moment_of_a_run_exceeds_the_bound_on_its_peak(case, data):
    plan, _ = case
    peaks = [data.draw(st.integers(0, 100)) for _ in plan.segments]
    budget = data.draw(st.none() | st.integers(0, 250))
    plan = with_peaks(plan, peaks)
    bound = peak_of_schedule(plan, peaks, arena_bytes=1000, budget_bytes=budget)
    for _, _, running in drive(plan, data, cores=plan.cores, lanes=plan.lanes, budget=budget):
        assert 1000 + sum(peaks[segment] for segment in running) <= bound


@given(case=plans(max_segments=12), data=st.data())
@settings(max_examples=150)
def test_within_any_budget_that_is_not_refused_runs_end_and_never_hold_more(case, data):
    plan, _ = case
    peaks = [data.draw(st.integers(0, 100)) for _ in plan.segments]
    arena = data.draw(st.integers(0, 200))
    margin = data.draw(st.sampled_from([0.0, 0.1, 0.4]))
    least = least_budget(peaks, arena_bytes=arena, margin=margin)
    budget = least + data.draw(st.integers(0, 200))
    running_budget = admission_budget(budget, peaks, arena_bytes=arena, margin=margin)
    plan = with_peaks(plan, peaks)
    for _, _, running in drive(plan, data, cores=plan.cores, lanes=plan.lanes, budget=running_budget):
        assert arena + sum(peaks[segment] for segment in running) <= budget * (1 - margin)


@given(case=plans(max_segments=12, lanes=(1,)), data=st.data())
def test_a_fixed_order_makes_arenas_no_larger(case, data):
    plan, outputs = case
    sizes = sizes_of(plan, data.draw, unknown=False)
    lifetimes = find_lifetimes(plan, outputs)
    if fixed_order(plan) is None:
        assert lifetimes.order is None
        return
    values = [sizes[name] for name in lifetimes.tensors]
    free = find_lifetimes(replace(plan, lanes=2), outputs)
    assert plan_arena(lifetimes, values).lower_bound_bytes <= plan_arena(free, values).lower_bound_bytes
