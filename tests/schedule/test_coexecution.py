"""Placements by simulation: regions on the device's queue, branches beside them, the CPU alone as the bound."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.errors import ConfigError
from parallax.graph import CostModel, OpGraph
from parallax.partition import FusionGroups, group_fusions
from parallax.partition.regions import DeviceCosts, RegionPlacer, find_regions
from parallax.partition.regions._verify import verify_regions
from parallax.schedule import Crossings, Granularity, region_tasks
from parallax.schedule.placement import Coexecution, Machine, PlacementProblem, find_placement
from parallax.schedule.placement._judge import default_placers
from tests.partition._device_costs import device_costs_of, priced_graphs
from tests.partition._graphs import op_graph
from tests.schedule._policies import verify_schedule


def costs_of(device_costs: DeviceCosts, *, cores: int = 1) -> CostModel:
    """What the costs on the device say, however many cores: nothing here scales."""
    widths = tuple(range(1, cores + 1))
    return CostModel(
        source="tables",
        widths=widths,
        durations_ns=(device_costs.cpu_ns,) * cores,
        latencies_ns=(None,) * cores,
        scales=(1.0,) * cores,
        known_fraction=1.0,
    )


def finest(graph: OpGraph) -> FusionGroups:
    return group_fusions(graph, tiny_elements=0)


def diamond() -> OpGraph:
    """Two branches of two nodes each, between a first and a last node."""
    return op_graph(
        [
            ("first", "Relu", ["x"], ["t"]),
            ("a1", "Relu", ["t"], ["a"]),
            ("b1", "Relu", ["t"], ["b"]),
            ("a2", "Relu", ["a"], ["aa"]),
            ("b2", "Relu", ["b"], ["bb"]),
            ("last", "Add", ["aa", "bb"], ["y"]),
        ],
        outputs=["y"],
        shapes=dict.fromkeys(("x", "t", "a", "b", "aa", "bb", "y"), (25,)),
    )


def test_region_is_a_task_of_the_queue_and_chains_are_tasks_of_the_cpu() -> None:
    graph = diamond()
    groups = finest(graph)
    device_costs = device_costs_of([1, 0, 1, 0, 1, 1], [5] * 6, [100] * 6, launch_ns=10, ns_per_byte=0.1)
    plan = find_regions(graph, groups, device_costs)
    made = region_tasks(groups, plan, costs_of(device_costs, cores=2), widths=(1, 2))
    assert made.groups == ((0,), (1, 3), (2, 4), (5,))
    assert made.region_of == (None, 0, None, None)
    # Two nodes, a launch, a tensor there and one back.
    assert [task.cost_ns for task in made.tasks] == [
        ((1, 100), (2, 100)),
        ((0, 5 + 5 + 10 + 20),),
        ((1, 200), (2, 200)),
        ((1, 100), (2, 100)),
    ]
    assert [task.predecessors for task in made.tasks] == [(), (0,), (0,), (1, 2)]
    both = region_tasks(groups, plan, costs_of(device_costs), widths=(1,), allow_both=True)
    assert both.tasks[1].cost_ns == ((0, 40), (1, 200))


def test_parts_of_the_cpu_pay_for_tensors_across_and_for_waking_threads() -> None:
    graph = diamond()
    groups = finest(graph)
    device_costs = device_costs_of([1, 0, 1, 0, 1, 1], [5] * 6, [100] * 6, launch_ns=10, ns_per_byte=0.1)
    plan = find_regions(graph, groups, device_costs)
    made = region_tasks(
        groups,
        plan,
        costs_of(device_costs, cores=2),
        widths=(1, 2),
        crossings=Crossings(graph, groups, 0.1),  # 10 ns for each of the tensors
        wide_start_ns=7,
    )
    assert [task.cost_ns for task in made.tasks] == [
        ((1, 110), (2, 117)),  # its tensor is read by two parts, and written once
        ((0, 40),),
        ((1, 220), (2, 227)),
        ((1, 120), (2, 127)),
    ]


def test_a_model_in_one_piece_pays_for_neither() -> None:
    graph = diamond()
    groups = finest(graph)
    device_costs = device_costs_of([0] * 6, [5] * 6, [100] * 6, launch_ns=10, ns_per_byte=0.1)
    made = region_tasks(
        groups,
        RegionPlacer(graph, groups, device_costs).place(),
        costs_of(device_costs, cores=2),
        widths=(1, 2),
        granularity=Granularity.COARSE,
        crossings=Crossings(graph, groups, 0.1),
        wide_start_ns=7,
    )
    assert [task.cost_ns for task in made.tasks] == [((1, 600), (2, 600))]


def test_stretches_of_the_cpu_end_where_one_side_waits_for_the_other() -> None:
    graph = diamond()
    groups = finest(graph)
    device_costs = device_costs_of([1, 0, 1, 0, 1, 1], [5] * 6, [100] * 6, launch_ns=10, ns_per_byte=0.1)
    plan = find_regions(graph, groups, device_costs)
    made = region_tasks(groups, plan, costs_of(device_costs), widths=(1,), granularity=Granularity.COARSE)
    assert made.groups == ((0,), (1, 3), (2, 4), (5,))
    assert [task.predecessors for task in made.tasks] == [(), (0,), (0,), (1, 2)]
    alone = region_tasks(
        groups,
        RegionPlacer(graph, groups, device_costs).place(),
        costs_of(device_costs),
        widths=(1,),
        granularity=Granularity.COARSE,
    )
    assert alone.groups == (tuple(range(6)),)


@settings(max_examples=50)
@given(case=priced_graphs(), granularity=st.sampled_from(Granularity))
def test_tasks_hold_every_group_once_and_depend_on_earlier_ones_only(
    case: tuple[OpGraph, DeviceCosts], granularity: Granularity
) -> None:
    graph, device_costs = case
    groups = finest(graph)
    plan = find_regions(graph, groups, device_costs)
    made = region_tasks(groups, plan, costs_of(device_costs), widths=(1,), granularity=granularity)
    task_of = {group: index for index, inside in enumerate(made.groups) for group in inside}
    assert sum(map(len, made.groups)) == len(groups) == len(task_of)
    edges = {(task_of[tail], task_of[head]) for head, preds in enumerate(groups.dag.predecessors) for tail in preds}
    stated = {(before, task.index) for task in made.tasks for before in task.predecessors}
    assert stated == {(tail, head) for tail, head in edges if tail != head}
    assert all(tail < head for tail, head in stated)
    on_cpu = sum(task.cost_ns[0][1] for task, region in zip(made.tasks, made.region_of, strict=True) if region is None)
    assert on_cpu + sum(region.device_ns for region in plan.regions) == plan.chosen_ns


def coexecution(
    graph: OpGraph,
    device_costs: DeviceCosts,
    machine: Machine,
    *,
    moves: int = 64,
    row_parts: Mapping[str, frozenset[int]] | None = None,
) -> Coexecution:
    """The best placement on one device of a graph whose nodes are all fusion groups of their own."""
    problem = PlacementProblem(
        graph=graph,
        groups=finest(graph),
        devices=(device_costs,),
        costs=costs_of(device_costs, cores=max(1, machine.cores)),
        machine=machine,
        row_parts=row_parts or {},
    )
    return find_placement(problem, default_placers(len(problem.groups), moves=moves))


def test_device_no_quicker_than_the_processor_takes_the_branch_beside_it() -> None:
    graph = diamond()
    device_costs = device_costs_of([0] * 6, [100] * 6, [100] * 6, launch_ns=1)
    assert find_regions(graph, finest(graph), device_costs).is_cpu_only
    found = coexecution(graph, device_costs, Machine(cores=1))
    assert found.cpu_only_ns == 600
    assert found.best.makespan_ns == 401
    assert sorted(region.nodes for region in found.best.plan.regions) in ([(1, 3)], [(2, 4)])


def test_device_that_would_be_the_bottleneck_leaves_a_branch_to_the_processor() -> None:
    graph = diamond()
    device_costs = device_costs_of([0] * 6, [60] * 6, [100] * 6, launch_ns=1)
    in_sequence = find_regions(graph, finest(graph), device_costs)
    assert len(in_sequence.regions) == 1
    found = coexecution(graph, device_costs, Machine(cores=1))
    assert found.greedy_ns == in_sequence.chosen_ns == 361
    # Regions that end where the processor begins and comes back let both work at once, for two launches more.
    assert found.best.makespan_ns == 61 + 200 + 61
    sides = [region.nodes for region in found.best.plan.regions]
    assert sides in ([(0,), (1, 3), (5,)], [(0,), (2, 4), (5,)])


@settings(max_examples=25)
@given(case=priced_graphs(max_size=20))
def test_best_placement_is_legal_and_never_predicted_slower_than_the_cpu_or_the_greedy_one(
    case: tuple[OpGraph, DeviceCosts],
) -> None:
    graph, device_costs = case
    groups = finest(graph)
    found = coexecution(graph, device_costs, Machine(cores=2), moves=6)
    best = found.best
    verify_regions(graph, groups, device_costs, best.plan)
    lanes = 2 + (1 if best.plan.regions else 0)
    verify_schedule(best.tasks.tasks, best.schedule, cores=2, lanes=lanes)
    assert best.makespan_ns <= min(found.cpu_only_ns, found.greedy_ns)
    assert best.makespan_ns == min(makespan for _, makespan in found.tried)
    assert sorted(group for inside in best.tasks.groups for group in inside) == list(range(len(groups)))


def test_same_arguments_give_the_same_placement() -> None:
    graph = diamond()
    device_costs = device_costs_of([0] * 6, [60] * 6, [100] * 6, launch_ns=1)
    first, second = (coexecution(graph, device_costs, Machine(cores=1)) for _ in range(2))
    assert first == second


def test_nothing_to_gain_leaves_everything_on_the_processor() -> None:
    graph = diamond()
    device_costs = device_costs_of([0] * 6, [500] * 6, [10] * 6, launch_ns=100)
    found = coexecution(graph, device_costs, Machine(cores=1))
    assert found.best.plan.is_cpu_only
    assert found.best.makespan_ns == found.cpu_only_ns == 60


def test_impossible_arguments_are_refused() -> None:
    graph = diamond()
    device_costs = device_costs_of([0] * 6, [1] * 6, [1] * 6)
    with pytest.raises(ConfigError, match="0 cores"):
        coexecution(graph, device_costs, Machine(cores=0))
    with pytest.raises(ConfigError, match="ascend from 1"):
        region_tasks(
            finest(graph),
            RegionPlacer(graph, finest(graph), device_costs).place(),
            costs_of(device_costs),
            widths=(2, 1),
        )


def test_a_placement_of_the_callers_own_is_tried_and_kept_where_it_is_best() -> None:
    graph = diamond()
    groups = finest(graph)
    device_costs = device_costs_of([0] * 6, [100] * 6, [100] * 6, launch_ns=10, ns_per_byte=0.1)
    machine = Machine(cores=1)
    chain = frozenset(group for group, nodes in enumerate(groups.members) if nodes in ((1,), (3,)))
    found = coexecution(graph, device_costs, machine, moves=0, row_parts={"mine": chain})
    assert "mine" in dict(found.tried)
    # first, b1, b2 and last on the CPU, and beside them a launch, two transfers, a1 and a2.
    assert dict(found.tried)["mine"] == 100 + (10 + 2 * 10 + 200) + 100
    assert found.best.makespan_ns <= 430
