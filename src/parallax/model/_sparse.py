"""Sparse constants, made dense as ONNX Runtime does when it loads a model.

The runtime knows sparse constants only by making dense ones of them, and writes no optimised model that still has some.
Done here as well, they are weights like any other. What cannot be made dense here is left for the runtime to judge.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from parallax.model._nested import graphs_inside, restore, walk_nodes
from parallax.model._types import text
from parallax.model._weights import DTYPES, ExternalFiles, Weight, byte_size
from parallax.model._wire import external_mark

MOST_BYTES = 256 << 20
"""A tensor that is larger once it is dense is left to the runtime: a few bytes may ask for any amount."""

_BODIES = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_INDICES = frozenset({onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.INT16, onnx.TensorProto.INT8})


def make_dense(model: onnx.ModelProto, files: ExternalFiles, *, constants: bool) -> tuple[list[Weight], str | None]:
    """Turn the sparse tensors of a model into dense ones, in place.

    Those of the main graph become initializers whose bytes lie elsewhere, and those inside nodes hold their own.

    Args:
        files: where external data lie.
        constants: whether to look for ``Constant`` nodes with sparse values too, which takes a look at every node.

    Returns: the weights of the main graph; and why the model is to be left to the runtime, or None.

    Raises: ExternalDataError as ``ExternalFiles.weight``.
    """
    graph = model.graph
    weights: list[Weight] = []
    returned = {value.name for value in graph.output}
    kept = []
    reason = None
    for sparse in graph.sparse_initializer:
        name = sparse.values.name
        dense = _dense(sparse, files)
        if dense is None or name in returned:
            reason = f"sparse initializer {text(name)!r} is left to the runtime"
            kept.append(onnx.SparseTensorProto.FromString(sparse.SerializeToString()))
            continue
        tensor = graph.initializer.add(name=name, data_type=sparse.values.data_type, dims=sparse.dims)
        tensor.MergeFromString(external_mark())
        data = dense.tobytes()
        weights.append(
            Weight(
                name=name,
                dtype=tensor.data_type,
                dims=tuple(sparse.dims),
                buffer=data,
                offset=0,
                nbytes=len(data),
            )
        )
    if len(kept) < len(graph.sparse_initializer):
        del graph.sparse_initializer[:]
        graph.sparse_initializer.extend(kept)
    for nodes in (graph.node, *(function.node for function in model.functions)):
        reason = _make_dense_inside(nodes, files, constants=constants) or reason
    return weights, reason


def _make_dense_inside(nodes: Iterable[onnx.NodeProto], files: ExternalFiles, *, constants: bool) -> str | None:
    reason = None
    for top in nodes:
        if not constants and top.op_type not in _BODIES and not top.domain:
            continue
        for node in walk_nodes([top]):
            for graph in graphs_inside(node):
                if graph.sparse_initializer:
                    reason = _make_body_dense(graph, files) or reason
            if constants and node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "sparse_value":
                        reason = _make_constant_dense(attribute, files) or reason
    return reason


def _make_body_dense(graph: onnx.GraphProto, files: ExternalFiles) -> str | None:
    for sparse in graph.sparse_initializer:
        dense = _dense(sparse, files)
        if dense is None:
            return f"sparse initializer {text(sparse.values.name)!r} of a body is left to the runtime"
        graph.initializer.append(numpy_helper.from_array(dense, sparse.values.name))
    del graph.sparse_initializer[:]
    return None


def _make_constant_dense(attribute: onnx.AttributeProto, files: ExternalFiles) -> str | None:
    dense = _dense(attribute.sparse_tensor, files)
    if dense is None:
        return "a Constant with a sparse value is left to the runtime"
    tensor = numpy_helper.from_array(dense)
    attribute.ClearField("sparse_tensor")
    attribute.name = "value"
    attribute.type = onnx.AttributeProto.TENSOR
    attribute.t.CopyFrom(tensor)
    return None


def _dense(sparse: onnx.SparseTensorProto, files: ExternalFiles) -> npt.NDArray[np.generic] | None:
    """The dense array, or None where this is not what the runtime takes, too."""
    values, indices, dims = sparse.values, sparse.indices, tuple(sparse.dims)
    if values.data_type not in DTYPES or indices.data_type not in _INDICES or any(dim < 0 for dim in dims):
        return None
    size = byte_size(text(values.name), values.data_type, dims)
    itemsize = DTYPES[values.data_type].itemsize
    if size is None or size != math.prod(dims) * itemsize or size > MOST_BYTES or itemsize > 8:
        return None
    for tensor in (values, indices):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            restore(tensor, files.weight(tensor))
    try:
        found = numpy_helper.to_array(values).reshape(-1)
        places = _flat(numpy_helper.to_array(indices).astype(np.int64), dims)
    except (ValueError, TypeError):
        return None
    if places is None or places.shape != found.shape or len(values.dims) != 1:
        return None
    dense = np.zeros(math.prod(dims), found.dtype)
    if places.size and (places.min() < 0 or places.max() >= dense.size):
        return None
    dense[places] = found
    return dense.reshape(dims)


def _flat(indices: npt.NDArray[np.int64], dims: Sequence[int]) -> npt.NDArray[np.int64] | None:
    """Positions in the flattened tensor; indices are such positions, or a row of coordinates for each value."""
    if indices.ndim == 1:
        return indices
    if indices.ndim != 2 or indices.shape[1] != len(dims):
        return None
    if indices.size and ((indices < 0).any() or (indices >= np.array(dims)).any()):
        return None
    flat = np.zeros(len(indices), np.int64)
    for axis, dim in enumerate(dims):
        flat = flat * dim + indices[:, axis]
    return flat
