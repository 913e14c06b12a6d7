"""Weights as read-only numpy views on the bytes they came in, and the checks on where they may lie."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from parallax.errors import ExternalDataError, ExternalPathError, ModelError
from parallax.graph import ELEMENT_TYPES, packed_bytes
from parallax.model._files import OpenFile, open_file
from parallax.model._wire import Buffer, Payload

View = npt.NDArray[np.generic]

_FIELD_TYPES = {
    4: (onnx.TensorProto.FLOAT, onnx.TensorProto.COMPLEX64),
    10: (onnx.TensorProto.DOUBLE, onnx.TensorProto.COMPLEX128),
}
"""Typed payload fields that hold exactly the bytes of these types."""

DTYPES: dict[int, np.dtype[np.generic]] = {
    dtype: onnx.helper.tensor_dtype_to_np_dtype(dtype)
    for dtype in onnx.TensorProto.DataType.values()
    if dtype not in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING)
}

HANDED_OVER = frozenset(code for code in DTYPES if code in ELEMENT_TYPES and ELEMENT_TYPES[code].is_wrapped)
"""Types whose views ONNX Runtime takes as external initializers; packed ones would not match their dims."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A tensor's bytes, somewhere: ``nbytes`` of ``buffer`` from ``offset``."""

    name: str
    dtype: int
    dims: tuple[int, ...]
    buffer: Buffer
    offset: int
    nbytes: int

    def view(self) -> View:
        """Zero-copy, read-only array of the tensor's shape; offsets need not be aligned."""
        dtype = DTYPES[self.dtype]
        array = np.frombuffer(self.buffer, dtype, self.nbytes // dtype.itemsize, self.offset).reshape(self.dims)
        array.flags.writeable = False
        return array

    def raw(self) -> bytes:
        """A copy of the bytes, as TensorProto.raw_data holds them."""
        return self.buffer[self.offset : self.offset + self.nbytes]


def mark_lent(tensor: onnx.TensorProto) -> None:
    """Have a tensor say that its bytes are given beside the model."""
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="*")


def byte_size(name: str, dtype: int, dims: Sequence[int]) -> int | None:
    """Bytes of a tensor of this type and shape; None when its elements have no fixed size (strings).

    Raises:
        ModelError: a negative size, or an undefined type.
    """
    count = math.prod(dims)
    if count < 0 or (count == 0 and any(dim < 0 for dim in dims)) or (count > 0 and min(dims, default=0) < 0):
        raise ModelError(
            f"initializer has a negative size in its shape {tuple(dims)}",
            where=f"tensor {name!r}",
            fix="the exporter wrote a broken tensor: export the model again",
        )
    if dtype == onnx.TensorProto.STRING:
        return None
    element = ELEMENT_TYPES.get(dtype) if dtype in DTYPES else None
    if element is None:
        raise ModelError(
            f"initializer has element type {dtype}, which this version of ONNX does not know",
            where=f"tensor {name!r}",
            fix="update onnx, or export the model with a type it knows",
        )
    return packed_bytes(count, element.bits)


def lifted_weight(tensor: onnx.TensorProto, payload: Payload) -> Weight:
    """The weight behind a tensor whose payload was lifted out of the model.

    Raises:
        ModelError: the payload does not hold exactly the bytes that type and shape ask for.
    """
    name, dtype, dims = tensor.name, tensor.data_type, tuple(tensor.dims)
    expected = byte_size(name, dtype, dims)
    actual = payload.end - payload.start
    allowed = _FIELD_TYPES.get(payload.field)
    if expected != actual or (allowed is not None and dtype not in allowed):
        raise _size_mismatch(name, dtype, dims, expected, actual)
    return Weight(name=name, dtype=dtype, dims=dims, buffer=payload.buffer, offset=payload.start, nbytes=actual)


def check_inline(tensor: onnx.TensorProto) -> int:
    """Check that a tensor kept inline holds what its shape promises; returns its size in bytes.

    Raises:
        ModelError: it does not, so that allocating by its shape could exhaust memory.
    """
    name, dtype, dims = tensor.name, tensor.data_type, tensor.dims
    expected = byte_size(name, dtype, dims)
    if tensor.HasField("raw_data"):
        actual = len(tensor.raw_data)
        if expected is None or expected != actual:
            raise _size_mismatch(name, dtype, tuple(dims), expected, actual)
        return actual
    count = math.prod(dims)
    if expected is None:
        held, size = len(tensor.string_data), sum(map(len, tensor.string_data))
    else:
        # Packed types keep several elements in one int32; complex ones two floats per element.
        if ELEMENT_TYPES[dtype].is_packed:
            entries = len(tensor.int32_data)
            held = count if entries in (expected, count) else entries
        else:
            held = (
                len(tensor.float_data)
                or len(tensor.int32_data)
                or len(tensor.int64_data)
                or len(tensor.double_data)
                or len(tensor.uint64_data)
            )
            if dtype in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128):
                held //= 2
        size = expected
    if held != count:
        raise ModelError(
            f"initializer of shape {tuple(dims)} needs {count} elements but holds {held}",
            where=f"tensor {name!r}",
            fix="the file is damaged or the exporter wrote a broken tensor: export the model again",
        )
    return size


