"""The search for rows to share: which share, which layers stay whole, and at what costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.backends import open_backend
from parallax.errors import ConfigError
from parallax.model import Model, RowSplit, load_model, split_rows
from parallax.planner import PlanDevice, PlanningContext
from parallax.planner._devices import sides_of
from parallax.planner._row_costs import context_of_rows
from parallax.planner._row_search import _chains, search_rows
from parallax.planner._rows import planned_model
from parallax.planner._shared import device_studies, plan_shared, search_shared_rows
from parallax.profile import estimate_costs, fusion_safe_tensors
from parallax.schedule import verify_plan
from parallax.schedule.placement import RowsAndRegions, ShardRows
from tests.model._models import model, node, value, weight
from tests.model.test_rows import random_products
from tests.session.test_devices import PHONE

ROWS, SIZE = 512, 256
STATED = {"speed": 0.5, "host_flops": 100e9}
"""The processor's speed is stated: that of this machine, measured, decides what gains."""


def chain_and_branches(rows: int | str = ROWS) -> Any:
    """A long chain of products, then a product beside sums that no device takes and no rows can be cut of."""
    nodes, weights = [], {}
    last = "x"
    for step in range(4):
        weights[f"w{step}"] = weight((SIZE, SIZE), step) / SIZE**0.5
        nodes.append(node("MatMul", f"{last} w{step}", f"h{step}"))
        last = f"h{step}"
    weights |= {"v": weight((SIZE, SIZE), 9) / SIZE**0.5, "axis": np.array(0, np.int64)}
    nodes.append(node("MatMul", f"{last} v", "left"))
    sums = last
    for step in range(6):
        nodes.append(node("CumSum", f"{sums} axis", f"s{step}"))
        nodes.append(node("Tanh", f"s{step}", f"t{step}"))
        sums = f"t{step}"
    nodes.append(node("Add", f"left {sums}", "y"))
    return model(nodes, [value("x", (rows, SIZE))], [value("y", (rows, SIZE))], weights)


def judged(cost: Callable[[set[str], float], int]) -> Callable[[RowSplit], int]:
    """A judge that is told which products stay whole, and the share of the rows in the first part."""

    def judge(split: RowSplit) -> int:
        found = {entry.name: entry for entry in split.model.graph.nodes if entry.op_type == "MatMul"}
        whole = {entry.outputs[0] for name, entry in found.items() if name not in split.origins}
        first = next(name for name in split.parts[0] if name in found)
        tensors = split.model.inferred().tensors
        shape = tensors[found[first].outputs[0]].shape
        assert shape is not None
        return cost(whole, int(shape[0]) / ROWS)

    return judge


def test_the_search_finds_the_share_and_leaves_whole_what_gains() -> None:
    loaded = load_model(chain_and_branches())

    def cost(whole: set[str], share: float) -> int:
        return round(1_000_000 * (1 + abs(share - 0.54) - 0.1 * ("left" in whole) + 0.05 * len(whole - {"left"})))

    ns = [1000] * len(loaded.graph.nodes)
    found = search_rows(loaded, balanced=0.6, cpu_ns=ns, judge=judged(cost), evaluations=40)
    assert found is not None
    assert found.best.permille == found.everywhere.permille == 540
    assert found.best.whole == ("left",)
    assert found.everywhere.whole == ()
    assert found.balanced.permille == 600
    assert found.best.simulated_ns < found.everywhere.simulated_ns < found.balanced.simulated_ns
    assert found.candidates == (found.best, found.everywhere, found.balanced)
    again = search_rows(loaded, balanced=0.6, cpu_ns=ns, judge=judged(cost), evaluations=40)
    assert again is not None
    assert (again.best.permille, again.best.whole) == (found.best.permille, found.best.whole)


@pytest.mark.parametrize("evaluations", [1, 3, 9])
def test_no_more_splits_are_judged_than_allowed(evaluations: int) -> None:
    loaded = load_model(chain_and_branches())
    calls: list[float] = []

    def cost(whole: set[str], share: float) -> int:
        calls.append(share)
        return 1000

    ns = [1000] * len(loaded.graph.nodes)
    found = search_rows(loaded, balanced=0.5, cpu_ns=ns, judge=judged(cost), evaluations=evaluations)
    assert found is not None
    assert len(calls) <= found.evaluations == evaluations, "a split that leaves nothing to cut is not judged"
    assert found.candidates == (found.best,)
    assert found.best.permille == 500, "of what is as quick, the first"


def test_without_rows_there_is_nothing_to_search() -> None:
    small = model([node("Tanh", "x", "y")], [value("x", (4, 8))], [value("y", (4, 8))], {})
    assert search_rows(load_model(small), balanced=0.5, cpu_ns=[1], judge=lambda _: 1, evaluations=5) is None
    loaded = load_model(chain_and_branches())
    ns = [1000] * len(loaded.graph.nodes)
    assert search_rows(loaded, balanced=0.5, cpu_ns=ns, judge=lambda _: None, evaluations=5) is None


def test_chains_are_those_of_the_operators_asked_for() -> None:
    """a - b beside c, then d - e, where a and d skip ahead; what lies between does not count."""
    nodes = [
        node("MatMul", "x w", "a"),
        node("Tanh", "a", "a1"),
        node("MatMul", "a1 w", "b"),
        node("MatMul", "x w", "c"),
        node("Add", "a b", "ab"),
        node("Add", "ab c", "abc"),
        node("MatMul", "abc w", "d"),
        node("Sigmoid", "d", "d1"),
        node("Mul", "d d1", "d2"),
        node("MatMul", "d2 w", "e"),
        node("Add", "e abc", "y"),
    ]
    graph = load_model(model(nodes, [value("x", (8, 8))], [value("y", (8, 8))], {"w": weight((8, 8))})).graph
    products = [entry.index for entry in graph.nodes if entry.op_type == "MatMul"]
    named = [[graph.nodes[index].outputs[0] for index in chain] for chain in _chains(graph, products)]
    assert sorted(named) == [["a", "b"], ["c"], ["d", "e"]]


