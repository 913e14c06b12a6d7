"""Models of one operator, to find out how fast a device is."""

from __future__ import annotations

import enum
from typing import Any

import onnx
from onnx import TensorProto, helper

from parallax.model._segment_model import SegmentModel


class Probe(enum.Enum):
    """What a probe exercises. Its inputs are float32 of any size; its output is "y"."""

    STREAM = "Neg"
    """Reads "a" and writes as much: memory, and for one element, the launch."""
    PRODUCT = "MatMul"
    """Multiplies the matrices "a" and "b": arithmetic."""


def probe_model(probe: Probe, *, side: int | None = None) -> SegmentModel:
    """The part that runs a probe. ``side``: all its sizes are that; None leaves them open."""
    rank = 2 if probe is Probe.PRODUCT else 1
    inputs = ["a", "b"][:rank]
    sizes: dict[str, list[Any]] = {"a": ["rows", "inner"], "b": ["inner", "columns"], "y": ["rows", "columns"]}
    if side is not None:
        sizes = {name: [side, side] for name in sizes}
    graph = helper.make_graph(
        [helper.make_node(probe.value, inputs, ["y"], name=f"probe_{probe.value}")],
        "probe",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes[name][:rank]) for name in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, sizes["y" if rank == 2 else "a"][:rank])],
    )
    proto: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return SegmentModel(name=f"probe {probe.value}", proto=proto.SerializeToString(), weights={}, weight_types={})
