"""A model kept structure-only: a real ONNX graph whose large weights are recipes, written out as a whole model.

The stored form is a gzip-compressed `ModelProto` in which a large initializer has name, type and shape, no bytes, and a
`Recipe` under `RECIPE_KEY` in its `metadata_props`. Everything else (small weights, shape arithmetic, indices, masks)
is kept exactly. `materialise` streams the whole model, so its peak memory is the structure plus a chunk of a weight.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
import onnx

from parallax.errors import InternalError
from parallax.zoo._recipe import Recipe, draw_chunks

RECIPE_KEY = "parallax.zoo.recipe"
FORMAT_VERSION = 1
"""Part of a materialised file's name: raise it when the same stored structure would give another file."""

# Protocol Buffers tags (field number << 3 | wire type 2, length-delimited), from onnx.proto.
_MODEL_GRAPH_TAG = bytes([7 << 3 | 2])
_GRAPH_INITIALIZER_TAG = bytes([5 << 3 | 2])
_TENSOR_RAW_DATA_TAG = bytes([9 << 3 | 2])


def read_structure(compressed: bytes) -> onnx.ModelProto:
    """Decode the stored form. The result is not runnable: its large initializers have no data."""
    model = onnx.ModelProto()
    model.ParseFromString(gzip.decompress(compressed))
    return model


def recipe_of(tensor: onnx.TensorProto) -> Recipe | None:
    """The recipe an initializer carries, or None if it holds its own data.

    Raises: InternalError if there is one that cannot be read: the packaged data is broken.
    """
    for entry in tensor.metadata_props:
        if entry.key == RECIPE_KEY:
            if tensor.data_type != onnx.TensorProto.FLOAT:
                raise InternalError(f"initializer {tensor.name!r} has a recipe but is not float32")
            try:
                return Recipe.from_json(entry.value)
            except (KeyError, TypeError, ValueError) as error:
                raise InternalError(f"initializer {tensor.name!r} has an unreadable recipe") from error
    return None


def materialise(
    structure: onnx.ModelProto, target: BinaryIO, *, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write `structure` to `target` as a complete model with every recipe drawn.

    The file is the protobuf that `onnx.save` would write (initializers last in the graph), but is never held in memory.

    Args:
        progress: called with (bytes written, bytes in all) after each piece, of at most 1 MiB or one
            initializer that was kept exactly.
    """
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(structure)
    initializers = [_Initializer(tensor) for tensor in skeleton.graph.initializer]
    del skeleton.graph.initializer[:]
    graph = skeleton.graph.SerializeToString(deterministic=True)
    skeleton.ClearField("graph")
    head = skeleton.SerializeToString(deterministic=True)

    graph_bytes = len(graph) + sum(initializer.field_bytes for initializer in initializers)
    opening = head + _MODEL_GRAPH_TAG + _varint(graph_bytes)
    total = len(opening) + graph_bytes
    written = target.write(opening) + target.write(graph)
    for initializer in initializers:
        for piece in initializer.pieces():
            written += target.write(piece)
            if progress is not None:
                progress(written, total)
    if written != total:
        raise InternalError(f"the model came to {written} bytes where {total} were announced")


class _Initializer:
    """One initializer on its way to the file: its field of the graph message, in pieces."""

    def __init__(self, tensor: onnx.TensorProto) -> None:
        self._recipe = recipe_of(tensor)
        self._elements = math.prod(tensor.dims)
        if self._recipe is None:
            message, data_bytes = tensor.SerializeToString(deterministic=True), 0
        else:
            bare = onnx.TensorProto()
            bare.CopyFrom(tensor)
            del bare.metadata_props[:]
            data_bytes = self._elements * np.dtype(np.float32).itemsize
            message = bare.SerializeToString(deterministic=True) + _TENSOR_RAW_DATA_TAG + _varint(data_bytes)
        self._opening = _GRAPH_INITIALIZER_TAG + _varint(len(message) + data_bytes) + message
        self.field_bytes = len(self._opening) + data_bytes

    def pieces(self) -> Iterator[bytes]:
        yield self._opening
        if self._recipe is not None:
            for chunk in draw_chunks(self._recipe, self._elements):
                yield chunk.astype("<f4", copy=False).tobytes()


def _varint(value: int) -> bytes:
    """Base-128 varint of a non-negative number."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
