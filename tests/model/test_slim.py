"""What zeros make superfluous goes, and nothing else: unit by unit, with ONNX Runtime as the judge of what is left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from parallax.model import Model, load_model, slim_model
from tests.model._models import model, node, value

Array = np.ndarray[Any, Any]
TOLERANCE = 1e-4
"""Of an output's largest magnitude."""


def weights(*shape: int, zero: Any = (), axis: int = 0, seed: int = 0) -> Array:
    """Random numbers, with some slices along an axis 0."""
    made = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    np.moveaxis(made, axis, 0)[list(zero)] = 0
    return made


def run(source: Any, feeds: Mapping[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def assert_same(slimmed: Model, made: onnx.ModelProto, feeds: Mapping[str, Array]) -> None:
    """The slimmed model computes what the other does."""
    whole = slimmed.whole()
    assert isinstance(whole, bytes)
    for ours, theirs in zip(run(whole, feeds), run(made.SerializeToString(), feeds), strict=True):
        assert ours.shape == theirs.shape
        scale = float(np.abs(theirs).max()) or 1.0
        np.testing.assert_allclose(ours / scale, theirs / scale, rtol=0, atol=TOLERANCE)


def slim(made: onnx.ModelProto) -> Model:
    return slim_model(load_model(made))


def removed(slimmed: Model) -> dict[str, int]:
    """Operator -> channels that it lost."""
    assert slimmed.slimming is not None
    found: dict[str, int] = {}
    for removal in slimmed.slimming.removals:
        found[removal.node] = found.get(removal.node, 0) + removal.count
    return found


def refused(slimmed: Model) -> list[str]:
    assert slimmed.slimming is not None
    return [refusal.why for refusal in slimmed.slimming.refusals]


IMAGE = {"x": np.random.default_rng(9).standard_normal((1, 3, 6, 6)).astype(np.float32)}


def chain(
    middle: list[onnx.NodeProto],
    more: Mapping[str, Array] | None = None,
    *,
    bias: Array | None = None,
    pads: int = 0,
    channels: int = 8,
) -> onnx.ModelProto:
    """Conv "first" of 8 channels, of which 5 are 0, what is between "a" and "b", and Conv "last"."""
    held = {"w": weights(8, 3, 3, 3, zero=range(3, 8)), "v": weights(4, channels, 3, 3, seed=1), **(more or {})}
    inputs = "x w"
    if bias is not None:
        held["c"] = bias
        inputs = "x w c"
    nodes = [
        node("Conv", inputs, "a", name="first", pads=[1] * 4),
        *middle,
        node("Conv", "b v", "y", name="last", pads=[pads] * 4),
    ]
    return model(nodes, [value("x", (1, 3, 6, 6))], [value("y", None)], held, opset=17, ir_version=8)


def test_channels_go_through_an_activation() -> None:
    made = chain([node("Relu", "a", "b")], pads=1)
    slimmed = slim(made)
    assert removed(slimmed) == {"first": 5}
    assert slimmed.slimming.removals[0].why == "all weights of them are 0"
    assert slimmed.graph.initializers["w"].shape == (3, 3, 3, 3)
    assert slimmed.graph.initializers["v"].shape == (4, 3, 3, 3)
    assert slimmed.slimming.parameters == 5 * 27 + 4 * 5 * 9
    assert slimmed.slimming.flops > 0
    assert_same(slimmed, made, IMAGE)


def test_a_constant_goes_into_the_bias_of_its_reader() -> None:
    made = chain([node("Sigmoid", "a", "b")], bias=np.linspace(-1, 1, 8, dtype=np.float32))
    slimmed = slim(made)
    assert removed(slimmed) == {"first": 5}
    assert len(slimmed.graph.nodes[-1].inputs) == 3
    assert_same(slimmed, made, IMAGE)


def test_zero_padding_keeps_what_is_constant_and_not_0() -> None:
    made = chain([node("Sigmoid", "a", "b")], pads=1)
    slimmed = slim(made)
    assert removed(slimmed) == {}
    assert any("zero padding stands before Conv 'last'" in why for why in refused(slimmed))
    assert slimmed.slimming.refusals[0].count == 5


@pytest.mark.parametrize("scale_is_zero", [False, True])
def test_channels_go_through_a_batch_normalisation_with_its_shift(scale_is_zero: bool) -> None:
    more = {name: weights(8, seed=place) for place, name in enumerate("smh")}
    more["r"] = np.abs(weights(8, seed=5)) + 1
    if scale_is_zero:  # all that pruning by the scale sets to 0
        more["s"][:2] = 0
    made = chain([node("BatchNormalization", "a s h m r", "n"), node("Relu", "n", "b")], more)
    slimmed = slim(made)
    assert removed(slimmed) == {"first": 7 if scale_is_zero else 5}
    assert_same(slimmed, made, IMAGE)


def test_both_sides_of_an_addition_go_together_or_not_at_all() -> None:
    more = {"u": weights(8, 3, 3, 3, zero=(2, 3, 4, 5, 6), seed=3)}
    middle = [node("Conv", "x u", "k", name="second", pads=[1] * 4), node("Add", "a k", "b")]
    slimmed = slim(made := chain(middle, more))
    assert removed(slimmed) == {"first": 4, "second": 4}  # 3 to 6, which are 0 in both
    assert_same(slimmed, made, IMAGE)


def test_what_an_input_is_added_to_stays() -> None:
    made = model(
        [node("Conv", "x w", "a", name="first", pads=[1] * 4), node("Add", "a z", "b"), node("Conv", "b v", "y")],
        [value("x", (1, 3, 6, 6)), value("z", (1, 8, 6, 6))],
        [value("y", None)],
        {"w": weights(8, 3, 3, 3, zero=range(4)), "v": weights(4, 8, 3, 3)},
    )
    slimmed = slim(made)
    assert removed(slimmed) == {}
    assert any("joins them with 'z', which cannot lose any" in why for why in refused(slimmed))


def test_what_an_output_of_the_model_shows_stays() -> None:
    made = chain([node("Relu", "a", "b")])
    made.graph.output.append(value("b", None))
    assert removed(slim(made)) == {}
    assert any("'b' is an output of the model" in why for why in refused(slim(made)))


def test_an_unknown_reader_keeps_all_that_it_reads() -> None:
    middle = [node("Relu", "a", "b"), node("LRN", "b", "l", size=3), node("ReduceSum", "l", "s", keepdims=0)]
    made = chain(middle)
    made.graph.output.append(value("s", None))
    assert removed(slim(made)) == {}
    assert any("LRN" in why for why in refused(slim(made)))


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_convolutions_lose_groups(multiplier: int) -> None:
    more = {"d": weights(8 * multiplier, 1, 3, 3)}
    middle = [node("Relu", "a", "r"), node("Conv", "r d", "b", name="deep", group=8, pads=[1] * 4)]
    made = chain(middle, more, channels=8 * multiplier)
    slimmed = slim(made)
    assert removed(slimmed) == {"first": 5, "deep": 5 * multiplier}
    assert slimmed.graph.nodes[2].attributes["group"] == 3
    assert_same(slimmed, made, IMAGE)


def test_a_group_goes_as_a_whole() -> None:
    """Of groups of two, channels 3 to 7: 3 stays beside 2."""
    made = chain([node("Conv", "a g", "b", name="grouped", group=4, pads=[1] * 4)], {"g": weights(8, 2, 3, 3)})
    slimmed = slim(made)
    assert removed(slimmed) == {"first": 4, "grouped": 4}
    assert_same(slimmed, made, IMAGE)


def test_channels_of_one_input_of_a_concatenation_go() -> None:
    more = {"u": weights(4, 3, 3, 3, zero=(0,), seed=3)}
    middle = [
        node("Conv", "x u", "k", name="second", pads=[1] * 4),
        node("MaxPool", "a", "p", kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1]),
        node("Concat", "k p x", "b", axis=1),
    ]
    made = chain(middle, more, channels=15)
    slimmed = slim(made)
    assert removed(slimmed) == {"first": 5, "second": 1}
    assert_same(slimmed, made, IMAGE)


def test_a_gate_loses_the_channels_of_what_it_gates() -> None:
    more = {"q": weights(4, 8, 1, 1, seed=4), "e": weights(8, 4, 1, 1, seed=5)}
    middle = [
        node("Relu", "a", "r"),
        node("GlobalAveragePool", "r", "s"),
        node("Conv", "s q", "t", name="squeeze"),
        node("Conv", "t e", "u", name="excite"),
        node("Sigmoid", "u", "g"),
        node("Mul", "r g", "b"),
    ]
    made = chain(middle, more, pads=1)
    slimmed = slim(made)
    assert removed(slimmed) == {"first": 5, "excite": 5}
    assert_same(slimmed, made, IMAGE)


def test_the_last_channel_stays() -> None:
    made = chain([node("Relu", "a", "b")], {"w": weights(8, 3, 3, 3, zero=range(8))})
    slimmed = slim(made)
    assert removed(slimmed) == {"first": 7}
    assert refused(slimmed)[0] == "no operator can do without its last channel"
    assert_same(slimmed, made, IMAGE)


def test_what_no_reader_has_weights_for_goes() -> None:
    made = chain([node("Relu", "a", "b")], {"w": weights(8, 3, 3, 3), "v": weights(4, 8, 3, 3, zero=(1, 6), axis=1)})
    slimmed = slim(made)
    assert removed(slimmed) == {"first": 2}
    assert "multiplies them by 0" in slimmed.slimming.removals[0].why
    assert_same(slimmed, made, IMAGE)


@pytest.mark.parametrize("of_scale", [True, False])
@pytest.mark.parametrize(
    ("shape", "goes"), [((6,), True), ((1, 1, 6), True), ((8, 1, 6), False), ((1, 8, 6, 6), False)]
)
def test_channels_that_a_normalisation_has_numbers_of_its_own_for_stay(
    shape: tuple[int, ...], goes: bool, of_scale: bool
) -> None:
    one, other = weights(*shape, seed=3), np.ones(6, np.float32)
    held = {"v": weights(4, 8, 3, 3, zero=range(3, 8), axis=1, seed=1), "s": one if of_scale else other}
    held["t"] = other if of_scale else one
    made = chain([node("LayerNormalization", "a s t", "b", name="the_norm", axis=-1)], held)
    slimmed = slim(made)
    assert removed(slimmed) == ({"first": 5} if goes else {})
    assert_same(slimmed, made, IMAGE)
    assert goes or "LayerNormalization 'the_norm' needs all of 'a'" in refused(slimmed)


@pytest.mark.parametrize("op_type", ["Log", "Reciprocal", "Exp", "Sqrt"])
def test_behind_what_may_be_infinite_nothing_goes(op_type: str) -> None:
    made = model(
        [
            node(op_type, "x", "l", name="steep"),
            node("Conv", "l w", "a"),
            node("Relu", "a", "b"),
            node("Conv", "b v", "y"),
        ],
        [value("x", (1, 3, 6, 6))],
        [value("y", None)],
        {"w": weights(8, 3, 3, 3, zero=range(5)), "v": weights(4, 8, 3, 3)},
    )
    slimmed = slim(made)
    assert removed(slimmed) == {}
    assert any(f"{op_type} 'steep' may give infinite values or NaN" in why for why in refused(slimmed))


def test_a_root_of_a_variance_is_finite() -> None:
    """Layer normalisation written out: its division does not stand in the way."""
    held = {
        "two": np.float32(2),
        "eps": np.float32(1e-5),
        "w": weights(16, 8, zero=range(6), axis=1),
        "v": weights(8, 4),
        "axis": np.array([-1], np.int64),
    }
    nodes = [
        node("ReduceMean", "x axis", "m"),
        node("Sub", "x m", "d"),
        node("Pow", "d two", "q"),
        node("ReduceMean", "q axis", "v0"),
        node("Add", "v0 eps", "v1"),
        node("Sqrt", "v1", "s"),
        node("Div", "d s", "n"),
        node("MatMul", "n w", "h", name="up"),
        node("Relu", "h", "r"),
        node("MatMul", "r v", "y"),
    ]
    made = model(nodes, [value("x", (2, 16))], [value("y", None)], held)
    assert removed(slim(made)) == {"up": 6}


def test_neurons_of_an_exported_feed_forward_network_go() -> None:
    made, feeds = feed_forward(bias_is_zero=True)
    slimmed = slim(made)
    assert removed(slimmed) == {"up": 10}
    assert len(slimmed.graph.nodes) == len(load_model(made).graph.nodes)
    assert_same(slimmed, made, feeds)


def test_a_constant_neuron_is_added_behind_its_reader() -> None:
    made, feeds = feed_forward(bias_is_zero=False)
    slimmed = slim(made)
    assert removed(slimmed) == {"up": 10}
    assert len(slimmed.graph.nodes) == len(load_model(made).graph.nodes) + 1
    assert_same(slimmed, made, feeds)


def feed_forward(*, bias_is_zero: bool) -> tuple[onnx.ModelProto, dict[str, Array]]:
    bias = weights(32, seed=2)
    if bias_is_zero:
        bias[:10] = 0
    held = {
        "w": weights(8, 32, zero=range(10), axis=1),
        "b": bias,
        "v": weights(32, 8, seed=3),
        "root": np.float32(1.4142135),
        "one": np.float32(1),
        "half": np.float32(0.5),
    }
    nodes = [
        node("MatMul", "x w", "u0", name="up"),
        node("Add", "b u0", "u"),
        node("Div", "u root", "d"),
        node("Erf", "d", "e"),
        node("Add", "e one", "o"),
        node("Mul", "u o", "m"),
        node("Mul", "m half", "g"),
        node("MatMul", "g v", "y"),
    ]
    feeds = {"x": np.random.default_rng(4).standard_normal((2, 5, 8)).astype(np.float32)}
    return model(nodes, [value("x", ("N", "S", 8))], [value("y", None)], held), feeds


HEADS = (1, 3)
"""Pruned, of four."""


@pytest.mark.parametrize("target", ["constant", "computed", "rest"])
@pytest.mark.parametrize("pruned", ["value", "projection"])
def test_heads_go(target: str, pruned: str) -> None:
    made, feeds = attention(pruned=pruned, target=target)
    slimmed = slim(made)
    assert removed(slimmed) == {"q": 8, "k": 8, "v": 8}
    assert_same(slimmed, made, feeds)


def test_heads_of_which_only_queries_are_0_stay() -> None:
    """Their scores are 0, so that they average their values."""
    made, _ = attention(pruned="query", target="constant")
    assert removed(slim(made)) == {}


def test_heads_stay_where_two_inputs_have_a_size_of_one_name_that_shapes_are_made_of() -> None:
    """Whoever feeds two sizes for it gets another number of heads."""
    made, _ = attention(pruned="value", target="rest")
    made.graph.input.append(value("other", ("N", 2)))
    assert removed(slim(made)) == {}
    made.graph.input[1].type.tensor_type.shape.dim[0].dim_param = "M"
    assert removed(slim(made)) == {"q": 8, "k": 8, "v": 8}


def attention(*, pruned: str, target: str) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Four heads of four; the shape that queries are given is a constant, or made of the sizes of the input, with the
    number of heads or with -1 for it ("rest")."""
    gone = [head * 4 + place for head in HEADS for place in range(4)]
    held: dict[str, Any] = {
        "wq": weights(16, 16, zero=gone if pruned == "query" else (), axis=1, seed=1),
        "wk": weights(16, 16, seed=2),
        "wv": weights(16, 16, zero=gone if pruned == "value" else (), axis=1, seed=3),
        "wo": weights(16, 16, zero=gone if pruned == "projection" else (), axis=0, seed=4),
        "two": np.float32(2),
        "split": np.array([0, -1, 4, 4], np.int64),
        "join": np.array([0, 0, 16], np.int64),
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
        "four": np.array([-1 if target == "rest" else 4, 4], np.int64),
        "rest": np.array([-1], np.int64),
    }
    nodes = [node("MatMul", f"x w{name}", f"{name}0", name=name) for name in "qkv"]
    if target != "constant":
        nodes += [
            node("Shape", "q0", "shape"),
            node("Gather", "shape zero", "batch"),
            node("Gather", "shape one", "tokens"),
            node("Concat", "batch tokens four", "made", axis=0),
            node("Concat", "batch tokens rest", "joined", axis=0),
        ]
    for name in "qkv":
        nodes.append(node("Reshape", f"{name}0 {'split' if target == 'constant' else 'made'}", f"{name}1"))
        order = [0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]
        nodes.append(node("Transpose", f"{name}1", f"{name}2", perm=order))
    nodes += [
        node("MatMul", "q2 k2", "s0"),
        node("Div", "s0 two", "s"),
        node("Softmax", "s", "p", axis=-1),
        node("MatMul", "p v2", "c0"),
        node("Transpose", "c0", "c1", perm=[0, 2, 1, 3]),
        node("Reshape", "c1 joined" if target == "rest" else "c1 join", "c"),
        node("MatMul", "c wo", "y", name="o"),
    ]
    made = model(nodes, [value("x", ("N", "S", 16))], [value("y", None)], held, opset=17, ir_version=8)
    return made, {"x": np.random.default_rng(7).standard_normal((2, 6, 16)).astype(np.float32)}


# -- constants in other forms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("agree", [True, False])
def test_a_large_weight_that_two_operators_share_goes_in_both_or_in_none(agree: bool) -> None:
    """A matrix that is applied twice: its outputs are its inputs, so that its rows have to be 0 as well."""
    shared = weights(160, 160, zero=range(60), axis=1)
    if agree:
        shared[:60] = 0
    held = {"w": shared, "first": weights(8, 160), "last": weights(160, 8)}
    nodes = [
        node("MatMul", "x first", "a", name="in"),
        node("MatMul", "a w", "b", name="one"),
        node("MatMul", "b w", "c", name="two"),
        node("MatMul", "c last", "y"),
    ]
    made = model(nodes, [value("x", (2, 8))], [value("y", None)], held)
    slimmed = slim(made)
    assert removed(slimmed) == ({"in": 60, "one": 60, "two": 60} if agree else {})
    if agree:
        assert slimmed.graph.initializers["w"].shape == (100, 100)
        assert_same(slimmed, made, {"x": weights(2, 8)})


def test_small_constants_that_operators_share_are_cut_for_each() -> None:
    held = {
        "w": weights(4, 6, zero=(0, 1), axis=1),
        "v": weights(4, 6, zero=(3, 4, 5), axis=1, seed=1),
        "b": np.zeros(6),
        "p": weights(6, 3, seed=2),
        "q": weights(6, 3, seed=3),
    }
    held["b"] = np.zeros(6, np.float32)
    nodes = [
        node("MatMul", "x w", "a0", name="left"),
        node("Add", "a0 b", "a"),
        node("MatMul", "a p", "c"),
        node("MatMul", "x v", "d0", name="right"),
        node("Add", "d0 b", "d"),
        node("MatMul", "d q", "e"),
        node("Add", "c e", "y"),
    ]
    made = model(nodes, [value("x", (2, 4))], [value("y", None)], held)
    slimmed = slim(made)
    assert removed(slimmed) == {"left": 2, "right": 3}
    assert_same(slimmed, made, {"x": weights(2, 4)})


def test_quantised_weights_are_refused_with_the_reason() -> None:
    held = {
        "w": np.zeros((8, 3, 3, 3), np.int8),
        "scale": np.float32(0.1),
        "point": np.int8(0),
        "v": weights(4, 8, 3, 3),
    }
    nodes = [
        node("DequantizeLinear", "w scale point", "f"),
        node("Conv", "x f", "a", name="quantised"),
        node("Relu", "a", "b"),
        node("Conv", "b v", "y"),
    ]
    made = model(nodes, [value("x", (1, 3, 6, 6))], [value("y", None)], held)
    assert ("quantised", "its weights are quantised") in [
        (refusal.node, refusal.why) for refusal in slim(made).slimming.refusals
    ]


def test_weights_that_callers_may_replace_are_none_to_look_at() -> None:
    made = chain([node("Relu", "a", "b")])
    made.graph.input.append(value("w", (8, 3, 3, 3)))
    assert removed(slim(made)) == {}


def test_in_old_files_weights_are_declared_as_inputs_too() -> None:
    made = chain([node("Relu", "a", "b")])
    made.ir_version = 3
    for tensor in made.graph.initializer:
        made.graph.input.append(value(tensor.name, tuple(tensor.dims)))
    slimmed = slim(made)
    assert removed(slimmed) == {"first": 5}
    assert_same(slimmed, made, IMAGE)


def test_what_a_body_reads_stays() -> None:
    then = helper.make_graph([node("Identity", "a", "t")], "then", [], [value("t", None)])
    other = helper.make_graph([node("Neg", "a", "e")], "else", [], [value("e", None)])
    middle = [
        node("If", "flag", "i", then_branch=then, else_branch=other),
        node("Relu", "a", "r"),
        node("Add", "i r", "b"),
    ]
    made = chain(middle, {"flag": np.array(True)})
    assert removed(slim(made)) == {}


def test_external_weights_are_cut_in_memory_and_the_others_stay_where_they_are(tmp_path: Path) -> None:
    made = chain([node("Relu", "a", "b")], {"u": weights(4, 4, 1, 1, seed=8)})
    made.graph.node[-1].output[0] = "z"
    made.graph.node.append(node("Conv", "z u", "y"))
    onnx.save(made, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    loaded = load_model(str(tmp_path / "m.onnx"))
    slimmed = slim_model(loaded)
    assert removed(slimmed) == {"first": 5}
    assert slimmed.weight_bytes < loaded.weight_bytes
    assert slimmed.as_given.whole() == str(tmp_path / "m.onnx")
    assert_same(slimmed, chain_as_read(tmp_path / "m.onnx"), IMAGE)


def chain_as_read(path: Path) -> onnx.ModelProto:
    return onnx.load(path)


def test_sparse_initializers_are_weights_like_any_other() -> None:
    made = chain([node("Relu", "a", "b")])
    dense = numpy_helper.to_array(made.graph.initializer[0]).reshape(-1)
    (places,) = np.nonzero(dense)
    values = numpy_helper.from_array(dense[places], "w")
    indices = numpy_helper.from_array(places.astype(np.int64), "w_indices")
    del made.graph.initializer[0]
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [8, 3, 3, 3]))
    assert removed(slim(made)) == {"first": 5}


# -- the whole ------------------------------------------------------------------------------------------------------


def test_a_model_without_zeros_is_the_same_byte_for_byte(tmp_path: Path) -> None:
    made = chain([node("Relu", "a", "b")], {"w": weights(8, 3, 3, 3)})
    given = made.SerializeToString()
    slimmed = slim_model(load_model(given))
    assert slimmed.whole() == given
    assert slimmed.structure_digest == load_model(given).structure_digest
    assert slimmed.slimming.summary == "slim=True is of no effect: no channel is constant"
    (tmp_path / "m.onnx").write_bytes(given)
    assert slim_model(load_model(str(tmp_path / "m.onnx"))).whole() == str(tmp_path / "m.onnx")


def test_to_slim_twice_removes_nothing_more() -> None:
    slimmed = slim(made := chain([node("Relu", "a", "b")]))
    assert slim_model(slimmed) is slimmed
    whole = slimmed.whole()
    assert isinstance(whole, bytes)
    again = slim_model(load_model(whole))
    assert removed(again) == {}
    assert again.whole() == whole
    assert slimmed.as_given.whole() == made.SerializeToString()


def test_stated_sizes_of_tensors_are_corrected() -> None:
    made = onnx.shape_inference.infer_shapes(chain([node("Relu", "a", "b")]))
    assert made.graph.value_info
    slimmed = slim(made)
    assert slimmed.graph.tensors["b"].shape == (1, 3, 6, 6)
    assert_same(slimmed, made, IMAGE)
