"""The quick judge of placements: bounds that hold, costs that can be checked by hand, and the simulator's order."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax import zoo
from parallax.backends.emulated._backend import EmulatedBackend
from parallax.backends.emulated._profiles import load_profile
from parallax.graph import OpGraph
from parallax.model import load_model
from parallax.partition import group_fusions
from parallax.partition.regions import DeviceCosts, estimate_device_costs
from parallax.profile import estimate_costs, fusion_safe_tensors, product_flops
from parallax.schedule.placement import Machine, PlacementProblem, default_placers, find_placement
from parallax.schedule.placement._descent import QuickSearch, descend
from parallax.schedule.placement._judge import Judge
from parallax.schedule.placement._pieces import CPU_SIDE
from parallax.schedule.placement._placers import ByCost, Greedy, Heft
from parallax.schedule.placement._quick import QuickJudge
from tests.partition._device_costs import device_costs_of, priced_graphs, sized_graph
from tests.schedule.test_coexecution import costs_of, diamond, finest


def problem_of(graph: OpGraph, device_costs: DeviceCosts, machine: Machine) -> PlacementProblem:
    return PlacementProblem(
        graph=graph,
        groups=finest(graph),
        devices=(device_costs,),
        costs=costs_of(device_costs, cores=machine.cores),
        machine=machine,
    )


def zoo_problem(name: str, phone: str) -> PlacementProblem:
    """A zoo model on a phone beside four cores, both as fast as the tables' processor makes them."""
    model = load_model(zoo.load(name))
    graph = model.inferred()
    costs = estimate_costs(graph, cores=4)
    backend = EmulatedBackend(load_profile(phone), host_flops=product_flops(4))
    device_costs = estimate_device_costs(graph, backend.capability(model), backend, cpu_ns=costs.node_ns(4))
    assert device_costs is not None
    return PlacementProblem(
        graph=graph,
        groups=group_fusions(graph, fusion_safe=fusion_safe_tensors(model), may_cross=model.can_split_at),
        devices=(device_costs,),
        costs=costs,
        machine=Machine(cores=4, handover_ns=15_000, segment_overhead_ns=8_000, wide_start_ns=60_000),
    )


def test_one_thing_after_the_other_is_the_sum_with_launches_and_transfers() -> None:
    graph = sized_graph(4, itertools.pairwise(range(4)), [10, 20, 30, 40])
    device_costs = device_costs_of([False, False, True, False], [5] * 4, [100] * 4, launch_ns=7, ns_per_byte=1.0)
    judge = QuickJudge(problem_of(graph, device_costs, Machine(cores=1)))
    assert judge.pieces.groups == ((0, 1), (2,), (3,))
    assert judge.pieces.options == ((CPU_SIDE, 0), (CPU_SIDE,), (CPU_SIDE, 0))
    assert judge.cost_ns([CPU_SIDE] * 3) == 400
    # x of one float goes up, 20 floats come down; then 30 go up, and 40 come down.
    assert judge.cost_ns([0, CPU_SIDE, CPU_SIDE]) == (7 + 10 + 4 + 80) + 200
    assert judge.cost_ns([0, CPU_SIDE, 0]) == (7 + 10 + 4 + 80) + 100 + (7 + 5 + 120 + 160)


def test_branches_on_both_sides_run_at_once() -> None:
    graph = diamond()
    device_costs = device_costs_of([False] * 6, [100] * 6, [100] * 6, launch_ns=1)
    judge = QuickJudge(problem_of(graph, device_costs, Machine(cores=1)))
    assert judge.pieces.groups == ((0,), (1, 3), (2, 4), (5,))
    assert judge.cost_ns([CPU_SIDE, CPU_SIDE, 0, CPU_SIDE]) == 401
    assert judge.cost_ns([0, 0, 0, 0]) == 601
    # A region that ends for the other branch to begin is launched anew for the end.
    assert judge.cost_ns([0, 0, CPU_SIDE, 0]) == 301 + 200 + 101
    assert judge.cost_ns([0, 0, CPU_SIDE, 0], ends_early=True) == 101 + 201 + 101


