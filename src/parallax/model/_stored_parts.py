"""How a bundle's graph says where its weights lie: who writes such a graph and who checks one agree on it here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from parallax._record import dataclass
from parallax.graph import NUMPY_TYPES, TensorInfo

LINE_BYTES: Final = 64
"""Kernels read packed weights with instructions that fault on addresses of a lesser alignment."""
PAGE_BYTES: Final = 4096
PIECE_BYTES: Final = 2 << 20
"""A huge page of most processors."""
PREPACKED: Final = "prepacked_"
"""How the names of entries begin that say where a packed form of the weight lies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWeight:
    """An initialiser of a saved graph, and where its bytes are in the file of its external data."""

    name: str
    dtype: str
    """As numpy writes it, with the byte order."""
    shape: tuple[int, ...]
    offset: int
    """Bytes from the file's beginning; a multiple of the element's size."""


def stored_weight(name: str | bytes, data_type: int, shape: Sequence[int], offset: int) -> StoredWeight | None:
    """What is to be known of a weight that can be lent to a session; None unless numpy has its type, and its name is
    text (which protobuf's are that come as ``str``)."""
    if data_type not in NUMPY_TYPES or not isinstance(name, str):
        return None
    return StoredWeight(name=name, dtype=NUMPY_TYPES[data_type].str, shape=tuple(shape), offset=offset)


class ExternalTensor(NamedTuple):
    """An initialiser whose data lie elsewhere."""

    name: str | bytes
    """Bytes where it is not UTF-8."""
    data_type: int
    dims: tuple[int, ...]
    entries: tuple[tuple[str, str], ...]
    """What is said of its data, as the file has it."""
    is_nested: bool
    """It belongs to a body, not to the graph itself."""


class GraphParts(NamedTuple):
    """What is read of a stored graph, whichever way."""

    inputs: Sequence[TensorInfo]
    outputs: Sequence[TensorInfo]
    initializers: Sequence[str | bytes]
    """Names, in the file's order."""
    external: Sequence[ExternalTensor]
    """The graph's, in the file's order, then those of bodies."""
