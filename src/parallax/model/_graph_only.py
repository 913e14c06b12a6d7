"""The graph of a model file whose weights nobody needs, such as what a runtime's optimiser wrote."""

from __future__ import annotations

import os
from dataclasses import dataclass

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no types

from parallax.errors import ModelFileError
from parallax.graph import OpGraph
from parallax.model._build import build_graph
from parallax.model._source import open_source


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphOnly:
    """A graph alone."""

    graph: OpGraph
    stated_names: tuple[str, ...]
    """Each node's name as the file has it: perhaps "" or a duplicate, where ``Node.name`` is made up."""


def read_graph_only(path: str | os.PathLike[str]) -> GraphOnly:
    """The main graph of a model file, without looking at weights: external data may be missing.

    Nothing is checked that only running the model needs (versions, functions, sizes of weights).

    Raises:
        ModelFileError: it cannot be read.
        ModelError: a graph with cycles or undefined tensors.
    """
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(open_source(path).split().skeleton)
    except DecodeError as exc:
        raise ModelFileError(f"the bytes are not an ONNX model: {exc}", where=os.fspath(path)) from exc
    built = build_graph(proto.graph, overridable=proto.ir_version >= 4)
    return GraphOnly(graph=built.graph, stated_names=tuple(node.name for node in built.protos))
