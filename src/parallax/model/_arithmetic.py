"""Values of small tensors that operators compute from constants: what exported shape arithmetic is made of.

Only operators whose result is the same bits everywhere are here, and only element types for which numpy computes
what a runtime does: integers, booleans, and single operations of float32 and float64. Semantics are those of the
operators' pages in ONNX's Operators.md; what older versions took as attributes is read from there.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from parallax.graph import NUMPY_TYPES

_log = logging.getLogger(__name__)

Value = npt.NDArray[Any]

LARGEST = 4096
"""Elements of the largest tensor that is read or computed here."""

_TYPES = {code: dtype for code, dtype in NUMPY_TYPES.items() if code != onnx.TensorProto.FLOAT16}
_KNOWN = frozenset(_TYPES.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """One node with the values of its inputs, None where omitted."""

    inputs: Sequence[Value | None]
    attributes: dict[str, onnx.AttributeProto]
    outputs: int

    def __getitem__(self, index: int) -> Value:
        value = self.inputs[index]
        if value is None:
            raise ValueError(f"input {index} is omitted")
        return value

    def number(self, name: str, default: int | None = None) -> int:
        found = self.attributes.get(name)
        if found is not None:
            return int(found.i)
        if default is None:
            raise ValueError(f"attribute {name} is missing")
        return default

    def numbers(self, index: int, name: str) -> tuple[int, ...] | None:
        """A list that is an input in newer versions and an attribute in older ones."""
        if index < len(self.inputs) and (value := self.inputs[index]) is not None:
            return tuple(int(item) for item in value.reshape(-1))
        found = self.attributes.get(name)
        return None if found is None else tuple(int(item) for item in found.ints)


def evaluate(node: onnx.NodeProto, inputs: Sequence[Value | None]) -> tuple[Value, ...] | None:
    """The values of all outputs of a node of ONNX's own domain, or None where they cannot be told.

    Never raises. Neither reads nor makes tensors of more than ``LARGEST`` elements.

    Args:
        node: one whose operator is in ``OPERATORS``.
        inputs: the value of each input, None for an omitted one.
    """
    function = OPERATORS.get(node.op_type)
    if function is None or any(value is not None and not readable(value) for value in inputs):
        return None
    attributes = {attribute.name: attribute for attribute in node.attribute}
    try:
        with np.errstate(all="raise", under="ignore"):
            result = function(_Call(inputs=inputs, attributes=attributes, outputs=len(node.output)))
    except (ValueError, TypeError, IndexError, KeyError, ArithmeticError, MemoryError) as exc:
        _log.debug("%s %r cannot be evaluated: %s", node.op_type, node.name, exc)
        return None
    values = result if isinstance(result, tuple) else (np.asarray(result),)
    if len(values) != len(node.output) or not all(readable(value) for value in values):
        return None
    return values


def stored(tensor: onnx.TensorProto) -> Value | None:
    """The value of a stored tensor that this module computes with, else None; read-only."""
    dtype = _TYPES.get(tensor.data_type)
    if dtype is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return None
    if min(tensor.dims, default=0) < 0 or math.prod(tensor.dims) > LARGEST:
        return None
    try:
        if tensor.HasField("raw_data") and sys.byteorder == "little":  # a fifth of numpy_helper's time
            return np.frombuffer(tensor.raw_data, dtype).reshape(tensor.dims)
        value: Value = onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as exc:
        _log.debug("constant %r cannot be decoded: %s", tensor.name, exc)
        return None
    return value if readable(value) else None


def readable(value: Value) -> bool:
    """Whether this module computes with a tensor of such type and size."""
    return value.size <= LARGEST and value.dtype in _KNOWN


def _room(count: int) -> None:
    if count > LARGEST:
        raise ValueError(f"{count} elements are too many")


def _integers(*values: Value) -> None:
    if any(value.dtype.kind not in "iu" for value in values):
        raise TypeError("only integers are exact here")


def _unary(function: Callable[[Value], Any]) -> Callable[[_Call], Any]:
    return lambda call: function(call[0])


def _elementwise(function: Callable[[Value, Value], Any]) -> Callable[[_Call], Any]:
    """Two inputs or, as Min and Max have, any number; numpy broadcasts as ONNX does from version 7 on."""

    def apply(call: _Call) -> Any:
        if "broadcast" in call.attributes or "axis" in call.attributes:
            raise ValueError("broadcast as before version 7")
        result = call[0]
        for index in range(1, len(call.inputs)):
            other = call[index]
            if other.dtype != result.dtype:
                raise TypeError("mixed element types")
            _room(math.prod(np.broadcast_shapes(result.shape, other.shape)))
            result = np.asarray(function(result, other))
        return result

    return apply


def _divide(a: Value, b: Value) -> Any:
    if a.dtype.kind == "f":
        return a / b
    quotient = a // b
    return quotient + ((quotient < 0) & (quotient * b != a)).astype(a.dtype)  # towards zero, as C++ divides


def _mod(call: _Call) -> Any:
    if call.number("fmod", 0):
        return _elementwise(np.fmod)(call)
    _integers(call[0])
    return _elementwise(np.mod)(call)


def _where(call: _Call) -> Any:
    if call[1].dtype != call[2].dtype:
        raise TypeError("mixed element types")
    _room(math.prod(np.broadcast_shapes(call[0].shape, call[1].shape, call[2].shape)))
    return np.where(call[0], call[1], call[2])


def _cast(call: _Call) -> Any:
    target = _TYPES[call.number("to")]
    source = call[0]
    if source.dtype.kind == "f" and target.kind in "iu":
        limits = np.iinfo(target)
        if not all(limits.min <= float(item) < limits.max for item in source.reshape(-1)):
            raise ValueError("out of the target's range")
    return source.astype(target)


def _constant_of_shape(call: _Call) -> Any:
    shape = tuple(int(size) for size in call[0].reshape(-1))
    _room(math.prod(shape))
    found = call.attributes.get("value")
    fill = np.zeros(1, np.float32) if found is None else onnx.numpy_helper.to_array(found.t)
    return np.full(shape, fill.reshape(-1)[0], fill.dtype)


def _range(call: _Call) -> Any:
    _integers(call[0], call[1], call[2])
    steps = range(int(call[0].item()), int(call[1].item()), int(call[2].item()))
    _room(len(steps))
    return np.array(steps, call[0].dtype)


def _expand(call: _Call) -> Any:
    shape = np.broadcast_shapes(call[0].shape, tuple(int(size) for size in call[1].reshape(-1)))
    _room(math.prod(shape))
    return np.broadcast_to(call[0], shape)


def _reshape(call: _Call) -> Any:
    target = call.numbers(1, "shape")
    if target is None:
        raise ValueError("no target shape")
    if not call.number("allowzero", 0):
        target = tuple(call[0].shape[axis] if size == 0 else size for axis, size in enumerate(target))
    return call[0].reshape(target)


def _squeeze(call: _Call) -> Any:
    axes = call.numbers(1, "axes")
    if axes == ():
        raise ValueError("an empty list of axes means all to some and none to others")
    return np.squeeze(call[0], axes)


def _unsqueeze(call: _Call) -> Any:
    axes = call.numbers(1, "axes")
    if axes is None:
        raise ValueError("no axes")
    return np.expand_dims(call[0], axes)


def _concat(call: _Call) -> Any:
    parts = [call[index] for index in range(len(call.inputs))]
    if any(part.dtype != parts[0].dtype for part in parts):
        raise TypeError("mixed element types")
    _room(sum(part.size for part in parts))
    return np.concatenate(parts, call.number("axis"))


def _gather(call: _Call) -> Any:
    axis = call.number("axis", 0)
    _integers(call[1])
    _room(call[0].size // max(call[0].shape[axis], 1) * call[1].size)
    return np.take(call[0], call[1], axis)


def _gather_nd(call: _Call) -> Any:
    if call.number("batch_dims", 0):
        raise ValueError("batched")
    _integers(call[1])
    depth = call[1].shape[-1]
    if not depth:
        raise ValueError("no indices")
    _room(math.prod(call[1].shape[:-1]) * math.prod(call[0].shape[depth:]))
    return call[0][tuple(np.moveaxis(call[1], -1, 0))]


def _slice(call: _Call) -> Any:
    starts, ends = call.numbers(1, "starts"), call.numbers(2, "ends")
    if starts is None or ends is None:
        raise ValueError("no bounds")
    axes = call.numbers(3, "axes") or tuple(range(len(starts)))
    steps = call.numbers(4, "steps") or (1,) * len(starts)
    where = [slice(None)] * call[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = call[0].shape[axis]
        start, end = (bound + size if bound < 0 else bound for bound in (start, end))
        if step < 0 and end > 2**31 - 2:
            raise ValueError("the largest end, backwards: the text says nothing is taken, ONNX Runtime takes all")
        if step > 0:
            where[axis] = slice(min(max(start, 0), size), min(max(end, 0), size), step)
        else:
            start, end = min(max(start, 0), size - 1), min(max(end, -1), size - 1)
            where[axis] = slice(start, None if end < 0 else end, step)
    return call[0][tuple(where)]


def _split(call: _Call) -> tuple[Value, ...]:
    axis = call.number("axis", 0)
    size = call[0].shape[axis]
    sizes = call.numbers(1, "split")
    if sizes is None:
        piece = -(-size // call.outputs)
        sizes = (*[piece] * (call.outputs - 1), size - piece * (call.outputs - 1))
        if sizes[-1] <= 0:
            raise ValueError("too few for so many outputs")
    if min(sizes) < 0 or sum(sizes) != size:
        raise ValueError("pieces do not add up")
    return tuple(np.split(call[0], np.cumsum(sizes)[:-1], axis))


def _transpose(call: _Call) -> Any:
    found = call.attributes.get("perm")
    return np.transpose(call[0], None if found is None else tuple(found.ints))


def _tile(call: _Call) -> Any:
    repeats = tuple(int(count) for count in call[1].reshape(-1))
    if len(repeats) != call[0].ndim:
        raise ValueError("one count for each dimension")
    _room(call[0].size * math.prod(repeats))
    return np.tile(call[0], repeats)


def _reduce(function: Callable[..., Any]) -> Callable[[_Call], Any]:
    """Integers only: the order in which a runtime adds floats is its own."""

    def apply(call: _Call) -> Any:
        _integers(call[0])
        axes = call.numbers(1, "axes")
        if not axes:
            if call.number("noop_with_empty_axes", 0):
                return call[0]
            axes = tuple(range(call[0].ndim))
        # As Python's integers, because a runtime may saturate or wrap where the sum or product does not fit.
        exact = np.asarray(function(call[0].astype(object), axis=axes, keepdims=bool(call.number("keepdims", 1))))
        limits = np.iinfo(call[0].dtype)
        if not all(limits.min <= item <= limits.max for item in exact.reshape(-1)):
            raise OverflowError("the result does not fit its type")
        return exact.astype(call[0].dtype)

    return apply


def _non_zero(call: _Call) -> Any:
    return np.array(np.nonzero(call[0]), np.int64)


OPERATORS: dict[str, Callable[[_Call], Any]] = {
    "Identity": _unary(lambda x: x),
    "Neg": _unary(np.negative),
    "Abs": _unary(np.abs),
    "Sign": _unary(np.sign),
    "Not": _unary(np.logical_not),
    "Floor": _unary(np.floor),
    "Ceil": _unary(np.ceil),
    "Round": _unary(np.rint),
    "Sqrt": _unary(np.sqrt),
    "Add": _elementwise(np.add),
    "Sub": _elementwise(np.subtract),
    "Mul": _elementwise(np.multiply),
    "Div": _elementwise(_divide),
    "Mod": _mod,
    "Min": _elementwise(np.minimum),
    "Max": _elementwise(np.maximum),
    "Equal": _elementwise(np.equal),
    "Less": _elementwise(np.less),
    "LessOrEqual": _elementwise(np.less_equal),
    "Greater": _elementwise(np.greater),
    "GreaterOrEqual": _elementwise(np.greater_equal),
    "And": _elementwise(np.logical_and),
    "Or": _elementwise(np.logical_or),
    "Xor": _elementwise(np.logical_xor),
    "Where": _where,
    "Cast": _cast,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Expand": _expand,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Slice": _slice,
    "Split": _split,
    "Transpose": _transpose,
    "Tile": _tile,
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
    "NonZero": _non_zero,
}
"""What can be evaluated, by operator of ONNX's own domain. Shape, Size and Constant have no values to compute with."""
