"""What ``get_outputs`` declares is what ONNX Runtime declares, however the model is run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

import parallax
from tests.session._dropin import parse, quiet_options

UNTYPED = onnx.ValueInfoProto


def detections() -> onnx.ModelProto:
    """How many rows there are depends on the data."""
    proto = parse(
        """agraph (float[n,4] boxes, float[n] scores) => (float[] best, float[k,4] rows, float[] share)
        <float limit = {0.5}, int64[1] axis = {0}, int64[1] most = {100}> {
          mask = Greater(scores, limit)  found = NonZero(mask)  which = Squeeze(found, axis)
          b = Gather(boxes, which)  s = Gather(scores, which)  count = Shape(which)  k = Min(count, most)
          best, order = TopK(s, k)  rows = Gather(b, order)
          m = Cast<to=1>(mask)  share = ReduceMean<keepdims=0>(m)
        }"""
    )
    return untyped(proto)


def folded() -> onnx.ModelProto:
    """A size that the runtime knows only after it folded constants."""
    proto = parse(
        """agraph (float[a,4] x) => (float[] y, float[b,4] z) {
          size = Cast<to=7>(sizes)  y = Reshape(x, size)  r = Relu(x)  z = Sin(r)
        }"""
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.float32([2, 2, -1]), "sizes"))
    return untyped(proto)


def overstated() -> onnx.ModelProto:
    """The file states another size than there is."""
    return parse("agraph (float[3,4] x) => (float[5,4] y, float[p,q] z) { y = Relu(x)  s = Sin(x)  z = Cos(s) }")


def named() -> onnx.ModelProto:
    return parse(
        "agraph (float[batch,4] x) => (float[rows,8] y, int64[2] z) "
        "{ a = Relu(x)  b = Sin(x)  y = Concat<axis=1>(a, b)  z = Shape(y) }"
    )


def untyped(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same, stating no shapes of outputs."""
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    return proto


@pytest.mark.parametrize("make", [detections, folded, overstated, named])
def test_outputs_are_declared_as_the_runtime_declares_them(make: object, tmp_path: Path) -> None:
    assert callable(make)
    path = tmp_path / "model.onnx"
    onnx.save(make(), path)

    def told(session: onnxruntime.InferenceSession) -> list[tuple[str, str, object]]:
        return [(output.name, output.type, output.shape) for output in session.get_outputs()]

    expected = told(onnxruntime.InferenceSession(path, quiet_options(), providers=["CPUExecutionProvider"]))
    split = parallax.InferenceSession(path, min_gain=0, threads=2)
    assert not split.plan.is_whole
    on_device = parallax.InferenceSession(path, min_gain=0, providers=["emulated:pixel-6-gpu", "CPUExecutionProvider"])
    bundles = [parallax.compile(path, tmp_path / f"{gain}.plx", min_gain=gain, threads=2) for gain in (None, 0)]
    for session in (parallax.InferenceSession(path), split, on_device, *map(parallax.InferenceSession, bundles)):
        assert told(session) == expected
        assert all(isinstance(output, onnxruntime.NodeArg) for output in session.get_outputs())
        assert told(session) == expected  # asked again
