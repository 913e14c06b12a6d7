"""Rules for operators that leave elements as they are and put them under other axes, and for what sizes are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from parallax.graph import Node
from parallax.partition.padding._entries import Entry, Kind, joined
from parallax.partition.padding._lengths import ONE, ZERO, Length, product
from parallax.partition.padding._seen import (
    MOST_ITEMS,
    Affine,
    Atoms,
    Edge,
    NotProven,
    Seen,
    axis_of,
    marks_of,
    moved_edges,
    own_mark,
    regrouped,
)
from parallax.partition.padding._view import View, axes_of, given, int_of, numbers


def shape(view: View, node: Node) -> Sequence[Seen]:
    """Sizes as a vector."""
    sizes = view.seen(node.inputs[0]).shape
    if node.op_type == "Size":
        return [Seen(axes=(), items=(product(sizes),))]
    sizes = sizes[int_of(node, "start", 0) : int_of(node, "end", len(sizes))]
    return [_vector(sizes)]


def _vector(items: Sequence[Length]) -> Seen:
    return Seen(axes=(axis_of(Length.of(len(items))),), items=tuple(items))


def counting(view: View, node: Node) -> Sequence[Seen]:
    """Range: numbers in steps of one, from a number that is known."""
    bounds = [view.seen(name).as_affine() for name in node.inputs]
    if any(bound is None for bound in bounds):
        raise NotProven("its bounds are not known")
    start, limit, step = (bound.start for bound in bounds if bound is not None)
    if step != ONE:
        raise NotProven("it does not count in steps of one")
    return [Seen(axes=(axis_of(limit - start),), affine=Affine(start=start, slopes=(ONE,)))]


def filled(view: View, node: Node) -> Sequence[Seen]:
    """ConstantOfShape."""
    sizes = _sizes(view, node.inputs[0])
    value = view.filling(node)
    entry: Entry = Kind.ANY if value is None else value
    items = None
    count = product(sizes).number
    if value is not None and value.dtype.kind in "iub" and len(sizes) < 2 and count is not None and count <= MOST_ITEMS:
        items = (Length.of(int(value)),) * count
    return [Seen(axes=tuple(map(axis_of, sizes)), entry=entry, items=items)]


def _sizes(view: View, name: str) -> tuple[Length, ...]:
    items = view.seen(name).items
    if items is None:
        raise NotProven(f"the sizes {name!r} are not known")
    return items


def _placed(view: View, seen: Seen, axes: tuple[Atoms, ...]) -> Seen:
    """The same elements, in the same order, under other axes."""
    affine = None if seen.affine is None else _moved_affine(seen, axes)
    items = seen.items if len(axes) < 2 else None
    made = replace(seen, axes=axes, edges=moved_edges(seen, axes, view.sequence), items=items, affine=affine)
    if made.items is None and made.affine is None and seen.depends_on(view.symbol):
        found = seen.as_affine()
        if found is None:
            raise NotProven("it computes with the length of the sequence")
        return replace(made, affine=Affine(start=found.start, slopes=(ZERO,) * len(axes)))
    return made


def _moved_affine(seen: Seen, axes: Sequence[Atoms]) -> Affine | None:
    """Where only axes of size 1 come or go."""
    assert seen.affine is not None
    old = [(atoms, slope) for atoms, slope in zip(seen.axes, seen.affine.slopes, strict=True) if atoms]
    if [atoms for atoms, _ in old] != [atoms for atoms in axes if atoms]:
        return None
    slopes = iter(slope for _, slope in old)
    return Affine(start=seen.affine.start, slopes=tuple(next(slopes) if atoms else ZERO for atoms in axes))


def reshape(view: View, node: Node) -> Sequence[Seen]:
    """Sizes may be 0 (as it was) and -1 (what is left)."""
    seen = view.seen(node.inputs[0])
    if len(node.inputs) > 1:
        target = list(_sizes(view, node.inputs[1]))
    else:
        target = [Length.of(size) for size in numbers(view, node, 1, "shape") or ()]
    if not int_of(node, "allowzero", 0):
        target = [seen.shape[place] if size == ZERO else size for place, size in enumerate(target)]
    if Length.of(-1) in target:
        place = target.index(Length.of(-1))
        rest = product(seen.shape).divided_by(product(size for other, size in enumerate(target) if other != place))
        if rest is None:
            raise NotProven("the size that it leaves open is not known")
        target[place] = rest
    return [_placed(view, seen, _regrouped(seen, target))]


def _regrouped(seen: Seen, sizes: Sequence[Length]) -> tuple[Atoms, ...]:
    axes = regrouped([atom for atoms in seen.axes for atom in atoms], sizes)
    if axes is None:
        raise NotProven("it joins or divides axes in a way that is not known to keep places of the sequence apart")
    return axes


def flatten(view: View, node: Node) -> Sequence[Seen]:
    """All axes before one, and all from it on, as one each."""
    seen = view.seen(node.inputs[0])
    axis = int_of(node, "axis", 1)
    axis = axis + len(seen.axes) if axis < 0 else axis
    return [_placed(view, seen, _regrouped(seen, [product(seen.shape[:axis]), product(seen.shape[axis:])]))]


def unsqueeze(view: View, node: Node) -> Sequence[Seen]:
    """New axes of size 1."""
    seen = view.seen(node.inputs[0])
    places = numbers(view, node, 1, "axes") or ()
    rank = len(seen.axes) + len(places)
    new = {place % rank for place in places}
    left = iter(seen.axes)
    return [_placed(view, seen, tuple(() if place in new else next(left) for place in range(rank)))]


def squeeze(view: View, node: Node) -> Sequence[Seen]:
    """Axes of size 1 go."""
    seen = view.seen(node.inputs[0])
    gone = axes_of(view, node, 1, len(seen.axes))
    if gone is None or any(seen.axes[axis] for axis in gone):
        raise NotProven("which axes it takes away is not known for every length")
    return [_placed(view, seen, tuple(atoms for axis, atoms in enumerate(seen.axes) if axis not in gone))]


def transpose(view: View, node: Node) -> Sequence[Seen]:
    """Axes in another order."""
    seen = view.seen(node.inputs[0])
    order = node.attributes.get("perm")
    places = tuple(order) if isinstance(order, tuple) else tuple(reversed(range(len(seen.axes))))
    affine = seen.affine
    if affine is not None:
        affine = Affine(start=affine.start, slopes=tuple(affine.slopes[place] for place in places))
    edges = {(places.index(axis), atom): edge for (axis, atom), edge in seen.edges.items()}
    return [replace(seen, axes=tuple(seen.axes[place] for place in places), edges=edges, affine=affine)]


def expand(view: View, node: Node) -> Sequence[Seen]:
    """Axes of size 1 are repeated as often as a shape says."""
    seen = view.seen(node.inputs[0])
    sizes = _sizes(view, node.inputs[1])
    return [repeated(view, seen, sizes)]


def repeated(view: View, seen: Seen, sizes: Sequence[Length]) -> Seen:
    """A tensor broadcast to sizes, which may be 1 where the tensor's are not."""
    rank = max(len(seen.axes), len(sizes))
    own = ((),) * (rank - len(seen.axes)) + seen.axes
    wanted = (ONE,) * (rank - len(sizes)) + tuple(sizes)
    for atoms, size in zip(own, wanted, strict=True):
        if atoms and size not in (ONE, product(atoms)):
            raise NotProven("the sizes that it repeats to are not known to fit for every length")
    axes = tuple(atoms or axis_of(size) for atoms, size in zip(own, wanted, strict=True))
    affine = seen.aligned_affine(rank)
    if affine is None and seen.depends_on(view.symbol):
        raise NotProven("it computes with the length of the sequence")
    edges = {}
    for mark in marks_of(axes, view.sequence):
        before = own_mark(mark, seen.axes, rank)
        if before is not None and before in seen.edges:
            edges[mark] = seen.edges[before]
    return replace(seen, axes=axes, edges=edges, items=None, affine=affine)


