"""Text encoders of a few nodes, as exporters write them: ways to make a mask, positions, and what is returned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH, HEADS, VOCABULARY, PLACES, CLASSES = 8, 2, 50, 64, 3
INT64, FLOAT, BOOL = TensorProto.INT64, TensorProto.FLOAT, TensorProto.BOOL
LEAST = float(np.finfo(np.float32).min)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What an encoder is made of."""

    mask: str = "subtracted"
    """subtracted, chosen, filled, expanded, flattened: ways to hide padded places; query, weak, none: wrong ones."""
    hidden: float = -1e4
    """What hides."""
    positions: str = "sliced"
    """sliced, counted, summed or none: where numbers of places come from."""
    head: str = "first"
    """first, mean, largest, hidden_zeroed: what can be trimmed; hidden, plain_mean, last, length: what cannot."""
    types: bool = False
    """Whether there is an input of token types."""
    mask_type: int = INT64
    layers: int = 1
    is_causal: bool = False
    is_decomposed: bool = False
    """Whether LayerNormalization is written as the operators that it was before version 17."""
    vocabulary: int = VOCABULARY
    """Rows of the table of embeddings, of which the first `VOCABULARY` are used."""


@dataclass(kw_only=True)
class _Builder:
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(5))

    def __call__(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        made = name or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [f"{made}_out"], name=made, **attributes))
        return f"{made}_out"

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        name = f"constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weight(self, *shape: int) -> str:
        return self.constant(self.generator.normal(size=shape) * 0.5, np.float32)

    def size(self, tensor: str, axis: int) -> str:
        return self("Gather", self("Shape", tensor), self.constant(axis), axis=0)


