"""Lay out the external data of a saved model so that they can be used where they are mapped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import onnx

from parallax.errors import ModelFileError
from parallax.model._mend import drop_doubled_constants
from parallax.model._stored_parts import (
    LINE_BYTES,
    PAGE_BYTES,
    PIECE_BYTES,
    PREPACKED,
    StoredWeight,
    stored_weight,
)

_SMALL_BYTES = 64 << 10
"""Below this, data are packed to lines instead of pages, or else half of what they take is gaps."""
_CHUNK_BYTES = 8 << 20
_BLOCK = re.compile(r"(\d+);(\d+);(.*)")


@dataclass(slots=True)
class _Block:
    """Bytes ``start : start + size`` of the source's data, and where they come to lie."""

    start: int
    size: int
    place: int = -1


def save_arranged(source: Path, target: Path) -> tuple[StoredWeight, ...]:
    """Copy an optimised model that the runtime wrote, its external data moved to ``<stem of target>.data``.

    The runtime appends tensors, and the packed forms of weights, with no regard to alignment unless they are large;
    loaded again, it hands mapped addresses to kernels as they are. (Observed with ONNX Runtime 1.31.1: a packed
    matrix at an odd offset ends the process.) Here everything starts on a cache line, larger things on a page.
    First come the weights that are stored in packed form as well, which are read when the model is opened and never
    again. What is needed while running comes last, in the order of its use, so that reading it for the first time is
    one sequential read; and it goes from a boundary that is one for huge pages too up to the end, so that the system,
    which reads ahead and keeps pages in pieces of up to that size, neither reads nor keeps anything else with it.

    Packed forms are external-data entries ``prepacked_<i>`` with the value ``key|offset;length;checksum|...``; see
    ``tensor_external_data_info.cc`` in ONNX Runtime.

    Args:
        source: its external data are one file beside it, or none.
        target: where to write the graph; in a folder that exists.

    Returns: of the external initialisers of the graph itself, those without packed forms and of a type that numpy has.

    Raises:
        ModelFileError: the external data are not of this form.
        OSError: the disk refuses.
    """
    model = onnx.ModelProto()
    model.ParseFromString(source.read_bytes())
    drop_doubled_constants(model)
    tensors = {id(tensor): tensor for tensor in external_tensors(model.graph)}
    if not tensors:
        target.write_bytes(model.SerializeToString())
        return ()
    locations = {_entries(tensor)["location"] for tensor in tensors.values()}
    if len(locations) != 1:
        raise ModelFileError("the external data lie in several files", where=str(source))
    needed: list[_Block] = []
    opened: list[_Block] = []
    blocks: dict[int, tuple[_Block, dict[str, list[_Block]]]] = {}
    for tensor in _by_use(model.graph, tensors):
        entries = _entries(tensor)
        plain = _Block(start=int(entries.get("offset", "0")), size=int(entries["length"]))
        packed = {key: _packed_blocks(value) for key, value in entries.items() if key.startswith(PREPACKED)}
        blocks[id(tensor)] = plain, packed
        (opened if packed else needed).append(plain)
        needed.extend(block for found in packed.values() for block in found)
    needed.sort(key=lambda block: block.size < _SMALL_BYTES)  # stable: small ones last, else by use
    data = target.with_name(f"{target.stem}.data")
    with open(source.with_name(locations.pop()), "rb") as read, open(data, "wb") as write:
        for block in opened:
            _copy(read, write, block)
        if sum(block.size for block in needed) >= PIECE_BYTES:
            write.seek(-(-write.tell() // PIECE_BYTES) * PIECE_BYTES)
        for block in needed:
            _copy(read, write, block)
    for identity, (plain, packed) in blocks.items():
        _set_entries(tensors[identity], data.name, plain, packed)
    target.write_bytes(model.SerializeToString())
    stored = [
        stored_weight(tensor.name, tensor.data_type, tensor.dims, blocks[id(tensor)][0].place)
        for tensor in model.graph.initializer
        if id(tensor) in blocks and not blocks[id(tensor)][1]
    ]
    return tuple([weight for weight in stored if weight is not None])


def external_tensors(graph: Any) -> Iterator[Any]:
    """Initialisers whose data lie elsewhere: the graph's, then those of bodies in it."""
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield tensor
    for body in nested_graphs(graph):
        yield from external_tensors(body)


def nested_graphs(graph: Any) -> Iterator[Any]:
    """The bodies of a graph's nodes."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def _by_use(graph: Any, tensors: dict[int, Any]) -> Iterator[Any]:
    """Every tensor once: those that nodes read in the order of the nodes, then the others."""
    yielded = set()
    for tensor in _uses(graph, {}):
        if id(tensor) in tensors and id(tensor) not in yielded:
            yielded.add(id(tensor))
            yield tensor
    yield from (tensor for identity, tensor in tensors.items() if identity not in yielded)


def _uses(graph: Any, outer: dict[str, Any]) -> Iterator[Any]:
    scope = outer | {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for name in node.input:
            if name in scope:
                yield scope[name]
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from _uses(body, scope)


def _entries(tensor: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _packed_blocks(value: str) -> list[_Block]:
    found = []
    for part in value.split("|")[1:]:
        match = _BLOCK.fullmatch(part)
        if match is None:
            raise ModelFileError(f"unknown form of a packed weight's place: {part[:80]!r}")
        found.append(_Block(start=int(match[1]), size=int(match[2])))
    return found


def _copy(read: BinaryIO, write: BinaryIO, block: _Block) -> None:
    alignment = LINE_BYTES if block.size < _SMALL_BYTES else PAGE_BYTES
    block.place = write.seek(-(-write.tell() // alignment) * alignment)
    read.seek(block.start)
    left = block.size
    while left:
        chunk = read.read(min(left, _CHUNK_BYTES))
        if not chunk:
            raise ModelFileError("the external data end early", where=f"byte {block.start + block.size - left}")
        write.write(chunk)
        left -= len(chunk)


def _set_entries(tensor: Any, location: str, plain: _Block, packed: dict[str, list[_Block]]) -> None:
    for entry in tensor.external_data:
        if entry.key == "location":
            entry.value = location
        elif entry.key == "offset":
            entry.value = str(plain.place)
        elif entry.key in packed:
            key, *parts = entry.value.split("|")
            checksums = [part.split(";", 2)[2] for part in parts]
            places = zip(packed[entry.key], checksums, strict=True)
            entry.value = "|".join([key, *(f"{block.place};{block.size};{check}" for block, check in places)])
