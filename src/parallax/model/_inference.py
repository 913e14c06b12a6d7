"""Types of every tensor, by ONNX's shape inference, without trusting what the file says of them.

Files often carry stale ``value_info`` and output shapes (a batch size edited after export). ONNX
Runtime believes its own inference first and only warns; but a segment's *input* with a wrong static
shape would be refused when fed. So inference runs from graph inputs, constants and operators alone
(*proven* types), and a sweep over what is left follows values through shape arithmetic
(``_propagation``). Where that leaves gaps the file can fill (operators of other domains, defaults of
inputs), both run a second time with what the file says there (*believed* types), good for costs but
not for declaring shapes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Final

import onnx
import onnx.helper
import onnx.shape_inference

from parallax.model._nested import walk_nodes
from parallax.model._propagation import propagate

_log = logging.getLogger(__name__)

_POOLS: Final = frozenset({"AveragePool", "LpPool", "MaxPool"})


@dataclass(frozen=True, slots=True, kw_only=True)
class InferredTypes:
    """Types by tensor name; ``annotated`` is the graph as inference left it, for the types inside bodies."""

    proven: Mapping[str, onnx.TypeProto]
    believed: Mapping[str, onnx.TypeProto]
    annotated: onnx.GraphProto


class TypesOnDemand:
    """Infers a model's types when first asked, once, whichever thread asks."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._types: InferredTypes | None = None

    def get(self) -> InferredTypes:
        """The types; computed by the first caller while others wait."""
        if self._types is None:
            with self._lock:
                if self._types is None:
                    self._types = infer_types(self._model)
        return self._types


def infer_types(model: onnx.ModelProto) -> InferredTypes:
    """Infer the types of every tensor of a model without its weights. Never fails: it learns less instead."""
    stated = {value.name: value.type for value in (*model.graph.value_info, *model.graph.output)}
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    for value in bare.graph.output:
        if value.type.WhichOneof("value") == "tensor_type":
            value.type.tensor_type.ClearField("shape")
    _leave_out_windows_in_padding(bare)
    overridable = _set_aside_overridable(bare)
    inferred = _infer(bare)
    proven, learned = _types(inferred)
    produced = {name for node in model.graph.node for name in node.output}
    symbols = {
        dim.dim_param for value in model.graph.input for dim in value.type.tensor_type.shape.dim if dim.dim_param
    }
    gaps = {
        name: kind
        for name, kind in stated.items()
        if name in produced and _knowledge(kind, symbols) > _knowledge(proven.get(name), symbols)
    }
    if not gaps and not overridable:
        return InferredTypes(proven=proven, believed=proven, annotated=inferred.graph)
    bare.graph.initializer.extend(overridable)
    outputs = {value.name: value for value in bare.graph.output}
    for name, kind in {**learned, **gaps}.items():
        if name in outputs:
            outputs[name].type.CopyFrom(kind)
        else:
            bare.graph.value_info.add(name=name, type=kind)
    inferred = _infer(bare)
    believed, _ = _types(inferred)
    for name, kind in gaps.items():
        if _knowledge(kind, symbols) > _knowledge(believed.get(name), symbols):
            believed[name] = kind
    return InferredTypes(proven=proven, believed=believed, annotated=inferred.graph)


def _set_aside_overridable(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Take out the initializers that a caller may feed something else for: their values prove nothing."""
    if model.ir_version < 4:
        return []
    inputs = {value.name for value in model.graph.input}
    overridable = [tensor for tensor in model.graph.initializer if tensor.name in inputs]
    if overridable:
        kept = [tensor for tensor in model.graph.initializer if tensor.name not in inputs]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
    return overridable


def _leave_out_windows_in_padding(model: onnx.ModelProto) -> None:
    """Change pools so that inference counts their windows as ONNX Runtime does.

    With ``ceil_mode``, the runtime leaves out a window that begins in the padding at the end, or behind it; inference
    counts it. With so little padding that there is no such window, both count the same.
    """
    for node in walk_nodes(model.graph.node):
        if node.op_type not in _POOLS or node.domain not in ("", "ai.onnx"):
            continue
        given = {attribute.name: attribute for attribute in node.attribute}
        mode = given.get("auto_pad")
        if "ceil_mode" not in given or not given["ceil_mode"].i or (mode is not None and mode.s != b"NOTSET"):
            continue
        kernel = list(given["kernel_shape"].ints) if "kernel_shape" in given else []
        axes = len(kernel)
        ones = [1] * axes
        strides = list(given["strides"].ints) if "strides" in given else ones
        dilations = list(given["dilations"].ints) if "dilations" in given else ones
        pads = list(given["pads"].ints) if "pads" in given else [0] * 2 * axes
        if not axes or len(strides) != axes or len(dilations) != axes or len(pads) != 2 * axes:
            continue  # inference refuses it
        reach = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
        # All windows begin before the padding at the end where that is at most the window less the stride. Inference
        # refuses padding below 0: where the stride is longer, the window becomes as long.
        windows = list(map(max, reach, strides))
        ends = [
            min(pad + window - size, window - stride)
            for pad, window, size, stride in zip(pads[axes:], windows, reach, strides, strict=True)
        ]
        if (windows, ends) != (reach, pads[axes:]):
            for name in given.keys() & {"kernel_shape", "dilations", "pads"}:
                node.attribute.remove(given[name])
            changed = {"kernel_shape": windows, "pads": [*pads[:axes], *ends]}
            node.attribute.extend(onnx.helper.make_attribute(name, sizes) for name, sizes in changed.items())


def _types(inferred: onnx.ModelProto) -> tuple[dict[str, onnx.TypeProto], dict[str, onnx.TypeProto]]:
    """All types that follow from what inference left, and those of them that it did not find itself."""
    found = {value.name: value.type for value in (*inferred.graph.value_info, *inferred.graph.output)}
    learned = propagate(inferred, found, _infer)
    return {**found, **learned}, learned


def _knowledge(kind: onnx.TypeProto | None, symbols: Container[str]) -> int:
    """0 nothing, 1 element type, 2 rank, 3 all sizes.

    A symbol of the model's inputs is a size; one that inference made up stands for not knowing.
    """
    which = None if kind is None else kind.WhichOneof("value")
    if kind is None or which is None:
        return 0
    if which != "tensor_type":
        return 3
    tensor = kind.tensor_type
    if not tensor.elem_type:
        return 0
    if not tensor.HasField("shape"):
        return 1
    return 3 if all(dim.HasField("dim_value") or dim.dim_param in symbols for dim in tensor.shape.dim) else 2


def _infer(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model, check_type=False, strict_mode=False, data_prop=True)
    except Exception as exc:  # whatever the binding raises, types are optional knowledge
        _log.debug("shape inference with data propagation failed: %s", exc)
    try:
        return onnx.shape_inference.infer_shapes(model, check_type=False, strict_mode=False)
    except Exception as exc:
        _log.debug("shape inference failed: %s", exc)
        return model
