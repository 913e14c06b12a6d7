"""Stored graphs straight from their bytes; see `_wire_fields`.

What is not looked at (nodes, but for whether they have bodies) may be no message at all: the runtime, which reads the
same bytes, refuses that.
"""

from __future__ import annotations

from typing import Final

from parallax.graph import TensorInfo
from parallax.model._stored_parts import ExternalTensor, GraphParts
from parallax.model._wire_fields import (
    DATA_LOCATION,
    DATA_TYPE,
    DIMS,
    EXTERNAL_DATA,
    GRAPH,
    INITIALIZER,
    INPUT,
    INT32,
    INT64,
    NODE,
    OUTPUT,
    TENSOR,
    TENSOR_NAME,
    OtherFormError,
    below,
    fields,
    graph_place,
    has_body_mark,
    may_have_body,
    value_info,
)

_KEY, _VALUE = 0x0A, 0x12
_ENTRY: Final = {_KEY: False, _VALUE: False}
_EXTERNAL: Final = 1
_LOCATION: Final = b"location"


def read_written(graph: bytes) -> GraphParts | None:
    """What is read of a graph; None where only protobuf can tell. About a microsecond per field that is looked at."""
    try:
        found = _graph(graph, *graph_place(graph))
    except (OtherFormError, IndexError, UnicodeDecodeError):
        return None
    # Each external tensor names its place once. Where the word stands more often, data may be named elsewhere.
    return found if graph.count(_LOCATION) == len(found.external) else None


def _graph(data: bytes, start: int, stop: int) -> GraphParts:
    inputs: list[TensorInfo] = []
    outputs: list[TensorInfo] = []
    names: list[str | bytes] = []
    external: list[ExternalTensor] = []
    nodes: list[tuple[int, int]] = []
    for tag, begin, end in fields(data, start, stop, GRAPH):
        if tag == NODE:
            nodes.append((begin, end))
        elif tag == INITIALIZER:
            tensor = _initializer(data, begin, end)
            if isinstance(tensor, ExternalTensor):
                external.append(tensor)
                names.append(tensor.name)
            else:
                names.append(tensor)
        elif tag == INPUT:
            inputs.append(value_info(data, begin, end))
        elif tag == OUTPUT:
            outputs.append(value_info(data, begin, end))
    if has_body_mark(data, start, stop) and any(may_have_body(data, *place) for place in nodes):
        raise OtherFormError
    return GraphParts(inputs=inputs, outputs=outputs, initializers=names, external=external)


def _initializer(data: bytes, start: int, stop: int) -> ExternalTensor | str:
    """An external one, or the name of another."""
    name = ""
    data_type = location = 0
    dims = []
    entries = []
    for tag, begin, end in fields(data, start, stop, TENSOR):
        if tag == DIMS:
            dims.append(below(begin, INT64))
        elif tag == DATA_TYPE:
            data_type = below(begin, INT32)
        elif tag == TENSOR_NAME:
            name = data[begin:end].decode()
        elif tag == EXTERNAL_DATA:
            entries.append(_entry(data, begin, end))
        elif tag == DATA_LOCATION:
            location = below(begin, _EXTERNAL + 1)
    if location != _EXTERNAL:
        return name
    return ExternalTensor(name=name, data_type=data_type, dims=tuple(dims), entries=tuple(entries), is_nested=False)


def _entry(data: bytes, start: int, stop: int) -> tuple[str, str]:
    key = value = ""
    for tag, begin, end in fields(data, start, stop, _ENTRY):
        if tag == _KEY:
            key = data[begin:end].decode()
        else:
            value = data[begin:end].decode()
    return key, value
