"""The batch axis: opened where it was a fixed 1, and proven operator by operator, with ONNX Runtime as the judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax import zoo
from parallax.errors import UnsupportedModelError
from parallax.model import BatchAxis, Model, NoBatchAxis, find_batch_axis, load_model, open_batch_axis
from tests.model._models import Array, model, node, run, value, weight

FLOAT, INT64, BOOL = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL


def numbers(*values: int) -> Array:
    return np.array(values, np.int64)


def together_and_apart(proto: onnx.ModelProto, axis: BatchAxis, feeds: Sequence[Mapping[str, Array]]) -> None:
    """Run requests alone and joined, in both orders; each gets its own answer."""
    for requests in (feeds, feeds[::-1]):
        joined = {name: np.concatenate([fed[name] for fed in requests], axis.inputs[name]) for name in requests[0]}
        outputs = run(proto, joined)
        for number, fed in enumerate(requests):
            for output, place, want in zip(outputs, axis.outputs, run(proto, fed), strict=True):
                if place is None:
                    found = output
                else:
                    rows = output.shape[place] // len(requests)
                    found = np.take(output, range(number * rows, (number + 1) * rows), place)
                assert found.shape == want.shape
                np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


def requests_of(found: Model, count: int = 3) -> list[dict[str, Array]]:
    return [
        {
            info.name: weight([1, *(size for size in info.shape[1:])], seed=10 + number)
            if info.dtype == FLOAT
            else np.random.default_rng(number).integers(0, 4, [1, *(size for size in info.shape[1:])])
            for info in found.graph.inputs
        }
        for number in range(count)
    ]


def shapes_of(found: Model) -> dict[str, tuple[int, ...]]:
    return {info.name: (1, *info.shape[1:]) for info in found.graph.inputs}


def kept_apart(
    nodes: Sequence[onnx.NodeProto],
    tensors: Mapping[str, Array] | None = None,
    *,
    shape: Sequence[int] = (4, 6),
    second: Sequence[int] | None = None,
    dtype: int = FLOAT,
    opset: int = 21,
) -> BatchAxis:
    """``x`` (n, *shape), and perhaps ``z`` (n, *second), go to ``y``: the axis is found, and true."""
    inputs = [value("x", ("n", *shape), dtype)]
    if second is not None:
        inputs.append(value("z", ("n", *second)))
    proto = model(nodes, inputs, [onnx.helper.make_empty_tensor_value_info("y")], tensors or {}, opset=opset)
    loaded = load_model(proto)
    axis = find_batch_axis(loaded, shapes_of(loaded))
    together_and_apart(proto, axis, requests_of(loaded))
    return axis


HOW_MANY = (node("Shape", "x", "s"), node("Gather", "s zero", "n", axis=0))
"""How many requests there are, as ``n``."""

CASES: dict[str, tuple[list[onnx.NodeProto], dict[str, Array]]] = {
    "matrix product with bias": (
        [node("MatMul", "x w", "h"), node("Add", "h b", "y")],
        {"w": weight((6, 5)), "b": weight((5,), 1)},
    ),
    "products of requests with themselves": (
        [node("Transpose", "x", "t", perm=[0, 2, 1]), node("MatMul", "x t", "s"), node("Softmax", "s", "y", axis=-1)],
        {},
    ),
    "weights on the left": ([node("MatMul", "w x", "y")], {"w": weight((3, 4))}),
    "merged and parted again": (
        [node("Reshape", "x flat", "r"), node("MatMul", "r w", "m"), node("Reshape", "m back", "y")],
        {"flat": numbers(-1, 6), "w": weight((6, 2)), "back": numbers(-1, 4, 2)},
    ),
    "gemm of flattened requests": (
        [node("Flatten", "x", "f", axis=1), node("Gemm", "f w b", "y", transB=1)],
        {"w": weight((5, 24)), "b": weight((5,), 2)},
    ),
    "normalised": (
        [node("LayerNormalization", "x s b", "n", axis=-1), node("ReduceMean", "n axes", "y", keepdims=0)],
        {"s": weight((6,)), "b": weight((6,), 2), "axes": numbers(1)},
    ),
    "moved": (
        [
            node("Transpose", "x", "t", perm=[1, 0, 2]),
            node("Add", "t b", "a"),
            node("Transpose", "a", "y", perm=[1, 2, 0]),
        ],
        {"b": weight((4, 1, 6))},
    ),
    "cut and joined": (
        [node("Split", "x half", "l r", axis=2), node("Concat", "r l x", "c", axis=2), node("Slice", "c s e a", "y")],
        {"half": numbers(3, 3), "s": numbers(2), "e": numbers(9), "a": numbers(-1)},
    ),
    "chosen": (
        [
            node("ArgMax", "x", "i", axis=2, keepdims=1),
            node("GatherElements", "x i", "g", axis=2),
            node("Add", "g x", "y"),
        ],
        {},
    ),
    "sorted": ([node("TopK", "x k", "v i", axis=2), node("Mul", "v v", "y")], {"k": numbers(3)}),
    "padded and tiled": (
        [node("Pad", "x p", "q"), node("Tile", "q t", "y")],
        {"p": numbers(0, 1, 0, 0, 0, 2), "t": numbers(1, 2, 1)},
    ),
    "sizes computed": (
        [
            *HOW_MANY,
            node("Concat", "n rest", "t", axis=0),
            node("Reshape", "x t", "r"),
            node("Expand", "token wide", "e"),
            node("Concat", "n one_row", "token_shape", axis=0),
            node("Expand", "token token_shape", "tokens"),
            node("Concat", "tokens r", "y", axis=1),
        ],
        {
            "zero": numbers(0),
            "rest": numbers(-1, 3),
            "token": weight((1, 1, 3)),
            "one_row": numbers(1, 3),
            "wide": numbers(1, 1, 3),
        },
    ),
    "masks made for as many": (
        [
            node("Shape", "x", "s"),
            node("ConstantOfShape", "s", "zeros"),
            node("Greater", "x zeros", "m"),
            node("Where", "m x zeros", "y"),
        ],
        {},
    ),
    "rows of the mask by number": (
        [
            node("Flatten", "x", "f", axis=0),
            *HOW_MANY,
            node("Range", "zero n one", "r"),
            node("Reshape", "r column", "c"),
            node("Mul", "c size", "m"),
            node("Add", "m places", "i"),
            node("Gather", "f i", "y", axis=1),
        ],
        {
            "zero": numbers(0).reshape(()),
            "one": numbers(1).reshape(()),
            "column": numbers(-1, 1),
            "size": numbers(24),
            "places": numbers(3, 1, 20),
        },
    ),
    "squeezed": (
        [node("ReduceSum", "x axes", "r", keepdims=1), node("Squeeze", "r axes", "q"), node("Unsqueeze", "q end", "y")],
        {"axes": numbers(2), "end": numbers(2)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_axis_is_followed_through(name: str) -> None:
    assert kept_apart(*CASES[name]).outputs[0] in (0, 1, 2)


def test_images() -> None:
    kept_apart(
        [
            node("Conv", "x w", "c", pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
            node("BatchNormalization", "c s b m v", "n"),
            node("Relu", "n", "r"),
            node("MaxPool", "r", "p", kernel_shape=[2, 2], strides=[2, 2]),
            node("Resize", "p - scales", "u", mode="nearest"),
            node("DepthToSpace", "u", "d", blocksize=2),
            node("GlobalAveragePool", "d", "g"),
            node("Flatten", "g", "y"),
        ],
        {
            "w": weight((8, 3, 3, 3)),
            **{name: np.abs(weight((8,), seed)) + 1 for seed, name in enumerate("sbmv")},
            "scales": np.array([1, 1, 2, 2], np.float32),
        },
        shape=(3, 8, 8),
    )


def test_recurrent_layers_have_it_in_the_middle() -> None:
    axis = kept_apart(
        [
            node("Transpose", "x", "t", perm=[1, 0, 2]),
            node("LSTM", "t w r", "states last", hidden_size=5),
            node("Transpose", "states", "y", perm=[2, 0, 1, 3]),
        ],
        {"w": weight((1, 20, 6)), "r": weight((1, 20, 5))},
    )
    assert axis.outputs == (0,)


def test_tokens_are_looked_up() -> None:
    kept_apart(
        [node("Gather", "table x", "e"), node("ReduceMax", "e axes", "y")],
        {"table": weight((9, 4)), "axes": numbers(1)},
        shape=(7,),
        dtype=INT64,
    )


def test_of_two_inputs() -> None:
    kept_apart([node("MatMul", "x z", "m"), node("Tanh", "m", "y")], shape=(4, 6), second=(6, 3))


def test_an_output_that_does_not_depend_on_requests_has_none() -> None:
    proto = model(
        [node("Relu", "x", "y"), node("Identity", "w", "z")],
        [value("x", ("n", 3))],
        [value("y", ("n", 3)), value("z", (4,))],
        {"w": weight((4,))},
    )
    loaded = load_model(proto)
    axis = find_batch_axis(loaded, {"x": (1, 3)})
    assert axis == BatchAxis(inputs={"x": 0}, outputs=(0, None))
    together_and_apart(proto, axis, requests_of(loaded))


MIXING: dict[str, tuple[list[onnx.NodeProto], dict[str, Array], str]] = {
    "mean over all": ([node("ReduceMean", "x axes", "y")], {"axes": numbers(0)}, "ReduceMean"),
    "mean over everything": ([node("ReduceMean", "x", "m"), node("Sub", "x m", "y")], {}, "ReduceMean"),
    "softmax over requests": ([node("Softmax", "x", "y", axis=0)], {}, "Softmax"),
    "cumulative sum": ([node("CumSum", "x axis", "y")], {"axis": numbers(0).reshape(())}, "CumSum"),
    "compared with each other": (
        [node("Reshape", "x s", "f"), node("Transpose", "f", "t"), node("MatMul", "f t", "y")],
        {"s": numbers(-1, 24)},
        "MatMul",
    ),
    "put in another order": (
        [node("Transpose", "x", "t", perm=[1, 0, 2]), node("Reshape", "t s", "y")],
        {"s": numbers(-1, 4, 6)},
        "Reshape",
    ),
    "first one only": ([node("Gather", "x zero", "y", axis=0)], {"zero": numbers(0)}, "Gather"),
    "all but the first": (
        [node("Slice", "x one many zero", "y")],
        {"one": numbers(1), "many": numbers(99), "zero": numbers(0)},
        "Slice",
    ),
    "three at most": (
        [node("Slice", "x zero three zero", "y")],
        {"zero": numbers(0), "three": numbers(3)},
        "Slice",
    ),
    "multiplied by how many there are, or by three": (
        [
            *HOW_MANY,
            node("Max", "n three", "m"),
            node("Cast", "m", "f", to=FLOAT),
            node("Mul", "x f", "y"),
        ],
        {"zero": numbers(0), "three": numbers(3)},
        "Max",
    ),
    "with a number for each four": (
        [
            *HOW_MANY,
            node("Div", "n four", "m"),
            node("Cast", "m", "f", to=FLOAT),
            node("Add", "x f", "y"),
        ],
        {"zero": numbers(0), "four": numbers(4)},
        "Div",
    ),
    "otherwise where there are many": (
        [
            *HOW_MANY,
            node("Greater", "n four", "g"),
            node("Tanh", "x", "t"),
            node("Where", "g x t", "y"),
        ],
        {"zero": numbers(0), "four": numbers(4)},
        "Greater",
    ),
    "rows of the mask by a wrong number": (
        [
            node("Flatten", "x", "f", axis=0),
            *HOW_MANY,
            node("Range", "zero n one", "r"),
            node("Mul", "r size", "i"),
            node("Gather", "f i", "y", axis=1),
        ],
        {"zero": numbers(0).reshape(()), "one": numbers(1).reshape(()), "size": numbers(23)},
        "Gather",
    ),
    "doubled": ([node("Concat", "x x", "y", axis=0)], {}, "Concat"),
    "divided by how many there are": (
        [
            *HOW_MANY,
            node("Cast", "n", "f", to=FLOAT),
            node("Div", "x f", "y"),
        ],
        {"zero": numbers(0)},
        "Div",
    ),
    "numbered": (
        [
            *HOW_MANY,
            node("Range", "zero n one", "r"),
            node("Cast", "r", "f", to=FLOAT),
            node("Reshape", "f column", "c"),
            node("Add", "x c", "y"),
        ],
        {"zero": numbers(0).reshape(()), "one": numbers(1).reshape(()), "column": numbers(-1, 1, 1)},
        "Add",
    ),
    "quantised for all": (
        [node("DynamicQuantizeLinear", "x", "q s z"), node("DequantizeLinear", "q s z", "y")],
        {},
        "DynamicQuantizeLinear",
    ),
    "random": ([node("RandomNormalLike", "x", "r"), node("Add", "x r", "y")], {}, "RandomNormalLike"),
}


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_requests_is_refused_by_name(name: str) -> None:
    nodes, tensors, operator = MIXING[name]
    proto = model(nodes, [value("x", ("n", 4, 6))], [onnx.helper.make_empty_tensor_value_info("y")], tensors)
    with pytest.raises(NoBatchAxis, match=rf"\({operator}\)"):
        find_batch_axis(load_model(proto), {"x": (1, 4, 6)})


def test_what_depends_on_data_is_refused() -> None:
    loaded = load_model(zoo.load("lstm-if-loop"))
    with pytest.raises(NoBatchAxis, match="node"):
        find_batch_axis(loaded, {"features": (1, 20, 80)})


def test_inputs_that_are_not_open_are_named() -> None:
    proto = model([node("Relu", "x", "y")], [value("x", (1, 3))], [value("y", (1, 3))])
    with pytest.raises(NoBatchAxis, match="'x' is not open"):
        find_batch_axis(load_model(proto), {"x": (1, 3)})
    other = model([node("Relu", "x", "y")], [value("x", ("n", 3))], [value("y", ("n", 3))])
    with pytest.raises(NoBatchAxis, match="no shape of input 'x'"):
        find_batch_axis(load_model(other), {})


# -- random chains: what is found is true -----------------------------------------------------------------------------

_LINKS = st.sampled_from(
    [
        ("Transpose", {"perm": [1, 0, 2]}, None),
        ("Transpose", {"perm": [0, 2, 1]}, None),
        ("Reshape", {}, [-1, 6, 4]),
        ("Reshape", {}, [4, -1, 6]),
        ("Reshape", {}, [-1, 2, 12]),
        ("Softmax", {"axis": 0}, None),
        ("Softmax", {"axis": 1}, None),
        ("Softmax", {"axis": -1}, None),
        ("CumSum", {}, 0),
        ("CumSum", {}, 2),
        ("Tanh", {}, None),
        ("LpNormalization", {"axis": 1}, None),
    ]
)


@given(st.lists(_LINKS, min_size=1, max_size=6))
@settings(max_examples=150)
def test_whatever_chain_of_operators_requests_that_may_be_joined_are_answered_apart(links) -> None:
    nodes, tensors, name = [], {}, "x"
    for number, (kind, attributes, operand) in enumerate(links):
        inputs = name
        if operand is not None:
            tensors[f"c{number}"] = np.array(operand, np.int64)
            inputs = f"{name} c{number}"
        name = f"t{number}"
        nodes.append(node(kind, inputs, name, **attributes))
    nodes.append(node("Identity", name, "y"))
    proto = model(nodes, [value("x", ("n", 4, 6))], [onnx.helper.make_empty_tensor_value_info("y")], tensors)
    loaded = load_model(proto)
    try:
        axis = find_batch_axis(loaded, {"x": (1, 4, 6)})
    except NoBatchAxis:
        return
    together_and_apart(proto, axis, requests_of(loaded))


# -- opened -----------------------------------------------------------------------------------------------------------


def opened(proto: onnx.ModelProto) -> tuple[Model, BatchAxis]:
    loaded = load_model(proto)
    made = open_batch_axis(loaded)
    axis = find_batch_axis(made, shapes_of(made))
    extracted = made.extract_whole()
    for fed in requests_of(made):
        for want, found in zip(run(proto, fed), run(extracted, fed), strict=True):
            assert found.dtype == want.dtype
            np.testing.assert_array_equal(found, want)
    together_and_apart(extracted, axis, requests_of(made))
    return made, axis


def test_a_class_token_before_patches() -> None:
    made, axis = opened(
        model(
            [
                node("Conv", "x w", "c", kernel_shape=[4, 4], strides=[4, 4]),
                node("Reshape", "c rows", "r"),
                node("Transpose", "r", "t", perm=[0, 2, 1]),
                node("Expand", "token once", "e"),
                node("Concat", "e t", "k", axis=1),
                node("Add", "k positions", "p"),
                node("Reshape", "p heads", "h"),
                node("Transpose", "h", "q", perm=[0, 2, 1, 3]),
                node("Transpose", "h", "v", perm=[0, 2, 3, 1]),
                node("MatMul", "q v", "s"),
                node("Softmax", "s", "y", axis=-1),
            ],
            [value("x", (1, 3, 8, 8))],
            [value("y", (1, 2, 5, 5))],
            {
                "w": weight((6, 3, 4, 4)),
                "rows": numbers(1, 6, 4),
                "token": weight((1, 1, 6), 2),
                "once": numbers(1, 1, 6),
                "positions": weight((1, 5, 6), 3),
                "heads": numbers(1, 5, 2, 3),
            },
            value_info=[value("k", (1, 5, 6))],
        )
    )
    assert axis.outputs == (0,)
    assert [info.shape for info in made.graph.inputs] == [("batch", 3, 8, 8)]


def test_windows_of_an_image() -> None:
    """As Swin has them: requests and windows share an axis, a mask is per window."""
    _, axis = opened(
        model(
            [
                node("Reshape", "x parted", "p"),
                node("Transpose", "p", "t", perm=[0, 1, 3, 2, 4, 5]),
                node("Reshape", "t windows", "w"),
                node("MatMul", "w m", "a"),
                node("Reshape", "a with_mask", "b"),
                node("Add", "b mask", "c"),
                node("Reshape", "c windows_again", "d"),
                node("Reshape", "d image", "i"),
                node("Transpose", "i", "o", perm=[0, 1, 3, 2, 4, 5]),
                node("Reshape", "o whole", "y"),
            ],
            [value("x", (1, 8, 8, 6))],
            [value("y", (1, 8, 8, 6))],
            {
                "parted": numbers(1, 2, 4, 2, 4, 6),
                "windows": numbers(-1, 16, 6),
                "m": weight((6, 6)),
                "with_mask": numbers(1, 4, 16, 6),
                "mask": weight((1, 4, 16, 1), 3),
                "windows_again": numbers(4, 16, 6),
                "image": numbers(1, 2, 2, 4, 4, 6),
                "whole": numbers(1, 8, 8, 6),
            },
        )
    )
    assert axis.outputs == (0,)


def test_sizes_of_an_image_and_states_of_a_recurrent_layer() -> None:
    opened(
        model(
            [node("Resize", "x - - sizes", "y", mode="nearest")],
            [value("x", (1, 3, 4, 4))],
            [value("y", (1, 3, 8, 8))],
            {"sizes": numbers(1, 3, 8, 8)},
        )
    )
    _, axis = opened(
        model(
            [
                node("Transpose", "x", "t", perm=[1, 0, 2]),
                node("LSTM", "t w r - - h c", "s last", hidden_size=5),
                node("Squeeze", "last zero", "y"),
            ],
            [value("x", (1, 4, 6))],
            [value("y", (1, 5))],
            {
                "w": weight((1, 20, 6)),
                "r": weight((1, 20, 5)),
                "h": weight((1, 1, 5), 3),
                "c": weight((1, 1, 5), 4),
                "zero": numbers(0),
            },
        )
    )
    assert axis.outputs == (0,)


def test_what_has_no_leading_one_is_refused_by_name() -> None:
    proto = model([node("Relu", "x", "y")], [value("x", (4, 3))], [value("y", (4, 3))])
    with pytest.raises(UnsupportedModelError, match="'x' is of shape"):
        open_batch_axis(load_model(proto))


def test_the_model_itself_stays_as_it_was() -> None:
    proto = model([node("Reshape", "x s", "y")], [value("x", (1, 6))], [value("y", (1, 2, 3))], {"s": numbers(1, 2, 3)})
    loaded = load_model(proto)
    before = loaded.structure_digest
    made = open_batch_axis(loaded)
    assert loaded.structure_digest == before != made.structure_digest
    assert [info.shape for info in loaded.graph.inputs] == [(1, 6)]
    assert made.weight_bytes == loaded.weight_bytes


ZOO_OPENED = [
    "mobilenetv3-s",
    "resnet18",
    "mobilenetv2",
    "yolov8n",
    "vit-b16",
    "swin-t",
    "swinv2-t",
    "whisper-tiny-encoder",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ZOO_OPENED, "nasnet-mobile"])
def test_models_of_the_zoo_are_opened(name: str) -> None:
    made = open_batch_axis(load_model(zoo.load(name)))
    examples = [zoo.example_inputs(name, seed=seed) for seed in (1, 2)]
    axis = find_batch_axis(made, {key: array.shape for key, array in examples[0].items()})
    together_and_apart(made.extract_whole(), axis, examples)


@pytest.mark.parametrize("name", ["distilbert", "whisper-tiny-decoder"])
def test_models_of_the_zoo_that_are_open_are_proven(name: str) -> None:
    examples = [zoo.example_inputs(name, seed=seed) for seed in (1, 2)]
    shapes = {key: array.shape for key, array in examples[0].items()}
    assert find_batch_axis(load_model(zoo.load(name)), shapes).outputs[0] == 0
