"""Rules for operators that work element by element."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from parallax.graph import NUMPY_TYPES, Node
from parallax.partition.padding._entries import Entry, Kind, combined, tamed
from parallax.partition.padding._lengths import ONE, ZERO, Length, product
from parallax.partition.padding._seen import (
    MOST_ITEMS,
    Affine,
    Atoms,
    Edge,
    Mark,
    NotProven,
    Seen,
    broadcast,
    marks_of,
    own_mark,
)
from parallax.partition.padding._view import View

_COMPARISONS: Final = frozenset({"Less", "LessOrEqual", "Greater", "GreaterOrEqual"})
_ON_PLACES: Final = frozenset({"Add", "Sub", "Mul", "Neg", "Cast", "Identity"})


def elementwise(view: View, node: Node) -> Sequence[Seen]:
    """Operands broadcast, from the last axis on."""
    if "broadcast" in node.attributes:
        raise NotProven("it broadcasts as operators did before version 7")
    operands = [view.seen(name) for name in node.inputs if name]
    axes = broadcast([operand.axes for operand in operands])
    edges = {mark: _edge(node, operands, mark, len(axes)) for mark in marks_of(axes, view.sequence)}
    made = Seen(
        axes=axes,
        entry=combined(node, [operand.entry for operand in operands]),
        edges=edges,
        items=_items(node, operands, axes),
        affine=_affine(node, operands, len(axes)),
    )
    if node.op_type in _COMPARISONS:
        made = _compared(node, operands, made)
    is_known = made.items is not None or made.affine is not None or not isinstance(made.entry, Kind)
    if not is_known and any(operand.depends_on(view.symbol) for operand in operands):
        raise NotProven("it computes with the length of the sequence")
    return [made]


def _edge(node: Node, operands: Sequence[Seen], mark: Mark, rank: int) -> Edge:
    at = [own_mark(mark, operand.axes, rank) for operand in operands]
    edges = [
        Edge(first=operand.entry, padded=operand.entry) if own is None else operand.edge(own)
        for operand, own in zip(operands, at, strict=True)
    ]
    return Edge(
        first=combined(node, [edge.first for edge in edges]), padded=combined(node, [edge.padded for edge in edges])
    )


# -- vectors of whole numbers: sizes, and what is made of them ---------------------------------------------------------


def _items(node: Node, operands: Sequence[Seen], axes: Sequence[Atoms]) -> tuple[Length, ...] | None:
    target = _target_kind(node)
    count = product(axes[0]).number if axes else 1
    if len(axes) > 1 or target == "f" or count is None or count > MOST_ITEMS:
        return None
    columns = [operand.items for operand in operands]
    made = []
    for place in range(count):
        row = [None if items is None else items[place if len(items) > 1 else 0] for items in columns]
        item = _item("Not equal 0" if target == "b" else node.op_type, row)
        if item is None:
            return None
        made.append(item)
    return tuple(made)


def _target_kind(node: Node) -> str:
    """What a Cast makes: "i" for whole numbers, "b" for flags, "f" for anything else. Of other operators "i"."""
    if node.op_type != "Cast":
        return "i"
    code = node.attributes.get("to")
    target = NUMPY_TYPES.get(code) if isinstance(code, int) else None
    return "f" if target is None or target.kind not in "iub" else "b" if target.kind == "b" else "i"


def _item(kind: str, row: Sequence[Length | None]) -> Length | None:
    """What an operator makes of single numbers, flags being 0 and 1; None where it is not known."""
    if kind == "Where":
        condition = None if row[0] is None else row[0].number
        return None if condition is None else row[1] if condition else row[2]
    known = [entry for entry in row if entry is not None]
    if len(known) < len(row):
        return None
    function = _ON_ITEMS.get(kind)
    if function is None or (kind in ("Min", "Max") and len(known) != 2):
        return None
    return function(*known)


def _equal(left: Length, right: Length) -> Length | None:
    difference = left - right
    if difference.number is not None:
        return ONE if difference.number == 0 else ZERO
    for apart in (difference, -difference):
        if (apart - ONE).is_never_negative:
            return ZERO
    return None


def _is_not_zero(value: Length) -> Length | None:
    found = _equal(value, ZERO)
    return None if found is None else ONE - found


def _not_below(left: Length, right: Length) -> Length | None:
    if (left - right).is_never_negative:
        return ONE
    return ZERO if (right - left - ONE).is_never_negative else None


def _divided(left: Length, right: Length) -> Length | None:
    if left.number is not None and right.number:
        return Length.of(int(left.number / right.number))
    return left.divided_by(right)


def _least(left: Length, right: Length) -> Length | None:
    order = _not_below(left, right)
    return None if order is None else right if order == ONE else left


def _most(left: Length, right: Length) -> Length | None:
    order = _not_below(left, right)
    return None if order is None else left if order == ONE else right


_ON_ITEMS: Final[Mapping[str, Callable[..., Length | None]]] = {
    "Add": lambda left, right: left + right,
    "Sub": lambda left, right: left - right,
    "Mul": lambda left, right: left * right,
    "Div": _divided,
    "Neg": lambda value: -value,
    "Identity": lambda value: value,
    "Cast": lambda value: value,
    "Equal": _equal,
    "Not equal 0": _is_not_zero,
    "GreaterOrEqual": _not_below,
    "LessOrEqual": lambda left, right: _not_below(right, left),
    "Greater": lambda left, right: _not_below(left, right + ONE),
    "Less": lambda left, right: _not_below(right, left + ONE),
    "Min": _least,
    "Max": _most,
}


# -- numbers that follow from where they stand ------------------------------------------------------------------------


def _affine(node: Node, operands: Sequence[Seen], rank: int) -> Affine | None:
    if node.op_type not in _ON_PLACES or _target_kind(node) != "i":
        return None
    found = [operand.aligned_affine(rank) for operand in operands]
    known = [entry for entry in found if entry is not None]
    if len(known) < len(found):
        return None
    if node.op_type in ("Cast", "Identity"):
        return known[0]
    if node.op_type == "Neg":
        return _scaled(known[0], -ONE)
    left, right = known
    if node.op_type == "Mul":
        if any(slope != ZERO for slope in left.slopes):
            left, right = right, left
        return None if any(slope != ZERO for slope in left.slopes) else _scaled(right, left.start)
    return _added(left, _scaled(right, -ONE) if node.op_type == "Sub" else right)


def _scaled(affine: Affine, factor: Length) -> Affine:
    return Affine(start=affine.start * factor, slopes=tuple(slope * factor for slope in affine.slopes))


def _added(left: Affine, right: Affine) -> Affine:
    slopes = tuple(one + other for one, other in zip(left.slopes, right.slopes, strict=True))
    return Affine(start=left.start + right.start, slopes=slopes)


def _compared(node: Node, operands: Sequence[Seen], made: Seen) -> Seen:
    """With what follows from the numbers' places: at all of them, or at the first place of the sequence."""
    left, right = (operand.aligned_affine(len(made.axes)) for operand in operands)
    if left is None or right is None:
        return made
    if node.op_type in ("Less", "LessOrEqual"):
        left, right = right, left
    distance = _added(left, _scaled(right, -ONE))
    if node.op_type in ("Less", "Greater"):
        distance = Affine(start=distance.start - ONE, slopes=distance.slopes)
    sizes = made.shape
    everywhere = _sign(distance, sizes)
    if everywhere is not None:
        return Seen(axes=made.axes, entry=everywhere, items=made.items)
    edges = {}
    for mark, edge in made.edges.items():
        at_first = Affine(
            start=distance.start,
            slopes=tuple(ZERO if axis == mark[0] else slope for axis, slope in enumerate(distance.slopes)),
        )
        first: Entry | None = _sign(at_first, sizes)
        edges[mark] = edge if first is None else Edge(first=first, padded=edge.padded)
    return Seen(axes=made.axes, entry=made.entry, edges=edges, items=made.items, affine=made.affine)


def _sign(distance: Affine, sizes: Sequence[Length]) -> np.bool_ | None:
    """Whether it is 0 or more at all places (True), or below at all (False); None where neither is known."""
    low = high = distance.start
    for slope, size in zip(distance.slopes, sizes, strict=True):
        reach = slope * (size - ONE)
        if slope.is_never_negative:
            high = high + reach
        elif (-slope).is_never_negative:
            low = low + reach
        else:
            return None
    if low.is_never_negative:
        return np.bool_(True)
    return np.bool_(False) if (-high - ONE).is_never_negative else None


def like_first(view: View, node: Node) -> Sequence[Seen]:
    """The first input counts element by element; the others are parameters that no sequence goes into."""
    first, *others = (view.seen(name) for name in node.inputs if name)
    if any(marks_of(other.axes, view.sequence) or other.depends_on(view.symbol) for other in others):
        raise NotProven("its parameters depend on the sequence")
    if first.depends_on(view.symbol):
        raise NotProven("it computes with the length of the sequence")
    return [Seen(axes=first.axes, entry=tamed(first.entry))]


ELEMENTWISE: Final = (
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast Ceil Celu Clip Cos "
    "Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu "
    "Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid "
    "Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor"
)
"""Names of the operators, with blanks between them."""
