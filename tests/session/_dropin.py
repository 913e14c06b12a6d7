"""What the drop-in tests run on: one list of session classes, and small graphs with known answers.

Every test of the ``test_dropin_*`` modules takes a session class and is run on all of
:data:`SESSION_CLASSES`. The first is ONNX Runtime's own, so each expectation is first shown to be
true of what Parallax stands in for; the others must then meet the same expectation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, parser

import parallax

FloatArray = NDArray[np.float32]


class ForcedSplitSession(parallax.InferenceSession):
    """Parallax with splitting forced: cut wherever the graph can be cut, on two cores."""

    def __init__(self, path_or_bytes: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(path_or_bytes, *args, **{"policy": "adaptive", "min_gain": 0, "threads": 2} | kwargs)


SESSION_CLASSES: dict[str, type[onnxruntime.InferenceSession]] = {
    "onnxruntime": onnxruntime.InferenceSession,
    "parallax": parallax.InferenceSession,
    "parallax-split": ForcedSplitSession,
}

SessionClass = type[onnxruntime.InferenceSession]

on_every_session = pytest.mark.parametrize(
    "session_class", [pytest.param(cls, id=name) for name, cls in SESSION_CLASSES.items()]
)
"""Runs a test on ONNX Runtime, on Parallax by default, and on Parallax with splitting forced."""

on_parallax_sessions = pytest.mark.parametrize(
    "session_class",
    [pytest.param(cls, id=name) for name, cls in SESSION_CLASSES.items() if issubclass(cls, parallax.InferenceSession)],
)
"""For what ONNX Runtime promises nothing about: names of segments, error families of ours."""


def quiet_options(threads: int = 1) -> onnxruntime.SessionOptions:
    """Session options that start no thread pool (by default) and log nothing a test provokes on purpose."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    return options


def open_session(
    session_class: SessionClass, model: onnx.ModelProto | str, *, threads: int = 1, **kwargs: Any
) -> onnxruntime.InferenceSession:
    """A session of ``model`` (a proto, or text in ONNX's syntax) with :func:`quiet_options`."""
    proto = parse(model) if isinstance(model, str) else model
    return session_class(proto.SerializeToString(), quiet_options(threads), **kwargs)


def assert_cut(session: onnxruntime.InferenceSession) -> None:
    """The session splits its model, if it is of the class that is told to; else nothing is claimed."""
    if isinstance(session, ForcedSplitSession):
        assert len(session.plan.segments) > 1, "splitting was forced, but the model runs in one segment"


def parse(text: str) -> onnx.ModelProto:
    """A model from ONNX's textual syntax, with the version header left out."""
    return parser.parse_model('<ir_version: 10, opset_import: ["" : 21]>' + text)


def ramp(*shape: int, start: float = -1.0) -> FloatArray:
    """Distinct values, so that a swapped row, branch or run shows."""
    return (start + 0.125 * np.arange(int(np.prod(shape)), dtype=np.float32)).reshape(shape).astype(np.float32)


def _constant(name: str, value: NDArray[Any]) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(value, name)


def _shift(branch: int, step: int) -> np.float32:
    return np.float32(0.5 * (branch + 1) + 0.125 * step)


def branches_model(count: int = 2, depth: int = 3) -> onnx.ModelProto:
    """``count`` independent chains of ``depth`` x (Sin, Add) over x[N, 4], joined by a Concat to y[N, 4 * count].

    Neither operator scales with threads and no fusion of ONNX Runtime swallows them, so every
    tensor of a chain is a place to cut. Each Add has its own constant: chains can't be confused.
    """
    nodes, constants, ends = [], [], []
    for branch in range(count):
        value = "x"
        for step in range(depth):
            tag = f"{branch}_{step}"
            constants.append(_constant(f"shift_{tag}", np.full(4, _shift(branch, step), np.float32)))
            nodes.append(helper.make_node("Sin", [value], [f"sin_{tag}"], name=f"Sin_{tag}"))
            nodes.append(
                helper.make_node("Add", [f"sin_{tag}", f"shift_{tag}"], [f"sum_{tag}"], name=f"Add_{tag}"),
            )
            value = f"sum_{tag}"
        ends.append(value)
    nodes.append(helper.make_node("Concat", ends, ["y"], name="Join", axis=1))
    return model_of(
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4 * count])],
        constants,
    )


def branches_answer(x: FloatArray, count: int = 2, depth: int = 3) -> FloatArray:
    """What :func:`branches_model` computes, worked out by NumPy."""
    ends = []
    for branch in range(count):
        value = x
        for step in range(depth):
            value = np.sin(value) + _shift(branch, step)
        ends.append(value)
    return np.concatenate(ends, axis=1)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    """A checked model at the opset of :func:`parse`."""
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), list(initializers))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


