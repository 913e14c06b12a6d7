"""What is known of numbers at a place of a tensor: the number itself, or what kind of number it is.

Two places along the sequence count: the first, which no mask hides, and those that are padded. An operator that works
element by element is computed for each of them from what is known of its operands there.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, Final

import numpy as np

from parallax.graph import NUMPY_TYPES, Node


class Kind(Enum):
    """Of numbers that are not known."""

    ORDINARY = "ordinary"
    """Such as features, scores and flags are: finite, and far from what masks are made of."""
    BLOCKING = "blocking"
    """So negative that a Softmax along with ordinary numbers makes exactly 0 of it."""
    STORED = "stored"
    """A weight of the model: ordinary where it is multiplied or looked up, but it could be a mask, and so be low."""
    LOW = "low"
    """Ordinary or blocking."""
    ANY = "any"
    """Any number, or infinite."""


Entry = np.generic | Kind

BLOCKING_BELOW: Final = -1e4
"""A number up to this, added to a score, hides it: e to the power of less than -104 is 0 in float32."""

_BOOLEAN: Final[Mapping[str, Callable[..., Any]]] = {
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
    "Not": np.logical_not,
    "Equal": operator.eq,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
    "IsNaN": np.isnan,
    "IsInf": np.isinf,
}
_NUMERIC: Final[Mapping[str, Callable[..., Any]]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Min": np.minimum,
    "Max": np.maximum,
    "Neg": np.negative,
    "Abs": np.abs,
    "Sign": np.sign,
    "Sqrt": np.sqrt,
    "Log": np.log,
    "Pow": np.power,
    "Reciprocal": lambda value: 1 / value,
    "Relu": lambda value: np.maximum(value, type(value)(0)),
    "Identity": lambda value: value,
}
_POLES: Final = frozenset({"Acos", "Acosh", "Asin", "Atanh", "Div", "Log", "Mod", "Pow", "Reciprocal", "Tan"})
"""Operators that are infinite or NaN for some numbers, such as the 0 and 1 that masks are made of."""
_PASSING: Final = frozenset({"Identity", "Add", "Sum", "Sub", "Mul", "Div", "Where", "Min", "Max", "Neg"})
"""Operators of whose results something is known where an operand is not ordinary."""


def is_blocking(entry: Entry) -> bool:
    """Whether a Softmax along with ordinary numbers makes exactly 0 of it."""
    if isinstance(entry, Kind):
        return entry is Kind.BLOCKING
    return _is_float(entry) and float(entry) <= BLOCKING_BELOW


def may_be_infinite(entry: Entry) -> bool:
    """Whether it is known to be a number whose product with 0 may be NaN: one that hides, or no finite one."""
    return is_blocking(entry) or (not isinstance(entry, Kind) and not np.isfinite(entry))


def is_ordinary(entry: Entry) -> bool:
    """Whether it is an ordinary number, known or not."""
    if isinstance(entry, Kind):
        return entry is Kind.ORDINARY
    return abs(float(entry)) < -BLOCKING_BELOW


def is_tame(entry: Entry) -> bool:
    """Whether sums of products of it, with others like it, are ordinary numbers."""
    return entry is Kind.STORED or is_ordinary(entry)


def tamed(*entries: Entry) -> Kind:
    """What is known of sums of products of such numbers."""
    return Kind.ORDINARY if all(map(is_tame, entries)) else Kind.ANY


def is_zero(entry: Entry) -> bool:
    """Whether it is known to be 0, or False."""
    return not isinstance(entry, Kind) and bool(entry == 0)


def joined(entries: Sequence[Entry]) -> Entry:
    """What is known of a place that holds one of these numbers."""
    first = entries[0]
    if isinstance(first, np.generic) and all(_is_same(first, entry) for entry in entries):
        return first
    if all(map(is_ordinary, entries)):
        return Kind.ORDINARY
    if all(map(is_tame, entries)):
        return Kind.STORED
    if all(map(is_blocking, entries)):
        return Kind.BLOCKING
    return Kind.LOW if all(map(_is_low, entries)) else Kind.ANY


def entry_of(array: np.ndarray[Any, Any]) -> Entry:
    """What is known of all elements of a constant. The array is not empty."""
    flat = array.reshape(-1)
    if flat.dtype.kind in "biuf" and bool((flat == flat[0]).all()):
        value: np.generic = flat[0]
        return value
    if flat.dtype.kind not in "biuf" or not bool((flat < -BLOCKING_BELOW).all()):
        return Kind.ANY
    return Kind.ORDINARY if bool((flat > BLOCKING_BELOW).all()) else Kind.LOW


def combined(node: Node, entries: Sequence[Entry]) -> Entry:
    """What an operator that works element by element makes of numbers of which this is known."""
    if all(isinstance(entry, np.generic) for entry in entries):
        value = _computed(node, entries)
        if value is not None or node.op_type in _POLES:
            return Kind.ANY if value is None else value
    if _divides_by_zero(node.op_type, entries):
        return Kind.ANY
    absorbed = _absorbed(node.op_type, entries)
    if absorbed is not None:
        return absorbed
    if node.op_type in _BOOLEAN:
        return Kind.ORDINARY
    if node.op_type != "Exp" and all(map(is_tame, entries)):
        return Kind.ORDINARY if all(map(is_ordinary, entries)) else Kind.STORED
    if node.op_type == "Cast":
        # Only types of numbers with a point are sure to keep what is low.
        return entries[0] if _target(node).kind == "f" and isinstance(entries[0], Kind) else Kind.ANY
    if node.op_type in _PASSING:
        return _passed_on(node.op_type, entries)
    return Kind.ANY


def _divides_by_zero(kind: str, entries: Sequence[Entry]) -> bool:
    """Whether an operand is known that makes the result infinite or NaN, whatever the other is (or, of powers, may)."""
    return (kind in ("Div", "Mod") and is_zero(entries[1])) or (kind == "Pow" and is_zero(entries[0]))


def _computed(node: Node, entries: Sequence[Any]) -> np.generic | None:
    """The number itself, in the operands' type; None where it is not computed here."""
    kind = node.op_type
    with np.errstate(all="ignore"):
        if kind == "Cast":
            return _cast(node, entries[0])
        is_whole = not _is_float(entries[0])
        if (kind == "Div" and is_whole and not entries[1]) or (kind == "IsInf" and node.attributes):
            return None
        if kind in ("Pow", "Reciprocal") and is_whole:
            return None
        if kind == "Div":
            value = np.trunc(entries[0] / entries[1]) if is_whole else entries[0] / entries[1]
            return type(entries[0])(value)  # type: ignore[no-any-return]
        if kind in _BOOLEAN:
            return np.bool_(_BOOLEAN[kind](*entries))
        function = _NUMERIC.get("Add" if kind == "Sum" else kind)
        if function is None:
            return None
        if kind in ("Add", "Sum", "Mul", "Min", "Max"):
            value = entries[0]
            for entry in entries[1:]:
                value = function(value, entry)
        else:
            value = function(*entries)
        return type(entries[0])(value)  # type: ignore[no-any-return]