def test_costs_of_rows_follow_from_those_of_the_model() -> None:
    loaded = load_model(chain_and_branches())
    split = split_rows(loaded, 0.25, whole={"left"})
    assert split is not None
    listed = PlanningContext(loaded, cores=2, fusion_safe=fusion_safe_tensors(loaded))
    of_tables = context_of_rows(listed, split)
    assert of_tables.costs == estimate_costs(split.model.inferred(), cores=2)
    fusion_safe = of_tables.known_fusion_safe
    assert fusion_safe is not None
    assert {"y", "x"} <= fusion_safe
    measured = dataclasses.replace(listed.costs.times(3), source="measured")
    of_measured = context_of_rows(PlanningContext(loaded, cores=2, costs=measured), split).costs
    assert of_measured.source == "measured"
    for width in measured.widths:
        whole = dict(zip((entry.outputs[0] for entry in loaded.graph.nodes), measured.node_ns(width), strict=True))
        ns = of_measured.node_ns(width)
        parts = [
            sum(ns[entry.index] for entry in split.model.graph.nodes if split.origins.get(entry.name) == index)
            for index in range(4)
        ]
        for step, part in enumerate(parts):
            assert part == pytest.approx(whole[f"h{step}"], rel=0.2)
        (left,) = (entry for entry in split.model.graph.nodes if entry.outputs[0] == "left")
        assert ns[left.index] == whole["left"]


def on_phone(loaded: Model) -> tuple[PlanningContext, dict[str, PlanDevice]]:
    context = PlanningContext(loaded, cores=2, fusion_safe=fusion_safe_tensors(loaded))
    return context, {PHONE: PlanDevice(backend=open_backend(PHONE, STATED))}


def test_rows_and_regions_in_one_plan_gain_what_neither_does_alone() -> None:
    loaded = load_model(chain_and_branches())
    context, devices = on_phone(loaded)
    placer = RowsAndRegions()
    shared = plan_shared(context, devices, placer, name="rows-and-regions")
    assert shared.plan is not None
    assert shared.plan.rows_permille is not None
    assert shared.plan.rows_whole == ("left",)
    assert shared.plan.structure_digest == loaded.structure_digest
    verify_plan(shared.plan, len(planned_model(loaded, shared.plan).graph.nodes))
    alone = plan_shared(context, devices, placer, name="rows-and-regions", shares_rows=False)
    everywhere = plan_shared(context, devices, ShardRows(), name="shard-rows")
    assert shared.chosen_ns < 0.95 * min(alone.chosen_ns, everywhere.chosen_ns)
    found = search_shared_rows(context, devices, _alone(context, devices), evaluations=placer.evaluations)
    assert found is not None
    assert found.best.simulated_ns < found.everywhere.simulated_ns <= found.balanced.simulated_ns


@settings(max_examples=15, deadline=None)
@given(random_products(), st.sampled_from([0.3, 0.6, 1.2]))
def test_both_in_one_plan_are_never_predicted_to_be_slower_than_either(
    drawn: tuple[onnx.ModelProto, set[str]], speed: float
) -> None:
    context, _ = on_phone(load_model(drawn[0]))
    devices = {PHONE: PlanDevice(backend=open_backend(PHONE, {**STATED, "speed": speed}))}
    both = plan_shared(context, devices, RowsAndRegions(evaluations=8), name="both")
    regions = plan_shared(context, devices, RowsAndRegions(), name="regions", shares_rows=False)
    assert both.chosen_ns <= regions.chosen_ns
    rows = plan_shared(context, devices, ShardRows(), name="rows")
    # The search keeps to shares of a tenth to nine tenths.
    if rows.plan is None or 100 <= (rows.plan.rows_permille or 0) <= 900:
        assert both.chosen_ns <= rows.chosen_ns


def test_where_regions_alone_are_quickest_no_rows_are_shared() -> None:
    loaded = load_model(chain_and_branches())
    context, _ = on_phone(loaded)
    devices = {PHONE: PlanDevice(backend=open_backend(PHONE, {**STATED, "speed": 100}))}
    shared = plan_shared(context, devices, RowsAndRegions(), name="rows-and-regions")
    assert shared.plan is not None
    assert shared.plan.rows_permille is None
    assert shared.chosen_ns == plan_shared(context, devices, RowsAndRegions(), name="", shares_rows=False).chosen_ns


def _alone(context: PlanningContext, devices: dict[str, PlanDevice]) -> Any:
    (study,) = device_studies(context, devices, context.costs).values()
    found = study.placed((RowsAndRegions(),))
    assert found is not None
    return found


def test_sides_are_those_of_the_placement() -> None:
    loaded = load_model(chain_and_branches())
    context, devices = on_phone(loaded)
    found = _alone(context, devices)
    placed = found.best.regions.placed(len(context.groups))
    sides = sides_of(context, found)
    for entry in context.graph.nodes:
        for name in entry.outputs:
            assert sides.get(name) == placed[context.groups.group_of[entry.index]]


@pytest.mark.parametrize("evaluations", [0, -1, 1.5, True])
def test_settings_are_checked(evaluations: Any) -> None:
    with pytest.raises(ConfigError, match="evaluations"):
        RowsAndRegions(evaluations=evaluations)
