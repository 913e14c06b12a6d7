"""Sparse constants, made dense as ONNX Runtime does when it loads a model.

The runtime knows sparse constants only by making dense ones of them, and writes no optimised model that still has some.
Done here as well, they are weights like any other. What cannot be made dense here is left for the runtime to judge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from parallax.model._body_operators import may_have_bodies
from parallax.model._nested import graphs_inside, restore, walk_nodes
from parallax.model._types import text
from parallax.model._weights import DTYPES, ExternalFiles, Weight, byte_size
from parallax.model._wire import external_mark

MOST_BYTES = 256 << 20
"""A tensor that is larger once it is dense is left to the runtime: a few bytes may ask for any amount."""

_INDICES = frozenset({onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.INT16, onnx.TensorProto.INT8})


@dataclass(slots=True)
class Densified:
    """What came of a model's sparse tensors."""

    weights: list[Weight] = field(default_factory=list)
    """Those of the main graph: initializers now, whose bytes are here. Tensors inside nodes hold their own."""
    why_whole: str | None = None
    """Why the model is to be left to the runtime, if some could not be made dense."""


def make_dense(model: onnx.ModelProto, files: ExternalFiles, *, constants: bool) -> Densified:
    """Turn the sparse tensors of a model into dense ones, in place.

    Args:
        files: where external data lie.
        constants: whether to look for ``Constant`` nodes with sparse values too, which takes a look at every node.

    Raises: ExternalDataError as ``ExternalFiles.weight``.
    """
    made = Densified()
    if model.graph.sparse_initializer:
        _make_graph_dense(model.graph, files, made)
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for top in nodes:
            if constants or may_have_bodies(top.op_type, top.domain):
                _make_inside_dense(top, files, made)
    return made


def _make_graph_dense(graph: onnx.GraphProto, files: ExternalFiles, made: Densified) -> None:
    returned = {value.name for value in graph.output}
    kept = []
    for sparse in graph.sparse_initializer:
        name = sparse.values.name
        dense = _dense(sparse, files)
        if dense is None or name in returned:
            made.why_whole = f"sparse initializer {text(name)!r} is left to the runtime"
            kept.append(onnx.SparseTensorProto.FromString(sparse.SerializeToString()))
            continue
        tensor = graph.initializer.add(name=name, data_type=sparse.values.data_type, dims=sparse.dims)
        tensor.MergeFromString(external_mark())
        data = dense.tobytes()
        dims = tuple(sparse.dims)
        made.weights.append(
            Weight(name=name, dtype=tensor.data_type, dims=dims, buffer=data, offset=0, nbytes=len(data))
        )
    del graph.sparse_initializer[:]
    graph.sparse_initializer.extend(kept)


def _make_inside_dense(top: onnx.NodeProto, files: ExternalFiles, made: Densified) -> None:
    for node in walk_nodes([top]):
        for graph in graphs_inside(node):
            if graph.sparse_initializer:
                _make_body_dense(graph, files, made)
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "sparse_value":
                    _make_constant_dense(attribute, files, made)


def _make_body_dense(graph: onnx.GraphProto, files: ExternalFiles, made: Densified) -> None:
    kept = []
    for sparse in graph.sparse_initializer:
        dense = _dense(sparse, files)
        if dense is None:
            made.why_whole = f"sparse initializer {text(sparse.values.name)!r} of a body is left to the runtime"
            kept.append(onnx.SparseTensorProto.FromString(sparse.SerializeToString()))
        else:
            graph.initializer.append(numpy_helper.from_array(dense, sparse.values.name))
    del graph.sparse_initializer[:]
    graph.sparse_initializer.extend(kept)


def _make_constant_dense(attribute: onnx.AttributeProto, files: ExternalFiles, made: Densified) -> None:
    dense = _dense(attribute.sparse_tensor, files)
    if dense is None:
        made.why_whole = "a Constant with a sparse value is left to the runtime"
        return
    attribute.ClearField("sparse_tensor")
    attribute.name = "value"
    attribute.type = onnx.AttributeProto.TENSOR
    attribute.t.CopyFrom(numpy_helper.from_array(dense))


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