def encoder(choices: Choices | None = None, **changes: Any) -> onnx.ModelProto:
    """A model of (ids, mask[, types]) of shape (batch, sequence), which returns "y"."""
    chosen = replace(choices or Choices(), **changes)
    make = _Builder()
    hidden = _normalised(make, chosen, _embedded(make, chosen))
    bias = _bias(make, chosen)
    for _ in range(chosen.layers):
        hidden = _layer(make, chosen, hidden, bias)
    y = _headed(make, chosen, hidden)
    make.nodes.append(helper.make_node("Identity", [y], ["y"], name="the_end"))
    shape = ["batch", "sequence"]
    inputs = [helper.make_tensor_value_info("ids", INT64, shape)]
    inputs.append(helper.make_tensor_value_info("mask", chosen.mask_type, shape))
    if chosen.types:
        inputs.append(helper.make_tensor_value_info("types", INT64, shape))
    kind = INT64 if chosen.head == "length" else FLOAT
    declared = {"length": [3], "hidden": [*shape, WIDTH], "hidden_zeroed": [*shape, WIDTH]}
    output = helper.make_tensor_value_info("y", kind, declared.get(chosen.head, ["batch", CLASSES]))
    graph = helper.make_graph(make.nodes, "encoder", inputs, [output], make.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def feeds(lengths: Sequence[int], size: int, *, types: bool = False, mask_type: Any = np.int64, seed: int = 0) -> Any:
    """Rows of so many tokens each, padded to ``size``: padded places hold ids and types like any other."""
    generator = np.random.default_rng(seed)
    shape = (len(lengths), size)
    mask = (np.arange(size) < np.array(lengths)[:, None]).astype(mask_type)
    made = {"ids": generator.integers(0, VOCABULARY, shape), "mask": mask}
    return made | ({"types": generator.integers(0, 2, shape)} if types else {})


def _embedded(make: _Builder, chosen: Choices) -> str:
    total = make("Gather", make.weight(chosen.vocabulary, WIDTH), "ids")
    table = make.weight(PLACES, WIDTH)
    if chosen.positions == "sliced":
        places = make.constant([range(PLACES * 4)])  # larger than what is read of constants
        length = make("Unsqueeze", make.size("ids", 1), make.constant([0]))
        numbers = make("Slice", places, make.constant([0]), length, make.constant([1]), make.constant([1]))
        total = make("Add", total, make("Gather", table, numbers))
    elif chosen.positions == "counted":
        numbers = make("Range", make.constant(0), make.size("ids", 1), make.constant(1))
        total = make("Add", total, make("Gather", table, make("Unsqueeze", numbers, make.constant([0]))))
    elif chosen.positions == "summed":
        flags = make("Cast", "mask", to=INT64)
        counted = make("Mul", make("CumSum", flags, make.constant(1)), flags)
        total = make("Add", total, make("Gather", table, counted))
    if chosen.types:
        total = make("Add", total, make("Gather", make.weight(2, WIDTH), "types"))
    return total


def _bias(make: _Builder, chosen: Choices) -> str:
    """What is added to scores of shape (batch, heads, queries, keys); or a flag per place of what to fill."""
    axes = make.constant([1, 3] if chosen.mask == "query" else [1, 2])
    rows = make("Unsqueeze", "mask", axes)
    least = make.constant(chosen.hidden, np.float32)
    if chosen.mask == "chosen":
        return make("Where", make("Cast", rows, to=BOOL), make.constant(0, np.float32), least)
    if chosen.mask == "filled":
        return make("Equal", make("Cast", rows, to=FLOAT), make.constant(0, np.float32))
    if chosen.mask == "expanded":
        length = make.size("mask", 1)
        wanted = make("Concat", *_vectors(make, make.size("mask", 0), make.constant(1), length, length), axis=0)
        # As PyTorch exports ``expand``: sizes of -1 become 1.
        ones = make("ConstantOfShape", make.constant([4]), value=numpy_helper.from_array(np.array([1], np.int64)))
        is_kept = make("Equal", wanted, make("Mul", ones, make.constant(-1)))
        expanded = make("Expand", rows, make("Where", is_kept, ones, wanted))
        inverted = make("Sub", make.constant(1, np.float32), make("Cast", expanded, to=FLOAT))
        return make("Where", make("Cast", inverted, to=BOOL), least, inverted)
    if chosen.mask == "flattened":
        return _flattened(make, chosen, least)
    inverted = make("Sub", make.constant(1, np.float32), make("Cast", rows, to=FLOAT))
    return make("Mul", inverted, make.constant(-1, np.float32) if chosen.mask == "weak" else least)


def _vectors(make: _Builder, *scalars: str) -> list[str]:
    return [make("Unsqueeze", scalar, make.constant([0])) for scalar in scalars]


def _flattened(make: _Builder, chosen: Choices, least: str) -> str:
    """The mask is read place by place, by numbers: row times length plus place (transformers from 4.50 on)."""
    rows, length = make.size("mask", 0), make.size("mask", 1)
    counted = [
        make("Unsqueeze", make("Range", make.constant(0), size, make.constant(1)), make.constant(axes))
        for size, axes in ((rows, [1, 2, 3]), (length, [0, 1, 3]), (length, [0, 1, 2]))
    ]
    row, query, key = counted
    zero = make.constant(0)
    is_open = make("LessOrEqual", key, query) if chosen.is_causal else make("GreaterOrEqual", query, zero)
    flat = make("Flatten", make("Cast", "mask", to=BOOL), axis=2)
    numbers = make("Add", make("Mul", row, length), key)
    picked = make("Reshape", make("Gather", flat, numbers, axis=0), make("Shape", numbers))
    seen = make("And", is_open, picked)
    return make("Where", seen, make.constant(0, np.float32), least)


def _layer(make: _Builder, chosen: Choices, hidden: str, bias: str) -> str:
    each = WIDTH // HEADS
    if chosen.layers % 2:
        apart = make.constant([0, -1, HEADS, each])
        joined = make.constant([0, -1, WIDTH])
    else:
        sizes = _vectors(make, make.size(hidden, 0), make.size(hidden, 1))
        apart = make("Concat", *sizes, make.constant([HEADS]), make.constant([each]), axis=0)
        joined = make("Concat", *sizes, make.constant([WIDTH]), axis=0)
    query, key, value = (
        make("Reshape", make("Add", make("MatMul", hidden, make.weight(WIDTH, WIDTH)), make.weight(WIDTH)), apart)
        for _ in range(3)
    )
    scores = make(
        "MatMul", make("Transpose", query, perm=[0, 2, 1, 3]), make("Transpose", key, perm=[0, 2, 3, 1]), name=""
    )
    scores = make("Div", scores, make.constant(np.sqrt(each), np.float32))
    if chosen.mask == "filled":
        scores = make("Where", bias, make.constant(chosen.hidden, np.float32), scores)
    elif chosen.mask != "none":
        scores = make("Add", scores, bias)
    name = "the_softmax" if chosen.layers == 1 else ""
    weights = make("Softmax", scores, axis=-1, name=name)
    mixed = make("MatMul", weights, make("Transpose", value, perm=[0, 2, 1, 3]))
    mixed = make("Reshape", make("Transpose", mixed, perm=[0, 2, 1, 3]), joined)
    hidden = _normalised(make, chosen, make("Add", hidden, make("MatMul", mixed, make.weight(WIDTH, WIDTH))))
    wide = make("MatMul", hidden, make.weight(WIDTH, 2 * WIDTH))
    wide = make("Mul", wide, make("Add", make("Erf", wide), make.constant(1, np.float32)))
    return _normalised(make, chosen, make("Add", hidden, make("MatMul", wide, make.weight(2 * WIDTH, WIDTH))))


def _normalised(make: _Builder, chosen: Choices, hidden: str) -> str:
    if not chosen.is_decomposed:
        return make("LayerNormalization", hidden, make.weight(WIDTH), make.weight(WIDTH), axis=-1)
    apart = make("Sub", hidden, make("ReduceMean", hidden, axes=[-1]))
    square = make("Pow", apart, make.constant(2, np.float32))
    variance = make("Add", make("ReduceMean", square, axes=[-1]), make.constant(1e-5, np.float32))
    scaled = make("Mul", make("Div", apart, make("Sqrt", variance)), make.weight(WIDTH))
    return make("Add", scaled, make.weight(WIDTH))


def _headed(make: _Builder, chosen: Choices, hidden: str) -> str:
    if chosen.head == "hidden":
        return hidden
    if chosen.head == "length":
        return make("Shape", hidden, name="the_head")
    if chosen.head in ("first", "last"):
        place = make.constant(0 if chosen.head == "first" else -1)
        return _classified(make, make("Gather", hidden, place, axis=1, name="the_head"))
    if chosen.head == "plain_mean":
        return _classified(make, make("ReduceMean", hidden, axes=[1], keepdims=0, name="the_head"))
    rows = make("Unsqueeze", make("Cast", "mask", to=FLOAT), make.constant([2]))
    if chosen.head == "largest":
        is_padded = make("Equal", rows, make.constant(0, np.float32))
        low = make("Where", is_padded, make.constant(-1e9, np.float32), hidden)
        return _classified(make, make("ReduceMax", low, axes=[1], keepdims=0, name="the_head"))
    rows = make("Expand", rows, make("Shape", hidden))
    zeroed = make("Mul", hidden, rows, name="the_head")
    if chosen.head == "hidden_zeroed":
        return zeroed
    total, count = (make("ReduceSum", tensor, make.constant([1]), keepdims=0) for tensor in (zeroed, rows))
    return _classified(make, make("Div", total, make("Clip", count, make.constant(1e-9, np.float32))))


def _classified(make: _Builder, pooled: str) -> str:
    return make("Gemm", pooled, make.weight(CLASSES, WIDTH), make.weight(CLASSES), transB=1)
