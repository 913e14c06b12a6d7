"""Write a sub-model to disk, with its weights beside it, without holding the weights in memory."""

from __future__ import annotations

import mmap
from pathlib import Path

import onnx

from parallax.model._segment_model import SegmentModel
from parallax.model._weights import Weight

_CHUNK_BYTES = 8 << 20
_ALIGNMENT = 4096
"""Page size of most systems: ONNX Runtime maps external data, and mapped tensors start on a page."""


def save_segment(segment: SegmentModel, path: Path) -> None:
    """Write ``segment`` as an ONNX file whose weights lie in ``<path>.data``.

    Weights stream from where they are: a mapped page is handed back to the system once it is written, so
    that this needs a few megabytes however large the model is. A data file is made only for weights.

    Raises: OSError if the disk refuses.
    """
    model = onnx.ModelProto()
    model.ParseFromString(segment.proto)
    data_path = path.with_name(f"{path.name}.data")
    places: dict[str, int] = {}
    if segment.sources:
        with open(data_path, "wb") as file:
            for name, weight in segment.sources.items():
                places[name] = file.seek(-(-file.tell() // _ALIGNMENT) * _ALIGNMENT)
                for start in range(0, weight.nbytes, _CHUNK_BYTES):
                    size = min(_CHUNK_BYTES, weight.nbytes - start)
                    file.write(weight.buffer[weight.offset + start : weight.offset + start + size])
                    _forget_pages(weight, start, size)
    for tensor in model.graph.initializer:
        if tensor.name in places:
            del tensor.external_data[:]
            entries = (
                ("location", data_path.name),
                ("offset", str(places[tensor.name])),
                ("length", str(segment.sources[tensor.name].nbytes)),
            )
            for key, value in entries:
                tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


def _forget_pages(weight: Weight, start: int, size: int) -> None:
    """Take the pages of a mapped weight out of this process; the file still has them."""
    if not isinstance(weight.buffer, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return  # nothing mapped, or a system without madvise, which trims mapped pages by itself
    first = (weight.offset + start) // mmap.PAGESIZE * mmap.PAGESIZE
    weight.buffer.madvise(mmap.MADV_DONTNEED, first, weight.offset + start + size - first)
