"""The graph of a sub-model, for whoever compiles it and wants to know what is in it."""

from __future__ import annotations

import onnx

from parallax.graph import OpGraph
from parallax.model._build import build_graph
from parallax.model._segment_model import SegmentModel


def segment_graph(segment: SegmentModel) -> OpGraph:
    """Read a sub-model's graph; milliseconds for thousands of nodes.

    Types between its nodes are known only where the model's file states them.
    """
    model = onnx.ModelProto()
    model.ParseFromString(segment.proto)
    return build_graph(model.graph, overridable=True).graph
