"""Rules for operators that make one element of many: what is padded must be 0, or hidden, where they mix places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from parallax.graph import Node
from parallax.partition.padding._entries import Kind, is_blocking, is_ordinary, is_zero, joined, may_be_infinite, tamed
from parallax.partition.padding._lengths import Length, product
from parallax.partition.padding._seen import (
    Atoms,
    Edge,
    Mark,
    NotProven,
    Seen,
    broadcast,
    marks_of,
    own_mark,
)
from parallax.partition.padding._view import Rule, View, axes_of, given, int_of, numbers

_ZERO: Final = np.float32(0)


def _mixed(seen: Seen, axes: Sequence[Atoms], marks: Mapping[Mark, Mark], *, keeps_zeros: bool) -> Seen:
    """A tensor of sums over places other than those of the sequence, or over those that were checked.

    Args:
        axes: of the result.
        marks: mark of the result -> the one of ``seen`` that it comes from.
        keeps_zeros: whether such a sum of zeros is 0.
    """
    edges = {}
    for mark, own in marks.items():
        edge = seen.edge(own)
        is_kept = keeps_zeros and is_zero(edge.padded)
        edges[mark] = Edge(first=tamed(edge.first), padded=_ZERO if is_kept else tamed(edge.padded))
    return Seen(axes=tuple(axes), entry=tamed(seen.entry), edges=edges)


def _same(view: View, seen: Seen) -> dict[Mark, Mark]:
    return {mark: mark for mark in marks_of(seen.axes, view.sequence)}


def product_of(view: View, node: Node) -> Sequence[Seen]:
    """MatMul."""
    left, right = (view.seen(name) for name in node.inputs)
    if min(len(left.axes), len(right.axes)) < 2:
        raise NotProven("it multiplies by a vector")
    return [_multiplied(view, left, right)]


def gemm(view: View, node: Node) -> Sequence[Seen]:
    """Gemm: a product of matrices, and what is added to it."""
    left, right = (view.seen(name) for name in node.inputs[:2])
    if int_of(node, "transA", 0):
        left = _turned(left)
    if int_of(node, "transB", 0):
        right = _turned(right)
    made = _multiplied(view, left, right)
    if given(node, 2):
        broadcast([made.axes, view.seen(node.inputs[2]).axes])
        _must_not_count(view, [view.seen(node.inputs[2])])
        # What is added is not 0 where rows are.
        entry = joined([made.entry, view.seen(node.inputs[2]).entry])
        return [Seen(axes=made.axes, entry=entry, is_masked=made.is_masked)]
    return [made]


def _turned(seen: Seen) -> Seen:
    edges = {(1 - axis, atom): edge for (axis, atom), edge in seen.edges.items()}
    return Seen(axes=seen.axes[::-1], entry=seen.entry, edges=edges)


def _multiplied(view: View, left: Seen, right: Seen) -> Seen:
    _must_not_count(view, (left, right))
    summed = left.axes[-1]
    if summed != right.axes[-2]:
        raise NotProven("the sizes that it sums over are not known to fit for every length")
    is_masked = False
    for place, atom in enumerate(summed):
        if atom == view.sequence:
            ends = (left.edge((len(left.axes) - 1, place)), right.edge((len(right.axes) - 2, place)))
            if not any(is_zero(edge.padded) for edge in ends):
                raise NotProven("it sums over the sequence, and nothing makes padded places 0")
            if any(may_be_infinite(edge.padded) for edge in ends):
                raise NotProven("it sums over the sequence, and padded places may be infinite")
            is_masked = True
    outer = broadcast([left.axes[:-2], right.axes[:-2]])
    axes = (*outer, left.axes[-2], right.axes[-1])
    edges = {}
    for mark in marks_of(axes, view.sequence):
        own = _product_marks(mark, left.axes, right.axes, len(axes))
        one, other = (
            Edge(first=seen.entry, padded=seen.entry) if at is None else seen.edge(at)
            for seen, at in zip((left, right), own, strict=True)
        )
        is_kept = is_zero(one.padded) or is_zero(other.padded)
        edges[mark] = Edge(
            first=tamed(one.first, other.first), padded=_ZERO if is_kept else tamed(one.padded, other.padded)
        )
    return Seen(axes=axes, entry=tamed(left.entry, right.entry), edges=edges, is_masked=is_masked)


def _product_marks(
    mark: Mark, left: Sequence[Atoms], right: Sequence[Atoms], rank: int
) -> tuple[Mark | None, Mark | None]:
    """Where a mark of a product is in its two operands."""
    axis, atom = mark
    if axis == rank - 2:
        return (len(left) - 2, atom), None
    if axis == rank - 1:
        return None, (len(right) - 1, atom)
    return own_mark(mark, left, rank), own_mark(mark, right, rank)


def _must_not_count(view: View, operands: Sequence[Seen]) -> None:
    """Raises: NotProven if the length of the sequence itself is among the numbers."""
    if any(operand.depends_on(view.symbol) for operand in operands):
        raise NotProven("it computes with the length of the sequence")


def softmax(view: View, node: Node) -> Sequence[Seen]:
    """Along the sequence, padded places must be hidden from it, and the first one not."""
    seen = view.seen(node.inputs[0])
    _must_not_count(view, [seen])
    rank = len(seen.axes)
    axis = int_of(node, "axis", -1 if view.opset >= 13 else 1) % rank
    mixed = range(axis, rank) if view.opset < 13 else (axis,)
    marks = [mark for mark in marks_of(seen.axes, view.sequence) if mark[0] in mixed]
    if not marks:
        return [Seen(axes=seen.axes)]
    if (
        node.op_type != "Softmax"
        or seen.axes[marks[0][0]] != (view.sequence,)
        or any(seen.axes[other] for other in mixed if other != marks[0][0])
    ):
        raise NotProven("it mixes places of the sequence, padded ones among them")
    edge = seen.edge(marks[0])
    if not is_blocking(edge.padded):
        raise NotProven("it weighs padded places like others: no mask hides them from it")
    if not is_ordinary(edge.first):
        raise NotProven("it is not known to see a place that is not padded, whatever the mask")
    edges = {marks[0]: Edge(first=Kind.ORDINARY, padded=_ZERO)}
    return [Seen(axes=seen.axes, edges=edges, is_masked=True)]


_KEEP_ZERO: Final = frozenset({"ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"})
_KEEP_ONE: Final = frozenset({"ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"})
"""Reductions that leave a single number as it is."""
_ADDING: Final = frozenset({"ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"})
"""Reductions to which zeros add nothing."""


def reduction(view: View, node: Node) -> Sequence[Seen]:
    """Sums need zeros at padded places, maxima what no ordinary number is below."""
    seen = view.seen(node.inputs[0])
    rank = len(seen.axes)
    gone = axes_of(view, node, 1, rank) or ()
    if not gone and not int_of(node, "noop_with_empty_axes", 0):
        gone = tuple(range(rank))
    if not gone and node.op_type in _KEEP_ONE:
        return [seen]
    if seen.items is not None:
        return [_reduced_items(node, seen, gone)]
    _must_not_count(view, [seen])
    is_masked = False
    for mark in marks_of(seen.axes, view.sequence):
        if mark[0] in gone:
            _check_reduced(node, seen.edge(mark))
            is_masked = True
    keeps = bool(int_of(node, "keepdims", 1))
    axes = tuple(() if axis in gone else atoms for axis, atoms in enumerate(seen.axes) if keeps or axis not in gone)
    marks = {}
    for mark in marks_of(seen.axes, view.sequence):
        if mark[0] not in gone:
            axis = mark[0] if keeps else mark[0] - sum(entry < mark[0] for entry in gone)
            marks[axis, mark[1]] = mark
    made = _mixed(seen, axes, marks, keeps_zeros=node.op_type in _KEEP_ZERO)
    return [replace(made, is_masked=is_masked)]


def _check_reduced(node: Node, edge: Edge) -> None:
    if node.op_type in _ADDING:
        if not is_zero(edge.padded):
            raise NotProven("it adds up places of the sequence, and nothing makes padded ones 0")
    elif node.op_type == "ReduceMax":
        if not is_blocking(edge.padded) or not is_ordinary(edge.first):
            raise NotProven("it takes the largest place of the sequence, and nothing makes padded ones small")
    elif node.op_type == "ReduceMean":
        raise NotProven("it takes the mean over the sequence, padded places and all: their number counts")
    else:
        raise NotProven("it mixes places of the sequence, padded ones among them")


def _reduced_items(node: Node, seen: Seen, gone: Sequence[int]) -> Seen:
    assert seen.items is not None
    if not gone:
        raise NotProven("it computes with sizes in a way that is not followed")
    axes: tuple[Atoms, ...] = ((),) if int_of(node, "keepdims", 1) and seen.axes else ()
    if node.op_type == "ReduceProd":
        return Seen(axes=axes, items=(product(seen.items),))
    known = [item.number for item in seen.items]
    if node.op_type not in ("ReduceMax", "ReduceMin", "ReduceSum") or None in known:
        raise NotProven("it computes with sizes in a way that is not followed")
    found = [number for number in known if number is not None]
    value = sum(found) if node.op_type == "ReduceSum" else max(found) if node.op_type == "ReduceMax" else min(found)
    return Seen(axes=axes, items=(Length.of(value),))


def normalisation(view: View, node: Node) -> Sequence[Seen]:
    """LayerNormalization and its like: over the axes from one on, which must not be the sequence."""
    seen, *others = (view.seen(name) for name in node.inputs if name)
    _must_not_count(view, [seen, *others])
    first = int_of(node, "axis", -1) % len(seen.axes)
    _must_not_mix(view, seen, range(first, len(seen.axes)))
    if any(marks_of(other.axes, view.sequence) for other in others):
        raise NotProven("its parameters depend on the sequence")
    return [_mixed(seen, seen.axes, _same(view, seen), keeps_zeros=False)]


def skip_normalisation(view: View, node: Node) -> Sequence[Seen]:
    """The runtime's own: the sum of two tensors (and a bias), normalised over the last axis."""
    seen, other, *parameters = (view.seen(name) for name in node.inputs if name)
    _must_not_count(view, [seen, other, *parameters])
    axes = broadcast([seen.axes, other.axes])
    _must_not_mix(view, Seen(axes=axes), (len(axes) - 1,))
    if any(marks_of(entry.axes, view.sequence) for entry in parameters):
        raise NotProven("its parameters depend on the sequence")
    return [Seen(axes=axes, entry=tamed(seen.entry, other.entry))]


