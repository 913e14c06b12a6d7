"""Plans that wait here and there to save memory: still the same plans, smaller, hardly slower, never stuck."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.graph import OpGraph
from parallax.memory import Effort, MemoryModel, verify_arena_plan
from parallax.memory._report import report_memory
from parallax.schedule import (
    Dispatcher,
    DispatchTable,
    Plan,
    serialise_for_memory,
    simulate_plan,
    verify_plan,
)
from tests.memory._plans import alive_tensors, plan_of, plans
from tests.partition._graphs import op_graph

OVERHEAD, HANDOVER = 3, 7
TIMES = {"handover_ns": HANDOVER, "segment_overhead_ns": OVERHEAD}
Elements = dict[str, int]


def graph_of(plan: Plan, elements: Elements, outputs: tuple[str, ...]) -> OpGraph:
    """One operator per segment, and a tensor inside it that only it needs where ``elements`` has its number."""
    rows = []
    for segment in plan.segments:
        inside = f"inside{segment.index}"
        reads, writes = list(segment.inputs), list(segment.outputs)
        rows.append((f"n{segment.index}", "Conv", reads, [*writes, inside]))
    return op_graph(rows, outputs=outputs, shapes={"x": (1,), **{name: (count,) for name, count in elements.items()}})


@st.composite
def problems(draw: st.DrawFn) -> tuple[Plan, OpGraph, Elements]:
    plan, outputs = draw(plans(max_segments=12, lanes=(1, 2, 3, 4)))
    plan = replace(
        plan, segments=tuple(replace(segment, cost_ns=draw(st.integers(1, 100))) for segment in plan.segments)
    )
    some = st.sampled_from([1, 16, 100, 1000]) | st.integers(0, 5000)
    elements = {name: draw(some) for segment in plan.segments for name in segment.outputs}
    elements |= {f"inside{segment.index}": draw(some) for segment in plan.segments if draw(st.booleans())}
    return plan, graph_of(plan, elements, outputs), elements


@given(problems(), st.sampled_from([1.0, 1.1, 1.5]))
@settings(max_examples=150, deadline=None)
def test_it_is_the_same_work_in_an_order_that_can_run(problem: tuple[Plan, OpGraph, Elements], ratio: float) -> None:
    plan, graph, _ = problem
    made = serialise_for_memory(plan, graph, ratio=ratio, **TIMES)
    verify_plan(made.plan, len(graph.nodes))
    before = {segment.nodes: segment for segment in plan.segments}
    assert sorted(before) == sorted(segment.nodes for segment in made.plan.segments)
    for segment in made.plan.segments:
        old = before[segment.nodes]
        kept = {plan.segments[other].nodes for other in old.predecessors}
        now = {made.plan.segments[other].nodes for other in segment.predecessors}
        added = {made.plan.segments[first].nodes for first, second in made.edges if second == segment.index}
        assert now == kept | added
        assert not kept & added
        assert segment.reason.startswith(old.reason)
        assert ("to save memory" in segment.reason) == bool(added)
        assert (segment.inputs, segment.outputs, segment.width, segment.priority, segment.lane, segment.cost_ns) == (
            old.inputs,
            old.outputs,
            old.width,
            old.priority,
            old.lane,
            old.cost_ns,
        )
    assert made == serialise_for_memory(plan, graph, ratio=ratio, **TIMES), "the same for the same arguments"
    assert Plan.from_json(made.plan.to_json()) == made.plan


@given(problems(), st.sampled_from([1.0, 1.1, 1.5]), st.sampled_from([0.0, 0.1, 10.0]))
@settings(max_examples=150, deadline=None)
def test_with_edges_it_keeps_the_limit_and_is_hardly_slower(
    problem: tuple[Plan, OpGraph, Elements], ratio: float, slowdown: float
) -> None:
    plan, graph, _ = problem
    made = serialise_for_memory(plan, graph, ratio=ratio, max_slowdown=slowdown, **TIMES)
    if not made.edges:
        return
    report = report_memory(made.plan, graph, ratio=ratio)
    assert report.parallel_peak_bytes <= ratio * report.sequential_peak_bytes
    assert report.arena_bytes <= report_memory(plan, graph, ratio=ratio).arena_bytes
    assert made.makespan_ns is not None
    assert made.makespan_before_ns is not None
    assert made.makespan_before_ns == simulate_plan(plan, **TIMES).makespan_ns
    # Where the plan kept the limit before, edges are taken only if they cost nothing to speak of.
    assert made.makespan_ns <= made.makespan_before_ns * (1 + max(slowdown, 0.01))
    assert made.makespan_ns == simulate_plan(made.plan, budget_bytes=report.admission_bytes, **TIMES).makespan_ns


@given(problems(), st.data())
@settings(max_examples=150, deadline=None)
def test_runs_end_in_any_order_and_never_hold_more_than_reported(
    problem: tuple[Plan, OpGraph, Elements], data: st.DataObject
) -> None:
    plan, graph, elements = problem
    made = serialise_for_memory(plan, graph, max_slowdown=10.0, **TIMES).plan
    report = report_memory(made, graph)
    memory_model = MemoryModel(made, graph, place_outputs=False)
    arena = memory_model.plan({}).arena
    verify_arena_plan(
        arena, made, sizes=memory_model.sizes({}), model_outputs=graph.output_names, order=memory_model.lifetimes.order
    )
    dispatcher = Dispatcher(
        DispatchTable.from_plan(made),
        cores=made.cores,
        lanes=made.lanes,
        budget_bytes=report.admission_bytes,
        strict=True,
    )
    started = [start.segment for start in dispatcher.start()]
    done: list[int] = []
    while not dispatcher.finished:
        assert dispatcher.running
        running = dispatcher.running
        inside = sum(4 * elements.get(f"inside{made.segments[index].nodes[0]}", 0) for index in running)
        alive = alive_tensors(made, (), started, done) - frozenset(graph.output_names)
        between = sum(-(-4 * elements[name] // 64) * 64 for name in alive)
        assert between <= report.arena_bytes
        assert between + inside <= report.parallel_peak_bytes
        done.append(data.draw(st.sampled_from(sorted(running))))
        started += [start.segment for start in dispatcher.segment_done(done[-1])]
    assert sorted(done) == list(range(len(made.segments)))


#  x -> a(1000) -> c(16) ; x -> b(1000) -> d(16) ; (c, d) -> y
TWO = [(("x",), ("a",)), (("a",), ("c",)), (("x",), ("b",)), (("b",), ("d",)), (("c", "d"), ("y",))]
BIG: Elements = {"a": 1000, "b": 1000, "c": 16, "d": 16, "y": 16}


def test_branches_that_must_overlap_stay_where_waiting_costs_too_much() -> None:
    plan = plan_of(TWO)
    plan = replace(plan, segments=tuple(replace(segment, cost_ns=1000) for segment in plan.segments))
    graph = graph_of(plan, BIG, ("y",))
    kept = serialise_for_memory(plan, graph, **TIMES)
    assert kept.edges == ()
    assert kept.before_bytes == kept.peak_bytes
    assert kept.plan == plan, "nothing inside segments, so no peaks either"
    asked = serialise_for_memory(plan, graph, max_slowdown=1.0, **TIMES)
    assert asked.edges == ((1, 2),), "the one branch waits for the other to be over"
    assert asked.plan.segments[2].reason.endswith("waits for segment_1 to save memory")
    assert asked.peak_bytes is not None
    assert kept.peak_bytes is not None
    assert asked.peak_bytes < 0.6 * kept.peak_bytes


def test_branches_that_follow_each_other_anyway_share_bytes_for_free() -> None:
    # One lane is taken by a long segment, so that the other runs both branches one after the other.
    rows = [*TWO[:4], (("x",), ("e",)), (("c", "d", "e"), ("y",))]
    plan = plan_of(rows, priorities=[5, 4, 3, 2, 9, 0])
    costs = [100, 100, 100, 100, 5000, 100]
    plan = replace(plan, segments=tuple(replace(s, cost_ns=cost) for s, cost in zip(plan.segments, costs, strict=True)))
    graph = graph_of(plan, {**BIG, "e": 16}, ("y",))
    made = serialise_for_memory(plan, graph, **TIMES)
    assert made.makespan_ns == made.makespan_before_ns
    assert len(made.edges) == 1
    before, after = report_memory(plan, graph), report_memory(made.plan, graph)
    assert before.arena_bytes > 8000
    assert after.arena_bytes == after.sequential_arena_bytes < 4300
    assert after.peak_ratio == 1.0


def test_a_plan_of_one_lane_gives_up_backfill_and_nothing_else() -> None:
    plan = plan_of(TWO, lanes=1, widths=[1, 2, 1, 2, 1])
    made = serialise_for_memory(plan, graph_of(plan, BIG, ("y",)))
    assert made.plan == replace(plan, backfill=False)
    assert made.peak_bytes is None


def test_peaks_are_kept_where_sizes_are_known_and_only_there() -> None:
    plan = plan_of(TWO)
    known = graph_of(plan, {**BIG, "inside1": 50}, ("y",))
    assert [s.peak_bytes for s in serialise_for_memory(plan, known).plan.segments] == [0, 200, 0, 0, 0]
    tensors = {**known.tensors, "a": replace(known.tensors["a"], shape=("n",))}
    made = serialise_for_memory(plan, replace(known, tensors=tensors))
    assert [s.peak_bytes for s in made.plan.segments] == [0] * 5
    told = serialise_for_memory(plan, replace(known, tensors=tensors), dims={"n": 1000})
    assert [s.peak_bytes for s in told.plan.segments] == [0, 200, 0, 0, 0]


def test_dimensions_that_nobody_fixed_stand_in_proportion() -> None:
    plan = plan_of(TWO)
    plan = replace(plan, segments=tuple(replace(segment, cost_ns=1000) for segment in plan.segments))
    known = graph_of(plan, BIG, ("y",))
    shapes = {"a": ("batch", 1000), "b": (None, 1000), "c": ("batch", 16), "d": ("batch", 16)}
    tensors = {name: replace(info, shape=shapes.get(name, info.shape)) for name, info in known.tensors.items()}
    asked = serialise_for_memory(plan, known, max_slowdown=1.0, **TIMES)
    unknown = serialise_for_memory(plan, replace(known, tensors=tensors), max_slowdown=1.0, **TIMES)
    assert unknown == asked, "a leading dimension is a batch, and proportions do not depend on it"
    assert unknown.edges


def test_large_plans_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parallax.schedule._serialise.MAX_TENSORS", 4)
    plan = plan_of(TWO)
    made = serialise_for_memory(plan, graph_of(plan, BIG, ("y",)), max_slowdown=9.0)
    assert made.plan is plan
    assert (made.edges, made.makespan_ns) == ((), None)


@given(problems())
@settings(max_examples=60, deadline=None)
def test_a_report_lies_between_its_bounds(problem: tuple[Plan, OpGraph, Elements]) -> None:
    plan, graph, elements = problem
    for effort in Effort:
        report = report_memory(plan, graph, effort=effort)
        assert report.lower_bound_bytes <= report.arena_bytes <= report.naive_bytes
        assert report.sequential_arena_bytes <= report.naive_bytes
        assert report.interior_bytes == max((4 * elements.get(f"inside{s.index}", 0) for s in plan.segments), default=0)
        assert report.sequential_peak_bytes == report.sequential_arena_bytes + report.interior_bytes
        assert report.arena_bytes + report.interior_bytes <= report.parallel_peak_bytes
        assert report.arena_ratio >= 1.0
        if report.admission_bytes is None:
            assert report.peak_ratio > 1.0
        else:
            assert report.parallel_peak_bytes <= 1.1 * report.sequential_peak_bytes
        assert report.segments == len(plan.segments)
        unknown = sum(f"inside{segment.index}" not in elements for segment in plan.segments)
        assert report.unknown_tensors == unknown