def _size_mismatch(name: str, dtype: int, dims: tuple[int, ...], expected: int | None, actual: int) -> ModelError:
    kind = onnx.TensorProto.DataType.Name(dtype) if dtype in onnx.TensorProto.DataType.values() else str(dtype)
    need = "no raw bytes" if expected is None else f"{expected} bytes"
    return ModelError(
        f"initializer of type {kind} and shape {dims} needs {need} but its data has {actual}",
        where=f"tensor {name!r}",
        fix="the file is damaged or the exporter wrote a broken tensor: export the model again",
    )


class ExternalFiles:
    """Opens external data files, each once, and only inside the model's folder.

    Args:
        folders: what locations are relative to, the first that has the file counting; no location
            may leave all of them, links resolved.
        held: location -> file that was opened earlier, to be taken whatever the folders have.
    """

    def __init__(self, folders: Sequence[Path], held: Mapping[str, OpenFile] | None = None) -> None:
        self.folders = folders
        self.opened: dict[str, OpenFile] = {}
        """Location -> file; its path is that in the folder, links not resolved."""
        self._held = held or {}
        self._roots: list[str] = []

    def weight(self, tensor: onnx.TensorProto) -> Weight:
        """The weight that an external tensor points to.

        Raises:
            ExternalDataError: no location, a missing or short file, or a stated length that disagrees with type and
                shape.
            ExternalPathError: a location outside the folder.
        """
        # File names need not be UTF-8.
        entries = {os.fsdecode(entry.key): os.fsdecode(entry.value) for entry in tensor.external_data}
        where = f"tensor {tensor.name!r}"
        location = entries.get("location", "")
        dims = tuple(tensor.dims)
        expected = byte_size(tensor.name, tensor.data_type, dims)
        if expected is None:
            raise ExternalDataError("string tensors cannot be external", where=where, fix="export the model again")
        offset = _count(entries.get("offset"), 0, "offset", where)
        length = _count(entries.get("length"), 0, "length", where) or expected  # 0 means all of it, as for the runtime
        if length != expected:
            mismatch = _size_mismatch(tensor.name, tensor.data_type, dims, expected, length)
            raise ExternalDataError(mismatch.what, where=mismatch.where, fix=mismatch.fix)
        buffer = self._buffer(location, where) if expected else b""
        if expected and offset + length > len(buffer):
            raise ExternalDataError(
                f"external data {location!r} has {len(buffer)} bytes, but {length} are needed from byte {offset}",
                where=where,
                fix="the data file is truncated or belongs to another model: copy it again",
            )
        return Weight(
            name=tensor.name,
            dtype=tensor.data_type,
            dims=dims,
            buffer=buffer,
            offset=offset if expected else 0,
            nbytes=length,
        )

    def _buffer(self, location: str, where: str) -> Buffer:
        known = self.opened.get(location)
        if known is not None:
            return known.buffer
        kept = self._held.get(location)
        if kept is not None:
            self.opened[location] = kept
            return kept.buffer
        path, place = self._confined(location, where)
        try:
            file = open_file(path, place=place)
        except OSError as exc:
            raise ExternalDataError(
                f"cannot read external data {location!r}: {exc.strerror or exc}",
                where=where,
                fix=f"put the file {location!r} next to the model, in {self.folders[0]}",
            ) from exc
        self.opened[location] = file
        return file.buffer

    def _confined(self, location: str, where: str) -> tuple[str, str]:
        """The real path of a location, which must lie inside the folder, links resolved; and its path there."""
        parts = location.replace("\\", "/").split("/")
        fix = "keep external data in the model's folder and refer to it by a relative path"
        if not location or "\0" in location:
            raise ExternalDataError(f"external data has no usable location ({location!r})", where=where, fix=fix)
        if (
            parts[0] == ""
            or _climbs_out(parts)
            or os.path.isabs(location)
            or os.path.splitdrive(location)[0]
            or ":" in parts[0]
        ):
            raise ExternalPathError(f"external data {location!r} leaves the model's folder", where=where, fix=fix)
        if not self._roots:
            self._roots = [os.path.realpath(folder) for folder in self.folders]
        reals = [
            (os.path.realpath(os.path.join(root, location)), os.path.join(folder, location))
            for root, folder in zip(self._roots, self.folders, strict=True)
        ]
        inside = [found for found in reals if any(_is_inside(found[0], root) for root in self._roots)]
        if not inside:
            raise ExternalPathError(
                f"external data {location!r} is a link that leaves the model's folder", where=where, fix=fix
            )
        return next((found for found in inside if os.path.exists(found[0])), inside[0])


def _climbs_out(parts: Sequence[str]) -> bool:
    depth = 0
    for part in parts:
        depth += -1 if part == ".." else 0 if part in ("", ".") else 1
        if depth < 0:
            return True
    return False


def _is_inside(path: str, root: str) -> bool:
    try:
        return os.path.commonpath((root, path)) == root
    except ValueError:  # different drives
        return False


def _count(text: str | None, default: int, what: str, where: str) -> int:
    if text is None:
        return default
    # isdecimal alone would take other scripts' digits; the length bound keeps int() cheap.
    if not (text.isascii() and text.isdecimal() and len(text) <= 19):
        raise ExternalDataError(
            f"external data has a {what} that is not a count: {text[:40]!r}", where=where, fix="export the model again"
        )
    return int(text)
