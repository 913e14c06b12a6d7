"""Memory plans per shape signature, of real models and of sizes learned from runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from parallax.errors import ConfigError
from parallax.graph import TensorInfo, bind_dims
from parallax.memory import Effort, MemoryModel, PlanCache, verify_arena_plan
from parallax.memory._arena import ArenaSlot
from parallax.model import load_model
from tests.memory._plans import chain, plan_of
from tests.partition._graphs import op_graph

# x(n, 4) -> a(n, 4); a -> b(n, 8), c(?, 4); (b, c) -> y
PLAN = plan_of([(("x",), ("a",)), (("a",), ("b",)), (("a",), ("c",)), (("b", "c"), ("y",))])
GRAPH = replace(
    op_graph(
        [
            ("n0", "Conv", ["x"], ["a"]),
            ("n1", "Conv", ["a"], ["b"]),
            ("n2", "NonZero", ["a"], ["c"]),
            ("n3", "F", ["b", "c"], ["y"]),
        ],
        outputs=["y"],
    ),
    inputs=(TensorInfo(name="x", dtype=1, shape=("n", 4)),),
    tensors={
        name: TensorInfo(name=name, dtype=1, shape=shape)
        for name, shape in {"x": ("n", 4), "a": ("n", 4), "b": ("2*n", 4), "c": (None, 4), "y": ("unk__0", 4)}.items()
    },
)


def memory_model(**settings):
    return MemoryModel(PLAN, GRAPH, **settings)


def test_the_signature_is_every_dimension_that_sizes_depend_on():
    assert memory_model().symbols == ("?c:0", "n", "unk__0")
    assert memory_model(place_outputs=False).symbols == ("?c:0", "n", "unk__0"), "peaks depend on outputs, too"


def test_what_dimensions_do_not_determine_is_dynamic_and_stays_in_its_branch():
    memory = memory_model().plan({"n": 8})
    assert memory.arena.dynamic == ("c", "y")
    assert memory.arena.slots == (
        ArenaSlot("a", memory.arena.slots[0].offset, 128),
        ArenaSlot("b", memory.arena.slots[1].offset, 256),
    )
    branch_of = memory_model().lifetimes.branch_of
    assert len({branch_of[1], branch_of[2], branch_of[3]}) == 3, "each disturbs no other"
    verify_arena_plan(memory.arena, PLAN, sizes=memory_model().sizes({"n": 8}), model_outputs=["y"])


def test_offsets_of_known_tensors_do_not_depend_on_dynamic_ones():
    before = memory_model().plan({"n": 8}).arena
    after = memory_model().plan({"n": 8, "?c:0": 1000}).arena
    assert before.arena_bytes < after.arena_bytes
    assert after.dynamic == ("y",)


def test_a_plan_states_its_dimensions_and_the_peaks_of_its_segments():
    memory = memory_model().plan({"n": 8, "other": 3})
    assert memory.dims == (("n", 8),)
    assert [peak.total_bytes for peak in memory.peaks] == [256, 128 + 256, 128, 256]
    assert [peak.unknown_tensors for peak in memory.peaks] == [0, 0, 1, 2]


def test_a_seen_signature_is_answered_from_the_cache():
    cache = PlanCache(memory_model())
    first = cache.get({"n": 8, "irrelevant": 1})
    assert cache.get({"n": 8, "irrelevant": 2}) is first
    assert cache.get({"n": 9}) is not first
    statistics = cache.statistics()
    assert (statistics.hits, statistics.misses, statistics.signatures, statistics.evictions) == (1, 2, 2, 0)


def test_the_least_recently_used_signature_is_dropped():
    cache = PlanCache(memory_model(), capacity=2)
    kept = cache.get({"n": 1})
    dropped = cache.get({"n": 2})
    assert cache.get({"n": 1}) is kept
    cache.get({"n": 3})
    assert cache.get({"n": 1}) is kept
    assert cache.get({"n": 2}) is not dropped
    assert cache.statistics().signatures == 2
    assert cache.statistics().evictions == 2


def test_a_cache_holds_at_least_one_plan():
    with pytest.raises(ConfigError, match="hold at least 1"):
        PlanCache(memory_model(), capacity=0)


def test_sizes_that_inference_could_not_follow_are_learned_per_signature():
    cache = PlanCache(memory_model())
    cache.get({"n": 8})
    assert cache.learn({"n": 8}, {"c": (5, 4), "y": (6, 4)})
    assert cache.get({"n": 8}).arena.dynamic == ()
    assert dict(cache.get({"n": 8}).dims) == {"n": 8, "?c:0": 5, "unk__0": 6}
    assert cache.get({"n": 9}).arena.dynamic == ("c", "y"), "another signature has not run yet"
    known = cache.get({"n": 8})
    assert not cache.learn({"n": 8}, {"c": (5, 4), "y": (6, 4)})
    assert cache.get({"n": 8}) is known


def test_a_size_that_depends_on_the_data_is_not_trusted_again():
    cache = PlanCache(memory_model())
    cache.learn({"n": 8}, {"c": (5, 4), "y": (6, 4)})
    cache.learn({"n": 9}, {"c": (7, 4)})
    assert cache.get({"n": 9}).arena.dynamic == ("y",)
    assert cache.learn({"n": 8}, {"c": (50, 4), "y": (6, 4)})
    assert cache.get({"n": 8}).arena.dynamic == ("c",)
    assert cache.get({"n": 9}).arena.dynamic == ("c", "y"), "what differs in one signature differs in all"
    assert not cache.learn({"n": 8}, {"c": (60, 4)})
    assert not cache.learn({"n": 9}, {"c": (60, 4)})


def test_a_size_that_inputs_determine_is_not_relearned():
    cache = PlanCache(memory_model())
    assert not cache.learn({"n": 8}, {"a": (100, 4)})
    assert cache.get({"n": 8}).arena.slots[0].size_bytes == 128


def test_quick_plans_are_the_default_of_a_cache():
    assert PlanCache(memory_model()).get({"n": 8}) == memory_model().plan({"n": 8}, effort=Effort.QUICK)


def test_a_cache_remembers_the_order_of_a_thorough_plan_for_other_shapes():
    # Sizes on which largest first and best fit waste bytes, all of them multiples of n.
    plan = chain(5)
    shapes = dict(zip((f"t{i}" for i in range(5)), ((f"{k}*n", 16) for k in (3, 4, 3, 2, 5)), strict=True))
    graph = replace(
        op_graph([(f"n{i}", "Conv", [f"t{i - 1}" if i else "x"], [f"t{i}"]) for i in range(5)], outputs=["t4"]),
        inputs=(TensorInfo(name="x", dtype=1, shape=("n", 16)),),
        tensors={name: TensorInfo(name=name, dtype=1, shape=shape) for name, shape in shapes.items()},
    )
    alone = MemoryModel(plan, graph)
    assert alone.plan({"n": 2}, effort=Effort.QUICK).arena.arena_bytes > alone.plan({"n": 2}).arena.arena_bytes
    cache = PlanCache(alone)
    for n in range(1, 9):
        arena = cache.get({"n": n}).arena
        assert arena.arena_bytes == arena.lower_bound_bytes == 7 * 64 * n
        verify_arena_plan(arena, plan, sizes=alone.sizes({"n": n}), model_outputs=["t4"])
    assert cache.get({"n": 9}).arena.planner == "remembered"


def _model():
    """A model with a size that inference cannot follow: Reshape to a computed shape."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Reshape", ["a", "s"], ["b"]),
        helper.make_node("NonZero", ["a"], ["where"]),
        helper.make_node("Neg", ["b"], ["c"]),
        helper.make_node("Concat", ["c", "a"], ["y"], axis=0),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in (("y", 1), ("where", 7))],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_planned_sizes_are_what_the_runtime_produces():
    proto = _model()
    names = ("a", "s", "b", "where", "c", "y")
    graph = load_model(proto).inferred()
    plan = plan_of(
        [(tuple(node.inputs), tuple(node.outputs)) for node in graph.nodes],
    )
    memory_model = MemoryModel(plan, graph)
    assert memory_model.lifetimes.tensors == names
    cache = PlanCache(memory_model)
    exposed = onnx.ModelProto()
    exposed.CopyFrom(proto)
    exposed.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in ("a", "s", "b", "c"))
    session = onnxruntime.InferenceSession(exposed.SerializeToString(), providers=["CPUExecutionProvider"])
    for n in (2, 5, 2):
        x = np.ones((n, 3), dtype=np.float32)
        dims = bind_dims(graph.inputs, {"x": x.shape})
        assert dims == {"n": n}
        values = dict(zip(names, session.run(list(names), {"x": x}), strict=True))
        for slot in cache.get(dims).arena.slots:
            assert slot.size_bytes == values[slot.tensor].nbytes
        cache.learn(dims, {name: value.shape for name, value in values.items()})
        learned = cache.get(dims).arena
        assert learned.dynamic == ()
        assert {slot.tensor: slot.size_bytes for slot in learned.slots} == {
            name: value.nbytes for name, value in values.items()
        }
        verify_arena_plan(
            learned, plan, sizes={name: value.nbytes for name, value in values.items()}, model_outputs=["y", "where"]
        )
