from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from parallax.engine._lanes import LanePool
from parallax.engine._view_ops import alias_parts, find_view_ops
from parallax.errors import PlanError
from parallax.memory import MemoryModel, find_lifetimes, verify_arena_plan
from tests.engine._graphs import Cut, models, proto, value

JOIN = [
    helper.make_node("Relu", ["x"], ["r"]),
    helper.make_node("Neg", ["r"], ["a"]),
    helper.make_node("Abs", ["r"], ["b"]),
    helper.make_node("Concat", ["a", "b"], ["c"], axis=0),
    helper.make_node("Neg", ["c"], ["d"]),
    helper.make_node("Sigmoid", ["d"], ["y"]),
]


@pytest.fixture
def pool() -> LanePool:
    return LanePool(2)


def skipped(cut: Cut) -> set[str]:
    """Operators of the segments that the last run did not call."""
    assert cut.executor._arenas is not None
    (layout,) = list(cut.executor._arenas._idle[-1]._layouts.values())[-1:]
    nodes = cut.model.graph.nodes
    return {nodes[index].op_type for index, step in enumerate(layout.steps) if step.is_skipped}


def check(cut: Cut, *shapes: tuple[int, ...]) -> None:
    for seed, shape in enumerate(shapes):
        for _ in range(2):
            cut.check({"x": value(np.random.default_rng(seed).standard_normal(shape))})
            cut.poison()


def test_parts_of_a_concat_are_written_where_the_whole_lies(pool: LanePool) -> None:
    cut = Cut(proto(JOIN, {"x": [3, 16]}, ["y"]), pool=pool)
    check(cut, (3, 16))
    places = cut.places()
    assert skipped(cut) == {"Concat"}
    assert places["a"].offset == places["c"].offset
    assert places["b"].offset == places["c"].offset + 3 * 64
    assert places["c"].shape == (6, 16)


def test_parts_of_a_split_are_read_where_the_whole_lies(pool: LanePool) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Split", ["r", "sizes"], ["a", "b"], axis=0),
        helper.make_node("Neg", ["a"], ["c"]),
        helper.make_node("Abs", ["b"], ["d"]),
        helper.make_node("Concat", ["c", "d"], ["y"], axis=0),
    ]
    sizes = numpy_helper.from_array(np.array([1, 3], np.int64), "sizes")
    cut = Cut(proto(nodes, {"x": [4, 16]}, ["y"], initializers=[sizes]), pool=pool)
    check(cut, (4, 16))
    places = cut.places()
    assert skipped(cut) == {"Split"}, "the Concat makes an output of the model"
    assert (places["a"].offset, places["b"].offset) == (places["r"].offset, places["r"].offset + 64)
    assert places["b"].shape == (3, 16)


@pytest.mark.parametrize(
    ("shape", "axis", "view_ops"),
    [
        ((3, 16), 0, True),
        ((3, 5), 0, False),  # the second part would not be aligned
        ((1, 3, 16), 1, True),  # nothing before the axis
        ((1, 3, 16), -2, True),
        ((2, 3, 16), 1, False),  # rows of both parts by turns
        ((16,), 0, True),
    ],
)
def test_only_bytes_in_order_and_aligned_are_left_where_they_are(
    pool: LanePool, shape: tuple[int, ...], axis: int, view_ops: bool
) -> None:
    nodes = [*JOIN[:3], helper.make_node("Concat", ["a", "b"], ["c"], axis=axis), *JOIN[4:]]
    cut = Cut(proto(nodes, {"x": shape}, ["y"]), pool=pool)
    check(cut, shape)
    assert skipped(cut) == ({"Concat"} if view_ops else set())


def test_each_signature_is_judged_by_itself(pool: LanePool) -> None:
    cut = Cut(proto(JOIN, {"x": ["n"]}, ["y"]), pool=pool)
    check(cut, (5,), (16,), (7,), (32,))
    assert skipped(cut) == {"Concat"}
    check(cut, (7,))
    assert skipped(cut) == set()


