"""Tensors inside nodes (attribute values, initializers of bodies) whose bytes lie elsewhere.

Nothing can feed such a tensor from outside, so each one is marked with its index among the model's
nested weights, and its bytes are put back wherever a node is copied into a model that will run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx

from parallax.errors import ModelError
from parallax.model._weights import ExternalFiles, Weight, lifted_weight
from parallax.model._wire import PAYLOAD_KEY, Payload

_EXTERNAL = onnx.TensorProto.EXTERNAL


def graphs_inside(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies of a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def walk_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """These nodes and those of all bodies in them, at any depth."""
    stack = list(nodes)
    while stack:
        node = stack.pop()
        yield node
        for graph in graphs_inside(node):
            stack.extend(graph.node)


def tensors_inside(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    """Every dense tensor in the attributes of these nodes and in their bodies, at any depth."""
    for node in walk_nodes(nodes):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                yield from _parts(attribute.sparse_tensor)
            for sparse in attribute.sparse_tensors:
                yield from _parts(sparse)
        for graph in graphs_inside(node):
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from _parts(sparse)


def _parts(sparse: onnx.SparseTensorProto) -> tuple[onnx.TensorProto, onnx.TensorProto]:
    return sparse.values, sparse.indices


def collect_nested(
    nodes: Sequence[onnx.NodeProto], payloads: Sequence[Payload], files: ExternalFiles
) -> dict[int, Weight]:
    """Locate the bytes of every external tensor inside nodes, by index, marking those that lie in files too.

    Raises:
        ModelError: bytes that do not fit the tensor; ExternalDataError as ``ExternalFiles.weight``.
    """
    weights: dict[int, Weight] = {}
    in_files = 0
    for tensor in tensors_inside(nodes):
        if tensor.data_location != _EXTERNAL:
            continue
        index = nested_index(tensor)
        if index is not None and index < len(payloads) and index not in weights:
            weights[index] = lifted_weight(tensor, payloads[index])
        elif index is None:
            number = len(payloads) + in_files
            in_files += 1
            weights[number] = files.weight(tensor)
            tensor.external_data.add(key=PAYLOAD_KEY, value=str(number))
        else:
            raise ModelError(
                f"external data uses the reserved key {PAYLOAD_KEY!r}",
                where=f"tensor {tensor.name!r}",
                fix="remove that key from the model",
            )
    return weights


def restore_nested(nodes: Sequence[onnx.NodeProto], weights: Mapping[int, Weight]) -> None:
    """Put the bytes back into the marked tensors of these nodes, in place."""
    for tensor in tensors_inside(nodes):
        if tensor.data_location == _EXTERNAL:
            index = nested_index(tensor)
            if index is not None:
                restore(tensor, weights[index])


def restore(tensor: onnx.TensorProto, weight: Weight) -> None:
    """Make a tensor hold its bytes itself."""
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    tensor.raw_data = weight.raw()


def nested_index(tensor: onnx.TensorProto) -> int | None:
    """Which of the model's nested weights holds a tensor's bytes, if one does."""
    for entry in tensor.external_data:
        if entry.key == PAYLOAD_KEY and entry.value.isascii() and entry.value.isdecimal() and len(entry.value) < 10:
            return int(entry.value)
    return None
