"""Hand a sub-model's weights to a runtime that knows nothing of ONNX Runtime's external initializers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx

from parallax.errors import InternalError
from parallax.graph import TensorInfo
from parallax.model._raw_tensors import store_raw
from parallax.model._segment_model import SegmentModel
from parallax.model._types import tensor_info


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentInterface:
    """What a sub-model is fed and returns, as it declares it."""

    inputs: tuple[TensorInfo, ...]
    """Those that must be fed, used or not."""
    overridable: tuple[TensorInfo, ...]
    """Initializers that may be fed."""
    outputs: tuple[TensorInfo, ...]


def segment_interface(segment: SegmentModel) -> SegmentInterface:
    """Read a sub-model's interface; milliseconds for thousands of nodes."""
    model = onnx.ModelProto()
    model.ParseFromString(segment.proto)
    graph = model.graph
    initializers = {tensor.name for tensor in graph.initializer}
    inputs = [tensor_info(value) for value in graph.input]
    return SegmentInterface(
        inputs=tuple(info for info in inputs if info.name not in initializers),
        overridable=tuple(info for info in inputs if info.name in initializers),
        outputs=tuple(tensor_info(value) for value in graph.output),
    )


def proto_with_weights(segment: SegmentModel, *, as_inputs: Collection[str], raw: bool = False) -> bytes:
    """The serialised model with some of its weights declared as inputs, and all others inside it.

    Args:
        segment: the part.
        as_inputs: weights to declare.
        raw: whether every constant is to be stored as ``raw_data``, whatever the file has: see `store_raw`.

    Whoever converts the model binds the inputs to ``segment.weights`` afterwards, which needs no copy of them. Weights
    that are not named are copied into the result: right for small ones, which a converter may have to read.

    Raises:
        InternalError: a name is no weight of the segment.
        ValueError, TypeError: ``raw``, and a constant cannot be decoded.
    """
    unknown = sorted(set(as_inputs) - segment.weights.keys())
    if unknown:
        raise InternalError(f"{unknown} are no weights of segment {segment.name!r}")
    model = onnx.ModelProto()
    model.ParseFromString(segment.proto)
    graph = model.graph
    declared = {value.name for value in graph.input}
    kept = []
    for tensor in graph.initializer:
        if tensor.name in as_inputs:
            if tensor.name not in declared:
                graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
            continue
        if tensor.name in segment.weights:
            del tensor.external_data[:]
            tensor.ClearField("data_location")
            tensor.raw_data = segment.weights[tensor.name].tobytes()
        kept.append(tensor)
    if as_inputs:
        copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
        del graph.initializer[:]
        graph.initializer.extend(copies)
    if raw:
        store_raw(model)
    return bytes(model.SerializeToString())