def tile(view: View, node: Node) -> Sequence[Seen]:
    """Axes of size 1 are repeated; others are left as they are."""
    seen = view.seen(node.inputs[0])
    times = _sizes(view, node.inputs[1])
    if any(atoms and count != ONE for atoms, count in zip(seen.axes, times, strict=True)):
        raise NotProven("it repeats an axis that is more than one place long")
    return [repeated(view, seen, times)]


def concat(view: View, node: Node) -> Sequence[Seen]:
    """Tensors one after the other."""
    parts = [view.seen(name) for name in node.inputs]
    if len(parts) == 1:
        return parts
    axis = int_of(node, "axis", 0) % len(parts[0].axes)
    if all(part.items is not None and len(part.axes) == 1 for part in parts):
        items = [item for part in parts for item in part.items or ()]
        if len(items) <= MOST_ITEMS:
            return [_vector(items)]
    if any(part.depends_on(view.symbol) for part in parts):
        raise NotProven("it computes with the length of the sequence")
    sizes = [part.shape[axis] for part in parts]
    if any(size.number is None for size in sizes):
        raise NotProven("it puts tensors one after the other along an axis that the model leaves open")
    total = sum(size.number or 0 for size in sizes)
    axes = {part.axes[:axis] + part.axes[axis + 1 :] for part in parts}
    if len(axes) > 1:
        raise NotProven("the shapes of its inputs are not known to fit for every length")
    made = (*parts[0].axes[:axis], axis_of(Length.of(total)), *parts[0].axes[axis + 1 :])
    edges = {
        mark: Edge(
            first=joined([part.edge(mark).first for part in parts]),
            padded=joined([part.edge(mark).padded for part in parts]),
        )
        for mark in marks_of(made, view.sequence)
    }
    return [Seen(axes=made, entry=joined([part.entry for part in parts]), edges=edges)]


