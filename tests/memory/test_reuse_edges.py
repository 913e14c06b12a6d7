"""Bytes handed on between branches: what the edges promise holds in every execution."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.errors import InternalError
from parallax.memory import (
    find_lifetimes,
    find_reuse_edges,
    find_serialisation_edges,
    peak_of_schedule,
    peak_of_sequence,
    plan_arena,
    verify_arena_plan,
)
from parallax.schedule import Plan, verify_plan
from tests.memory._plans import alive_tensors, moments, plan_of, plans, sizes_of


def padded(sizes, lifetimes):
    return [-(-(sizes[name] or 0) // 64) * 64 for name in lifetimes.tensors]


@st.composite
def timelines(draw: st.DrawFn, plan: Plan) -> list[tuple[int, int]]:
    """(start, end) of each segment in some run on any number of lanes, idle times and empty segments included."""
    spans: list[tuple[int, int]] = []
    for segment in plan.segments:
        ready = max((spans[other][1] for other in segment.predecessors), default=0)
        start = ready + draw(st.integers(0, 4))
        spans.append((start, start + draw(st.integers(0, 5))))
    return spans


def by_start(spans):
    return sorted(range(len(spans)), key=lambda segment: (*spans[segment], segment))


def with_edges(plan, edges, order):
    """The plan with more predecessors, its segments in that order."""
    place = {segment: position for position, segment in enumerate(order)}
    before = [set(segment.predecessors) for segment in plan.segments]
    for first, second in edges:
        before[second].add(first)
    made = replace(
        plan,
        segments=tuple(
            replace(
                plan.segments[old],
                index=index,
                predecessors=tuple(sorted(place[other] for other in before[old])),
            )
            for index, old in enumerate(order)
        ),
    )
    verify_plan(made)
    return made


def alive_in(lifetimes, sizes, spans):
    """The most bytes that the timeline itself holds."""
    end = [
        max(spans[user][1] for user in users) if not kept else 1 << 60
        for users, kept in zip(lifetimes.uses, lifetimes.to_the_end, strict=True)
    ]
    begin = [spans[segment][0] for segment in lifetimes.producers]
    return max(
        (
            sum(size for size, low, high in zip(sizes, begin, end, strict=True) if low <= moment < high)
            for moment in begin
        ),
        default=0,
    )


@given(case=plans(max_segments=7, lanes=(2, 3)), data=st.data())
@settings(max_examples=150, deadline=None)
def test_with_its_edges_all_tensors_fit_in_every_execution(case, data):
    plan, outputs = case
    sizes = sizes_of(plan, data.draw)
    lifetimes = find_lifetimes(plan, outputs)
    values = padded(sizes, lifetimes)
    spans = data.draw(timelines(plan))
    order = by_start(spans)
    roomy = plan_arena(lifetimes, values).arena_bytes
    limit = data.draw(st.integers(alive_in(lifetimes, values, spans), max(roomy, 1)))
    found = find_reuse_edges(
        lifetimes, values, spans, [s.predecessors for s in plan.segments], order=order, limit_bytes=limit
    )
    if found is None:
        assert limit < roomy, "the arena as it is would have fitted"
        return
    assert found.arena_bytes <= limit
    place = {segment: position for position, segment in enumerate(order)}
    for first, then in found.edges:
        assert place[first] < place[then]
        assert spans[first][1] <= spans[then][0], "in the timeline nothing waits for an edge"
    made = with_edges(plan, found.edges, order)
    for started, done in moments(made):
        alive = alive_tensors(made, outputs, started, done)
        assert sum(-(-(sizes[name] or 0) // 64) * 64 for name in alive) <= limit
    after = find_lifetimes(made, outputs)
    arena = plan_arena(after, [sizes[name] for name in after.tensors])
    assert arena.lower_bound_bytes <= limit
    verify_arena_plan(arena, made, sizes=sizes, model_outputs=outputs)


@given(case=plans(max_segments=12, lanes=(2, 3)), data=st.data())
@settings(deadline=None)
def test_no_edge_follows_from_the_others(case, data):
    plan, outputs = case
    lifetimes = find_lifetimes(plan, outputs)
    values = padded(sizes_of(plan, data.draw), lifetimes)
    spans = data.draw(timelines(plan))
    order = by_start(spans)
    limit = alive_in(lifetimes, values, spans) + data.draw(st.sampled_from([0, 64, 1024]))
    found = find_reuse_edges(
        lifetimes, values, spans, [s.predecessors for s in plan.segments], order=order, limit_bytes=limit
    )
    if found is None:
        return
    for edge in found.edges:
        rest = with_edges(plan, [other for other in found.edges if other != edge], order)
        index = {old: new for new, old in enumerate(order)}
        reached = {index[edge[0]]}
        for segment in rest.segments:
            if reached.intersection(segment.predecessors):
                reached.add(segment.index)
        assert index[edge[1]] not in reached


@given(case=plans(max_segments=12, lanes=(2, 3)), data=st.data())
def test_where_everything_fits_there_are_no_edges(case, data):
    plan, outputs = case
    lifetimes = find_lifetimes(plan, outputs)
    values = padded(sizes_of(plan, data.draw), lifetimes)
    spans = data.draw(timelines(plan))
    found = find_reuse_edges(
        lifetimes,
        values,
        spans,
        [s.predecessors for s in plan.segments],
        order=by_start(spans),
        limit_bytes=sum(values),
    )
    assert found is not None
    assert found.edges == ()


def test_a_branch_that_runs_later_takes_over_the_bytes_of_one_that_is_over():
    #  x -> a0 -> a1 ; x -> b0 -> b1 ; both small ends are read at last
    rows = [
        (("x",), ("a0",)),
        (("a0",), ("a1",)),
        (("x",), ("b0",)),
        (("b0",), ("b1",)),
        (("a1", "b1"), ("y",)),
    ]
    plan = plan_of(rows)
    lifetimes = find_lifetimes(plan, ["y"], place_outputs=False)
    sizes = [64 * {"a0": 100, "b0": 100}.get(name, 1) for name in lifetimes.tensors]
    spans = [(0, 10), (10, 20), (30, 40), (40, 50), (50, 60)]
    predecessors = [segment.predecessors for segment in plan.segments]
    found = find_reuse_edges(lifetimes, sizes, spans, predecessors, order=range(5), limit_bytes=64 * 102)
    assert found is not None
    assert found.edges == ((1, 2),), "b0 waits for what reads a0"
    assert found.arena_bytes == 64 * 102
    at_once = [(0, 10), (10, 20), (0, 10), (10, 20), (20, 30)]
    assert (
        find_reuse_edges(lifetimes, sizes, at_once, predecessors, order=[0, 2, 1, 3, 4], limit_bytes=64 * 102) is None
    )


def test_a_plan_that_passes_nothing_on_needs_nothing():
    plan = plan_of([(("x",), ("y",)), (("x",), ("z",))])
    lifetimes = find_lifetimes(plan, ["y", "z"], place_outputs=False)
    found = find_reuse_edges(lifetimes, [], [(0, 1), (0, 1)], [(), ()], order=[0, 1], limit_bytes=0)
    assert found is not None
    assert (found.edges, found.arena_bytes) == ((), 0)


@given(case=plans(max_segments=9, lanes=(2, 3, 4)), data=st.data())
@settings(max_examples=150, deadline=None)
def test_segments_kept_apart_never_hold_more_together_in_any_execution(case, data):
    plan, _ = case
    if data.draw(st.booleans(), label="with a device's queue"):
        queued = data.draw(st.sets(st.integers(0, len(plan.segments) - 1)))
        segments = tuple(replace(s, width=0, lane=0) if s.index in queued else s for s in plan.segments)
        plan = replace(plan, segments=segments)
    peaks = [data.draw(st.integers(0, 9)) for _ in plan.segments]
    spans = data.draw(timelines(plan))
    order = by_start(spans)
    plan = with_edges(plan, (), order)
    peaks = [peaks[old] for old in order]
    spans = [spans[old] for old in order]
    limit = data.draw(st.integers(max(peaks), max(peaks) + 10))
    edges = find_serialisation_edges(plan, peaks, spans, limit_bytes=limit)
    if edges is None:
        return
    for before, after in edges:
        assert before < after
        assert spans[before][1] <= spans[after][0]
    made = with_edges(plan, edges, range(len(plan.segments)))
    assert peak_of_schedule(made, peaks, arena_bytes=0) <= limit
    for started, done in moments(made):
        running = started - done
        widths = [made.segments[index].width for index in running]
        if len(running) <= made.lanes and sum(widths) <= made.cores and widths.count(0) <= 1:
            assert sum(peaks[index] for index in running) <= limit


def test_what_runs_at_once_in_the_timeline_cannot_be_kept_apart():
    plan = plan_of([(("x",), ("a",)), (("x",), ("b",)), (("a", "b"), ("c",))])
    assert find_serialisation_edges(plan, [5, 5, 0], [(0, 4), (2, 6), (6, 7)], limit_bytes=9) is None
    assert find_serialisation_edges(plan, [5, 5, 0], [(0, 2), (2, 6), (6, 7)], limit_bytes=9) == ((0, 1),)
    assert find_serialisation_edges(plan, [5, 5, 0], [(0, 4), (2, 6), (6, 7)], limit_bytes=10) == ()


@given(case=plans(max_segments=10), data=st.data())
def test_the_peak_of_a_sequence_is_what_is_alive_at_its_worst_moment(case, data):
    plan, outputs = case
    sizes = sizes_of(plan, data.draw)
    lifetimes = find_lifetimes(plan, outputs)
    remaining = {segment.index for segment in plan.segments}
    order: list[int] = []
    worst = 0
    while remaining:
        ready = sorted(index for index in remaining if not remaining.intersection(plan.segments[index].predecessors))
        order.append(data.draw(st.sampled_from(ready)))
        remaining.remove(order[-1])
        alive = alive_tensors(plan, outputs, order, order[:-1])
        worst = max(worst, sum(-(-(sizes[name] or 0) // 64) * 64 for name in alive))
    assert peak_of_sequence(lifetimes, [sizes[name] for name in lifetimes.tensors], order) == worst
    one_by_one = find_lifetimes(plan, outputs, order=order)
    assert one_by_one.order == tuple(order)
    arena = plan_arena(one_by_one, [sizes[name] for name in one_by_one.tensors])
    assert arena.lower_bound_bytes == worst
    verify_arena_plan(arena, plan, sizes=sizes, model_outputs=outputs, order=order)


def test_an_order_that_is_not_topological_is_refused():
    plan = plan_of([(("x",), ("a",)), (("a",), ("b",))])
    with pytest.raises(InternalError, match="which it does not depend on"):
        find_lifetimes(plan, ["b"], order=[1, 0])
