"""Rules for operators that pick elements by their places: of the sequence, of tables, of vectors of sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from parallax.graph import Node
from parallax.partition.padding._entries import Entry, Kind
from parallax.partition.padding._lengths import ZERO, Length, product
from parallax.partition.padding._seen import Atoms, Mark, NotProven, Seen, axis_of
from parallax.partition.padding._view import View, given, int_of, numbers

_TO_THE_END: Final = 2**31 - 1
"""An end from which on exporters mean the end of the axis."""


def cut_out(view: View, node: Node) -> Sequence[Seen]:
    """Slice: ranges along axes."""
    seen = view.seen(node.inputs[0])
    starts, ends = _bounds(view, node, 1, "starts"), _bounds(view, node, 2, "ends")
    touched = numbers(view, node, 3, "axes")
    steps = numbers(view, node, 4) if given(node, 4) else None
    places = tuple(range(len(starts))) if touched is None else touched
    bounds = [(start.number, end.number) for start, end in zip(starts, ends, strict=True)]
    if seen.items is not None and len(bounds) == 1 and None not in bounds[0]:
        picked = seen.items[slice(*bounds[0], 1 if steps is None else steps[0])]
        return [Seen(axes=(axis_of(Length.of(len(picked))),), items=picked)]
    axes = list(seen.axes)
    kept = list(range(len(axes)))
    for number, place in enumerate(places):
        axis = place % len(axes)
        step = 1 if steps is None else steps[number]
        cut = _cut_axis(view, seen.axes[axis], starts[number], ends[number], step)
        if cut is not seen.axes[axis]:
            axes[axis] = cut
            kept.remove(axis)
    if not set(kept) < set(range(len(axes))):
        return [seen]
    if seen.depends_on(view.symbol):
        raise NotProven("it computes with the length of the sequence")
    edges = {mark: edge for mark, edge in seen.edges.items() if mark[0] in kept}
    return [replace(seen, axes=tuple(axes), edges=edges, items=None, affine=None)]


def _bounds(view: View, node: Node, place: int, attribute: str) -> tuple[Length, ...]:
    name = given(node, place)
    if not name:
        return tuple(map(Length.of, numbers(view, node, place, attribute) or ()))
    items = view.seen(name).items
    if items is None:
        raise NotProven(f"the bounds {name!r} are not known")
    return items


def _cut_axis(view: View, atoms: Atoms, start: Length, end: Length, step: int) -> Atoms:
    """The axis that is left; the same object where nothing is cut."""
    size = product(atoms)
    is_to_end = end == size or (end.number is not None and end.number >= _TO_THE_END)
    if start == ZERO and is_to_end and step == 1:
        return atoms
    if size.number is not None:
        return _cut_table(view, size.number, start, end, step)
    first, last = start.number, end.number
    is_stated = first is not None and last is not None and 0 <= first < last < _TO_THE_END
    if is_stated and last is not None and step == 1 and atoms == (view.sequence,):
        view.keep_at_least(last)
        return axis_of(end - start)
    raise NotProven("it takes a part of an axis that the model leaves open")


def _cut_table(view: View, size: int, start: Length, end: Length, step: int) -> Atoms:
    """A part of an axis of known size; along one that is as long as the sequence, place by place the same."""
    if start.number is not None and end.number is not None:
        return axis_of(Length.of(len(range(*slice(start.number, end.number, step).indices(size)))))
    length = end - start
    if start.number is None or start.number < 0 or step != 1 or length != view.sequence:
        raise NotProven("it takes a part of a table whose places are not known")
    view.allow_at_most(size - start.number)
    return (length,)


def gather(view: View, node: Node) -> Sequence[Seen]:
    """Gather: elements along one axis, by their numbers."""
    seen, by = view.seen(node.inputs[0]), view.seen(node.inputs[1])
    axis = int_of(node, "axis", 0) % len(seen.axes)
    if seen.items is not None and by.items is not None:
        return [_picked_items(seen.items, by)]
    if seen.depends_on(view.symbol):
        raise NotProven("it computes with the length of the sequence")
    axes = (*seen.axes[:axis], *by.axes, *seen.axes[axis + 1 :])
    edges = {}
    for mark, edge in seen.edges.items():
        if mark[0] != axis:
            edges[(mark[0] if mark[0] < axis else mark[0] + len(by.axes) - 1, mark[1])] = edge
    if view.symbol not in product(seen.axes[axis]).symbols:
        if by.depends_on(view.symbol):
            raise NotProven("it picks by numbers that are computed from the length of the sequence")
        is_table = by.items is None and seen.entry is Kind.STORED
        entry: Entry = Kind.ORDINARY if is_table else seen.entry
        return [Seen(axes=axes, entry=entry, edges={} if is_table else edges)]
    if by.items and all((item.number if item.number is not None else -1) >= 0 for item in by.items):
        if seen.axes[axis] != (view.sequence,):
            raise NotProven("it picks places along an axis that is the sequence and more")
        view.keep_at_least(1 + max(item.number or 0 for item in by.items))
        return [Seen(axes=axes, entry=seen.entry, edges=edges)]
    for own, mark in _same_places(view, seen.axes[axis], by).items():
        if (axis, own) in seen.edges:
            edges[(axis + mark[0], mark[1])] = seen.edges[axis, own]
    return [Seen(axes=axes, entry=seen.entry, edges=edges)]


def gather_elements(view: View, node: Node) -> Sequence[Seen]:
    """GatherElements: for each place its own number along one axis, which must not be the sequence."""
    seen, by = view.seen(node.inputs[0]), view.seen(node.inputs[1])
    axis = int_of(node, "axis", 0) % len(seen.axes)
    if seen.depends_on(view.symbol) or by.depends_on(view.symbol):
        raise NotProven("it computes with the length of the sequence")
    if view.symbol in product(seen.axes[axis]).symbols:
        raise NotProven("it picks places of the sequence by numbers that are computed")
    if any(own != other for place, (own, other) in enumerate(zip(seen.axes, by.axes, strict=True)) if place != axis):
        raise NotProven("the shapes of its inputs are not known to fit for every length")
    return [Seen(axes=by.axes, entry=Kind.ORDINARY if seen.entry is Kind.STORED else seen.entry)]


def _picked_items(items: Sequence[Length], by: Seen) -> Seen:
    places = [item.number for item in by.items or ()]
    if by.items is None or len(by.axes) > 1 or any(place is None or place >= len(items) for place in places):
        raise NotProven("it picks a size by a number that is not known")
    return Seen(axes=by.axes, items=tuple(items[place] for place in places if place is not None))


def _same_places(view: View, atoms: Atoms, by: Seen) -> dict[int, Mark]:
    """Where numbers count through an axis in its own order: for each of its atoms that is the sequence, the mark of
    the numbers' axis that runs along it.

    The axis may be several that were made one; then a number is the sum of an index for each of them times the size of
    those further in, such as ``batch * length + place``.

    Raises: NotProven if they do not.
    """
    affine = by.as_affine()
    error = NotProven("it picks places of the sequence by numbers that are computed")
    if affine is None or affine.start != ZERO:
        raise error
    strides = [product(atoms[place + 1 :]) for place in range(len(atoms))]
    found: dict[int, int] = {}
    for axis, slope in enumerate(affine.slopes):
        if slope == ZERO:
            continue
        place = next((place for place, stride in enumerate(strides) if stride == slope), None)
        if place is None or place in found or by.axes[axis] != (atoms[place],):
            raise error
        found[place] = axis
    if len(found) < len(atoms):
        raise error
    return {place: (axis, 0) for place, axis in found.items() if atoms[place] == view.sequence}