def _cast(node: Node, value: Any) -> np.generic | None:
    target = _target(node)
    if target.kind in "iu":
        # What does not fit is another number on each processor.
        limits = np.iinfo(target)
        if not limits.min <= float(value) <= limits.max:
            return None
    elif target.kind not in "bf":
        return None
    return target.type(np.asarray(value).astype(target))  # type: ignore[no-any-return]


def _target(node: Node) -> np.dtype[Any]:
    """What a Cast makes; objects where numpy has no such type."""
    code = node.attributes.get("to")
    found = NUMPY_TYPES.get(code) if isinstance(code, int) else None
    return np.dtype(object) if found is None else found


def _absorbed(kind: str, entries: Sequence[Entry]) -> Entry | None:
    """The result where one operand decides it, whatever number the others are. 0 times a number is 0: padded places of
    a full run are assumed to be finite."""
    if kind == "Mul" and any(map(is_zero, entries)) and not any(map(may_be_infinite, entries)):
        return next(entry for entry in entries if is_zero(entry))
    if kind == "Where":
        condition, *branches = entries
        return joined(branches) if isinstance(condition, Kind) else branches[0] if condition else branches[1]
    if kind == "Exp" and is_blocking(entries[0]):
        return np.float32(0)
    if kind == "And" and any(map(is_zero, entries)):
        return np.bool_(False)
    if kind == "Or" and any(isinstance(entry, np.generic) and bool(entry) for entry in entries):
        return np.bool_(True)
    return None


def _passed_on(kind: str, entries: Sequence[Entry]) -> Entry:
    """Of operands of which one at least is neither ordinary nor a weight."""
    if kind == "Identity":
        return entries[0]
    if kind in ("Add", "Sum"):
        if not all(map(_is_low, entries)):
            return Kind.ANY
        return Kind.BLOCKING if any(map(is_blocking, entries)) else Kind.LOW
    if kind == "Sub":
        left, right = entries
        known = None if isinstance(right, Kind) or not _is_float(right) else float(right)
        small = is_ordinary(right) or (known is not None and known > 0)
        large = known is not None and known >= -BLOCKING_BELOW
        is_hidden = (is_blocking(left) and small) or (is_ordinary(left) and large)
        return Kind.BLOCKING if is_hidden else Kind.ANY
    if kind == "Min":
        return Kind.BLOCKING if any(map(is_blocking, entries)) else Kind.ANY
    return joined(entries) if kind == "Max" else Kind.ANY


def _is_low(entry: Entry) -> bool:
    return entry is Kind.LOW or is_tame(entry) or is_blocking(entry)


def _is_same(one: np.generic, other: Entry) -> bool:
    return isinstance(other, np.generic) and type(one) is type(other) and bool(one == other)


def _is_float(entry: np.generic) -> bool:
    return entry.dtype.kind == "f"
