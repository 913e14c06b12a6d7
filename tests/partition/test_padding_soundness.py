"""Random graphs: where padding is proven to have no effect, it has none; and enough is proven to say something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from parallax.engine._trimmed import fill_outputs, trim_feeds
from parallax.model import load_model
from parallax.partition.padding import NotTrimmable, Trimming, prove_trimming

B, S, WIDTH = "batch", "sequence", 4
GRAPHS, LEAST_PROVEN = 150, 20
"""Per seed."""

Dims = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Made:
    """A tensor of a graph in the making."""

    name: str
    dims: Dims


class Maker:
    """Draws operators on what there is, some of which mix places of the sequence, and some of which mask them."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.pool = [Made("x", (B, S, WIDTH))]
        self.masks = {0: Made("mask", (B, S))}

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def pick(self) -> Made:
        """Rather one that was made lately."""
        return self.pool[-min(int(self.random.geometric(0.6)), len(self.pool))]

    def axis(self, made: Made) -> int:
        return int(self.random.integers(len(made.dims)))

    def mask_for(self, made: Made) -> str | None:
        """The mask along a sequence axis of a tensor, as that broadcasts to it; sometimes along a wrong one."""
        axes = [axis for axis, size in enumerate(made.dims) if size == S]
        if not axes or made.dims[0] != B:
            return None
        axis = axes[int(self.random.integers(len(axes)))]
        new = [other for other in range(1, len(made.dims)) if other != axis]
        return self.node("Unsqueeze", "mask", self.constant(new, np.int64)) if new else "mask"

    def add(self, name: str, dims: Dims) -> None:
        self.pool.append(Made(name, dims))

    # -- what may be drawn: each does nothing where it does not fit ----------------------------------------------------

    def unary(self) -> None:
        made = self.pick()
        self.add(self.node(str(self.random.choice(["Relu", "Tanh", "Neg", "Sigmoid", "Abs"])), made.name), made.dims)

    def binary(self) -> None:
        one, other = self.pick(), self.pick()
        if one.dims == other.dims:
            kind = str(self.random.choice(["Add", "Mul", "Sub", "Max", "Min"]))
            self.add(self.node(kind, one.name, other.name), one.dims)

    def zeroed(self) -> None:
        made = self.pick()
        mask = self.mask_for(made)
        if mask is not None:
            self.add(self.node("Mul", made.name, mask), made.dims)

    def hidden(self) -> None:
        made = self.pick()
        mask = self.mask_for(made)
        if mask is None:
            return
        least = self.constant(self.random.choice([-1e9, -1e4, -1.0]))
        if self.random.integers(2):
            bias = self.node("Mul", self.node("Sub", self.constant(1), mask), least)
            self.add(self.node("Add", made.name, bias), made.dims)
        else:
            flag = self.node("Cast", mask, to=TensorProto.BOOL)
            self.add(self.node("Where", flag, made.name, least), made.dims)

    def recast(self) -> None:
        made = self.pick()
        kind = int(self.random.choice([TensorProto.BOOL, TensorProto.INT8, TensorProto.INT64, TensorProto.FLOAT16]))
        self.add(self.node("Cast", self.node("Cast", made.name, to=kind), to=TensorProto.FLOAT), made.dims)

    def pole(self) -> None:
        """What is infinite for 0 or for 1, made of the mask, or of what the mask leaves out."""
        made = self.pick()
        mask = self.mask_for(made)
        if mask is None:
            return
        if self.random.integers(2):
            mask = self.node("Sub", self.constant(1), mask)
        bias = self.node(str(self.random.choice(["Log", "Reciprocal"])), mask)
        self.add(self.node(str(self.random.choice(["Add", "Sub"])), made.name, bias), made.dims)

    def linear(self) -> None:
        made = self.pick()
        if len(made.dims) > 1 and isinstance(made.dims[-1], int):
            weight = self.constant(self.random.normal(size=(made.dims[-1], WIDTH)))
            self.add(self.node("MatMul", made.name, weight), (*made.dims[:-1], WIDTH))

    def normalised(self) -> None:
        made = self.pick()
        if isinstance(made.dims[-1], int) and made.dims[-1] > 1:
            ones = self.constant(np.ones(made.dims[-1]))
            self.add(self.node("LayerNormalization", made.name, ones, axis=-1), made.dims)

    def turned(self) -> None:
        made = self.pick()
        if len(made.dims) > 2:
            order = [*range(len(made.dims) - 2), len(made.dims) - 1, len(made.dims) - 2]
            self.add(self.node("Transpose", made.name, perm=order), tuple(made.dims[axis] for axis in order))

    def product(self) -> None:
        one, other = self.pick(), self.pick()
        fits = len(one.dims) == len(other.dims) == 3 and one.dims[0] == other.dims[0] and one.dims[2] == other.dims[1]
        if fits:
            self.add(self.node("MatMul", one.name, other.name), (*one.dims[:2], other.dims[2]))

    def weighed(self) -> None:
        made = self.pick()
        self.add(self.node("Softmax", made.name, axis=self.axis(made)), made.dims)

    def reduced(self) -> None:
        made = self.pick()
        axis = self.axis(made)
        if axis == 0 or len(made.dims) < 2:
            return
        kind = str(self.random.choice(["ReduceSum", "ReduceMax", "ReduceMean", "ReduceMin"]))
        axes = self.constant([axis], np.int64)
        if kind == "ReduceSum":
            name = self.node(kind, made.name, axes, keepdims=0)
        else:
            name = self.node(kind, made.name, axes=[axis], keepdims=0)
        self.add(name, made.dims[:axis] + made.dims[axis + 1 :])

    def picked(self) -> None:
        made = self.pick()
        axis = self.axis(made)
        if axis == 0 or len(made.dims) < 2:
            return
        place = self.constant(int(self.random.choice([0, 1, -1])), np.int64)
        self.add(self.node("Gather", made.name, place, axis=axis), made.dims[:axis] + made.dims[axis + 1 :])

    def summed(self) -> None:
        made = self.pick()
        axis = self.constant(self.axis(made), np.int64)
        self.add(self.node("CumSum", made.name, axis, reverse=int(self.random.integers(2))), made.dims)

    def shown_before(self) -> None:
        made = self.pick()
        if len(made.dims) > 1:
            self.add(self.node("Trilu", made.name, upper=int(self.random.integers(2))), made.dims)

    def flattened(self) -> None:
        made = self.pick()
        if made.dims == (B, S, WIDTH):
            flat = self.node("Reshape", made.name, self.constant([-1, WIDTH], np.int64))
            shape = self.node("Shape", made.name)
            name = self.node("Reshape", self.node("Tanh", flat), shape)
            self.add(name, made.dims)

    def joined(self) -> None:
        one, other = self.pick(), self.pick()
        if one.dims == other.dims and isinstance(one.dims[-1], int):
            self.add(self.node("Concat", one.name, other.name, axis=-1), (*one.dims[:-1], 2 * one.dims[-1]))

    def attended(self) -> None:
        """Attention as it should be, or with one thing left out."""
        made = self.pick()
        if made.dims != (B, S, WIDTH):
            return
        scores = self.node("MatMul", made.name, self.node("Transpose", made.name, perm=[0, 2, 1]))
        wrong = int(self.random.integers(8))
        rows = self.node("Unsqueeze", "mask", self.constant([2 if wrong == 0 else 1], np.int64))
        least = self.constant(-2.0 if wrong == 1 else -1e9)
        bias = self.node("Mul", self.node("Sub", self.constant(1), rows), least)
        weights = self.node("Softmax", self.node("Add", scores, bias), axis=1 if wrong == 2 else 2)
        self.add(self.node("MatMul", weights, made.name), made.dims)

    def ended(self) -> None:
        """Take the sequence out of the last tensor, mostly as it should be done."""
        for _ in range(4):
            made = self.pool[-1]
            axes = [axis for axis, size in enumerate(made.dims) if size == S]
            if not axes or made.dims[0] != B:
                return
            axis = axes[0]
            left = made.dims[:axis] + made.dims[axis + 1 :]
            new = [other for other in range(1, len(made.dims)) if other != axis]
            mask = self.node("Unsqueeze", "mask", self.constant(new, np.int64)) if new else "mask"
            way = int(self.random.integers(8))
            if way == 0:
                self.add(self.node("ReduceMean", made.name, axes=[axis], keepdims=0), left)
            elif way == 1:
                self.add(self.node("Mul", made.name, mask), made.dims)
                return
            elif way < 4:
                zeroed = self.node("Mul", made.name, mask)
                axes_given = self.constant([axis], np.int64)
                self.add(self.node("ReduceSum", zeroed, axes_given, keepdims=0), left)
            elif way < 6:
                flag = self.node("Cast", mask, to=TensorProto.BOOL)
                low = self.node("Where", flag, self.node("Tanh", made.name), self.constant(-1e9))
                self.add(self.node("ReduceMax", low, axes=[axis], keepdims=0), left)
            else:
                self.add(self.node("Gather", made.name, self.constant(0, np.int64), axis=axis), left)

    def model(self) -> ModelProto:
        steps: list[Callable[[], None]] = [
            *(self.unary, self.binary, self.zeroed, self.zeroed, self.hidden, self.hidden, self.linear),
            *(self.normalised, self.turned, self.product, self.product, self.weighed, self.weighed, self.reduced),
            *(self.reduced, self.picked, self.summed, self.shown_before, self.flattened, self.joined),
            *(self.attended, self.attended, self.recast, self.pole),
        ]
        for _ in range(int(self.random.integers(3, 16))):
            steps[int(self.random.integers(len(steps)))]()
        self.ended()
        self.node("Identity", self.pool[-1].name)
        y = helper.make_tensor_value_info(self.nodes[-1].output[0], TensorProto.FLOAT, None)
        graph = helper.make_graph(
            self.nodes,
            "random",
            [
                helper.make_tensor_value_info("x", TensorProto.FLOAT, [B, S, WIDTH]),
                helper.make_tensor_value_info("mask", TensorProto.FLOAT, [B, S]),
            ],
            [y],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def proof(model: ModelProto) -> Trimming | None:
    loaded = load_model(model)
    try:
        return prove_trimming(loaded.inferred(), opset=17, fillings=loaded.filled_values())
    except NotTrimmable:
        return None


def check(model: ModelProto, trimming: Trimming, random: np.random.Generator) -> bool:
    """Whether the run with garbage at padded places equals the trimmed one; False where it makes no numbers."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # it warns of what the maker left unused
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    size = 9
    for lengths in ((3, 5, 2), (1, 1, 1), (8, 1, 4)):
        mask = (np.arange(size) < np.array(lengths)[:, None]).astype(np.float32)
        fed = {"x": random.normal(size=(3, size, WIDTH)).astype(np.float32), "mask": mask}
        (full,) = session.run(None, fed)
        trimmed = trim_feeds(trimming, fed)
        assert trimmed is not None
        name = session.get_outputs()[0].name
        (cut,) = fill_outputs(trimming, [name], session.run(None, trimmed.feeds), trimmed.length)
        if not np.isfinite(full).all():
            return False
        np.testing.assert_allclose(cut, full, rtol=1e-4, atol=1e-4 * max(1.0, float(np.abs(full).max(initial=0))))
    return True


@pytest.mark.parametrize("seed", range(4))
def test_what_is_proven_is_so(seed: int) -> None:
    proven = checked = 0
    for number in range(GRAPHS):
        maker = Maker(1000 * seed + number)
        model = maker.model()
        trimming = proof(model)
        if trimming is not None:
            proven += 1
            checked += check(model, trimming, maker.random)
    assert checked >= LEAST_PROVEN, (checked, proven)