@settings(max_examples=60)
@given(case=priced_graphs(max_size=20), data=st.data(), cores=st.integers(1, 3), early=st.booleans())
def test_a_bound_is_kept_exactly(
    case: tuple[OpGraph, DeviceCosts], data: st.DataObject, cores: int, early: bool
) -> None:
    graph, device_costs = case
    problem = problem_of(
        graph, device_costs, Machine(cores=cores, handover_ns=3, segment_overhead_ns=2, wide_start_ns=4)
    )
    judge = QuickJudge(problem)
    sides = [data.draw(st.sampled_from(options)) for options in judge.pieces.options]
    cost = QuickJudge(problem).cost_ns(sides, ends_early=early)
    for bound in data.draw(st.lists(st.integers(0, 2 * cost + 1), min_size=1, max_size=4)):
        found = judge.cost_ns(sides, ends_early=early, bound_ns=bound)
        assert found == cost if cost < bound else found >= bound
    # What a bound cut short is not taken for the cost later.
    assert judge.cost_ns(sides, ends_early=early) == cost
    placement = judge.pieces.placement(sides, "drawn", ends_early=early)
    assert judge.pieces.sides(placement) == sides


def test_what_was_too_slow_is_not_predicted_again_and_counts_as_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = QuickJudge(problem_of(diamond(), device_costs_of([False] * 6, [100] * 6, [100] * 6), Machine(cores=1)))
    sides = [CPU_SIDE] * len(judge.pieces)
    predict, bounds = judge._predict, []

    def noting(asked: list[int], ends_early: bool, bound_ns: int) -> int:
        bounds.append(bound_ns)
        return predict(asked, ends_early, bound_ns)

    monkeypatch.setattr(judge, "_predict", noting)
    answers = [judge.cost_ns(sides, bound_ns=bound_ns) for bound_ns in (300, 200, 300, 400, 1000, 700)]
    assert bounds == [300, 400, 1000]
    assert [answer >= 300 for answer in answers] == [True] * 6
    assert answers[4:] == [600, 600]
    assert judge.evaluations == 5, "the last one's time was known"


@settings(max_examples=30)
@given(case=priced_graphs(max_size=20), seed=st.integers(0, 3))
def test_descent_ends_no_higher_than_it_starts_and_within_its_evaluations(
    case: tuple[OpGraph, DeviceCosts], seed: int
) -> None:
    graph, device_costs = case
    judge = QuickJudge(problem_of(graph, device_costs, Machine(cores=2)))
    sides = [CPU_SIDE] * len(judge.pieces)
    start = judge.cost_ns(sides)
    end = descend(judge, sides, ends_early=False, seed=seed, allowed=100)
    assert end <= start
    assert judge.cost_ns(sides) == end
    assert judge.evaluations <= 101


@pytest.mark.parametrize(("name", "phone"), [("yolov8n", "pixel-6-gpu"), ("mobilenetv3-s", "p30-pro-gpu")])
def test_the_quick_judge_orders_the_best_few_as_the_simulator_does(name: str, phone: str) -> None:
    problem = zoo_problem(name, phone)
    starts = [problem.cpu_only]
    for placer in (ByCost(), Greedy(), Heft()):
        starts.extend(placer.propose(problem))
    quick = QuickJudge(problem, starts)
    rows = []
    seen = set()
    for start in starts:
        sides = quick.pieces.sides(start)
        key = (tuple(sides), start.ends_early)
        if key in seen:
            continue
        seen.add(key)
        placement = quick.pieces.placement(sides, start.label, ends_early=start.ends_early)
        judge = Judge(problem)
        alone = judge.best.makespan_ns
        judge.consider(placement)
        # What the judge leaves out at sight takes longer than the CPU alone.
        rows.append((quick.cost_ns(sides, ends_early=start.ends_early), min(judge.best.makespan_ns, alone)))
    assert len(rows) > 5
    by_quick = sorted(rows)
    best = min(simulated for _, simulated in rows)
    # The simulator's best is among the quick judge's first three, within a few percent.
    assert min(simulated for _, simulated in by_quick[:3]) <= 1.03 * best


@pytest.mark.parametrize(("name", "phone"), [("yolov8n", "pixel-6-gpu"), ("mobilenetv3-s", "redmi-k50-gpu")])
def test_the_quick_search_is_no_worse_than_the_default_search(name: str, phone: str) -> None:
    default = find_placement(zoo_problem(name, phone), default_placers(400)).best.makespan_ns
    problem = zoo_problem(name, phone)
    quick = find_placement(problem, (ByCost(), Greedy(), Heft(), QuickSearch())).best.makespan_ns
    assert quick <= 1.02 * default
