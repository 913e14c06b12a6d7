"""Graphs that `save_arranged` wrote, read again by whoever is to map their data, and who trusts neither.

The runtime maps packed weights where an entry of the graph says and never looks at how long they are; other weights
are lent to it at addresses that a manifest names. A wrong number in either would have kernels read beyond a mapping. So
the data must be laid out exactly as `save_arranged` lays them out, without a gap or an overlap, up to the end of the
file, and of each weight all that is said of it must agree.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no types

from parallax.errors import ModelFileError
from parallax.model._arrange import (
    LINE_BYTES,
    PAGE_BYTES,
    PIECE_BYTES,
    PREPACKED,
    StoredWeight,
    can_be_lent,
    external_tensors,
    nested_graphs,
    stored_weight,
)
from parallax.model._elements import ELEMENT_BITS, STRING_TYPE
from parallax.model._graph import TensorInfo
from parallax.model._types import tensor_info, text

_NUMBER: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_BLOCK: Final = re.compile(r"([0-9]{1,18});([0-9]{1,18});[^|;]*", re.ASCII)
_LOCATION: Final = b"location"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredGraph:
    """What a saved graph says of itself."""

    inputs: tuple[TensorInfo, ...]
    """Without initialisers."""
    overridable: tuple[TensorInfo, ...]
    """Inputs that have an initialiser."""
    outputs: tuple[TensorInfo, ...]
    weights: tuple[StoredWeight, ...]
    """As `save_arranged` returns them."""


def read_stored_graph(graph: bytes, *, data_name: str, data_bytes: int | None) -> StoredGraph:
    """Read a graph and check where it says that its data lie. Milliseconds for thousands of nodes.

    Args:
        graph: the content of the file.
        data_name: of the file beside it that holds its data.
        data_bytes: the size of that; None if there is none.

    Raises: ModelFileError if it is no graph, or not laid out as `save_arranged` does it.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(graph)
        return _read(model, graph, data_name, data_bytes)
    except (DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelFileError(f"this is no graph: {error}") from error


def _read(model: Any, graph: bytes, data_name: str, data_bytes: int | None) -> StoredGraph:
    tensors = list(external_tensors(model.graph))
    # Each external tensor names its place once. Where the word stands more often, data may be named elsewhere.
    if graph.count(_LOCATION) != len(tensors) and any(map(_has_other_data, (model.graph, *model.functions))):
        raise ModelFileError("data are named where no initializer is")
    blocks: list[tuple[int, int]] = []
    places: dict[int, int] = {}
    for tensor in tensors:
        offset, found = _blocks(tensor, data_name)
        blocks += found
        if len(found) == 1:
            places[id(tensor)] = offset
    _check_layout(blocks, 0 if data_bytes is None else data_bytes)
    if data_bytes is not None and not tensors:
        raise ModelFileError("there is a file of data, which the graph does not use")
    initialised = {tensor.name for tensor in model.graph.initializer}
    if len(initialised) != len(model.graph.initializer):
        raise ModelFileError("an initializer is there twice")
    inputs = [tensor_info(value) for value in model.graph.input]
    return StoredGraph(
        inputs=tuple(info for info in inputs if info.name not in initialised),
        overridable=tuple(info for info in inputs if info.name in initialised),
        outputs=tuple(tensor_info(value) for value in model.graph.output),
        weights=tuple(
            stored_weight(tensor, places[id(tensor)])
            for tensor in model.graph.initializer
            if id(tensor) in places and can_be_lent(tensor)
        ),
    )


def _blocks(tensor: Any, data_name: str) -> tuple[int, list[tuple[int, int]]]:
    """Where the data of a tensor begin, and (begin, bytes) of these and of their packed forms."""
    name = text(tensor.name)
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        key = text(entry.key)
        if key in entries:
            raise ModelFileError(f"weight {name!r} says twice what its {key!r} is")
        entries[key] = text(entry.value)
    location = entries.pop("location", None)
    if location != data_name:
        raise ModelFileError(f"weight {name!r} lies in {location!r}, not in {data_name!r}")
    begin, size = (_number(entries.pop(key, ""), name) for key in ("offset", "length"))
    if size != _size_bytes(tensor):
        raise ModelFileError(f"weight {name!r} has {size} bytes, which are not those of its type and shape")
    blocks = [(begin, size)]
    for key, value in entries.items():
        parts = value.split("|")[1:]
        if not key.startswith(PREPACKED) or not parts:
            raise ModelFileError(f"unknown entry {key!r} of weight {name!r}")
        for part in parts:
            match = _BLOCK.fullmatch(part)
            if match is None:
                raise ModelFileError(f"unknown form of a packed weight's place: {part[:80]!r}")
            blocks.append((int(match[1]), int(match[2])))
    return begin, blocks


def _number(digits: str, name: str) -> int:
    if _NUMBER.fullmatch(digits) is None:
        raise ModelFileError(f"weight {name!r} has an impossible place {digits[:40]!r}")
    return int(digits)


def _size_bytes(tensor: Any) -> int:
    bits = ELEMENT_BITS.get(tensor.data_type)
    if bits is None or tensor.data_type == STRING_TYPE or any(dim < 0 for dim in tensor.dims):
        raise ModelFileError(f"weight {tensor.name!r} has no type or shape that could be stored so")
    return int(math.prod(tensor.dims) * bits + 7) // 8


def _check_layout(blocks: list[tuple[int, int]], data_bytes: int) -> None:
    """Blocks fill the file in turn, with no more between two of them than alignment takes."""
    end = 0
    for begin, size in sorted(block for block in blocks if block[1]):
        if begin not in (-(-end // unit) * unit for unit in (LINE_BYTES, PAGE_BYTES, PIECE_BYTES)):
            raise ModelFileError(f"data from byte {begin} on, where those before end at byte {end}")
        end = begin + size
    if end != data_bytes:
        raise ModelFileError(f"data up to byte {end} of a file of {data_bytes}")


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