def split(view: View, node: Node) -> Sequence[Seen]:
    """A tensor in pieces along an axis that is not the sequence."""
    seen = view.seen(node.inputs[0])
    axis = int_of(node, "axis", 0) % len(seen.axes)
    size = seen.shape[axis].number
    if size is None or seen.depends_on(view.symbol):
        raise NotProven("it divides an axis that the model leaves open")
    sizes = numbers(view, node, 1, "split")
    if sizes is None:
        piece = -(-size // len(node.outputs))
        sizes = (*[piece] * (len(node.outputs) - 1), size - piece * (len(node.outputs) - 1))
    return [
        replace(
            seen, axes=(*seen.axes[:axis], axis_of(Length.of(part)), *seen.axes[axis + 1 :]), items=None, affine=None
        )
        for part in sizes
    ]


def triangle(view: View, node: Node) -> Sequence[Seen]:
    """Trilu: what lies on one side of a diagonal becomes 0, which depends on places alone."""
    seen = view.seen(node.inputs[0])
    name = given(node, 1)
    offsets = numbers(view, node, 1) if name else (0,)
    if seen.depends_on(view.symbol) or offsets is None or len(offsets) != 1:
        raise NotProven("which diagonal it takes is not known")
    if any(atoms not in ((), (view.sequence,)) and marks_of([atoms], view.sequence) for atoms in seen.axes[-2:]):
        raise NotProven("where its diagonal runs depends on the length of the sequence")
    upper, offset = int_of(node, "upper", 1), offsets[0]
    edges = {}
    for mark, edge in ((mark, seen.edge(mark)) for mark in marks_of(seen.axes, view.sequence)):
        first = _or_zero(edge.first)
        if mark[0] == len(seen.axes) - 1:
            # The first column: row r is kept above the diagonal where -r >= offset, below it where -r <= offset.
            if upper and offset > 0:
                first = _zero_like(edge.first)
            elif not upper and offset >= 0:
                first = edge.first
        edges[mark] = Edge(first=first, padded=_or_zero(edge.padded))
    return [Seen(axes=seen.axes, entry=_or_zero(seen.entry), edges=edges)]


def _or_zero(entry: Entry) -> Entry:
    return joined([entry, _zero_like(entry)])


def _zero_like(entry: Entry) -> Entry:
    return np.float32(0) if isinstance(entry, Kind) else type(entry)(0)
