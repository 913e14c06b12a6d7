"""A timeline within a limit: possible by the dispatcher's rules, and never holding more."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.memory import Lifetimes, find_lifetimes, peak_of_sequence
from parallax.memory._lifetimes import dispatch_order
from parallax.schedule import Plan, simulate_plan, verify_plan
from parallax.schedule._timeline import timeline_within
from tests.memory._plans import plan_of, plans, sizes_of

OVERHEAD, HANDOVER = 3, 7
NO_LIMIT = 1 << 60


@st.composite
def problems(draw: st.DrawFn) -> tuple[Plan, Lifetimes, list[int]]:
    """A plan with costs and fixed lanes, its lifetimes and its sizes."""
    plan, outputs = draw(plans(max_segments=12))
    segments = tuple(
        replace(
            segment,
            cost_ns=draw(st.integers(0, 50)),
            lane=draw(st.none() | st.none() | st.integers(0, plan.lanes - 1)),
        )
        for segment in plan.segments
    )
    if plan.lanes > 1 and draw(st.booleans()):
        # The last lane is a device's queue.
        segments = tuple(replace(s, width=0) if s.lane == plan.lanes - 1 else s for s in segments)
    plan = replace(plan, segments=segments)
    verify_plan(plan)
    lifetimes = find_lifetimes(plan, outputs)
    drawn = sizes_of(plan, draw, unknown=False)
    return plan, lifetimes, [-(-(drawn[name] or 0) // 64) * 64 for name in lifetimes.tensors]


def timeline(plan: Plan, lifetimes: Lifetimes, sizes: list[int], **settings: object) -> list[tuple[int, int]] | None:
    given_ones: dict[str, object] = {
        "limit_bytes": NO_LIMIT,
        "interior_bytes": [0] * len(plan.segments),
        "interior_limit_bytes": NO_LIMIT,
        "order": dispatch_order(plan),
        "handover_ns": HANDOVER,
        "segment_overhead_ns": OVERHEAD,
        **settings,
    }
    return timeline_within(plan, lifetimes, sizes, **given_ones)  # type: ignore[arg-type]


@given(problems())
def test_without_limits_it_is_the_simulated_run(problem: tuple[Plan, Lifetimes, list[int]]) -> None:
    plan, lifetimes, sizes = problem
    # Among equals the one that leaves fewer bytes behind goes first; that is not the dispatcher's to know.
    segments = tuple(replace(segment, priority=-segment.index) for segment in plan.segments)
    plan = replace(plan, segments=segments)
    run = simulate_plan(plan, handover_ns=HANDOVER, segment_overhead_ns=OVERHEAD)
    spans = timeline(plan, lifetimes, sizes)
    assert spans is not None
    assert {span.segment: (span.start_ns, span.end_ns) for span in run.timeline} == dict(enumerate(spans))


@given(problems(), st.data())
@settings(max_examples=200)
def test_it_exists_wherever_the_order_fits_and_holds_no_more_than_the_limit(
    problem: tuple[Plan, Lifetimes, list[int]], data: st.DataObject
) -> None:
    plan, lifetimes, sizes = problem
    order = data.draw(st.sampled_from([dispatch_order(plan), tuple(range(len(plan.segments)))]))
    least = peak_of_sequence(lifetimes, sizes, order)
    interior = [data.draw(st.integers(0, 9)) for _ in plan.segments]
    together = data.draw(st.integers(max(interior), 30))
    limit = least + data.draw(st.sampled_from([0, 64, 1024, 100_000]))
    spans = timeline(
        plan,
        lifetimes,
        sizes,
        limit_bytes=limit,
        order=order,
        interior_bytes=interior,
        interior_limit_bytes=together,
    )
    assert spans is not None
    for segment in plan.segments:
        start, end = spans[segment.index]
        assert end - start == segment.cost_ns
        assert all(start >= spans[other][1] + OVERHEAD for other in segment.predecessors)
    begin = [spans[segment][0] for segment in lifetimes.producers]
    over = [
        NO_LIMIT if kept else max(spans[user][1] for user in users)
        for users, kept in zip(lifetimes.uses, lifetimes.to_the_end, strict=True)
    ]
    for moment, _ in spans:
        alive = [size for size, low, high in zip(sizes, begin, over, strict=True) if low <= moment < high]
        assert sum(alive) <= limit
        running = [index for index, (start, end) in enumerate(spans) if start <= moment < end]
        assert len(running) <= plan.lanes
        assert len(running) <= 1 or sum(plan.segments[index].width for index in running) <= plan.cores
        assert len(running) <= 1 or sum(interior[index] for index in running) <= together
        fixed = [plan.segments[index].lane for index in running if plan.segments[index].lane is not None]
        assert len(set(fixed)) == len(fixed)


@given(problems())
def test_there_is_none_where_nothing_could_hold_the_largest_segment(problem: tuple[Plan, Lifetimes, list[int]]) -> None:
    plan, lifetimes, sizes = problem
    made = [0] * len(plan.segments)
    for tensor, producer in enumerate(lifetimes.producers):
        made[producer] += sizes[tensor]
    if max(made):
        assert timeline(plan, lifetimes, sizes, limit_bytes=max(made) - 1) is None


def test_what_would_pile_up_waits_for_what_makes_room() -> None:
    # Two producers of 10, each read by a segment that leaves 1 behind: only one of the 10s may be there.
    rows = [
        (("x",), ("a",)),
        (("x",), ("b",)),
        (("a",), ("c",)),
        (("b",), ("d",)),
        (("c", "d"), ("y",)),
    ]
    plan = plan_of(rows, priorities=[5, 5, 1, 1, 0])
    lifetimes = find_lifetimes(plan, ["y"], place_outputs=False)
    sizes = [640, 640, 64, 64]
    spans = timeline(plan, lifetimes, sizes, limit_bytes=768, order=(0, 2, 1, 3, 4), handover_ns=0)
    assert spans is not None
    assert spans[1][0] >= spans[2][1], "b comes to be when a has been read"
    free = timeline(plan, lifetimes, sizes, order=(0, 2, 1, 3, 4), handover_ns=0)
    assert free is not None
    assert free[0][0] == free[1][0]


def test_a_start_after_which_the_rest_could_not_run_is_not_made() -> None:
    # Both a and b fit beside each other, but then neither c nor d, which free them.
    rows = [(("x",), ("a",)), (("x",), ("b",)), (("a",), ("c",)), (("b",), ("d",)), (("c", "d"), ("y",))]
    plan = plan_of(rows, priorities=[5, 5, 1, 1, 0])
    lifetimes = find_lifetimes(plan, ["y"], place_outputs=False)
    spans = timeline(plan, lifetimes, [640] * 4, limit_bytes=3 * 640 - 64, order=(0, 2, 1, 3, 4))
    assert spans is None, "c, d and b or a are alive at once at some moment of every run"
    spans = timeline(plan, lifetimes, [640, 640, 320, 320], limit_bytes=1344, order=(0, 2, 1, 3, 4))
    assert spans is not None
    assert spans[1][0] >= spans[2][1]
