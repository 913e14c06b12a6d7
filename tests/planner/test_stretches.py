"""Which stretches are sliced for a budget: those around the peaks, in as few slices as do, and nothing else."""

from __future__ import annotations

import itertools

import pytest

from parallax.memory import PeakTable
from parallax.model import Model, SlicedGraph, load_model, slice_stretches
from parallax.planner._rows import planned_model
from parallax.planner._stretches import (
    SLICES,
    _begins,
    _ends,
    _Order,
    _search,
    _try,
    _whole_steps,
    find_stretches,
    stretched_plans,
)
from parallax.schedule import Plan, verify_plan
from tests.model.test_tiles import attention, convolutions
from tests.session.test_narrow_budgets import tokens_model


def peak(model: Model) -> int:
    """What a run holds beside inputs and outputs."""
    graph = model.inferred()
    (found,) = PeakTable(graph, [range(len(graph.nodes))], kept=[graph.output_names]).bind({})
    assert not found.unknown_tensors
    return found.interior_bytes


@pytest.mark.parametrize(
    ("proto", "share"),
    [
        pytest.param(convolutions(), 0.6, id="convolutions in 60%"),
        pytest.param(convolutions(), 0.5, id="convolutions in 50%"),
        pytest.param(tokens_model(256), 0.6, id="tokens in 60%"),
        pytest.param(tokens_model(256), 0.3, id="tokens in 30%"),
        pytest.param(attention(), 0.6, id="attention in 60%"),
    ],
)
def test_the_peak_of_the_sliced_model_is_within_the_budget(proto: bytes, share: float) -> None:
    model = load_model(proto)
    budget = int(share * peak(model))
    found = find_stretches(model, budget)
    assert found is not None
    assert peak(slice_stretches(model, found)) <= budget
    assert find_stretches(model, budget) == found, "the same each time"


def test_a_model_that_fits_is_left_alone() -> None:
    model = load_model(convolutions())
    assert find_stretches(model, peak(model)) is None


def test_only_what_holds_too_much_is_sliced() -> None:
    """Of two layers one is larger; and few slices are taken where few do."""
    model = load_model(convolutions())
    found = find_stretches(model, int(0.9 * peak(model)))
    assert found is not None
    assert [stretch.slices for stretch in found] == [2]
    before = {entry.name for entry in model.graph.nodes}
    kept = {entry.name for entry in slice_stretches(model, found).graph.nodes} & before
    assert {"Conv_c2", "AveragePool_v2", "enlarge"} <= kept


def test_room_for_next_to_nothing_is_not_found_and_the_least_can_be_asked_for() -> None:
    model = load_model(convolutions())
    assert find_stretches(model, 1) is None
    least = find_stretches(model, 0)
    assert least is not None
    assert peak(slice_stretches(model, least)) < 0.6 * peak(model)


def test_plans_are_of_one_segment_and_say_what_they_slice() -> None:
    model = load_model(tokens_model())
    wide, narrow = stretched_plans(model, budget_bytes=peak(model) // 2, cores=2, reason="for a test")
    for planned in (wide, narrow):
        plan, made = planned.plan, planned_model(model, planned.plan)
        assert [node.name for node in made.graph.nodes] == [node.name for node in planned.model.graph.nodes]
        verify_plan(plan, len(made.graph.nodes))
        assert len(plan.segments) == 1
        assert plan.is_rewritten
        assert not plan.is_whole
        assert plan.structure_digest == model.structure_digest
        assert Plan.from_json(plan.to_json()) == plan
        assert "computed in slices" in str(plan)
    assert peak(narrow.model) < peak(wide.model) <= peak(model) // 2


def test_there_are_none_of_open_shapes() -> None:
    assert not list(stretched_plans(load_model(tokens_model("n")), budget_bytes=1 << 20, cores=2, reason="for a test"))


@pytest.mark.parametrize(
    "proto",
    [
        pytest.param(convolutions(), id="convolutions"),
        pytest.param(tokens_model(64), id="tokens"),
        pytest.param(attention(), id="attention"),
    ],
)
def test_no_way_to_slice_a_stretch_holds_less_than_its_floor_and_the_best_of_all_is_found(proto: bytes) -> None:
    """So that what is left out because of its floor is never what would be taken; of whole steps and of sliced ones."""
    sliced = SlicedGraph(load_model(proto))
    order = _Order(sliced, list(_whole_steps(sliced)))
    for _ in range(4):
        peak = max(range(len(order.steps)), key=lambda place: order.held[place])
        held = []
        for end in _ends(order, peak):
            for begin in _begins(order, peak):
                floor = order.floor(begin, end + 1)
                shape = sliced.shape(order.steps[end].outputs[0])[:3]
                for axis, slices in itertools.product([axis for axis, size in enumerate(shape) if size > 1], SLICES):
                    choice = _try(order, begin, end + 1, axis, slices)
                    if choice is not None:
                        assert choice.peak_bytes >= floor
                        held.append(choice.peak_bytes)
        best = _search(order, peak, 0)
        if best is None:
            assert not held or min(held) >= order.peak_bytes
            break
        assert best.peak_bytes == min(held)
        order = order.after([best])
