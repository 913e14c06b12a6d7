"""Which bytes of its data file a graph that ONNX Runtime optimised reads while it runs."""

from __future__ import annotations

import os
from collections.abc import Iterator

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no types

from parallax.errors import ModelFileError

_PACKED_KEY = "prepacked_"


def read_ranges(path: str | os.PathLike[str]) -> tuple[tuple[int, int], ...]:
    """(offset, length) of what is read of the data file beside ``path``, ascending and disjoint.

    Of a weight that the kernels packed, the packed form alone: the runtime writes it as external data of keys
    ``prepacked_N``, value ``kernel+hash|offset;length;hash[;offset;length;hash ...]`` (ONNX Runtime,
    ``PrepackedWeightsForGraph``). Of a table that is only gathered from nothing, for a run reads some rows of it.

    Raises: ModelFileError if the file cannot be read, or states what is none of that.
    """
    proto = onnx.ModelProto()
    try:
        with open(path, "rb") as file:
            proto.ParseFromString(file.read())
        found = sorted(part for graph in _graphs(proto.graph) for part in _ranges(graph))
    except (OSError, DecodeError, ValueError, KeyError) as error:
        raise ModelFileError(f"cannot tell what is read of the data file: {error}", where=os.fspath(path)) from error
    joined: list[tuple[int, int]] = []
    for offset, length in found:
        if joined and offset <= sum(joined[-1]):
            start = joined[-1][0]
            joined[-1] = (start, max(sum(joined[-1]), offset + length) - start)
        else:
            joined.append((offset, length))
    return tuple(joined)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    stack = [graph]
    while stack:
        current = stack.pop()
        yield current
        for node in current.node:
            for attribute in node.attribute:
                stack.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)


def _ranges(graph: onnx.GraphProto) -> Iterator[tuple[int, int]]:
    tables = _lookup_tables(graph)
    for tensor in graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL or tensor.name in tables:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        packed = [value for key, value in entries.items() if key.startswith(_PACKED_KEY)]
        if not packed:
            yield int(entries["offset"]), int(entries["length"])
        for value in packed:
            numbers = value.partition("|")[2].split(";")
            for offset, length in zip(numbers[0::3], numbers[1::3], strict=True):
                yield int(offset), int(length)


def _lookup_tables(graph: onnx.GraphProto) -> set[str]:
    gathered: set[str] = set()
    otherwise: set[str] = set()
    for node in graph.node:
        for position, name in enumerate(node.input):
            (gathered if node.op_type == "Gather" and position == 0 else otherwise).add(name)
        # What a body reads of the graphs around it is not listed among the node's inputs.
        otherwise.update(
            name
            for attribute in node.attribute
            for body in ([attribute.g] if attribute.HasField("g") else attribute.graphs)
            for inner in _graphs(body)
            for reader in inner.node
            for name in reader.input
        )
    return gathered - otherwise
