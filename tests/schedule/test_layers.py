"""A placement run layer by layer: every step waits for the one before it, within memory and threads."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.errors import ConfigError
from parallax.graph import OpGraph
from parallax.partition.regions import DeviceCosts
from parallax.partition.regions._verify import verify_regions
from parallax.schedule import PAPER_POLICY
from parallax.schedule.placement import (
    LayeredRun,
    Machine,
    PaperPolicy,
    PlacementProblem,
    find_placement,
    run_by_layers,
)
from parallax.schedule.placement._layers import branch_peaks
from tests.partition._device_costs import device_costs_of, priced_graphs, sized_graph
from tests.schedule._policies import verify_schedule
from tests.schedule.test_coexecution import costs_of, diamond, finest

PLENTY = 1 << 40


def problem_of(graph: OpGraph, device_costs: DeviceCosts, machine: Machine) -> PlacementProblem:
    return PlacementProblem(
        graph=graph,
        groups=finest(graph),
        devices=(device_costs,),
        costs=costs_of(device_costs, cores=machine.cores),
        machine=machine,
    )


def layered(
    graph: OpGraph, device_costs: DeviceCosts, policy: PaperPolicy, *, cores: int = 4, budget_bytes: int = PLENTY
) -> LayeredRun:
    problem = problem_of(graph, device_costs, Machine(cores=cores, handover_ns=3, segment_overhead_ns=2))
    return run_by_layers(problem, policy.regions(problem), policy, budget_bytes=budget_bytes)


def on_cpu(graph: OpGraph, flops: int = 100) -> DeviceCosts:
    count = len(graph.nodes)
    return device_costs_of([True] * count, [1] * count, [100] * count, flops=[flops] * count)


def fan(branches: int, length: int, elements: int = 16) -> OpGraph:
    """So many equal chains between a first and a last node."""
    edges, last = [], []
    node = 1
    for _ in range(branches):
        before = 0
        for _ in range(length):
            edges.append((before, node))
            before, node = node, node + 1
        last.append(before)
    edges += [(before, node) for before in last]
    return sized_graph(node + 1, edges, [elements] * (node + 1))


@settings(max_examples=60)
@given(
    case=priced_graphs(),
    cores=st.integers(1, 6),
    threads=st.integers(1, 4),
    nodes=st.integers(1, 3),
    imbalance=st.sampled_from([1.0, 1.5, 1e9]),
    share=st.sampled_from([None, 1, 2]),
    outliers=st.booleans(),
    budget=st.sampled_from([0, 40, 200, PLENTY]),
)
def test_every_group_runs_once_in_steps_within_threads(
    case: tuple[OpGraph, DeviceCosts],
    cores: int,
    threads: int,
    nodes: int,
    imbalance: float,
    share: int | None,
    outliers: bool,
    budget: int,
) -> None:
    graph, device_costs = case
    policy = PaperPolicy(
        min_nodes=1,
        min_macs=10,
        max_bytes_per_mac=10,
        min_branch_nodes=nodes,
        max_imbalance=imbalance,
        drop_outliers=outliers,
        max_threads=threads,
        branch_threads=share,
    )
    problem = problem_of(graph, device_costs, Machine(cores=cores))
    regions = policy.regions(problem)
    verify_regions(graph, problem.groups, device_costs, regions)
    made = run_by_layers(problem, regions, policy, budget_bytes=budget)
    assert sorted(group for inside in made.tasks.groups for group in inside) == list(range(len(problem.groups)))
    tasks = made.tasks.tasks
    verify_schedule(tasks, made.schedule, cores=cores, lanes=made.schedule.lanes)
    assert made.schedule.policy == PAPER_POLICY
    # Edges of the graph are among the predecessors.
    task_of = {group: index for index, inside in enumerate(made.tasks.groups) for group in inside}
    for head, preds in enumerate(problem.groups.dag.predecessors):
        assert {task_of[pred] for pred in preds} - {task_of[head]} <= set(tasks[task_of[head]].predecessors)
    spans = {span.segment: span for span in made.run.timeline}
    # What runs at the same time are branches of one layer: no more than the cap, and within the budget.
    parts = [problem.groups.nodes_of(inside) for inside in made.tasks.groups]
    peaks = branch_peaks(graph, parts)
    for span in made.run.timeline:
        beside = [other for other in spans.values() if other.start_ns <= span.start_ns < other.end_ns]
        assert sum(other.width for other in beside) <= min(cores, threads)
        if len(beside) > 1:
            held = [peaks[other.segment] for other in beside if made.tasks.region_of[other.segment] is None]
            assert sum(held) <= budget
    ends = 0
    for task in tasks:
        if task.predecessors:
            ends = max(spans[before].end_ns for before in task.predecessors)
            assert spans[task.index].start_ns >= ends


def test_branches_of_a_layer_run_side_by_side_and_the_next_layer_waits_for_all_of_them() -> None:
    graph = fan(3, 4)
    made = layered(graph, on_cpu(graph), PaperPolicy(max_threads=3))
    sizes = [len(inside) for inside in made.tasks.groups]
    assert sizes == [1, 4, 4, 4, 1]
    assert [task.predecessors for task in made.tasks.tasks] == [(), (0,), (0,), (0,), (1, 2, 3)]
    assert [assignment.width for assignment in made.schedule.assignments] == [3, 1, 1, 1, 3]
    assert (made.parallel_layers, made.most_branches, made.left_out) == (1, 3, 0)
    assert made.run.makespan_ns < 14 * 100


def test_branches_of_two_operators_are_too_short_unless_that_is_allowed() -> None:
    graph = diamond()
    strict = layered(graph, on_cpu(graph), PaperPolicy())
    assert [len(inside) for inside in strict.tasks.groups] == [6]
    loose = layered(graph, on_cpu(graph), PaperPolicy(min_branch_nodes=2))
    assert [len(inside) for inside in loose.tasks.groups] == [1, 2, 2, 1]


@pytest.mark.parametrize(("fit", "sizes"), [(3, [1, 4, 4, 4, 1]), (2, [1, 4, 4, 5]), (1, [14])])
def test_as_many_branches_run_at_once_as_fit_and_the_others_one_by_one(fit: int, sizes: list[int]) -> None:
    graph = fan(3, 4)
    chain = range(1, 5)
    (peak,) = branch_peaks(graph, [tuple(chain)])
    made = layered(graph, on_cpu(graph), PaperPolicy(), budget_bytes=fit * peak)
    assert sorted(len(inside) for inside in made.tasks.groups) == sorted(sizes)
    # A branch that fits alone has nothing beside it.
    assert made.left_out == {3: 0, 2: 1, 1: 2}[fit]
    assert made.most_branches == (fit if fit > 1 else 0)


def test_peak_of_a_branch_is_what_it_has_made_and_still_needs() -> None:
    graph = fan(1, 3, elements=16)
    # Two tensors of 16 floats are alive where one is made from the other; what comes from outside is not the branch's.
    assert branch_peaks(graph, [(1, 2, 3)]) == [128]
    assert branch_peaks(graph, [(1,)]) == [64]


def test_threads_are_shared_evenly_unless_stated_and_never_more_than_the_cap() -> None:
    graph = fan(2, 4)
    even = layered(graph, on_cpu(graph), PaperPolicy(max_threads=6), cores=8)
    assert [assignment.width for assignment in even.schedule.assignments] == [6, 3, 3, 6]
    single = layered(graph, on_cpu(graph), PaperPolicy(max_threads=6, branch_threads=1), cores=8)
    assert [assignment.width for assignment in single.schedule.assignments] == [6, 1, 1, 6]
    wide = layered(fan(5, 4), on_cpu(fan(5, 4)), PaperPolicy(max_threads=2), cores=8)
    assert max(assignment.width for assignment in wide.schedule.assignments) == 2
    assert wide.schedule.lanes == 2


def test_a_region_runs_beside_branches_whatever_its_work_and_counts_for_no_thread() -> None:
    graph = fan(3, 4)
    count = len(graph.nodes)
    taken = {1, 2, 3, 4}
    device_costs = device_costs_of(
        [node not in taken for node in range(count)],
        [10] * count,
        [100] * count,
        launch_ns=5,
        flops=[10**6 if node in taken else 100 for node in range(count)],
    )
    made = layered(graph, device_costs, PaperPolicy(min_macs=1000, max_bytes_per_mac=1.0, max_threads=2), cores=2)
    assert made.tasks.region_of.count(None) == 4
    region = next(index for index, number in enumerate(made.tasks.region_of) if number is not None)
    assert made.schedule.assignments[region].width == 0
    assert made.schedule.assignments[region].lane == made.schedule.lanes - 1 == 2
    assert made.most_branches == 3
    beside = [assignment.width for assignment in made.schedule.assignments if assignment.segment in (1, 2, 3)]
    assert sorted(beside) == [0, 1, 1]


@pytest.mark.parametrize(
    ("thresholds", "regions"),
    [
        ({}, 0),
        ({"min_nodes": 4, "min_macs": 100, "max_bytes_per_mac": 10.0}, 1),
        ({"min_nodes": 15, "min_macs": 100, "max_bytes_per_mac": 10.0}, 0),
        ({"min_nodes": 1, "min_macs": 10_000, "max_bytes_per_mac": 10.0}, 0),
        ({"min_nodes": 1, "min_macs": 100, "max_bytes_per_mac": 1e-9}, 0),
    ],
)
def test_each_threshold_of_regions_can_be_set(thresholds: dict[str, float], regions: int) -> None:
    graph = fan(3, 4)
    count = len(graph.nodes)
    device_costs = device_costs_of([False] * count, [10] * count, [100] * count, flops=[100] * count)
    problem = problem_of(graph, device_costs, Machine(cores=2))
    policy = PaperPolicy(**thresholds)  # type: ignore[arg-type]
    assert len(policy.regions(problem).regions) == regions
    # Through the seam of placers it is judged like any other.
    assert find_placement(problem, (policy,)).best.makespan_ns <= find_placement(problem, ()).best.makespan_ns


@pytest.mark.parametrize(
    "setting",
    [
        {"min_nodes": -1},
        {"min_nodes": 2.5},
        {"min_macs": float("nan")},
        {"max_bytes_per_mac": -0.1},
        {"max_imbalance": 0.9},
        {"margin": 1.0},
        {"margin": "0.4"},
        {"max_threads": 0},
        {"branch_threads": 0},
        {"free_bytes": -1},
        {"max_threads": True},
    ],
    ids=str,
)
def test_a_threshold_that_is_of_no_use_is_refused_by_name(setting: dict[str, object]) -> None:
    (name,) = setting
    with pytest.raises(ConfigError, match=name) as refused:
        replace(PaperPolicy(), **setting)  # type: ignore[arg-type]
    assert refused.value.fix
