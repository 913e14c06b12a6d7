"""Stored graphs through protobuf, which judges whatever is not as its own writer would have written it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no types

from parallax.errors import ModelFileError
from parallax.model._arrange import external_tensors, nested_graphs
from parallax.model._stored_parts import ExternalTensor, GraphParts
from parallax.model._types import tensor_info, text

LOCATION: Final = b"location"


def parse_graph(graph: bytes) -> GraphParts:
    """Read a graph of any form.

    Raises: ModelFileError if it is none, or names data elsewhere than in its initializers and those of its bodies.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(graph)
        return _parts(model, graph)
    except (DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelFileError(f"this is no graph: {error}") from error


def _parts(model: Any, graph: bytes) -> GraphParts:
    tensors = list(external_tensors(model.graph))
    # Each external tensor names its place once. Where the word stands more often, data may be named elsewhere.
    if graph.count(LOCATION) != len(tensors) and any(map(_has_other_data, (model.graph, *model.functions))):
        raise ModelFileError("data are named where no initializer is")
    own = sum(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)
    return GraphParts(
        inputs=[tensor_info(value) for value in model.graph.input],
        outputs=[tensor_info(value) for value in model.graph.output],
        initializers=[tensor.name for tensor in model.graph.initializer],
        external=[
            ExternalTensor(
                name=tensor.name,
                data_type=tensor.data_type,
                dims=tuple(tensor.dims),
                entries=tuple([(text(entry.key), text(entry.value)) for entry in tensor.external_data]),
                is_nested=position >= own,
            )
            for position, tensor in enumerate(tensors)
        ],
    )


def _has_other_data(graph: Any) -> bool:
    """Whether any tensor of a graph or function but initialisers has its data elsewhere."""
    return any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _other_tensors(graph))


def _other_tensors(graph: Any) -> Iterator[Any]:
    for sparse in getattr(graph, "sparse_initializer", ()):  # functions have none
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
    for body in nested_graphs(graph):
        yield from _other_tensors(body)