def along(default: int) -> Rule:
    """A rule for operators that mix elements along the attribute ``axis`` alone, and keep it or take it away."""

    def rule(view: View, node: Node) -> Sequence[Seen]:
        seen = view.seen(node.inputs[0])
        _must_not_count(view, [seen])
        axis = int_of(node, "axis", default) % len(seen.axes)
        _must_not_mix(view, seen, (axis,))
        if node.op_type in ("ArgMax", "ArgMin"):
            kept: tuple[Atoms, ...] = ((),) if int_of(node, "keepdims", 1) else ()
            return [Seen(axes=(*seen.axes[:axis], *kept, *seen.axes[axis + 1 :]))]
        return [_mixed(seen, seen.axes, _same(view, seen), keeps_zeros=False)]

    return rule


def _must_not_mix(view: View, seen: Seen, axes: Sequence[int]) -> None:
    if any(mark[0] in axes for mark in marks_of(seen.axes, view.sequence)):
        raise NotProven("it mixes places of the sequence, padded ones among them")


def running_sum(view: View, node: Node) -> Sequence[Seen]:
    """CumSum: forwards, what comes later does not count."""
    seen = view.seen(node.inputs[0])
    _must_not_count(view, [seen])
    axes = numbers(view, node, 1)
    axis = (axes or (0,))[0] % len(seen.axes)
    is_masked = False
    if int_of(node, "reverse", 0):
        for mark in marks_of(seen.axes, view.sequence):
            if mark[0] == axis and not is_zero(seen.edge(mark).padded):
                raise NotProven("it adds up places of the sequence from its end, and nothing makes padded ones 0")
            is_masked |= mark[0] == axis
    if len(seen.axes[axis]) > 1:
        raise NotProven("it adds up along an axis that is the sequence and more")
    made = _mixed(seen, seen.axes, _same(view, seen), keeps_zeros=False)
    return [replace(made, is_masked=is_masked)]


def dropout(view: View, node: Node) -> Sequence[Seen]:
    """In inference, its input."""
    if given(node, 2):
        is_training = view.seen(node.inputs[2]).items
        if is_training is None or any(item.number != 0 for item in is_training):
            raise NotProven("it draws numbers")
    return [view.seen(node.inputs[0])]
