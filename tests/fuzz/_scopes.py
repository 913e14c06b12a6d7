"""What a random model is built in: a graph, a body or a function, and the ways to name a constant in it.

All values that blocks hand on are float32 matrices of ``WIDTH`` columns and as many rows as are fed, so that any block
may follow any other; what else there is (other types, ranks, sequences, strings) lives inside a block or is an output.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 8
FLOAT = TensorProto.FLOAT

Array = npt.NDArray[Any]


@dataclass
class Draft:
    """A model in the making, and everything that is one for all of its scopes."""

    random: random.Random
    opset: int
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    external: dict[str, bytearray] = field(default_factory=dict)
    """Location -> content of files of external data."""
    count: int = 0
    has_strings: bool = False

    def fresh(self, stem: str = "t") -> str:
        """A name that is not taken."""
        self.count += 1
        return f"{stem}{self.count}"

    def chance(self, share: float) -> bool:
        """True as often as ``share`` says."""
        return self.random.random() < share

    def numbers(self, *shape: int) -> Array:
        """Small random numbers, distinct enough for a swapped operand to show."""
        drawn = np.random.default_rng(self.random.randrange(1 << 30)).standard_normal(shape) * 0.5
        return np.asarray(drawn, np.float32)


class Scope:
    """A graph, body or function to which nodes are added."""

    def __init__(self, draft: Draft, known: Iterable[str], *, kind: str = "graph", depth: int = 0) -> None:
        self.draft = draft
        self.random = draft.random
        self.opset = draft.opset
        self.kind = kind
        """"graph", "body" or "function": the last holds no initializers."""
        self.depth = depth
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.sparse: list[onnx.SparseTensorProto] = []
        self.extra_outputs: list[onnx.ValueInfoProto] = []
        self.pool = list(known)
        """Matrices that blocks may read, captured ones included."""

    def pick(self) -> str:
        """A matrix; recent ones more often, so that graphs get deep as well as wide."""
        if self.draft.chance(0.5):
            return self.random.choice(self.pool[-3:])
        return self.random.choice(self.pool)

    def add(
        self, op_type: str, inputs: Sequence[str], outputs: int | Sequence[str] = 1, **attributes: Any
    ) -> list[str]:
        """Add a node; of ``outputs`` give the names, or how many there are."""
        names = [self.draft.fresh() for _ in range(outputs)] if isinstance(outputs, int) else list(outputs)
        name = "" if self.draft.chance(0.3) else self.draft.fresh(f"{op_type}_")
        self.nodes.append(helper.make_node(op_type, list(inputs), names, name=name, **attributes))
        return names

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output; returns its name."""
        return self.add(op_type, inputs, **attributes)[0]

    def constant(self, value: Array | Sequence[Any] | float, dtype: npt.DTypeLike = np.float32) -> str:
        """A constant, in one of the ways that a model has for it."""
        array = np.asarray(value, dtype)
        name = self.draft.fresh("c")
        tensor = numpy_helper.from_array(array, name)
        way = self.random.random()
        if self.kind == "function" or way < 0.25:
            self._constant_node(name, array)
        elif way < 0.4 and array.ndim and array.dtype == np.float32:
            self.sparse.append(self._sparse(name, array))
        elif way < 0.6 and array.dtype == np.float32:
            self.initializers.append(self._external(tensor))
        elif way < 0.65 and self.kind == "graph" and array.dtype == np.float32:
            # Defined twice, which the runtime only warns of.
            self.initializers += [tensor, numpy_helper.from_array(np.asarray(array + 1, array.dtype), name)]
        else:
            self.initializers.append(tensor)
        return name

    def _constant_node(self, name: str, array: Array) -> None:
        if array.ndim == 1 and array.dtype == np.int64 and self.opset >= 12 and self.draft.chance(0.3):
            self.add("Constant", [], [name], value_ints=array.tolist())
        elif array.ndim and array.dtype == np.float32 and self.kind != "function" and self.draft.chance(0.2):
            # Not in functions: ONNX Runtime 1.31.1 reads freed memory when it inlines these, and crashes at times.
            self.add("Constant", [], [name], sparse_value=self._sparse("", array))
        elif self.draft.chance(0.2) and array.dtype == np.float32:
            self.add("Constant", [], [name], value=self._external(numpy_helper.from_array(array, "")))
        else:
            self.add("Constant", [], [name], value=numpy_helper.from_array(array, ""))

    def _sparse(self, name: str, array: Array) -> onnx.SparseTensorProto:
        flat = array.ravel()
        places = np.flatnonzero(flat)
        values = numpy_helper.from_array(flat[places], name)
        if array.ndim > 1 and self.draft.chance(0.5):
            indices = numpy_helper.from_array(np.stack(np.unravel_index(places, array.shape), 1).astype(np.int64), "at")
        else:
            indices = numpy_helper.from_array(places.astype(np.int64), "at")
        return helper.make_sparse_tensor(values, indices, list(array.shape))

    def _external(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """The tensor with its bytes in a file beside the model. (The runtime takes no sizes or axes from there.)"""
        data = tensor.raw_data
        if not data:
            return tensor
        location = self.random.choice(["one.bin", "two.data", "folder/three.bin"])
        content = self.draft.external.setdefault(location, bytearray(b"#"))
        while len(content) % self.random.choice([1, 4, 64, 4096]):
            content.append(0)
        made = TensorProto(
            name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, data_location=TensorProto.EXTERNAL
        )
        entries = {"location": location, "offset": str(len(content))}
        if self.draft.chance(0.7):
            entries["length"] = str(len(data) if self.draft.chance(0.7) else 0)
        content += data
        for key, text in entries.items():
            made.external_data.add(key=key, value=text)
        return made

    # -- operators whose form depends on the operator set ------------------------------------------------------

    def axes_op(self, op_type: str, source: str, axes: Sequence[int], since: int, **attributes: Any) -> str:
        """An operator that takes its axes as an input from some operator set on, and as an attribute before."""
        if self.opset >= since:
            return self.op(op_type, source, self.constant(list(axes), np.int64), **attributes)
        return self.op(op_type, source, axes=list(axes), **attributes)

    def squeeze(self, source: str, axis: int) -> str:
        return self.axes_op("Squeeze", source, [axis], 13)

    def unsqueeze(self, source: str, axis: int) -> str:
        return self.axes_op("Unsqueeze", source, [axis], 13)

    def reduce(self, kind: str, source: str, axes: Sequence[int], *, keepdims: int = 1) -> str:
        return self.axes_op(f"Reduce{kind}", source, axes, 13 if kind == "Sum" else 18, keepdims=keepdims)

    def split(self, source: str, sizes: Sequence[int], axis: int = 1) -> list[str]:
        if self.opset >= 13:
            return self.add("Split", [source, self.constant(list(sizes), np.int64)], len(sizes), axis=axis)
        return self.add("Split", [source], len(sizes), axis=axis, split=list(sizes))

    def random_bytes(self, *shape: int) -> Array:
        """Signed bytes."""
        return np.random.default_rng(self.random.randrange(1 << 30)).integers(-100, 100, shape)

    def made(self) -> set[str]:
        """What this scope's own nodes make."""
        return {name for node in self.nodes for name in node.output}

    def calm(self, source: str) -> str:
        """The values, brought near 1, so that long chains neither vanish nor overflow."""
        return self.op(self.random.choice(["Tanh", "Sin", "Sigmoid", "Softsign"]), source)

    # -- bodies ------------------------------------------------------------------------------------------------

    def body(self, inputs: Sequence[onnx.ValueInfoProto], known: Iterable[str] = ()) -> Scope:
        """A body in which all that is known here is known, and ``known`` of its inputs."""
        inner = Scope(self.draft, [*self.pool, *known], kind="body", depth=self.depth + 1)
        inner.body_inputs = list(inputs)
        return inner

    body_inputs: list[onnx.ValueInfoProto]

    def close(self, outputs: Sequence[onnx.ValueInfoProto]) -> onnx.GraphProto:
        """The body's graph."""
        return helper.make_graph(
            self.nodes,
            self.draft.fresh("body"),
            self.body_inputs,
            list(outputs),
            self.initializers,
            sparse_initializer=self.sparse,
        )


def value(name: str, element: int = FLOAT, shape: Sequence[int | str | None] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, shape)


def matrix(name: str) -> onnx.ValueInfoProto:
    return value(name, FLOAT, [None, WIDTH])
