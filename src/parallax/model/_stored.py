"""Graphs that `save_arranged` wrote, read again by whoever is to map their data, and who trusts neither.

The runtime maps packed weights where an entry of the graph says and never looks at how long they are; other weights
are lent to it at addresses that a manifest names. A wrong number in either would have kernels read beyond a mapping. So
the data must be laid out exactly as `save_arranged` lays them out, without a gap or an overlap, up to the end of the
file, and of each weight all that is said of it must agree.
"""

from __future__ import annotations

import math
import re
from typing import Final

from parallax._record import dataclass
from parallax.errors import ModelFileError
from parallax.graph import ELEMENT_TYPES, STRING_TYPE, TensorInfo, packed_bytes
from parallax.model._stored_parts import (
    LINE_BYTES,
    PAGE_BYTES,
    PIECE_BYTES,
    PREPACKED,
    ExternalTensor,
    GraphParts,
    StoredWeight,
    stored_weight,
)
from parallax.model._stored_wire import read_written

_NUMBER: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_BLOCK: Final = re.compile(r"([0-9]{1,18});([0-9]{1,18});[^|;]*", re.ASCII)


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
    parts = read_written(graph)
    if parts is None:
        # Only where something is not as protobuf's own writer writes it: that takes loading `onnx`, which takes longer
        # than opening a small bundle.
        from parallax.model._stored_message import parse_graph

        parts = parse_graph(graph)
    return _judge(parts, data_name, data_bytes)


def _judge(parts: GraphParts, data_name: str, data_bytes: int | None) -> StoredGraph:
    blocks: list[tuple[int, int]] = []
    weights = []
    for tensor in parts.external:
        offset, found = _blocks(tensor, data_name)
        blocks += found
        if len(found) == 1 and not tensor.is_nested:
            weights.append(stored_weight(tensor.name, tensor.data_type, tensor.dims, offset))
    _check_layout(blocks, 0 if data_bytes is None else data_bytes)
    if data_bytes is not None and not parts.external:
        raise ModelFileError("there is a file of data, which the graph does not use")
    initialised = frozenset(parts.initializers)
    if len(initialised) != len(parts.initializers):
        raise ModelFileError("an initializer is there twice")
    return StoredGraph(
        inputs=tuple([info for info in parts.inputs if info.name not in initialised]),
        overridable=tuple([info for info in parts.inputs if info.name in initialised]),
        outputs=tuple(parts.outputs),
        weights=tuple([weight for weight in weights if weight is not None]),
    )


def _blocks(tensor: ExternalTensor, data_name: str) -> tuple[int, list[tuple[int, int]]]:
    """Where the data of a tensor begin, and (begin, bytes) of these and of their packed forms."""
    name = tensor.name if isinstance(tensor.name, str) else tensor.name.decode("utf-8", errors="backslashreplace")
    entries: dict[str, str] = {}
    for key, value in tensor.entries:
        if key in entries:
            raise ModelFileError(f"weight {name!r} says twice what its {key!r} is")
        entries[key] = value
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


def _size_bytes(tensor: ExternalTensor) -> int:
    element = ELEMENT_TYPES.get(tensor.data_type)
    if element is None or element.code == STRING_TYPE or any(dim < 0 for dim in tensor.dims):
        raise ModelFileError(f"weight {tensor.name!r} has no type or shape that could be stored so")
    return packed_bytes(math.prod(tensor.dims), element.bits)


def _check_layout(blocks: list[tuple[int, int]], data_bytes: int) -> None:
    """Blocks fill the file in turn, with no more between two of them than alignment takes."""
    end = 0
    for begin, size in sorted(block for block in blocks if block[1]):
        if begin not in (-(-end // unit) * unit for unit in (LINE_BYTES, PAGE_BYTES, PIECE_BYTES)):
            raise ModelFileError(f"data from byte {begin} on, where those before end at byte {end}")
        end = begin + size
    if end != data_bytes:
        raise ModelFileError(f"data up to byte {end} of a file of {data_bytes}")
