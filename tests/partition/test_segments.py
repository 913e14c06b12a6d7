from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.errors import ConfigError, InternalError
from parallax.graph import Dag
from parallax.graph._dag import verify_convex
from parallax.partition import CostRule, FusionGroups, PaperRule, find_branches, group_fusions
from parallax.partition._refine import BranchLoad, LayerDecision, Reason
from parallax.partition.candidates import (
    Cause,
    DraftSegment,
    GroupCosts,
    Partition,
    assemble,
    by_branches,
    by_layers,
    find_boundaries,
    load_layers,
)
from parallax.partition.candidates._segments import every_group, in_one_segment, verify_partition
from tests.partition._graphs import edge_lists, graph_of_edges, op_graph

DIAMOND = group_fusions(graph_of_edges(4, [(0, 1), (0, 2), (1, 3), (2, 3)]))


def inception() -> FusionGroups:
    """0 splits into arms 1-2-3, 4-5-6 and 7; 8 joins them, 9 follows."""
    edges = [(0, 1), (1, 2), (2, 3), (0, 4), (4, 5), (5, 6), (0, 7), (3, 8), (6, 8), (7, 8), (8, 9)]
    return group_fusions(graph_of_edges(10, edges))


def costs_of(
    groups: FusionGroups, *, narrow: Sequence[int], wide: Sequence[int], flops: Sequence[int] = ()
) -> GroupCosts:
    return GroupCosts(
        narrow_ns=tuple(narrow),
        wide_ns=tuple(wide),
        flops=tuple(flops) or (100,) * len(groups),
        narrow_width=1,
        wide_width=2,
    )


@dataclasses.dataclass(frozen=True)
class Choose:
    """A rule that chooses given branches, to reach cases no sensible rule would."""

    branches: frozenset[int]

    def decide(self, layer: int, loads: Sequence[BranchLoad]) -> LayerDecision:
        chosen = tuple(load.branch for load in loads if load.branch in self.branches)
        return LayerDecision(
            layer=layer,
            parallel=chosen if len(chosen) > 1 else (),
            reason=Reason.BALANCED,
            measured=1,
            bound=1,
        )


def test_one_segment_holds_everything() -> None:
    whole = in_one_segment(DIAMOND, width=2, cost_wide=[1, 2, 3, 4])
    verify_partition(DIAMOND, whole)
    assert whole.is_whole
    assert whole.predicted_ns == whole.segments[0].end_ns == 10
    assert whole.segments[0].width == 2


def test_every_group_is_the_finest_cut() -> None:
    finest = every_group(DIAMOND)
    verify_partition(DIAMOND, finest)
    assert finest.dag == DIAMOND.dag
    assert [segment.cause for segment in finest.segments] == [Cause.FORCED] * 4


@pytest.mark.parametrize(("limit", "expected"), [(3, [(0,), (1,), (2, 3)]), (2, [(0, 1), (2, 3)]), (9, None)])
def test_a_limit_on_segments_makes_runs_of_groups(limit: int, expected: list[tuple[int, ...]] | None) -> None:
    limited = every_group(DIAMOND, max_segments=limit)
    verify_partition(DIAMOND, limited)
    assert [segment.groups for segment in limited.segments] == (expected or [(0,), (1,), (2,), (3,)])


def test_no_segments_at_all_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one segment"):
        every_group(DIAMOND, max_segments=0)


def test_by_branches_cuts_along_branches() -> None:
    groups = inception()
    cut = by_branches(groups)
    verify_partition(groups, cut)
    assert [segment.groups for segment in cut.segments] == [(0,), (1, 2, 3), (4, 5, 6), (7,), (8,), (9,)]


def test_the_paper_rule_cuts_out_its_branches_and_leaves_the_rest_whole() -> None:
    groups = inception()
    costs = costs_of(groups, narrow=[10] * 10, wide=[6] * 10)
    cut = by_layers(groups, costs, PaperRule(drop_outliers=True), label="paper", lanes=2)
    verify_partition(groups, cut)
    assert [(segment.groups, segment.cause, segment.width) for segment in cut.segments] == [
        ((0, 7), Cause.SERIAL, 2),
        ((1, 2, 3), Cause.BRANCH, 1),
        ((4, 5, 6), Cause.BRANCH, 1),
        ((8, 9), Cause.SERIAL, 2),
    ]
    (decision,) = cut.decisions
    assert (decision.layer, decision.parallel, decision.reason) == (1, (1, 2), Reason.BALANCED)
    # As the paper has it, the short arm keeps the whole layer serial.
    whole = by_layers(groups, costs, PaperRule(), label="paper", lanes=2)
    assert whole.is_whole
    assert whole.decisions[0].reason is Reason.TOO_FEW_NODES


