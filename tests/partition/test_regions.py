"""Delegate regions: legal whatever the graph, never dearer than the CPU, and a reason for every node."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.errors import ConfigError, InternalError
from parallax.graph import Dag, OpGraph, Rejection, Verdict
from parallax.graph._dag import verify_convex, verify_dag
from parallax.partition import find_branches, group_fusions
from parallax.partition._branches import verify_branches
from parallax.partition.regions import DeviceCosts, RegionPlan, RegionRule, find_regions
from parallax.partition.regions._costs import build_problem
from parallax.partition.regions._growth import Cuts, find_pieces, find_waves
from parallax.partition.regions._hosted import hosted_tensors
from parallax.partition.regions._plan import PaperThresholds, TransferCost
from parallax.partition.regions._problem import Assignment, cost_of
from parallax.partition.regions._verify import verify_regions
from tests.partition._device_costs import (
    NO,
    best_chain_cost,
    device_costs_of,
    placement_cost,
    priced_chains,
    priced_graphs,
)
from tests.partition._graphs import dags, op_graph, reachability

every_rule = pytest.mark.parametrize("rule", [rule for rule in RegionRule if rule is not RegionRule.GIVEN])


def plan_of(graph: OpGraph, device_costs: DeviceCosts, **settings: object) -> RegionPlan:
    """At the granularity of single nodes, so that groups are nodes."""
    groups = group_fusions(graph, tiny_elements=0)
    plan = find_regions(graph, groups, device_costs, **settings)  # type: ignore[arg-type]
    verify_regions(graph, groups, device_costs, plan)
    return plan


def regions_of(plan: RegionPlan) -> list[list[int]]:
    return [list(region.nodes) for region in plan.regions]


def chain(*names: str) -> OpGraph:
    tensors = ["x", *(f"t_{name}" for name in names)]
    return op_graph(
        [(name, "Relu", [before], [after]) for name, before, after in zip(names, tensors, tensors[1:], strict=False)],
        outputs=[tensors[-1]],
        shapes=dict.fromkeys(tensors, (25,)),
    )


# -- whatever the graph ---------------------------------------------------------------------------------


@every_rule
@pytest.mark.parametrize("join_siblings", [False, True])
@settings(max_examples=50)
@given(case=priced_graphs())
def test_regions_can_all_be_contracted_at_once(
    rule: RegionRule, join_siblings: bool, case: tuple[OpGraph, DeviceCosts]
) -> None:
    graph, device_costs = case
    plan = plan_of(graph, device_costs, rule=rule, join_siblings=join_siblings, thresholds=PaperThresholds(min_macs=30))
    dag = Dag.from_graph(graph)
    verify_dag(plan.dag)
    for region in plan.regions:
        verify_convex(dag, region.nodes)
    # Convex one by one is not enough: the graph of all clusters must have an order.
    order = {node: plan.cluster_of[node] for node in range(len(dag))}
    assert all(order[tail] <= order[head] for head, preds in enumerate(dag.predecessors) for tail in preds)


@settings(max_examples=100)
@given(case=priced_graphs())
def test_contracted_graph_divides_into_branches_with_each_region_one_of_them(case: tuple[OpGraph, DeviceCosts]) -> None:
    graph, device_costs = case
    plan = plan_of(graph, device_costs)
    found = find_branches(plan.dag, regions=frozenset(plan.region_clusters))
    verify_branches(plan.dag, found)
    for cluster in plan.region_clusters:
        assert found.branches[found.branch_of[cluster]].nodes == (cluster,)


@every_rule
@settings(max_examples=50)
@given(case=priced_graphs())
def test_costs_stated_are_those_of_an_independent_count(rule: RegionRule, case: tuple[OpGraph, DeviceCosts]) -> None:
    graph, device_costs = case
    plan = plan_of(graph, device_costs, rule=rule, thresholds=PaperThresholds(min_macs=30))
    assert plan.cpu_only_ns == placement_cost(graph, device_costs, [])
    assert plan.chosen_ns == placement_cost(graph, device_costs, regions_of(plan))
    greedy = plan_of(graph, device_costs, rule=RegionRule.GREEDY)
    assert plan.greedy_ns == placement_cost(graph, device_costs, regions_of(greedy)) == greedy.chosen_ns
    for region in plan.regions:
        others = [list(other.nodes) for other in plan.regions if other is not region]
        assert plan.chosen_ns + region.gain_ns == placement_cost(graph, device_costs, others)


@settings(max_examples=100)
@given(case=priced_graphs(), join_siblings=st.booleans())
def test_placement_by_cost_is_never_dearer_than_the_cpu_nor_joined_than_the_greedy_one(
    case: tuple[OpGraph, DeviceCosts], join_siblings: bool
) -> None:
    plan = plan_of(*case, join_siblings=join_siblings)
    assert plan.chosen_ns <= plan.cpu_only_ns
    if join_siblings:
        assert plan.chosen_ns <= plan.greedy_ns


@settings(max_examples=50)
@given(case=priced_graphs())
def test_every_region_kept_gains_by_itself(case: tuple[OpGraph, DeviceCosts]) -> None:
    plan = plan_of(*case)
    assert all(region.gain_ns > 0 for region in plan.regions)


@settings(max_examples=100)
@given(case=priced_chains())
def test_chain_is_placed_at_the_least_cost_there_is(case: tuple[OpGraph, DeviceCosts]) -> None:
    assert plan_of(*case).chosen_ns == best_chain_cost(*case)


@settings(max_examples=100)
@given(case=priced_graphs())
def test_every_node_has_a_verdict_that_fits(case: tuple[OpGraph, DeviceCosts]) -> None:
    graph, device_costs = case
    plan = plan_of(graph, device_costs)
    assert [verdict.node for verdict in plan.verdicts] == list(range(len(graph.nodes)))
    for verdict in plan.verdicts:
        assert verdict.verdict.is_refusal == (device_costs.declined[verdict.node] is not None)
        if verdict.verdict in (Verdict.GAINS_NOTHING, Verdict.CHEAPER_ON_CPU):
            assert verdict.device_ns is not None
            assert verdict.cpu_ns is not None


@settings(max_examples=60)
@given(case=priced_graphs(), data=st.data())
def test_cost_kept_up_while_groups_move_is_that_of_counting_anew(
    case: tuple[OpGraph, DeviceCosts], data: st.DataObject
) -> None:
    graph, device_costs = case
    groups = group_fusions(graph, tiny_elements=0)
    problem = build_problem(graph, groups, device_costs)
    assignment = Assignment(problem)
    for _ in range(data.draw(st.integers(0, 30)) if len(problem) else 0):
        assignment.place([data.draw(st.integers(0, len(problem) - 1))], data.draw(st.integers(-1, 3)))
    regions = [[group for group in range(len(problem)) if assignment.region_of[group] == region] for region in range(4)]
    assert assignment.cost_ns == cost_of(problem, [region for region in regions if region])


@settings(max_examples=50)
@given(dag=dags(), data=st.data())
def test_pieces_of_a_wave_are_not_connected_and_waves_never_fall(dag: Dag, data: st.DataObject) -> None:
    takes = [data.draw(st.booleans()) for _ in range(len(dag))]
    cuts = Cuts(after=data.draw(st.sets(st.integers(0, 60))), before=data.draw(st.sets(st.integers(0, 60))))
    waves = find_waves(dag, takes, cuts)
    pieces = find_pieces(dag, takes, waves, cuts)
    assert sorted(group for piece in pieces for group in piece) == [group for group, taken in enumerate(takes) if taken]
    for head, preds in enumerate(dag.predecessors):
        for tail in preds:
            ends = takes[tail] and (not takes[head] or cuts.between(tail, head))
            assert waves[tail] + ends <= waves[head]
    below = reachability(dag)
    for piece in pieces:
        assert len({waves[group] for group in piece}) == 1
        for other in pieces:
            if other is not piece and waves[other[0]] == waves[piece[0]]:
                assert not any(below[group].intersection(other) for group in piece)


def test_same_arguments_give_the_same_plan() -> None:
    graph, device_costs = (
        chain(*"abcdef"),
        device_costs_of([0, 0, 1, 0, 0, 0], [1] * 6, [90] * 6, launch_ns=10, ns_per_byte=0.1),
    )
    assert plan_of(graph, device_costs) == plan_of(graph, device_costs)


def test_graph_without_nodes_or_without_anything_supported_stays_on_the_cpu() -> None:
    assert plan_of(op_graph([], outputs=[]), device_costs_of([], [], [])).is_cpu_only
    plan = plan_of(chain("a", "b"), device_costs_of([1, 1], [1, 1], [9, 9]))
    assert plan.is_cpu_only
    assert [verdict.reason for verdict in plan.verdicts] == ["the device has no such operator: Relu"] * 2


# -- one case each --------------------------------------------------------------------------------------


def test_region_that_gains_nothing_is_dissolved_with_both_costs() -> None:
    # 100 bytes in, 100 bytes out, a launch: 20 + 10 + 10 + 2 * 5 on the device.
    plan = plan_of(chain("a", "b"), device_costs_of([0, 0], [5, 5], [24, 25], launch_ns=20, ns_per_byte=0.1))
    assert plan.is_cpu_only
    assert plan.verdicts[0].reason == (
        "too small to pay: the device would take longer, launch and transfers included "
        "(0.1 us on the device, 0.0 us on the CPU)"
    )
    assert {(verdict.device_ns, verdict.cpu_ns) for verdict in plan.verdicts} == {(50, 49)}
    assert "no region gains anything" in plan.reason
    worth_it = plan_of(chain("a", "b"), device_costs_of([0, 0], [5, 5], [26, 25], launch_ns=20, ns_per_byte=0.1))
    assert regions_of(worth_it) == [[0, 1]]
    assert worth_it.regions[0].gain_ns == 1


def test_nodes_between_two_regions_that_are_a_little_dearer_on_the_device_join_them() -> None:
    # c alone would stay on the CPU (30 against 20), but then a second launch and two transfers are due.
    device_costs = device_costs_of([0] * 5, [5, 5, 30, 5, 5], [100, 100, 20, 100, 100], launch_ns=40, ns_per_byte=0.1)
    assert regions_of(plan_of(chain(*"abcde"), device_costs)) == [[0, 1, 2, 3, 4]]


def test_nodes_between_two_regions_that_are_far_dearer_on_the_device_part_them() -> None:
    device_costs = device_costs_of([0] * 5, [5, 5, 300, 5, 5], [100, 100, 20, 100, 100], launch_ns=40, ns_per_byte=0.1)
    plan = plan_of(chain(*"abcde"), device_costs)
    assert regions_of(plan) == [[0, 1], [3, 4]]
    assert plan.verdicts[2].verdict is Verdict.CHEAPER_ON_CPU
    assert plan.verdicts[2].cpu_ns == 20
    assert (plan.before.fragments, plan.after.fragments) == (1, 2)


def test_rim_of_a_region_that_is_cheaper_on_the_cpu_stays_there() -> None:
    device_costs = device_costs_of([0] * 4, [50, 5, 5, 50], [20, 100, 100, 20], launch_ns=40, ns_per_byte=0.1)
    assert regions_of(plan_of(chain(*"abcd"), device_costs)) == [[1, 2]]


def test_tensor_between_two_regions_stays_on_the_device() -> None:
    # a -> b (CPU) -> d and a -> d: a's tensor goes to the host for b, and is still on the device for d.
    graph = op_graph(
        [
            ("a", "Relu", ["x"], ["t_a"]),
            ("b", "Relu", ["t_a"], ["t_b"]),
            ("d", "Add", ["t_a", "t_b"], ["t_d"]),
        ],
        outputs=["t_d"],
        shapes=dict.fromkeys(("x", "t_a", "t_b", "t_d"), (25,)),
    )
    plan = plan_of(graph, device_costs_of([0, 1, 0], [5, 0, 5], [100, 10, 100], launch_ns=20, ns_per_byte=0.1))
    first, second = plan.regions
    assert (first.uploads, first.downloads, first.kept) == (("x",), ("t_a",), ("t_a",))
    assert (second.uploads, second.downloads, second.kept) == (("t_b",), ("t_d",), ("t_a",))
    assert plan.chosen_ns == 2 * (5 + 20) + 10 + 4 * 10
    assert (plan.after.tensors, plan.after.bytes) == (4, 400)
    # A delegate that keeps nothing there moves a's tensor up again.
    assert hosted_tensors(graph, plan) == [("x", "t_a"), ("t_b", "t_a", "t_d")]


def test_tensor_that_only_the_device_reads_moves_twice_where_nothing_stays_there() -> None:
    graph = op_graph(
        [
            ("a", "Relu", ["x"], ["t_a", "u_a"]),
            ("b", "Relu", ["u_a"], ["t_b"]),
            ("d", "Add", ["t_a", "t_b"], ["t_d"]),
        ],
        outputs=["t_d"],
        shapes=dict.fromkeys(("x", "t_a", "u_a", "t_b", "t_d"), (25,)),
    )
    plan = plan_of(graph, device_costs_of([0, 1, 0], [5, 0, 5], [100, 10, 100], launch_ns=20, ns_per_byte=0.1))
    assert [region.kept for region in plan.regions] == [("t_a",), ("t_a",)]
    assert hosted_tensors(graph, plan) == [("x", "u_a", "t_a"), ("t_b", "t_a", "t_d")]


def test_independent_pieces_too_short_for_a_launch_each_share_one() -> None:
    graph = op_graph(
        [*((f"n{i}", "Relu", ["x"], [f"t{i}"]) for i in range(4)), ("end", "Sum", [f"t{i}" for i in range(4)], ["y"])],
        outputs=["y"],
    )
    device_costs = device_costs_of([0, 0, 0, 0, 1], [1, 1, 1, 1, 0], [20, 20, 20, 20, 5], launch_ns=30)
    plan = plan_of(graph, device_costs)
    assert regions_of(plan) == [[0, 1, 2, 3]]
    assert plan.chosen_ns == 30 + 4 + 5


def test_independent_pieces_that_pay_alone_stay_apart_unless_they_are_to_be_joined() -> None:
    graph = op_graph(
        [("a", "Relu", ["x"], ["t_a"]), ("b", "Relu", ["x"], ["t_b"]), ("end", "Add", ["t_a", "t_b"], ["y"])],
        outputs=["y"],
    )
    device_costs = device_costs_of([0, 0, 1], [40, 40, 0], [200, 200, 5], launch_ns=30)
    assert regions_of(plan_of(graph, device_costs)) == [[0], [1]]
    assert regions_of(plan_of(graph, device_costs, join_siblings=True)) == [[0, 1]]


def test_piece_that_only_a_later_region_waits_for_joins_it() -> None:
    # early -> late, and cpu -> late: computed with the first wave, early would be a launch of its own.
    graph = op_graph(
        [
            ("early", "Relu", ["y"], ["t_early"]),
            ("first", "Relu", ["x"], ["t_first"]),
            ("cpu", "NonZero", ["t_first"], ["t_cpu"]),
            ("late", "Add", ["t_cpu", "t_early"], ["z"]),
        ],
        outputs=["z"],
    )
    plan = plan_of(graph, device_costs_of([0, 0, 1, 0], [40] * 4, [200] * 4, launch_ns=30))
    assert regions_of(plan) == [[1], [0, 3]]


def test_regions_that_pay_only_beside_each_other_but_not_together_are_dropped() -> None:
    # While the one is there the other spares the large tensor a transfer; yet both together lose to the CPU.
    graph = op_graph(
        [
            ("a", "Split", ["x"], ["big", "small"]),
            ("cpu", "NonZero", ["small"], ["t"]),
            ("b", "Add", ["big", "t"], ["y"]),
        ],
        outputs=["y"],
        shapes={"x": (1,), "big": (100,), "small": (1,), "t": (1,), "y": (1,)},
    )
    plan = plan_of(graph, device_costs_of([0, 1, 0], [10] * 3, [20] * 3, launch_ns=15, ns_per_byte=0.1))
    assert plan.is_cpu_only
    assert plan.greedy_ns > plan.chosen_ns == plan.cpu_only_ns == 60


def test_greedy_takes_all_that_is_supported_in_the_fewest_fragments() -> None:
    graph = chain(*"abcdefg")
    plan = plan_of(
        graph, device_costs_of([0, 1, 0, 0, 1, 0, 0], [50] * 7, [1] * 7, launch_ns=100), rule=RegionRule.GREEDY
    )
    assert regions_of(plan) == [[0], [2, 3], [5, 6]]
    assert plan.chosen_ns > plan.cpu_only_ns


@pytest.mark.parametrize(
    ("flops", "floats", "verdict"),
    [
        ((1_000_000_000, 1_000_000_000, 0), 25, Verdict.TAKEN),
        ((999_999_999, 1_000_000_000, 0), 25, Verdict.TOO_LITTLE_WORK),
        # 2 * 4 * 12_500_000 bytes are 0.1 byte for each of 1e9 MACs; a little more is too much.
        ((1_000_000_000, 1_000_000_000, 0), 12_500_000, Verdict.TAKEN),
        ((1_000_000_000, 1_000_000_000, 0), 12_500_001, Verdict.TOO_MUCH_TRAFFIC),
    ],
)
def test_paper_rule_keeps_fragments_within_its_three_thresholds(
    flops: tuple[int, ...], floats: int, verdict: Verdict
) -> None:
    tensors = ["x", "t_a", "t_b", "t_c"]
    graph = op_graph(
        [(name, "Relu", [before], [f"t_{name}"]) for name, before in zip("abc", tensors, strict=False)],
        outputs=["t_c"],
        shapes=dict.fromkeys(tensors, (floats,)),
    )
    # Whatever it costs: the paper's rule does not look.
    plan = plan_of(graph, device_costs_of([0] * 3, [10**9] * 3, [1] * 3, flops=flops), rule=RegionRule.PAPER)
    assert {found.verdict for found in plan.verdicts} == {verdict}


def test_paper_rule_drops_fragments_of_fewer_than_three_nodes() -> None:
    plan = plan_of(chain("a", "b"), device_costs_of([0, 0], [1, 1], [9, 9], flops=[10**10] * 2), rule=RegionRule.PAPER)
    assert plan.is_cpu_only
    assert plan.verdicts[0].reason == "its fragment has too few nodes (2, bound 3)"


def test_refusals_keep_their_kind_and_say_what_is_at_fault() -> None:
    refusals = [verdict for verdict in Verdict if verdict.is_refusal]
    size = len(refusals)
    device_costs = dataclasses.replace(
        device_costs_of([1] * size, [1] * size, [9] * size),
        declined=tuple(Rejection(verdict=verdict, detail="input 'x'") for verdict in refusals),
    )
    plan = plan_of(chain(*"abcdefgh"[:size]), device_costs)
    assert [found.verdict for found in plan.verdicts] == refusals
    assert plan.verdicts[1].reason == "the device does not compute in this element type: input 'x'"


def test_node_in_a_group_with_a_refused_one_is_fused_with_it() -> None:
    graph = chain("a", "b", "c")
    groups = group_fusions(graph, fusion_safe=frozenset({"t_b"}), tiny_elements=0)
    device_costs = device_costs_of([0, 1, 0], [1] * 3, [900] * 3, launch_ns=10)
    plan = find_regions(graph, groups, device_costs)
    verify_regions(graph, groups, device_costs, plan)
    assert plan.verdicts[0].reason == "cannot be separated from a node that the device declines: 'b' (Relu)"
    assert [found.verdict for found in plan.verdicts[1:]] == [Verdict.UNSUPPORTED_OPERATOR, Verdict.TAKEN]


def test_constants_go_where_they_are_read_and_part_nothing() -> None:
    graph = op_graph(
        [
            ("c", "Constant", [], ["t_c"]),
            ("a", "Relu", ["x"], ["t_a"]),
            ("b", "Add", ["t_a", "t_c"], ["t_b"]),
            ("d", "Add", ["t_b", "t_c"], ["t_d"]),
        ],
        outputs=["t_d"],
        shapes={"t_c": (1,)},
    )
    plan = plan_of(graph, device_costs_of([1, 0, 0, 0], [1] * 4, [900] * 4, launch_ns=10))
    assert [found.verdict for found in plan.verdicts] == [Verdict.FOLDED, *[Verdict.TAKEN] * 3]
    assert plan.regions[0].nodes == (0, 1, 2, 3)


# -- what is refused ------------------------------------------------------------------------------------


def test_offer_for_another_graph_or_with_negative_costs_is_refused() -> None:
    with pytest.raises(ConfigError, match="for \\[2\\] nodes, where the graph has 3"):
        plan_of(chain(*"abc"), device_costs_of([0, 0], [1, 1], [1, 1]))
    with pytest.raises(ConfigError, match="negative"):
        plan_of(chain("a"), device_costs_of([0], [1], [-1]))
    with pytest.raises(ConfigError, match="no reason of a device"):
        plan_of(
            chain("a"),
            dataclasses.replace(
                device_costs_of([1], [1], [1]), declined=(Rejection(verdict=Verdict.TAKEN, detail=""),)
            ),
        )
    with pytest.raises(ConfigError, match="negative"):
        plan_of(
            chain("a"), dataclasses.replace(device_costs_of([0], [1], [1]), transfer=TransferCost(ns_per_byte=-1.0))
        )


def test_given_placement_is_not_searched_for() -> None:
    with pytest.raises(ConfigError, match="use RegionPlacer"):
        plan_of(chain("a"), device_costs_of([0], [1], [1]), rule=RegionRule.GIVEN)


def test_judge_refuses_plans_broken_on_purpose() -> None:
    graph = chain(*"abcde")
    groups = group_fusions(graph, tiny_elements=0)
    device_costs = device_costs_of([0] * 5, [5, 5, 300, 5, 5], [100, 100, 20, 100, 100], launch_ns=40, ns_per_byte=0.1)
    plan = find_regions(graph, groups, device_costs)
    verify_regions(graph, groups, device_costs, plan)
    refusing = dataclasses.replace(device_costs, declined=(None, NO, None, None, None))
    with pytest.raises(InternalError, match="holds a node that 'toy' declines"):
        verify_regions(graph, groups, refusing, plan)
    with pytest.raises(InternalError, match="and it costs"):
        verify_regions(graph, groups, device_costs, dataclasses.replace(plan, chosen_ns=plan.chosen_ns - 1))
    with pytest.raises(InternalError, match="disagrees with the regions"):
        verify_regions(graph, groups, device_costs, dataclasses.replace(plan, verdicts=plan.verdicts[::-1]))
    swapped = dataclasses.replace(plan, regions=(plan.regions[0], dataclasses.replace(plan.regions[1], groups=(0, 1))))
    with pytest.raises(InternalError, match="in regions 0 and 1"):
        verify_regions(graph, groups, device_costs, swapped)
    # a and c in one region, b outside: not convex, so no order of clusters is topological.
    broken = dataclasses.replace(
        plan,
        regions=(dataclasses.replace(plan.regions[0], groups=(0, 2)),),
        clusters=((0, 2), (1,), (3,), (4,)),
        cluster_of=(0, 1, 0, 2, 3),
        region_clusters=(0,),
    )
    with pytest.raises(InternalError, match="closes a cycle"):
        verify_regions(graph, groups, device_costs, broken)