def test_tensors_that_lie_in_two_wholes_or_outside_are_left_alone(pool: LanePool) -> None:
    def count(nodes: list[Any], outputs: list[str]) -> int:
        made = Cut(proto(nodes, {"x": [16]}, outputs), pool=pool)
        check(made, (16,))
        return len(find_view_ops(made.model.graph, made.plan))

    twice = [*JOIN[:3], helper.make_node("Concat", ["a", "a"], ["c"], axis=0), *JOIN[4:], JOIN[2]]
    assert count([*JOIN], ["y"]) == 1
    assert count([*JOIN[:2], *twice[3:6]], ["y"]) == 0, "one part cannot lie in two places"
    assert count([*JOIN], ["y", "a"]) == 0, "an output of the model is the caller's"
    assert count([*JOIN], ["y", "c"]) == 0
    shared = [*JOIN, helper.make_node("Concat", ["b", "a"], ["z"], axis=0), helper.make_node("Neg", ["z"], ["w"])]
    assert count(shared, ["y", "w"]) == 1, "the second has no parts left"
    roots = [helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Abs", ["x"], ["b"]), *JOIN[3:]]
    assert count(roots, ["y"]) == 0, "no segment comes before both parts: the whole would belong to none"


def test_a_part_of_another_size_than_planned_is_copied_as_ever(
    pool: LanePool, caplog: pytest.LogCaptureFixture
) -> None:
    right = Cut(proto(JOIN, {"x": [4, 16]}, ["y"]), pool=pool)
    graph = right.model.inferred()
    tensors = {name: graph.tensors[name] for name in graph.producers}
    for name, rows in (("b", 3), ("c", 7), ("d", 7)):
        tensors[name] = replace(tensors[name], shape=(rows, 16))
    memory_model = MemoryModel(right.plan, replace(graph, tensors=tensors), place_outputs=False)
    cut = Cut(proto(JOIN, {"x": [4, 16]}, ["y"]), pool=pool, memory_model=memory_model)
    check(cut, (4, 16))
    assert skipped(cut) == set()
    assert caplog.text.count("other sizes than planned") == 1


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(source=models(symbolic=False), lanes=st.integers(1, 2), order=st.randoms(use_true_random=False))
def test_in_any_order_of_execution_nothing_is_overwritten_before_its_last_reader(
    source: Any, lanes: int, order: Any
) -> None:
    """Plays the real plan over the arena, byte by byte: each holds the name of a byte that some kernel wrote."""
    cut = Cut(source, pool=LanePool(1), lanes=lanes)
    arenas = cut.executor._arenas
    if arenas is None:
        return
    plan = arenas.planner.plan(arenas.planner.signature({"x": value(np.ones((3, 16)))}))
    sizes = {1: 4, 7: 8}
    extent = {
        name: range(place.offset, place.offset + prod(place.shape) * sizes[place.element_type])
        for name, place in plan.places.items()
    }
    memory: dict[int, tuple[str, int]] = {}
    content: dict[str, list[tuple[str, int]]] = {}
    view_ops = {view_op.segment: view_op for view_op in find_view_ops(cut.model.graph, cut.plan)}
    fixed = find_lifetimes(cut.plan, cut.outputs, place_outputs=False).order
    done: set[int] = set()
    while len(done) < len(cut.plan.segments):
        ready = [s for s in cut.plan.segments if s.index not in done and done.issuperset(s.predecessors)]
        if fixed is not None:
            ready = [segment for segment in ready if segment.index == fixed[len(done)]]
        segment = order.choice(ready)
        for name in extent.keys() & set(segment.inputs):
            assert [memory[byte] for byte in extent[name]] == content[name], name
        if segment.index in plan.skipped:
            view_op = view_ops[segment.index]
            rest = [byte for name in view_op.parts for byte in content.get(name, ())] or content[view_op.whole]
            for name in view_op.parts if view_op.is_split else (view_op.whole,):
                content[name], rest = rest[: len(extent[name])], rest[len(extent[name]) :]
                assert [memory[byte] for byte in extent[name]] == content[name], name
        else:
            for name in extent.keys() & set(segment.outputs):
                content[name] = [(name, number) for number in range(len(extent[name]))]
                memory.update(zip(extent[name], content[name], strict=True))
        done.add(segment.index)


def test_a_folded_plan_is_judged_like_any_other(pool: LanePool) -> None:
    cut = Cut(proto(JOIN, {"x": [16]}, ["y"]), pool=pool)
    graph = cut.model.inferred()
    view_ops = find_view_ops(graph, cut.plan)
    folded = alias_parts(cut.plan, view_ops)
    assert set(find_lifetimes(folded, ["y"], place_outputs=False).tensors) == {"r", "c", "d"}
    assert "c" in folded.segments[0].outputs, "the whole is there before any part is made"
    arena = MemoryModel(folded, graph, place_outputs=False).plan({}).arena
    sizes: dict[str, int | None] = {slot.tensor: slot.size_bytes for slot in arena.slots}
    verify_arena_plan(arena, folded, sizes=sizes, model_outputs=["y"])
    slots = tuple(slot._replace(offset=0) for slot in arena.slots)
    with pytest.raises(PlanError, match="alive at once"):
        verify_arena_plan(replace(arena, slots=slots), folded, sizes=sizes, model_outputs=["y"])
