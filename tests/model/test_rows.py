"""Models split by rows: the same results, in two parts that could run side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.errors import ConfigError
from parallax.model import RowSplit, load_model, split_rows
from tests.model._models import Array, model, node, run, value, weight

FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


def numbers(*values: int) -> Array:
    return np.array(values, np.int64)


def split_and_compare(proto: onnx.ModelProto, feeds: Mapping[str, Array], share: float = 0.6) -> RowSplit:
    loaded = load_model(proto)
    split = split_rows(loaded, share)
    assert split is not None
    for expected, found in zip(run(proto, feeds), run(split.model.extract_whole(), feeds), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * float(np.abs(expected).max()))
    assert split.model.structure_digest != loaded.structure_digest
    return split


def operators(split: RowSplit, part: int) -> list[str]:
    return [entry.op_type for entry in split.model.graph.nodes if entry.name in split.parts[part]]


def is_apart(split: RowSplit) -> bool:
    """Whether neither part reads anything of the other."""
    graph = split.model.graph
    above: list[set[int]] = []
    for entry, preds in zip(graph.nodes, graph.predecessors, strict=True):
        mine = {part for part in (0, 1) if entry.name in split.parts[part]}
        above.append(mine.union(*(above[pred] for pred in preds)))
        if mine and len(above[-1]) == 2:
            return False
    return True


def rows_model(nodes: Sequence[onnx.NodeProto], tensors: Mapping[str, Array], out: Sequence[int]) -> onnx.ModelProto:
    """``x`` (1, 128, 256) goes through a matrix product to ``h`` of that shape, and on to ``y``."""
    return model(
        [node("MatMul", "x w", "h"), *nodes],
        [value("x", (1, 128, 256))],
        [value("y", out)],
        {"w": weight((256, 256), 1), **tensors},
    )


X = {"x": weight((1, 128, 256), 7)}

ROW_CASES: dict[str, tuple[list[onnx.NodeProto], dict[str, Array], tuple[int, ...]]] = {
    "bias, activation, second product": (
        [node("Add", "h b", "a"), node("Erf", "a", "e"), node("MatMul", "e v", "y")],
        {"b": weight((256,), 2), "v": weight((256, 64), 3)},
        (1, 128, 64),
    ),
    "residual": ([node("Add", "h x", "y")], {}, (1, 128, 256)),
    "operand with rows, operand with a row": (
        [node("Add", "h p", "a"), node("Mul", "a q", "y")],
        {"p": weight((128, 256), 2), "q": weight((1, 256), 3)},
        (1, 128, 256),
    ),
    "normalised": (
        [node("LayerNormalization", "h s b", "n", axis=-1), node("Softmax", "n", "y", axis=2)],
        {"s": weight((256,), 2), "b": weight((256,), 3)},
        (1, 128, 256),
    ),
    "normalised, with a scale for each row": (
        [node("LayerNormalization", "h s b", "y", axis=-1)],
        {"s": weight((128, 1), 2), "b": weight((1, 128, 256), 3)},
        (1, 128, 256),
    ),
    "reduced": ([node("ReduceMean", "h axes", "m", keepdims=1), node("Sub", "h m", "y")], {"axes": numbers(-1)},
                (1, 128, 256)),
    "heads": (
        [node("Reshape", "h s", "r"), node("Transpose", "r", "t", perm=[0, 2, 1, 3]), node("Softmax", "t", "y")],
        {"s": numbers(1, -1, 4, 64)},
        (1, 4, 128, 64),
    ),
    "flat rows": (
        [node("Reshape", "h s", "r"), node("Gemm", "r v b", "y")],
        {"s": numbers(128, 256), "v": weight((256, 32), 2), "b": weight((32,), 3)},
        (128, 32),
    ),
    "slices and pads of columns": (
        [
            node("Slice", "h begin end axis", "s"),
            node("Pad", "s pads", "p"),
            node("Split", "p", "u v", axis=2, num_outputs=2),
            node("Concat", "v u", "y", axis=2),
        ],
        {"begin": numbers(16), "end": numbers(144), "axis": numbers(2), "pads": numbers(0, 0, 1, 0, 0, 1)},
        (1, 128, 130),
    ),
    "unsqueezed, expanded, squeezed": (
        [node("Unsqueeze", "h a", "u"), node("Expand", "u s", "e"), node("Squeeze", "u a", "q"),
         node("Add", "e q", "y")],
        {"a": numbers(0), "s": numbers(3, 1, 128, 256)},
        (3, 1, 128, 256),
    ),
    "taken columns": (
        [node("Gather", "h i", "y", axis=2)],
        {"i": numbers(5, 3, 200)},
        (1, 128, 3),
    ),
    "compared and chosen": (
        [node("Greater", "h z", "g"), node("Where", "g h x", "y")],
        {"z": np.zeros((1,), np.float32)},
        (1, 128, 256),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROW_CASES)
def test_what_keeps_rows_apart_stays_in_two_parts_to_the_end(name: str) -> None:
    nodes, tensors, out = ROW_CASES[name]
    split = split_and_compare(rows_model(nodes, tensors, out), X)
    assert is_apart(split)
    expected = ["MatMul", *(entry.op_type for entry in nodes)]
    reshaped = {"Squeeze", "Unsqueeze"}
    for part in (0, 1):
        found = [entry for entry in operators(split, part) if entry != "Slice" or "Slice" in expected]
        assert found == ["Reshape" if entry in reshaped else entry for entry in expected]


MIXING_CASES: dict[str, tuple[list[onnx.NodeProto], dict[str, Array], tuple[int, ...]]] = {
    "softmax over rows": ([node("Softmax", "h", "y", axis=1)], {}, (1, 128, 256)),
    "reduced rows": ([node("ReduceMean", "h axes", "y", keepdims=1)], {"axes": numbers(1)}, (1, 1, 256)),
    "rows in columns": (
        [node("Transpose", "h", "t", perm=[0, 2, 1]), node("MatMul", "t v", "y")],
        {"v": weight((128, 4), 2)},
        (1, 256, 4),
    ),
    "taken rows": ([node("Gather", "h i", "y", axis=1)], {"i": numbers(0, 127)}, (1, 2, 256)),
    "turned rows": (
        [node("Slice", "h b e a", "u"), node("Slice", "h c d a", "v"), node("Concat", "v u", "y", axis=1)],
        {"b": numbers(0), "e": numbers(50), "c": numbers(50), "d": numbers(128), "a": numbers(1)},
        (1, 128, 256),
    ),
    "interleaved": (
        [node("Reshape", "h s", "r"), node("Transpose", "r", "t", perm=[0, 2, 1, 3]), node("Reshape", "t u", "y")],
        {"s": numbers(1, 128, 4, 64), "u": numbers(1, 512, 64)},
        (1, 512, 64),
    ),
    "an operator without a rule": ([node("CumSum", "h a", "y")], {"a": np.array(1, np.int64)}, (1, 128, 256)),
}


@pytest.mark.parametrize("name", MIXING_CASES)
def test_what_mixes_rows_gets_all_of_them(name: str) -> None:
    nodes, tensors, out = MIXING_CASES[name]
    split = split_and_compare(rows_model(nodes, tensors, out), X)
    shared = [entry.op_type for entry in split.model.graph.nodes
              if entry.name not in split.parts[0] | split.parts[1]]  # fmt: skip
    assert "Concat" in shared


def attention(heads: int, rows: int, width: int) -> onnx.ModelProto:
    head = width // heads
    nodes = []
    for letter in "qkv":
        order = [0, 2, 3, 1] if letter == "k" else [0, 2, 1, 3]
        nodes += [
            node("MatMul", f"x w{letter}", f"{letter}1"),
            node("Reshape", f"{letter}1 s", f"{letter}2"),
            node("Transpose", f"{letter}2", letter, perm=order),
        ]
    nodes += [
        node("MatMul", "q k", "scores"),
        node("Add", "scores mask", "masked"),
        node("Softmax", "masked", "shares"),
        node("MatMul", "shares v", "mixed"),
        node("Transpose", "mixed", "back", perm=[0, 2, 1, 3]),
        node("Reshape", "back u", "joined"),
        node("MatMul", "joined wo", "out"),
        node("Add", "out x", "y"),
    ]
    weights = {f"w{letter}": weight((width, width), seed) / 16 for seed, letter in enumerate("qkvo")}
    mask = np.triu(np.full((rows, rows), -1e9, np.float32), 1)[None, None]
    return model(
        nodes,
        [value("x", (1, rows, width))],
        [value("y", (1, rows, width))],
        {**weights, "mask": mask, "s": numbers(0, -1, heads, head), "u": numbers(0, -1, width)},
    )


def test_only_keys_and_values_of_attention_cross() -> None:
    split = split_and_compare(attention(4, 96, 256), {"x": weight((1, 96, 256), 9)})
    graph = split.model.graph
    crossing = set()
    for part in (0, 1):
        for entry in graph.nodes:
            if entry.name in split.parts[part]:
                for name in entry.inputs:
                    producer = graph.producers.get(name)
                    if producer is not None and graph.nodes[producer].name in split.parts[1 - part]:
                        crossing.add((part, graph.nodes[graph.producers[name]].op_type, entry.op_type))
    assert crossing == {(0, "Transpose", "Concat"), (1, "Transpose", "Concat")}
    assert operators(split, 0).count("MatMul") == operators(split, 1).count("MatMul") == 6


def images(nodes: Sequence[onnx.NodeProto], tensors: Mapping[str, Array], out: Sequence[int]) -> onnx.ModelProto:
    return model(nodes, [value("x", (1, 64, 128, 48))], [value("y", out)], tensors)


IMAGE = {"x": weight((1, 64, 128, 48), 5)}
K3, K5 = weight((32, 64, 3, 3), 1) / 16, weight((16, 32, 5, 5), 2) / 16


@pytest.mark.parametrize("share", [0.1, 0.37, 0.5, 0.9])
@pytest.mark.parametrize("pads", [[1, 1, 1, 1], [0, 0, 0, 0], [2, 1, 0, 1]])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_convolutions_share_the_lines_at_the_cut(share: float, pads: list[int], stride: int) -> None:
    lines = (128 + pads[0] + pads[2] - 3) // stride + 1
    columns = (48 + pads[1] + pads[3] - 3) // stride + 1
    pooled = (lines - 1) // 2 + 1, (columns - 1) // 2 + 1
    proto = images(
        [
            node("Conv", "x k b", "c", pads=pads, strides=[stride, stride]),
            node("Sigmoid", "c", "s"),
            node("Mul", "c s", "m"),
            node("Conv", "m l", "d", pads=[4, 4, 4, 4], dilations=[2, 2]),
            node("MaxPool", "d", "y", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        ],
        {"k": K3, "b": weight((32,), 3), "l": K5},
        (1, 16, *pooled),
    )
    split = split_and_compare(proto, IMAGE, share)
    assert operators(split, 0).count("Conv") == operators(split, 1).count("Conv") == 2


def test_enlarging_to_nearest_neighbours_is_split() -> None:
    proto = images(
        [
            node("Conv", "x k", "c", pads=[1, 1, 1, 1]),
            node("Resize", "c - s", "r", mode="nearest", coordinate_transformation_mode="asymmetric",
                 nearest_mode="floor"),
            node("Concat", "r r", "y", axis=1),
        ],
        {"k": K3, "s": np.array([1, 1, 2, 2], np.float32)},
        (1, 64, 128, 96),
    )  # fmt: skip
    split = split_and_compare(proto, IMAGE)
    assert "Resize" in operators(split, 0)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_enlarging_that_looks_at_neighbours_is_not_split(mode: str) -> None:
    attributes = {} if mode == "linear" else {"nearest_mode": "ceil"}
    proto = images(
        [node("Conv", "x k", "c", pads=[1, 1, 1, 1]), node("Resize", "c - s", "y", mode=mode, **attributes)],
        {"k": K3, "s": np.array([1, 1, 2, 2], np.float32)},
        (1, 32, 256, 96),
    )
    assert "Resize" not in operators(split_and_compare(proto, IMAGE), 0)


def test_enlarging_by_a_bit_more_than_the_sizes_tell_is_not_split() -> None:
    """Rows shift against one another, where the sizes are whole multiples all the same."""
    proto = images(
        [node("Conv", "x k", "c", pads=[1, 1, 1, 1]), node("Resize", "c - s", "y", mode="nearest")],
        {"k": K3, "s": np.array([1, 1, 2.007, 2], np.float32)},
        (1, 32, 256, 96),
    )
    assert "Resize" not in operators(split_and_compare(proto, IMAGE), 0)


def test_automatic_padding_and_ceiling_are_left_whole() -> None:
    proto = images(
        [
            node("Conv", "x k", "c", auto_pad="SAME_UPPER"),
            node("Conv", "c l", "d", pads=[2, 2, 2, 2]),
            node("MaxPool", "d", "y", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        ],
        {"k": K3, "l": K5},
        (1, 16, 64, 24),
    )
    split = split_and_compare(proto, IMAGE)
    assert operators(split, 0).count("Conv") == 1
    assert "MaxPool" not in operators(split, 0)


def test_windows_are_cut_between_windows() -> None:
    """Rows that were (7 windows, 16 places) are cut at a multiple of 16, so that windows stay whole."""
    proto = model(
        [
            node("Reshape", "x s", "r"),
            node("Gemm", "r w", "g"),
            node("Reshape", "g u", "v"),
            node("Transpose", "v", "t", perm=[0, 2, 1]),
            node("MatMul", "v t", "y"),
        ],
        [value("x", (7, 16, 256))],
        [value("y", (7, 16, 16))],
        {"s": numbers(112, 256), "w": weight((256, 256), 1), "u": numbers(7, 16, 256)},
    )
    split = split_and_compare(proto, {"x": weight((7, 16, 256), 3)})
    assert is_apart(split)
    assert operators(split, 0).count("MatMul") == 1


def test_weights_are_neither_cut_nor_copied() -> None:
    proto = attention(4, 96, 256)
    loaded = load_model(proto)
    split = split_rows(loaded, 0.5)
    assert split is not None
    small = sum(np.prod(info.shape or (), dtype=int) * 8 for info in split.model.graph.initializers.values()
                if info.name not in loaded.graph.initializers)  # fmt: skip
    assert split.model.weight_bytes <= loaded.weight_bytes + small
    before, after = loaded.extract_whole(), split.model.extract_whole()
    assert before.weights.keys() == after.weights.keys()
    assert all(np.shares_memory(before.weights[name], after.weights[name]) for name in before.weights)


def test_a_tensor_that_is_handed_out_keeps_its_name_and_its_rows() -> None:
    proto = rows_model([node("Erf", "h", "y")], {}, (1, 128, 256))
    proto.graph.output.append(value("h", (1, 128, 256)))
    split = split_and_compare(proto, X)
    assert [info.name for info in split.model.graph.outputs] == ["y", "h"]


def test_names_of_the_model_are_not_taken() -> None:
    proto = rows_model([node("Erf", "h", "h_rows0"), node("Add", "h_rows0 h", "y")], {}, (1, 128, 256))
    split_and_compare(proto, X)


@pytest.mark.parametrize("axis", [None, 1, 2])
def test_softmax_over_the_axes_from_one_on_mixes_them_all(axis: int | None) -> None:
    attributes = {} if axis is None else {"axis": axis}
    proto = model(
        [node("MatMul", "x w", "h"), node("Softmax", "h", "y", **attributes)],
        [value("x", (1, 128, 256))],
        [value("y", (1, 128, 256))],
        {"w": weight((256, 256), 1)},
        opset=11,
        ir_version=6,
    )
    assert ("Softmax" in operators(split_and_compare(proto, X), 0)) == (axis == 2)


@pytest.mark.parametrize("noop", [0, 1])
def test_reducing_no_axes_may_mean_all(noop: int) -> None:
    out = (1, 128, 256) if noop else (1, 1, 1)
    proto = rows_model(
        [node("ReduceSum", "h axes", "y", keepdims=1, noop_with_empty_axes=noop)],
        {"axes": np.zeros((0,), np.int64)},
        out,
    )
    split_and_compare(proto, X)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_with_a_dequantised_weight_keeps_its_precision(transposed: bool) -> None:
    """The runtime computes it with the quantised weight while it is alone with it; two parts would use floats."""
    proto = model(
        [
            node("DequantizeLinear", "q s", "d", axis=0, block_size=32),
            *([node("Transpose", "d", "t", perm=[1, 0])] if transposed else []),
            node("MatMul", "x w", "h"),
            node("MatMul", "h t" if transposed else "h d", "p"),
            node("Erf", "p", "e"),
            node("MatMul", "e w", "y"),
        ],
        [value("x", (1, 128, 256))],
        [value("y", (1, 128, 256))],
        {"w": weight((256, 256), 1), "s": np.abs(weight((8, 256), 2))},
        opset=21,
        ir_version=10,
    )
    digits = np.random.default_rng(5).integers(0, 16, 256 * 256)
    proto.graph.initializer.append(onnx.helper.make_tensor("q", onnx.TensorProto.UINT4, (256, 256), digits))
    split = split_and_compare(proto, X)
    graph = split.model.graph
    assert [entry.op_type for entry in graph.nodes].count("DequantizeLinear") == 1
    assert len(graph.consumers["t" if transposed else "d"]) == 1
    assert operators(split, 0) == operators(split, 1) == ["MatMul", "MatMul"]


def test_what_lies_between_dequantising_and_quantising_stays_together() -> None:
    """Such an operator becomes one on integers, with the quantisation on either side of it."""
    scale, zero = np.array(0.05, np.float32), np.array(0, np.int8)
    proto = model(
        [
            node("MatMul", "x w", "h"),
            node("QuantizeLinear", "h s z", "hq"),
            node("DequantizeLinear", "hq s z", "hd"),
            node("DequantizeLinear", "q s z", "wd"),
            node("MatMul", "hd wd", "p"),
            node("QuantizeLinear", "p s z", "pq"),
            node("DequantizeLinear", "pq s z", "pd"),
            node("MatMul", "pd w", "y"),
        ],
        [value("x", (1, 128, 256))],
        [value("y", (1, 128, 256))],
        {
            "w": weight((256, 256), 1),
            "q": np.random.default_rng(5).integers(-9, 10, (256, 256)).astype(np.int8),
            "s": scale,
            "z": zero,
        },
    )
    split = split_and_compare(proto, X)
    assert operators(split, 0) == ["MatMul"]
    assert [entry.op_type for entry in split.model.graph.nodes].count("MatMul") == 4


def test_nothing_to_split() -> None:
    small = model([node("MatMul", "x w", "y")], [value("x", (4, 8))], [value("y", (4, 8))], {"w": weight((8, 8))})
    assert split_rows(load_model(small), 0.5) is None
    unknown = rows_model([node("Erf", "h", "y")], {}, (1, 128, 256))
    unknown.graph.input[0].CopyFrom(value("x", (1, "rows", 256)))
    unknown.graph.output[0].CopyFrom(value("y", (1, "rows", 256)))
    loaded = load_model(unknown)
    assert split_rows(loaded, 0.5) is None
    assert split_rows(loaded.with_shapes({"x": (1, 128, 256)}), 0.5) is not None


def test_what_makes_a_tensor_that_stays_whole_is_one_piece() -> None:
    nodes = [node("Erf", "h", "e"), node("MatMul", "e w", "m"), node("Neg", "m", "n"), node("MatMul", "n w", "y")]
    proto = rows_model(nodes, {}, (1, 128, 256))
    loaded = load_model(proto)

    def made(whole: Sequence[str]) -> RowSplit:
        split = split_rows(loaded, 0.6, whole=whole)
        assert split is not None
        for expected, found in zip(run(proto, X), run(split.model.extract_whole(), X), strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * float(np.abs(expected).max()))
        return split

    split = made(["m"])
    assert operators(split, 0) == operators(split, 1)[: len(operators(split, 0))]
    assert operators(split, 0)[:2] == ["MatMul", "Erf"]
    assert "Neg" not in operators(split, 0), "it is not carried along what is whole"
    whole = [entry for entry in split.model.graph.nodes if "m" in entry.outputs]
    assert [entry.op_type for entry in whole] == ["MatMul"]
    # What is whole can be cut again behind it.
    assert [entry.outputs[0] for entry in split.model.graph.nodes if entry.op_type == "MatMul"].count("m") == 1
    assert operators(split, 0).count("MatMul") == 2
    assert made(["no such tensor"]).model.structure_digest == made([]).model.structure_digest
    assert split_rows(loaded, 0.6, whole=["h", "m", "y"]) is None


@pytest.mark.parametrize("share", [0, 1, -0.5, float("nan")])
def test_a_share_is_within_bounds(share: float) -> None:
    with pytest.raises(ConfigError, match="share"):
        split_rows(load_model(rows_model([node("Erf", "h", "y")], {}, (1, 128, 256))), share)


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[list[int], list[list[int]]]:
    """A shape of 2520 x 64 elements with rows first, and shapes of as many to go through."""
    factors = [2, 2, 2, 3, 3, 5, 7]

    def shape() -> list[int]:
        sizes = [1] * draw(st.integers(1, 4))
        for factor in factors:
            sizes[draw(st.integers(0, len(sizes) - 1))] *= factor
        return sizes

    return shape(), [shape() for _ in range(draw(st.integers(1, 3)))]


@settings(max_examples=60, deadline=None)
@given(reshapes(), st.floats(0.05, 0.95))
def test_cuts_follow_any_reshape_or_end_there(shapes: tuple[list[int], list[list[int]]], share: float) -> None:
    first, others = shapes
    nodes = [node("MatMul", "x w", "r0")]
    tensors: dict[str, Array] = {"w": weight((64, 64), 1)}
    for number, sizes in enumerate(others):
        tensors[f"s{number}"] = numbers(*sizes, 64)
        nodes.append(node("Reshape", f"r{number} s{number}", f"r{number + 1}"))
    nodes.append(node("Neg", f"r{len(others)}", "y"))
    proto = model(nodes, [value("x", (*first, 64))], [value("y", (*others[-1], 64))], tensors)
    split_and = split_rows(load_model(proto), share)
    if split_and is None:
        return
    feeds = {"x": weight((*first, 64), 3)}
    np.testing.assert_allclose(
        run(split_and.model.extract_whole(), feeds)[0], run(proto, feeds)[0], rtol=2e-6, atol=1e-6
    )


def test_what_all_rows_are_needed_of_can_be_joined_once_and_what_nobody_reads_left_out() -> None:
    nodes = [
        node("Transpose", "h", "t", perm=[0, 2, 1]),
        node("MatMul", "h t", "s"),
        node("Shape", "h", "sizes"),
        node("Reshape", "s shape", "r"),
        node("Softmax", "r", "p"),
        node("MatMul", "p h", "y"),
    ]
    proto = rows_model(nodes, {"shape": numbers(128, 128)}, (1, 128, 256))
    proto.graph.output[0].CopyFrom(value("y", (1, 128, 256)))
    loaded = load_model(proto)
    joins, shapes = {}, {}
    for once in (False, True):
        split = split_rows(loaded, 0.5, joins_once=once)
        assert split is not None
        for expected, found in zip(run(proto, X), run(split.model.extract_whole(), X), strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))
        made = [entry.op_type for entry in split.model.graph.nodes]
        joins[once], shapes[once] = made.count("Concat"), made.count("Shape")
    assert joins[True] < joins[False]
    assert (shapes[True], shapes[False]) == (0, 1)


@st.composite
def random_products(draw: st.DrawFn) -> tuple[onnx.ModelProto, set[str]]:
    """Products, sums, softmaxes and elementwise operators over a random graph, and some of its tensors."""
    nodes, made = [], ["x"]
    for number in range(draw(st.integers(2, 9))):
        first, second = (draw(st.sampled_from(made)) for _ in range(2))
        kind = draw(st.sampled_from(["MatMul", "MatMul", "Add", "Tanh", "Softmax"]))
        inputs = {"MatMul": f"{first} w", "Add": f"{first} {second}"}.get(kind, first)
        nodes.append(node(kind, inputs, f"t{number}"))
        made.append(f"t{number}")
    nodes.append(node("Sum", " ".join(made[-3:]), "y"))
    tensors = {"w": weight((256, 256), 1) / 16}
    proto = model(nodes, [value("x", (1, 128, 256))], [value("y", (1, 128, 256))], tensors)
    return proto, draw(st.sets(st.sampled_from(made)))


@settings(max_examples=40, deadline=None)
@given(random_products(), st.floats(0.1, 0.9))
def test_any_layers_can_stay_whole(drawn: tuple[onnx.ModelProto, set[str]], share: float) -> None:
    proto, whole = drawn
    loaded = load_model(proto)
    split = split_rows(loaded, share, whole=whole)
    if split is None:
        return
    cut = {loaded.graph.nodes[index].outputs[0] for index in split.origins.values()}
    assert not cut & whole
    for expected, found in zip(run(proto, X), run(split.model.extract_whole(), X), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))