def test_a_rule_knows_nodes_without_copied_constants() -> None:
    graph = op_graph(
        [
            ("two", "Constant", [], ["two"]),
            ("a", "Mul", ["x", "two"], ["a"]),
            ("b", "Add", ["x", "two"], ["b"]),
        ],
        outputs=["a", "b"],
    )
    groups = group_fusions(graph)
    loads = load_layers(groups, find_branches(groups.dag), costs_of(groups, narrow=[3, 4], wide=[1, 2], flops=[7, 8]))
    assert loads == (
        (
            BranchLoad(branch=0, nodes=1, flops=7, narrow_ns=3, wide_ns=1),
            BranchLoad(branch=1, nodes=1, flops=8, narrow_ns=4, wide_ns=2),
        ),
    )


@given(edge_lists(max_size=40), st.data())
def test_layers_leave_as_few_serial_segments_as_any_cut_could(
    drawn: tuple[int, list[tuple[int, int]]], data: st.DataObject
) -> None:
    groups = group_fusions(graph_of_edges(*drawn))
    found = find_branches(groups.dag)
    wanted = data.draw(st.sets(st.integers(0, max(len(found.branches) - 1, 0))))
    flat = costs_of(groups, narrow=[1] * len(groups), wide=[1] * len(groups))
    cut = by_layers(groups, flat, Choose(frozenset(wanted)), label="chosen", lanes=2)
    verify_partition(groups, cut)
    chosen = {branch for decision in cut.decisions for branch in decision.parallel}
    if not chosen:
        assert len(cut.segments) <= 1
        return
    # Along one path, runs of serial groups with a chosen branch between them can never share a segment.
    runs = [0] * len(groups)
    for group, preds in enumerate(groups.dag.predecessors):
        is_serial = found.branch_of[group] not in chosen
        starts = [runs[pred] + (is_serial and found.branch_of[pred] in chosen) for pred in preds]
        runs[group] = max([*starts, int(is_serial)])
    serial = [segment for segment in cut.segments if segment.cause is Cause.SERIAL]
    assert len(serial) == max(runs)
    assert len(cut.segments) == len(serial) + len(chosen)


@given(edge_lists(), st.data())
def test_every_candidate_passes_the_judge(drawn: tuple[int, list[tuple[int, int]]], data: st.DataObject) -> None:
    graph = graph_of_edges(*drawn)
    fusion_safe = frozenset(data.draw(st.sets(st.sampled_from(sorted(graph.producers))))) if graph.producers else None
    groups = group_fusions(graph, fusion_safe=fusion_safe)
    figures = st.lists(st.integers(0, 1000), min_size=len(groups), max_size=len(groups))
    costs = costs_of(groups, narrow=data.draw(figures), wide=data.draw(figures), flops=data.draw(figures))
    candidates = [
        in_one_segment(groups, cost_wide=costs.wide_ns),
        every_group(groups),
        every_group(groups, max_segments=3),
        by_branches(groups),
        by_layers(groups, costs, PaperRule(min_nodes=1, balance=3, drop_outliers=True), label="paper", lanes=2),
        by_layers(groups, costs, CostRule(lanes=2, handover_ns=10), label="cost", lanes=2),
    ]
    for candidate in candidates:
        verify_partition(groups, candidate)
        nodes: list[int] = []
        for segment, boundary in zip(candidate.segments, find_boundaries(graph, groups, candidate), strict=True):
            verify_convex(groups.dag, segment.groups)
            verify_convex(Dag.from_graph(graph), boundary.nodes)
            assert boundary.nodes == groups.nodes_of(segment.groups)
            assert boundary.outputs, "a segment without results could not be run"
            nodes.extend(boundary.nodes)
        assert sorted(nodes) == list(range(len(graph.nodes)))


