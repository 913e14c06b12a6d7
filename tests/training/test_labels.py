"""What networks are to learn: never worse than what a label started from, and the best where all can be tried."""

from __future__ import annotations

import itertools

import pytest

from parallax.schedule.placement import scaled_work
from parallax.training._labels import find_label, improve_label
from tests.training._small import random_examples


@pytest.mark.parametrize("example", random_examples(12), ids=lambda example: example.name)
def test_a_label_is_no_worse_than_either_side_alone_and_says_what_it_costs(example) -> None:
    label = find_label(example, evaluations=200)
    judge = example.judge()
    assert len(label.chosen) == len(example.features.shown)
    assert label.cost_ns == example.cost_ns(judge, label.chosen)
    assert label.cost_ns <= example.cost_ns(judge, [False] * len(label.chosen))
    assert label.cost_ns <= example.cost_ns(judge, example.features.movable)
    assert label == find_label(example, evaluations=200)


def test_labels_of_small_problems_are_nearly_the_best_of_all_placements() -> None:
    best, found = 0.0, 0.0
    small = [example for example in random_examples(60) if sum(example.features.movable) <= 8]
    assert len(small) >= 8
    for example in small:
        judge = example.judge()
        choices = itertools.product(*((False, True) if movable else (False,) for movable in example.features.movable))
        least = min(example.cost_ns(judge, chosen) for chosen in choices)
        label = find_label(example, evaluations=400)
        assert label.cost_ns >= least
        best, found = best + 1, found + label.cost_ns / least
    assert found / best < 1.02


@pytest.mark.parametrize("example", random_examples(6, seed=1), ids=lambda example: example.name)
def test_thresholds_are_the_best_of_a_grid(example) -> None:
    tau_rho, tau_work = find_label(example, evaluations=60).thresholds
    features, judge = example.features, example.judge()

    def cost(max_zeros: float, min_work: float) -> int:
        pairs = zip(features.flops, features.zeros, strict=True)
        return example.cost_ns(judge, [scaled_work(flops) >= min_work and zeros <= max_zeros for flops, zeros in pairs])

    for max_zeros in (0.0, 0.3, 1.0):
        assert cost(tau_rho, tau_work) <= cost(max_zeros, 2.0), "nothing on the device"
    assert cost(tau_rho, tau_work) <= cost(1.0, 0.0), "all on the device"


def test_a_proposal_replaces_a_label_only_where_it_leads_to_a_better_one() -> None:
    improved = 0
    for example in random_examples(20, seed=2):
        poor = find_label(example, evaluations=1)
        for proposed in ([False] * len(poor.chosen), list(example.features.movable)):
            better = improve_label(example, poor, proposed, evaluations=200)
            assert better.cost_ns <= poor.cost_ns
            assert better.thresholds == poor.thresholds
            improved += better.cost_ns < poor.cost_ns
    assert improved
