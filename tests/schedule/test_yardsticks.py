"""Yardsticks by name: what each proposes is a placement, and the judge never ends above the CPU alone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.errors import ConfigError
from parallax.graph import OpGraph
from parallax.partition.regions import DeviceCosts
from parallax.partition.regions._verify import verify_regions
from parallax.planner import open_placer, policy_name
from parallax.schedule.placement import PLACERS, Machine, PaperPolicy, Placement, PlacementProblem, find_placement
from parallax.schedule.placement._chain_dp import ChainDp
from parallax.schedule.placement._descent import Descent, QuickSearch
from parallax.schedule.placement._etf import EarliestFinish
from parallax.schedule.placement._fixed_share import FixedShare
from parallax.schedule.placement._placers import Greedy
from parallax.schedule.placement._shared_regions import find_shared_regions
from parallax.schedule.placement._stages import Stages
from parallax.schedule.placement._thresholds import ClosedForm, Intensity, Quadrants, Sparsity
from tests.partition._device_costs import best_chain_cost, device_costs_of, priced_chains, priced_graphs, sized_graph
from tests.partition._graphs import op_graph
from tests.schedule.test_coexecution import costs_of, diamond, finest


def problem_of(
    graph: OpGraph,
    *costs_of_devices: DeviceCosts,
    cores: int = 2,
    zeros: Mapping[str, float] | None = None,
    parts: Mapping[str, frozenset[int]] | None = None,
) -> PlacementProblem:
    return PlacementProblem(
        graph=graph,
        groups=finest(graph),
        devices=costs_of_devices,
        costs=costs_of(costs_of_devices[0], cores=cores),
        machine=Machine(cores=cores, handover_ns=3, segment_overhead_ns=2),
        zeros=zeros or {},
        row_parts=parts or {},
    )


def on_device(problem: PlacementProblem, placement: Placement) -> set[int]:
    """Nodes that a placement puts on the first device."""
    regions = find_shared_regions(problem, placement)
    assert regions is not None
    return {node for region in regions.plan.regions for node in region.nodes}


@pytest.mark.parametrize("name", PLACERS)
@settings(max_examples=12)
@given(case=priced_graphs(max_size=16), share=st.floats(0, 1))
def test_what_a_yardstick_proposes_is_a_placement_and_never_ends_above_the_cpu_alone(
    name: str, case: tuple[OpGraph, DeviceCosts], share: float
) -> None:
    graph, device_costs = case
    groups = finest(graph)
    half = frozenset(range(len(groups) // 2))
    zeros = {info.name: share for info in graph.tensors.values()}
    problem = problem_of(graph, device_costs, zeros=zeros, parts={"first rows": half})
    placer = open_placer(name)
    assert placer is not None
    proposed = list(placer.propose(problem))
    for placement in proposed:
        placement.check(problem)
        regions = find_shared_regions(problem, placement)
        if regions is not None:
            verify_regions(graph, groups, device_costs, regions.plan)
    assert proposed == list(placer.propose(problem)), "the same question has the same answer"
    alone = find_placement(problem, ()).best.makespan_ns
    found = find_placement(problem, (placer,))
    verify_regions(graph, groups, device_costs, found.best.plan)
    assert found.best.makespan_ns <= alone


@settings(max_examples=80)
@given(case=priced_chains())
def test_the_dynamic_program_is_exact_for_chains(case: tuple[OpGraph, DeviceCosts]) -> None:
    graph, device_costs = case
    problem = problem_of(graph, device_costs)
    (placement,) = ChainDp().propose(problem)
    regions = find_shared_regions(problem, placement)
    assert regions is not None
    assert regions.plan.chosen_ns == best_chain_cost(graph, device_costs)


def long_chain(refused: list[bool]) -> tuple[OpGraph, DeviceCosts]:
    size = len(refused)
    graph = sized_graph(size, itertools.pairwise(range(size)), [4] * size)
    return graph, device_costs_of(refused, [1] * size, [100] * size, flops=[10 * (node + 1) for node in range(size)])


def test_greedy_keeps_as_many_regions_as_a_delegate_allows_the_largest_first() -> None:
    graph, device_costs = long_chain([False, True, False, False, False, True, False, False, True, False, False])
    problem = problem_of(graph, device_costs)
    nodes = [on_device(problem, next(Greedy(partitions=count).propose(problem))) for count in (None, 1, 2, 3)]
    assert nodes == [{0, 2, 3, 4, 6, 7, 9, 10}, {2, 3, 4}, {2, 3, 4, 6, 7}, {2, 3, 4, 6, 7, 9, 10}]
    by_name = [next(iter(PLACERS[name]().propose(problem))) for name in ("greedy-1", "greedy-3")]
    assert [on_device(problem, placement) for placement in by_name] == [nodes[1], nodes[3]]


def weighty(shares: list[float]) -> tuple[OpGraph, dict[str, float]]:
    """A chain of products with weights, of which such shares are zeros; work ascends along it."""
    rows = [
        (f"n{index}", "MatMul", [f"t{index - 1}" if index else "x", f"w{index}"], [f"t{index}"])
        for index in range(len(shares))
    ]
    names = {"x": (4, 4)} | {f"t{index}": (4, 4) for index in range(len(shares))}
    weights = {f"w{index}": (4, 4) for index in range(len(shares))}
    graph = op_graph(rows, outputs=[f"t{len(shares) - 1}"], shapes=names | weights, initializers=tuple(weights))
    return graph, {f"w{index}": share for index, share in enumerate(shares)}


def test_one_axis_thresholds_take_what_is_on_their_side() -> None:
    graph, zeros = weighty([0.0, 0.5, 0.9, 0.2])
    device_costs = device_costs_of([False] * 4, [1] * 4, [100] * 4)
    problem = problem_of(graph, device_costs, zeros=zeros)
    assert problem.sparsity == (0.0, 0.5, 0.9, 0.2)
    (dense,) = Sparsity(max_zeros=0.3).propose(problem)
    assert dense.devices == (0, None, None, 0)
    work = problem.features[0].flops
    assert work > 0
    (all_of_it,) = Intensity(min_flops=work).propose(problem)
    assert all_of_it.devices == (0, 0, 0, 0)
    (none_of_it,) = Intensity(min_flops=work + 1).propose(problem)
    assert none_of_it.devices == (None,) * 4
    # Where no threshold is given, several are tried.
    assert len({placement.devices for placement in Sparsity().propose(problem)}) == 4


def test_quadrants_ask_both_axes_and_what_is_small_and_dense_stays_with_its_producer() -> None:
    graph = op_graph(
        [
            ("dense", "MatMul", ["x", "wd"], ["a"]),
            ("relu", "Relu", ["a"], ["b"]),
            ("sparse", "MatMul", ["b", "ws"], ["c"]),
            ("tail", "Relu", ["c"], ["y"]),
        ],
        outputs=["y"],
        shapes=dict.fromkeys(("x", "wd", "ws", "a", "b", "c", "y"), (4, 4)),
        initializers=("wd", "ws"),
    )
    device_costs = device_costs_of([False] * 4, [10] * 4, [100] * 4, launch_ns=20)
    problem = problem_of(graph, device_costs, zeros={"wd": 0.0, "ws": 0.95})
    (placement,) = Quadrants(min_flops=100, max_zeros=0.5).propose(problem)
    # The CPU would skip the zeros in 5 ns, the device takes 30 with a launch; what follows each is where it is made.
    assert placement.devices == (0, 0, None, None)
    (quick,) = Quadrants(min_flops=100, max_zeros=0.96).propose(problem)
    assert quick.devices == (0, 0, 0, 0)


def test_the_closed_form_is_the_launch_over_the_difference_of_the_rates() -> None:
    graph, zeros = weighty([0.0] * 4)
    flops = 2 * 4 * 4 * 4
    # 100 and 20 ns for 128 FLOPs each: 80 ns are saved by one of them.
    costs_of_devices = [device_costs_of([False] * 4, [20] * 4, [100] * 4, launch_ns=launch) for launch in (80, 81)]
    found = [
        next(iter(ClosedForm().propose(problem_of(graph, device_costs, zeros=zeros))))
        for device_costs in costs_of_devices
    ]
    assert [placement.devices for placement in found] == [(0,) * 4, (None,) * 4]
    assert f"{flops}" in found[0].label
    bounds = [ClosedForm().bound(problem_of(graph, device_costs, zeros=zeros), 0) for device_costs in costs_of_devices]
    assert bounds == [pytest.approx(80 * flops / 80), pytest.approx(81 * flops / 80)]
    slower = device_costs_of([False] * 4, [200] * 4, [100] * 4)
    assert list(ClosedForm().propose(problem_of(graph, slower))) == []
    assert ClosedForm().bound(problem_of(graph, slower), 0) is None


def test_earliest_finish_uses_both_sides_at_once() -> None:
    graph = diamond()
    device_costs = device_costs_of([False] * 6, [100] * 6, [100] * 6, launch_ns=1)
    (placement,) = EarliestFinish().propose(problem_of(graph, device_costs, cores=1))
    sides = {graph.nodes[node].name: placement.devices[node] for node in range(6)}
    assert {sides["a1"], sides["b1"]} == {None, 0}
    assert {sides["a2"], sides["b2"]} == {None, 0}


def test_stages_divide_what_runs_at_once() -> None:
    graph = diamond()
    device_costs = device_costs_of([False] * 6, [100] * 6, [100] * 6, launch_ns=1)
    (placement,) = Stages().propose(problem_of(graph, device_costs, cores=1))
    on_it = {graph.nodes[node].name for node in range(6) if placement.devices[node] == 0}
    assert on_it in ({"a1", "a2"}, {"b1", "b2"})


def test_descent_finds_the_branch_to_move_from_the_cpu_alone() -> None:
    graph = diamond()
    device_costs = device_costs_of([False] * 6, [100] * 6, [100] * 6, launch_ns=1)
    problem = problem_of(graph, device_costs, cores=1)
    best = find_placement(problem, (Descent(),)).best.makespan_ns
    assert best < find_placement(problem, ()).best.makespan_ns
    assert find_placement(problem, (QuickSearch(),)).best.makespan_ns <= best


def test_a_fixed_share_is_the_first_rows_of_a_model_that_was_split() -> None:
    graph = diamond()
    device_costs = device_costs_of([False] * 6, [1] * 6, [100] * 6)
    rows = frozenset({1, 3})
    (placement,) = FixedShare(share=0.4).propose(
        problem_of(graph, device_costs, parts={"first rows": rows, "rest": rows})
    )
    assert {group for group, device in enumerate(placement.devices) if device == 0} == rows
    assert list(FixedShare().propose(problem_of(graph, device_costs))) == []
    assert FixedShare(share=0.4).rows_share(0.7) == 0.4
    assert FixedShare().rows_share(0.7) == 0.7


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("greedy,partitions=2", Greedy(partitions=2)),
        ("intensity,min_flops=1e6", Intensity(min_flops=1e6)),
        ("thresholds,min_flops=5,max_zeros=0.25", Quadrants(min_flops=5, max_zeros=0.25)),
        ("parallax-paper,margin=0.3,drop_outliers=true", PaperPolicy(margin=0.3, drop_outliers=True)),
        ("descent, seeds=2", Descent(seeds=2)),
    ],
)
def test_settings_follow_a_name_and_are_told_again(name: str, made: object) -> None:
    assert open_placer(name) == made
    assert open_placer(policy_name(made)) == made


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("greedy,partition=2", "'partition=2' is no setting of the policy 'greedy'"),
        ("greedy,2", "is no setting"),
        ("cpu,threads=2", "it has none"),
        ("greedy,partitions=two", "partitions='two'"),
        ("greedy,partitions=0", "partitions=0"),
        ("intensity,min_flops=-1", "min_flops=-1"),
        ("sparsity,max_zeros=1.5", "max_zeros=1.5"),
        ("fixed-share,share=1", "share=1"),
        ("stages,max_layers=0", "max_layers=0"),
        ("descent,seeds=0", "a search with a setting of 0"),
        ("parallax-paper,margin=2", "margin=2"),
    ],
)
def test_settings_that_are_none_are_refused_with_the_remedy(name: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_placer(name)
    assert words in str(refused.value)
    assert refused.value.fix