def test_boundaries_name_what_a_segment_reads_and_hands_on() -> None:
    graph = op_graph(
        [
            ("two", "Constant", [], ["two"]),
            ("a", "Mul", ["x", "two"], ["a"]),
            ("b", "Conv", ["a", "w", ""], ["b"]),
            ("c", "Add", ["a", "scale"], ["c"]),
            ("cond", "If", ["flag"], ["y"]),
        ],
        outputs=["y", "c"],
        initializers=["w", "scale"],
        shapes={"scale": (1,)},
        bodies={"cond": op_graph([("inner", "Add", ["b", "two"], ["r"])], outputs=["r"])},
        captures={"cond": ["b", "two"]},
    )
    graph = dataclasses.replace(graph, overridable=(graph.tensors["scale"],))
    groups = group_fusions(graph)
    assert groups.members == ((0, 1), (2,), (3,), (0, 4))
    cut = assemble(
        groups,
        [
            DraftSegment(groups=(0, 1), width=1, cause=Cause.FORCED),
            DraftSegment(groups=(2,), width=1, cause=Cause.FORCED),
            DraftSegment(groups=(3,), width=1, cause=Cause.FORCED),
        ],
        label="test",
        lanes=1,
    )
    first, second, third = find_boundaries(graph, groups, cut)
    assert (first.nodes, first.inputs, first.outputs) == ((0, 1, 2), ("x",), ("a", "b"))
    assert (second.nodes, second.inputs, second.outputs) == ((3,), ("a", "scale"), ("c",))
    assert (third.nodes, third.inputs, third.outputs) == ((0, 4), ("flag", "b"), ("y",))


def test_a_reason_tells_both_times() -> None:
    segment = DraftSegment(groups=(0,), width=1, cause=Cause.PARALLEL, serial_ns=9000, parallel_ns=5500)
    assert segment.reason.endswith("(5.5 us side by side, 9.0 us serially)")
    assert DraftSegment(groups=(0,), width=1, cause=Cause.FORCED).reason == Cause.FORCED.value


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([(0,), (1, 2)], "missing"),
        ([(0,), (1, 2), (3,), (4,)], "unknown"),
        ([(0,), (1, 2), (2, 3)], "group 2 is in segments 1 and 2"),
        ([(0,), (), (1, 2), (3,)], "segment 1 is empty"),
        ([(0, 3), (1,), (2,)], "leads back, from segment 1 to 0"),
        ([(1,), (0,), (2,), (3,)], "leads back, from segment 1 to 0"),
        ([(0,), (2, 1), (3,)], "ascending"),
    ],
)
def test_the_judge_of_partitions_finds_broken_ones(parts: list[tuple[int, ...]], message: str) -> None:
    verify_partition(DIAMOND, [(0,), (1, 2), (3,)])
    with pytest.raises(InternalError, match=message):
        verify_partition(DIAMOND, parts)


def _with(index: int, **changes: object) -> Partition:
    base = every_group(DIAMOND)
    segments = list(base.segments)
    segments[index] = dataclasses.replace(segments[index], **changes)  # type: ignore[arg-type]
    return dataclasses.replace(base, segments=tuple(segments))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (_with(1, width=0), "width 0"),
        (_with(1, lane=1), "lane 1 of 1"),
        (_with(1, start_ns=3), "not both"),
        (_with(1, start_ns=3, end_ns=2), "from 3 to 2"),
        (dataclasses.replace(every_group(DIAMOND), dag=Dag.from_edges(4, [(0, 1)])), "edges differ"),
    ],
)
def test_the_judge_of_partitions_reads_every_field(broken: Partition, message: str) -> None:
    with pytest.raises(InternalError, match=message):
        verify_partition(DIAMOND, broken)


def test_the_judge_of_partitions_finds_a_start_before_its_operand() -> None:
    segments = [
        DraftSegment(groups=(group,), width=1, cause=Cause.FORCED, start_ns=group * 10, end_ns=group * 10 + 11)
        for group in range(4)
    ]
    with pytest.raises(InternalError, match="segment 1 starts before segment 0"):
        verify_partition(DIAMOND, assemble(DIAMOND, segments, label="test", lanes=1))


@pytest.mark.parametrize(
    ("parts", "message"),
    [([(0, 1), (1, 2, 3)], "group 1 is in segments 0 and 1"), ([(0, 1), (2,)], "group 3 is in no")],
)
def test_assembling_refuses_what_does_not_cover_each_group_once(parts: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(InternalError, match=message):
        assemble(
            DIAMOND,
            [DraftSegment(groups=groups, width=1, cause=Cause.FORCED) for groups in parts],
            label="test",
            lanes=1,
        )
