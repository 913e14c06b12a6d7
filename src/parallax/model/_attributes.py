"""Attributes of a node as plain values, and the small constants that nodes and tensors hold."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from parallax.graph import CONSTANT_BYTES
from parallax.model._types import text

_log = logging.getLogger(__name__)

_A = onnx.AttributeProto
_SCALARS: dict[int, str] = {_A.FLOAT: "f", _A.INT: "i"}
_LISTS: dict[int, str] = {_A.FLOATS: "floats", _A.INTS: "ints"}


class Attributes(Mapping[str, object]):
    """The scalar, string and tuple attributes of a node, decoded on first access."""

    __slots__ = ("_proto", "_values")

    def __init__(self, proto: onnx.NodeProto) -> None:
        self._proto: onnx.NodeProto = proto
        self._values: dict[str, object] | None = None

    def _decoded(self) -> dict[str, object]:
        if self._values is None:
            self._values = _decode(self._proto)
        return self._values

    def __getitem__(self, name: str) -> object:
        return self._decoded()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._decoded())

    def __len__(self) -> int:
        return len(self._decoded())

    def __repr__(self) -> str:
        return repr(self._decoded())

    def __reduce__(self) -> tuple[object, ...]:
        return dict, (self._decoded(),)


def _decode(proto: onnx.NodeProto) -> dict[str, object]:
    out: dict[str, object] = {}
    for attribute in proto.attribute:
        kind = attribute.type or _kind_by_content(attribute)
        if (field := _SCALARS.get(kind)) is not None:
            out[text(attribute.name)] = getattr(attribute, field)
        elif (field := _LISTS.get(kind)) is not None:
            out[text(attribute.name)] = tuple(getattr(attribute, field))
        elif kind == _A.STRING:
            out[text(attribute.name)] = text(attribute.s)
        elif kind == _A.STRINGS:
            out[text(attribute.name)] = tuple(text(item) for item in attribute.strings)
    return out


def _kind_by_content(attribute: onnx.AttributeProto) -> int:
    """The kind of an attribute that does not state it, as files of IR version 1 may."""
    for kind, name in (*_SCALARS.items(), (_A.STRING, "s")):
        if attribute.HasField(name):
            return kind
    for kind, name in (*_LISTS.items(), (_A.STRINGS, "strings")):
        if getattr(attribute, name):
            return kind
    return _A.UNDEFINED


def tensor_value(tensor: onnx.TensorProto, *, most_bytes: int = CONSTANT_BYTES) -> npt.NDArray[np.generic] | None:
    """A small tensor's value, read-only; None for strings, external data and what cannot be decoded."""
    if tensor.data_type == onnx.TensorProto.STRING or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return None
    try:
        array: npt.NDArray[np.generic] = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as exc:
        _log.debug("constant %r cannot be decoded: %s", tensor.name, exc)
        return None
    return _frozen(array, most_bytes)


def constant_node_value(node: onnx.NodeProto, *, most_bytes: int = CONSTANT_BYTES) -> npt.NDArray[np.generic] | None:
    """The value of a Constant node's output, read-only; None for strings, sparse and large ones."""
    for attribute in node.attribute:
        if attribute.name == "value":
            return tensor_value(attribute.t, most_bytes=most_bytes)
        if attribute.name == "value_int":
            return _frozen(np.array(attribute.i, np.int64), most_bytes)
        if attribute.name == "value_ints":
            return _frozen(np.array(attribute.ints, np.int64), most_bytes)
        if attribute.name == "value_float":
            return _frozen(np.array(attribute.f, np.float32), most_bytes)
        if attribute.name == "value_floats":
            return _frozen(np.array(attribute.floats, np.float32), most_bytes)
    return None


def repeated_value(node: onnx.NodeProto) -> np.generic | None:
    """What a ConstantOfShape repeats; None where it cannot be decoded."""
    value = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
    if value is None:
        return np.float32(0)
    array = tensor_value(value)
    return None if array is None or array.size != 1 else array.reshape(-1)[0]


def _frozen(array: npt.NDArray[np.generic], most_bytes: int) -> npt.NDArray[np.generic] | None:
    if array.nbytes > most_bytes:
        return None
    array.flags.writeable = False
    return array
