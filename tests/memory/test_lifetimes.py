"""When tensors are alive, compared with every moment of every execution."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.errors import InternalError
from parallax.memory import find_lifetimes
from parallax.memory._lifetimes import dispatch_order, fixed_order
from parallax.schedule import Dispatcher, DispatchTable
from tests.memory._plans import alive_tensors, chain, moments, plan_of, plans


def conflicting(lifetimes):
    """The pairs of names that conflict."""
    return {
        frozenset((lifetimes.tensors[i], lifetimes.tensors[j]))
        for i, j in combinations(range(len(lifetimes)), 2)
        if lifetimes.conflicts[i][j]
    }


def executed_order(plan, **capacities):
    """What the dispatcher runs, one segment at a time."""
    dispatcher = Dispatcher(DispatchTable.from_plan(plan), lanes=1, **capacities)
    order = []
    starts = dispatcher.start()
    while starts:
        (start,) = starts
        order.append(start.segment)
        starts = dispatcher.segment_done(start.segment)
    assert dispatcher.finished
    return tuple(order)


@given(plans(max_segments=6, lanes=(2,)))
@settings(max_examples=150)
def test_tensors_conflict_iff_some_execution_has_both_alive(case):
    plan, outputs = case
    together = set()
    for started, done in moments(plan):
        together |= {frozenset(pair) for pair in combinations(alive_tensors(plan, outputs, started, done), 2)}
    assert conflicting(find_lifetimes(plan, outputs)) == together


@given(plans(max_segments=8, lanes=(1,)))
def test_with_a_fixed_order_tensors_conflict_iff_that_execution_has_both_alive(case):
    plan, outputs = case
    lifetimes = find_lifetimes(plan, outputs)
    if lifetimes.order is None:
        lifetimes = find_lifetimes(replace(plan, backfill=False), outputs)
    together = set()
    for position, segment in enumerate(lifetimes.order):
        alive = alive_tensors(plan, outputs, (*lifetimes.order[:position], segment), lifetimes.order[:position])
        together |= {frozenset(pair) for pair in combinations(alive, 2)}
    assert conflicting(lifetimes) == together


@given(plans(max_segments=8, lanes=(1,)), st.integers(1, 5), st.none() | st.integers(0, 20), st.data())
@settings(max_examples=300)
def test_a_fixed_order_is_what_the_dispatcher_runs_whatever_it_is_given(case, cores, budget, data):
    plan, _ = case
    if data.draw(st.booleans()):
        peaks = [data.draw(st.integers(0, 9)) for _ in plan.segments]
        plan = replace(
            plan, segments=tuple(replace(s, peak_bytes=p) for s, p in zip(plan.segments, peaks, strict=True))
        )
    order = fixed_order(plan)
    if order is not None:
        assert executed_order(plan, cores=cores, budget_bytes=budget) == order


def test_an_order_that_capacities_can_change_is_not_fixed():
    rows = [(("x",), ("a",)), (("x",), ("b",)), (("a", "b"), ("c",))]
    plan = plan_of(rows, lanes=1, widths=[2, 1, 1], priorities=[1, 0, 0])
    assert executed_order(plan, cores=2) != executed_order(plan, cores=1)
    assert fixed_order(plan) is None
    assert fixed_order(replace(plan, backfill=False)) == (0, 1, 2)
    assert fixed_order(replace(plan, lanes=2, backfill=False)) is None


@given(plans(lanes=(1,)))
def test_the_dispatch_order_is_what_one_lane_runs_without_limits(case):
    plan, _ = case
    assert executed_order(plan, cores=plan.cores) == dispatch_order(plan)


@given(plans())
def test_tensors_that_do_not_conflict_are_ordered_and_order_is_transitive(case):
    plan, outputs = case
    lifetimes = find_lifetimes(plan, outputs)
    count = range(len(lifetimes))
    begun = [tensor for tensor, sign in lifetimes.sweeps[0] if sign > 0]
    assert sorted(begun) == list(count)
    place = {tensor: position for position, tensor in enumerate(begun)}
    before = {(i, j) for i in count for j in count if place[i] < place[j] and not lifetimes.conflicts[i][j]}
    for i, j in before:
        for k in count:
            assert (j, k) not in before or (i, k) in before
    for i in count:
        assert not lifetimes.conflicts[i][i]
        assert all(lifetimes.conflicts[i][j] == lifetimes.conflicts[j][i] for j in count)


@given(plans())
def test_what_a_sweep_holds_at_one_moment_conflicts_pairwise(case):
    plan, outputs = case
    lifetimes = find_lifetimes(plan, outputs)
    for sweep in lifetimes.sweeps:
        alive = set()
        for tensor, sign in sweep:
            assert (tensor in alive) == (sign < 0)
            (alive.add if sign > 0 else alive.remove)(tensor)
            assert all(lifetimes.conflicts[i][j] for i, j in combinations(alive, 2))
        assert {lifetimes.tensors[tensor] for tensor in alive} == set(outputs)


def test_in_a_chain_only_neighbours_conflict():
    lifetimes = find_lifetimes(chain(5), ["t4"])
    assert conflicting(lifetimes) == {frozenset((f"t{i}", f"t{i + 1}")) for i in range(4)}


def test_outputs_of_the_model_live_to_the_end_and_can_be_left_out():
    plan = plan_of([(("x",), ("a", "b")), (("a",), ("c",)), (("c",), ("d",))])
    assert frozenset(("b", "d")) in conflicting(find_lifetimes(plan, ["b", "d"]))
    assert frozenset(("b", "d")) not in conflicting(find_lifetimes(plan, ["d"]))
    assert find_lifetimes(plan, ["b", "d"], place_outputs=False).tensors == ("a", "c")


def test_a_tensor_read_in_another_branch_lives_until_that_reader_is_done():
    rows = [(("x",), ("a",)), (("a",), ("b",)), (("a",), ("c",)), (("b",), ("d",)), (("c", "d"), ("e",))]
    pairs = conflicting(find_lifetimes(plan_of(rows), ["e"]))
    assert frozenset(("a", "d")) in pairs, "segment 2 may still read a while segment 3 makes d"
    assert frozenset(("a", "e")) not in pairs


def test_a_plan_that_reads_before_it_writes_is_refused():
    plan = chain(3)
    first, second, third = plan.segments
    unordered = replace(plan, segments=(first, second, replace(third, predecessors=(0,))))
    with pytest.raises(InternalError, match="'t1' of segment 1, which it does not depend on"):
        find_lifetimes(unordered, ["t2"])
    backward = replace(plan, segments=(replace(first, inputs=("t2",)), second, third))
    with pytest.raises(InternalError, match="reads 't2' before segment 2 made it"):
        find_lifetimes(backward, ["t2"])


def test_a_plan_without_boundaries_has_no_lifetimes():
    assert len(find_lifetimes(plan_of([(("x",), ())]), [])) == 0
    assert len(find_lifetimes(plan_of([(("x",), ("y",))]), ["y"], place_outputs=False)) == 0