TWO_OUTPUTS = """
g (float[N,4] x, float[N,4] y) => (float[N,4] left, float[N,4] right, float[N,8] both)
<float[4] one = {1, 1, 1, 1}>
{
  [SinX] sin_x = Sin(x)
  [Left] left = Add(sin_x, one)
  [TanhY] tanh_y = Tanh(y)
  [Right] right = Cos(tanh_y)
  [Both] both = Concat<axis = 1>(left, right)
}
"""
"""Two independent chains from two inputs; both ends are outputs, and so is their Concat."""


def two_outputs_answer(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """``left``, ``right`` and ``both`` of :data:`TWO_OUTPUTS`."""
    left, right = np.sin(x) + np.float32(1), np.cos(np.tanh(y))
    return left, right, np.concatenate([left, right], axis=1)


DIAMOND = """
g (float[N,4] x) => (float[N,4] y)
{
  [Split] s = Sin(x)
  [LeftCos] l1 = Cos(s)
  [LeftTanh] l2 = Tanh(l1)
  [RightExp] r1 = Exp(s)
  [RightTanh] r2 = Tanh(r1)
  [Merge] y = Sub(l2, r2)
}
"""

BRANCHING = """
g (bool which, float[N,4] x) => (float[N,4] y, float[N,4] side)
{
  [P] p = Sin(x)
  [Q] q = Tanh(x)
  [Choose] y = If(which) <
    then_branch = taken () => (float[N,4] sum) { sum = Add(p, q) },
    else_branch = other () => (float[N,4] difference) { difference = Sub(p, q) }
  >
  [SideCos] c = Cos(x)
  [Side] side = Exp(c)
}
"""
"""An If whose bodies capture two outer chains, beside an independent chain."""

LOOPING = """
g (int64 trips, float[4] x) => (float[4] last, float[T,4] all, float[4] side)
{
  keep = Constant<value = bool {1}>()
  [P] p = Sin(x)
  [Q] q = Tanh(x)
  [Repeat] last, all = Loop(trips, keep, p) <
    body = step (int64 i, bool c, float[4] v) => (bool c2, float[4] v2, float[4] row) {
      c2 = Identity(c)
      v2 = Add(v, q)
      row = Identity(v2)
    }
  >
  [SideCos] sc = Cos(x)
  [Side] side = Exp(sc)
}
"""
"""A Loop that carries one chain and captures another, beside an independent chain."""

SCANNING = """
g (float[4] start, float[T,4] rows) => (float[4] total, float[T,4] sums, float[T,4] side)
{
  [Start] s = Sin(start)
  [Rows] r = Tanh(rows)
  [Accumulate] total, sums = Scan<
    num_scan_inputs = 1,
    body = add (float[4] acc, float[4] row) => (float[4] acc2, float[4] out) {
      acc2 = Add(acc, row)
      out = Identity(acc2)
    }
  >(s, r)
  [SideCos] sc = Cos(rows)
  [Side] side = Exp(sc)
}
"""

SEQUENCES = """
g (float[4] x, int64 which) => (float[4] chosen, float[8] joined, seq(float[4]) both)
{
  [P] p = Sin(x)
  [P2] p2 = Exp(p)
  [Q] q = Tanh(x)
  [Q2] q2 = Cos(q)
  [Gather] both = SequenceConstruct(p2, q2)
  [At] chosen = SequenceAt(both, which)
  [Cat] joined = ConcatFromSequence<axis = 0>(both)
}
"""

RESHAPING = """
g (float[N,4] x, int64[2] shape) => (float[N,4] good, float[A,B] bad)
{
  [GoodSin] g1 = Sin(x)
  [GoodCos] good = Cos(g1)
  [BadTanh] b1 = Tanh(x)
  [BadReshape] bad = Reshape(b1, shape)
}
"""
"""Fails while running, in one of two chains, when ``shape`` does not hold N * 4 elements."""

GATHERING = """
g (float[4] x, int64[K] rows) => (float[4] good, float[K] bad)
{
  [GoodSin] g1 = Sin(x)
  [GoodCos] good = Cos(g1)
  [BadTanh] b1 = Tanh(x)
  [BadGather] bad = Gather(b1, rows)
}
"""
"""Fails while running, in one of two chains, when a row is outside [-4, 3]."""

ENDLESS = """
g (int64 trips, float[4] x) => (float[4] last, float[4] side)
{
  keep = Constant<value = bool {1}>()
  [Repeat] last = Loop(trips, keep, x) <
    body = step (int64 i, bool c, float[4] v) => (bool c2, float[4] v2) {
      c2 = Identity(c)
      s = Sin(v)
      v2 = Cos(s)
    }
  >
  [SideCos] sc = Cos(x)
  [Side] side = Exp(sc)
}
"""
"""As long a run as ``trips`` asks for (about a microsecond each), in one of two chains."""

FOREVER = np.array(2**62, dtype=np.int64)
