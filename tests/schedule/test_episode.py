"""What learned placers see of a problem, and placements made branch by branch."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.graph import OpGraph
from parallax.partition.regions import DeviceCosts
from parallax.schedule.placement import (
    BRANCH_COLUMNS,
    MACHINE_COLUMNS,
    MAX_BRANCHES,
    OBSERVATION_SIZE,
    BranchFeatures,
    Episode,
    Machine,
    PlacementProblem,
    scaled_work,
    unscaled_work,
)
from parallax.schedule.placement._quick import QuickJudge
from tests.partition._device_costs import NO, device_costs_of, priced_graphs, sized_graph
from tests.schedule.test_coexecution import diamond
from tests.schedule.test_quick import problem_of

ONE_CORE = Machine(cores=1)


def chain(refused: list[bool]) -> PlacementProblem:
    size = len(refused)
    graph = sized_graph(size, itertools.pairwise(range(size)), [10, 20, 30, 40])
    device_costs = device_costs_of(
        refused, [5] * size, [100] * size, launch_ns=7, ns_per_byte=1.0, flops=[9, 99, 999, 9999]
    )
    return problem_of(graph, device_costs, ONE_CORE)


def column(features: BranchFeatures, name: str) -> list[float]:
    return [float(value) for value in features.branches[:, BRANCH_COLUMNS.index(name)]]


def test_rows_say_what_branches_are_and_cost() -> None:
    features = BranchFeatures.of(chain([False, False, True, False]))
    assert features.shown == (0, 1, 2)
    assert features.movable == (True, False, True)
    assert features.branches.shape == (3, len(BRANCH_COLUMNS))
    assert features.machine.shape == (len(MACHINE_COLUMNS),)
    assert column(features, "share of elementwise") == [1, 1, 1]
    assert column(features, "is taken") == [1, 0, 1]
    assert column(features, "cpu share") == [0.5, 0.25, 0.25]
    assert column(features, "cpu ns, all cores") == pytest.approx([np.log10(201) / 10, *[np.log10(101) / 10] * 2])
    assert column(features, "device ns") == pytest.approx([np.log10(11) / 10, 0, np.log10(6) / 10])
    assert column(features, "cpu over device") == pytest.approx([np.log2(201 / 11) / 10, 0, np.log2(101 / 6) / 10])
    assert column(features, "depth") == [0.5, 0.75, 1]
    assert column(features, "height") == [1, 0.5, 0.25]
    assert column(features, "predecessors") == pytest.approx([0, 0.1, 0.1])
    # x of one float goes there, and the third of 20 floats comes back.
    assert column(features, "moving there ns")[0] == pytest.approx(np.log10(1 + 4) / 10)
    assert column(features, "moving back ns")[0] == pytest.approx(np.log10(1 + 80) / 10)
    assert dict(zip(MACHINE_COLUMNS, features.machine, strict=True))["launch ns"] == pytest.approx(np.log10(8) / 10)


def test_zeros_and_their_worth_are_columns_of_their_own() -> None:
    problem = chain([False] * 4)
    weighty = replace(problem, zeros={"x": 0.5}, zero_worth={"Relu": 0.4})
    # The one weight is an input here, not an initializer: no zeros are known, whatever they would be worth.
    assert column(BranchFeatures.of(weighty), "zeros") == [0]
    graph = replace(problem.graph, initializers={"x": problem.graph.tensors["x"]})
    weighty = replace(weighty, graph=graph)
    features = BranchFeatures.of(weighty)
    assert features.zeros == (0.125,)  # the first of four groups, of one time
    assert column(features, "zeros") == [0.125]
    assert column(features, "worth of zeros") == pytest.approx([0.125 * 0.4])


@given(flops=st.integers(0, 10**15))
def test_thresholds_of_work_are_the_inverse_of_rows(flops: int) -> None:
    assert unscaled_work(scaled_work(flops)) == pytest.approx(flops, rel=1e-9)
    assert unscaled_work(-0.5) == 0
    assert unscaled_work(1e9) < float("inf")


def test_branches_beyond_the_most_follow_what_makes_most_of_what_they_read() -> None:
    size = MAX_BRANCHES + 40
    # A long ladder of forks and joins, in which every third node does nothing.
    edges = [(tail, head) for tail in range(size - 2) for head in (tail + 1, tail + 2)]
    work = [1 if node % 3 == 0 else 100 for node in range(size)]
    device_costs = device_costs_of([False] * size, [5] * size, work, launch_ns=1)
    problem = problem_of(sized_graph(size, edges, [4] * size), device_costs, ONE_CORE)
    features = BranchFeatures.of(problem)
    assert len(features.pieces) > MAX_BRANCHES
    assert len(features.shown) == len(features.branches) == MAX_BRANCHES
    assert set(features.sides([True] * MAX_BRANCHES)) <= {-1, 0}
    everything = Episode(features)
    while not everything.is_done:
        everything.step(True)
    assert everything.choices() == [True] * MAX_BRANCHES
    # Both ways to complete a placement agree.
    assert everything.placement("all").devices == features.placement([True] * MAX_BRANCHES, "all").devices
    hidden = sorted(set(range(len(features.pieces))) - set(features.shown))
    sides = features.sides([True] * MAX_BRANCHES)
    assert any(sides[piece] == 0 for piece in hidden)
    assert set(features.sides([False] * MAX_BRANCHES)) == {-1}


@pytest.mark.parametrize(("choices", "expected"), [([False] * 2, 400), ([True, False], 301), ([True, True], 493)])
def test_a_chain_costs_what_the_quick_judge_says(choices: list[bool], expected: int) -> None:
    problem = chain([False, False, True, False])
    episode = Episode(BranchFeatures.of(problem))
    start = episode.bound_ns
    raised = [episode.step(choice) for choice in choices]
    assert episode.is_done
    assert episode.bound_ns == start + sum(raised) == expected
    sides = episode.features.sides(episode.choices())
    assert QuickJudge(problem).cost_ns(sides) == expected


def test_branches_side_by_side_are_seen_to_overlap() -> None:
    device_costs = device_costs_of([False] * 6, [100] * 6, [100] * 6, launch_ns=1)
    episode = Episode(BranchFeatures.of(problem_of(diamond(), device_costs, ONE_CORE)))
    assert episode.reference_ns == 600
    assert episode.bound_ns == 300  # half of all, if both sides shared it ideally
    for choice in (False, False, True, False):
        episode.step(choice)
    assert episode.bound_ns == 401


@settings(max_examples=60)
@given(case=priced_graphs(max_size=20), data=st.data())
def test_steps_add_up_and_never_lower_the_bound(case: tuple[OpGraph, DeviceCosts], data: st.DataObject) -> None:
    graph, device_costs = case
    features = BranchFeatures.of(problem_of(graph, device_costs, Machine(cores=2)))
    assert np.isfinite(features.branches).all()
    assert np.isfinite(features.machine).all()
    episode = Episode(features, advice=[9.0] * len(features.shown), thresholds=(0.5, 0.1))
    start, raised = episode.bound_ns, []
    while not episode.is_done:
        assert features.movable[episode.row]
        observed = episode.observe()
        assert observed.shape == (OBSERVATION_SIZE,)
        assert observed.dtype == np.float32
        assert np.abs(observed).max() <= 10
        np.testing.assert_array_equal(observed, episode.observe())
        raised.append(episode.step(data.draw(st.booleans())))
    assert min(raised, default=0) >= 0
    assert start + sum(raised) == episode.bound_ns
    assert len(raised) == sum(features.movable)
    decided = iter(episode.on_device)
    assert episode.choices() == [movable and next(decided) for movable in features.movable]
    placement = episode.placement("drawn")
    placement.check(features.problem)
    assert features.pieces.sides(placement) == features.sides(episode.choices())


def test_the_earliest_finish_is_told() -> None:
    episode = Episode(BranchFeatures.of(chain([False] * 4)))
    assert episode.earliest_is_device()
    slow = chain([False] * 4)
    slow = replace(slow, devices=(replace(slow.devices[0], device_ns=(500,) * 4),))
    assert not Episode(BranchFeatures.of(slow)).earliest_is_device()


def test_a_device_that_takes_nothing_leaves_nothing_to_decide() -> None:
    problem = chain([True] * 4)
    assert problem.devices[0].declined == (NO,) * 4
    episode = Episode(BranchFeatures.of(problem))
    assert episode.is_done
    assert episode.bound_ns == 400
    assert set(episode.placement("none").devices) == {None}
