"""Lift weights out of a ModelProto that is too large to serialise (protobuf stops at 2 GiB)."""

from __future__ import annotations

from typing import Any

import onnx
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]  # ships no types

from parallax.errors import UnsupportedModelError
from parallax.model._wire import LIFT_BYTES, Payload, Stripped, external_mark

_RAW_DATA = 9


def strip_message(model: onnx.ModelProto) -> Stripped:
    """Split a message into skeleton and payloads, copying each weight once.

    The skeleton is what ``strip_weights`` would make of the same model's bytes, up to field order.

    Raises:
        UnsupportedModelError: what remains is still over 2 GiB (weights inside nodes, or in typed
            fields instead of raw_data).
    """
    skeleton = onnx.ModelProto()
    _copy_fields(model, skeleton, but="graph")
    _copy_fields(model.graph, skeleton.graph, but="initializer")
    payloads: dict[int, Payload] = {}
    for ordinal, tensor in enumerate(model.graph.initializer):
        raw = tensor.raw_data
        if len(raw) < LIFT_BYTES or tensor.data_location == onnx.TensorProto.EXTERNAL:
            skeleton.graph.initializer.append(tensor)
            continue
        copy = skeleton.graph.initializer.add()
        _copy_fields(tensor, copy, but="raw_data")
        copy.MergeFromString(external_mark())
        payloads[ordinal] = Payload(buffer=raw, tag=0, start=0, end=len(raw), field=_RAW_DATA)
    try:
        data = skeleton.SerializeToString()
    except EncodeError as exc:
        raise UnsupportedModelError(
            "the model is over 2 GiB even without the raw data of its initializers",
            fix="save it with external data (onnx.save_model(..., save_as_external_data=True)) and load the path",
        ) from exc
    return Stripped(skeleton=data, initializers=payloads, nested=())


def _copy_fields(source: Any, target: Any, *, but: str) -> None:
    for field, value in source.ListFields():
        if field.name == but:
            continue
        if hasattr(value, "MergeFrom"):  # messages and repeated fields alike
            getattr(target, field.name).MergeFrom(value)
        else:
            setattr(target, field.name, value)
