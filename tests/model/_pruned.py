"""Random models of which channels, neurons and heads are pruned, as training tools leave them: their weights are 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from parallax.model import load_model, slim_model

Feeds = dict[str, np.ndarray[Any, Any]]


class Builder:
    """A graph as far as it is built; every method returns the name of what it computes."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.zeroed = 0
        """Channels whose weights are 0."""

    def node(self, kind: str, inputs: Sequence[str], count: int = 1, **attributes: Any) -> str:
        name = f"{kind.lower()}{len(self.nodes)}"
        outputs = [name] if count == 1 else [f"{name}_{place}" for place in range(count)]
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, name=f"{name}_node", **attributes))
        return outputs[0]

    def weight(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def random(self, *shape: int) -> np.ndarray[Any, Any]:
        return np.asarray(self.rng.standard_normal(shape) * math.sqrt(2 / max(1, math.prod(shape[1:]))), np.float32)

    def pruned(self, count: int) -> np.ndarray[Any, Any]:
        """Which of so many channels are 0: some, often none, now and then all."""
        share = self.rng.choice([0, 0.25, 0.5, 0.9, 1.0], p=[0.25, 0.25, 0.3, 0.15, 0.05])
        gone = np.asarray(self.rng.random(count) < share)
        self.zeroed += int(gone.sum())
        return gone

    def bias(self, gone: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Of pruned channels mostly 0 as well."""
        bias = self.random(len(gone))
        return np.where(gone & (self.rng.random() < 0.7), np.float32(0), bias)

    # -- convolutional ------------------------------------------------------------------------------------

    def conv(self, x: str, inside: int, outside: int, *, kernel: int = 3, group: int = 1, prune: bool = True) -> str:
        weight = self.random(outside, inside // group, kernel, kernel)
        gone = self.pruned(outside) if prune else np.zeros(outside, bool)
        weight[gone] = 0
        inputs = [x, self.weight(weight)]
        if self.rng.random() < 0.6:
            inputs.append(self.weight(self.bias(gone)))
        pads = [kernel // 2] * 4
        return self.node("Conv", inputs, kernel_shape=[kernel] * 2, pads=pads, group=group)

    def batch_norm(self, x: str, count: int) -> str:
        scale, mean = np.abs(self.random(count)) + 0.5, self.random(count) * 0.1
        shift = self.random(count) * float(self.rng.random() < 0.4)
        if self.rng.random() < 0.3:
            scale[self.pruned(count)] = 0  # as "network slimming" leaves it
        if self.rng.random() < 0.6:
            mean *= 0
        return self.node(
            "BatchNormalization", [x, *(self.weight(value) for value in (scale, shift, mean, np.abs(mean) + 1))]
        )

    def activation(self, x: str) -> str:
        kind = self.rng.choice(["Relu", "Sigmoid", "HardSwish", "LeakyRelu", "Tanh", "Clip", "gelu"])
        if kind == "gelu":
            return self.gelu(x)
        if kind == "Clip":
            return self.node("Clip", [x, self.weight(0.0), self.weight(6.0)])
        return self.node(str(kind), [x])

    def gelu(self, x: str) -> str:
        """As exporters write it."""
        erf = self.node("Erf", [self.node("Div", [x, self.weight(math.sqrt(2))])])
        product = self.node("Mul", [x, self.node("Add", [erf, self.weight(1.0)])])
        return self.node("Mul", [product, self.weight(0.5)])

    def gate(self, x: str, count: int) -> str:
        """Squeeze and excite."""
        squeezed = self.node("GlobalAveragePool", [x])
        hidden = self.node("Relu", [self.conv(squeezed, count, max(2, count // 4), kernel=1)])
        scale = self.node("Sigmoid", [self.conv(hidden, max(2, count // 4), count, kernel=1)])
        return self.node("Mul", [x, scale])

    def block(self, x: str, count: int) -> tuple[str, int]:
        """One of several kinds; returns its output and its channels."""
        kind = self.rng.choice(["chain", "residual", "depthwise", "gate", "concat", "grouped", "pool", "split"])
        wide = int(self.rng.choice([4, 8, 12]))
        if kind == "chain":
            return self.activation(self.batch_norm(self.conv(x, count, wide), wide)), wide
        if kind == "residual":
            inner = self.activation(self.batch_norm(self.conv(x, count, wide), wide))
            outer = self.batch_norm(self.conv(inner, wide, count), count)
            return self.node("Relu", [self.node("Add", [outer, x])]), count
        if kind == "depthwise":
            inner = self.activation(self.conv(x, count, wide, kernel=1))
            deep = self.activation(self.conv(inner, wide, wide, group=wide))
            return self.conv(deep, wide, count, kernel=1), count
        if kind == "gate":
            return self.gate(self.activation(self.conv(x, count, wide)), wide), wide
        if kind == "concat":
            left = self.activation(self.conv(x, count, wide))
            right = self.node("MaxPool", [x], kernel_shape=[3, 3], pads=[1] * 4)
            parts = [left, right] if self.rng.random() < 0.5 else [right, left]
            return self.node("Concat", parts, axis=1), wide + count
        if kind == "grouped":
            inner = self.activation(self.conv(x, count, 8))
            return self.activation(self.conv(inner, 8, 12, group=4)), 12
        if kind == "split":
            first = self.node(
                "Split", [self.activation(self.conv(x, count, 8)), self.weight([3, 5], np.int64)], 2, axis=1
            )
            second = first.removesuffix("_0") + "_1"
            return self.node("Concat", [self.activation(second), first], axis=1), 8
        return self.node("AveragePool", [x], kernel_shape=[3, 3], pads=[1] * 4), count

    def convolutional(self) -> onnx.ModelProto:
        """[2, 3, 8, 8] to [2, 5]."""
        count = 8
        x = self.activation(self.conv("x", 3, count))
        for _ in range(int(self.rng.integers(1, 5))):
            x, count = self.block(x, count)
        if self.rng.random() < 0.5:
            x = self.node("Flatten", [self.node("GlobalAveragePool", [x])])
        else:
            x = self.node("Reshape", [x, self.weight([0, -1], np.int64)])
            count *= 64
        y = self.node("Gemm", [x, self.weight(self.random(5, count)), self.weight(self.random(5))], transB=1)
        return self.model(y, [2, 3, 8, 8], [2, 5])

    # -- transformers -------------------------------------------------------------------------------------

    def linear(self, x: str, inside: int, outside: int, gone: np.ndarray[Any, Any] | None = None) -> str:
        weight = self.random(outside, inside).T.copy()
        if gone is None:
            gone = self.pruned(outside)
        weight[:, gone] = 0
        return self.node("Add", [self.weight(self.bias(gone)), self.node("MatMul", [x, self.weight(weight)])])

    def attention(self, x: str, wide: int, heads: int) -> str:
        """Of [2, 6, wide], with some heads pruned."""
        size = wide // heads
        gone = np.repeat(self.pruned(heads), size)
        parts = [
            self.linear(x, wide, wide, gone if place == 2 or self.rng.random() < 0.5 else np.zeros(wide, bool))
            for place in range(3)
        ]
        shape = self.weight([0, -1, heads, size], np.int64)
        query, key, value = (
            self.node(
                "Transpose", [self.node("Reshape", [part, shape])], perm=[0, 2, 3, 1] if place == 1 else [0, 2, 1, 3]
            )
            for place, part in enumerate(parts)
        )
        scores = self.node("Div", [self.node("MatMul", [query, key]), self.weight(math.sqrt(size))])
        mixed = self.node("MatMul", [self.node("Softmax", [scores], axis=-1), value])
        joined = self.node("Transpose", [mixed], perm=[0, 2, 1, 3])
        flat = self.node("Reshape", [joined, self.weight([0, -1, wide], np.int64)])
        return self.linear(flat, wide, wide, np.zeros(wide, bool))

    def normalise(self, x: str, wide: int) -> str:
        return self.node(
            "LayerNormalization", [x, self.weight(np.ones(wide)), self.weight(np.zeros(wide))], axis=-1, epsilon=1e-5
        )

    def transformer(self) -> onnx.ModelProto:
        """[2, 6, 16] to [2, 6, 16]."""
        wide, x = 16, "x"
        for _ in range(int(self.rng.integers(1, 3))):
            if self.rng.random() < 0.7:
                heads = int(self.rng.choice([2, 4]))
                x = self.normalise(self.node("Add", [x, self.attention(x, wide, heads)]), wide)
            hidden = int(self.rng.choice([24, 32]))
            inner = self.activation(self.linear(x, wide, hidden))
            x = self.normalise(self.node("Add", [x, self.linear(inner, hidden, wide, np.zeros(wide, bool))]), wide)
        return self.model(x, [2, 6, 16], [2, 6, 16])

    def model(self, y: str, given: Sequence[int], made: Sequence[int]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "pruned",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, given)],
            [helper.make_tensor_value_info(y, TensorProto.FLOAT, made)],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def pruned_model(seed: int) -> tuple[onnx.ModelProto, int, Feeds]:
    """A model, how many of its channels were zeroed, and feeds."""
    builder = Builder(seed)
    model = builder.convolutional() if seed % 3 else builder.transformer()
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    feeds = {"x": np.asarray(np.random.default_rng(seed + 1).standard_normal(shape), np.float32)}
    return model, builder.zeroed, feeds


def losing(seed: int = 2) -> tuple[onnx.ModelProto, Feeds]:
    """The first of the models from ``seed`` on that loses channels, and feeds."""
    while True:
        made, _, feeds = pruned_model(seed)
        slimming = slim_model(load_model(made)).slimming
        if slimming is not None and slimming.removals:
            return made, feeds
        seed += 1
