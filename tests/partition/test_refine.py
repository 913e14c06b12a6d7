from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.partition import CostRule, PaperRule, RefinementRule
from parallax.partition._refine import BranchLoad, LayerDecision, Reason, lpt_makespan


def load(
    branch: int, nodes: int = 5, flops: int = 100, *, narrow: int = 100, wide: int = 60, region: bool = False
) -> BranchLoad:
    return BranchLoad(branch=branch, nodes=nodes, flops=flops, narrow_ns=narrow, wide_ns=wide, is_region=region)


def test_paper_rule_takes_a_balanced_layer_of_long_branches() -> None:
    decision = PaperRule().decide(4, [load(1, flops=100), load(0, flops=150)])
    assert decision == LayerDecision(layer=4, parallel=(0, 1), reason=Reason.BALANCED, measured=1.5, bound=1.5)


@pytest.mark.parametrize(
    ("loads", "reason", "measured", "bound"),
    [
        ([load(0)], Reason.SINGLE_BRANCH, 1, 2),
        ([load(0), load(1, nodes=2)], Reason.TOO_FEW_NODES, 2, 3),
        ([load(0, flops=100), load(1, flops=151)], Reason.UNBALANCED, 1.51, 1.5),
        ([load(0, flops=100), load(1, flops=0)], Reason.UNBALANCED, math.inf, 1.5),
        ([load(0, flops=0), load(1, flops=0)], Reason.NO_WORK, 0, 1),
    ],
)
def test_paper_rule_refuses_with_its_reason_and_both_figures(
    loads: list[BranchLoad], reason: Reason, measured: float, bound: float
) -> None:
    decision = PaperRule().decide(0, loads)
    assert (decision.parallel, decision.reason, decision.measured, decision.bound) == ((), reason, measured, bound)


def test_a_region_is_exempt_from_the_balance_but_not_from_its_length() -> None:
    rule = PaperRule()
    loads = [load(0, flops=10**9, region=True), load(1), load(2)]
    assert rule.decide(0, loads).parallel == (0, 1, 2)
    assert rule.decide(0, [load(0, nodes=2, region=True), load(1), load(2)]).reason is Reason.TOO_FEW_NODES


def test_dropping_outliers_keeps_the_largest_balanced_set() -> None:
    rule = PaperRule(drop_outliers=True)
    loads = [load(0, flops=100), load(1, flops=120), load(2, flops=140), load(3, flops=900), load(4, flops=1000)]
    assert rule.decide(0, loads).parallel == (0, 1, 2)
    # Equal numbers: the pair with more work.
    assert rule.decide(0, [loads[0], loads[1], loads[3], loads[4]]).parallel == (3, 4)
    assert rule.decide(0, [loads[0], load(9, nodes=1), loads[1]]).parallel == (0, 1)
    assert rule.decide(0, [loads[0], loads[3]]).reason is Reason.UNBALANCED
    assert rule.decide(0, [load(0, flops=0), load(1, flops=0), loads[0]]).reason is Reason.UNBALANCED


@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.integers(0, 30), st.booleans()),
        max_size=6,
    )
)
def test_dropping_outliers_is_as_good_as_trying_every_subset(rows: list[tuple[int, int, bool]]) -> None:
    rule = PaperRule(drop_outliers=True)
    loads = [load(index, nodes, flops, region=region) for index, (nodes, flops, region) in enumerate(rows)]

    def allowed(subset: tuple[BranchLoad, ...]) -> bool:
        plain = [each.flops for each in subset if not each.is_region]
        balanced = not plain or max(plain) == 0 or (min(plain) > 0 and max(plain) / min(plain) <= rule.balance)
        return (
            len(subset) >= 2
            and all(each.nodes >= rule.min_nodes for each in subset)
            and balanced
            and any(each.flops for each in subset)
        )

    sizes = [
        len(subset)
        for count in range(2, len(loads) + 1)
        for subset in itertools.combinations(loads, count)
        if allowed(subset)
    ]
    chosen = rule.decide(0, loads).parallel
    assert allowed(tuple(each for each in loads if each.branch in chosen)) == bool(sizes)
    # Idle branches of no work beside a region are not worth taking: there the rule may stop short of the maximum.
    if sizes and not any(each.flops == 0 for each in loads):
        assert len(chosen) == max(sizes)


def test_cost_rule_compares_the_makespan_with_the_serial_time() -> None:
    rule = CostRule(lanes=2, handover_ns=5, segment_overhead_ns=1)
    # Two lanes: 100+1 side by side, plus 10 for going out and back; one after the other 2 * 60.
    decision = rule.decide(3, [load(0), load(1)])
    assert decision == LayerDecision(layer=3, parallel=(0, 1), reason=Reason.FASTER, measured=111, bound=120)
    # Branches that scale well gain nothing on two lanes.
    assert rule.decide(3, [load(0, wide=52), load(1, wide=52)]).reason is Reason.SLOWER
    assert CostRule(lanes=2, handover_ns=5, min_gain=0.2).decide(3, [load(0), load(1)]).parallel == ()
    assert rule.decide(3, [load(0)]).reason is Reason.SINGLE_BRANCH


@given(st.lists(st.integers(0, 50), max_size=6), st.integers(1, 3))
def test_lpt_keeps_its_guarantee(costs: list[int], lanes: int) -> None:
    best = min(
        max(sum(cost for cost, lane in zip(costs, choice, strict=True) if lane == each) for each in range(lanes))
        for choice in itertools.product(range(lanes), repeat=len(costs))
    )
    makespan = lpt_makespan(costs, lanes)
    assert best <= makespan <= best * (4 / 3 - 1 / (3 * lanes)) + 1e-9


@pytest.mark.parametrize("rule", [PaperRule(), PaperRule(drop_outliers=True), CostRule(lanes=2, handover_ns=10)])
@given(data=st.data())
def test_every_rule_answers_empty_or_at_least_two_and_ignores_the_order(
    rule: RefinementRule, data: st.DataObject
) -> None:
    figures = st.integers(0, 1000)
    rows = data.draw(st.lists(st.tuples(st.integers(1, 9), figures, figures, figures), max_size=8))
    loads = [load(i, nodes, flops, narrow=narrow, wide=wide) for i, (nodes, flops, narrow, wide) in enumerate(rows)]
    decision = rule.decide(0, loads)
    assert len(decision.parallel) != 1
    assert list(decision.parallel) == sorted(set(decision.parallel))
    assert set(decision.parallel) <= set(range(len(loads)))
    assert rule.decide(0, data.draw(st.permutations(loads))) == decision
