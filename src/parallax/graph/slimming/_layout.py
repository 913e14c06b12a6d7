"""Operators that move elements: which channels lie where afterwards."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from parallax.graph._op_graph import Node
from parallax.graph._tensor_info import Dim
from parallax.graph.slimming._channels import STANDARD, Channels, Track, integer, integers, label, unknown, values_along
from parallax.graph.slimming._joining import join
from parallax.graph.slimming._records import Indices, Values

_THREE_IN_ONE = 3
"""Query, key and value that one matrix product makes."""


def transpose(channels: Channels, node: Node) -> None:
    """``Transpose``."""
    name = node.inputs[0]
    rank = channels.rank(name)
    order = integers(node, "perm") or (None if rank is None else tuple(reversed(range(rank))))
    if order is None:
        return
    for axis in channels.axes(name):
        ids, values = channels.take(name, axis)
        channels.give(node.outputs[0], order.index(axis), ids, values)


def unsqueeze(channels: Channels, node: Node) -> None:
    """``Unsqueeze``: axes of size 1 come in between."""
    name = node.inputs[0]
    added, rank = _axes(channels, node), channels.rank(name)
    if added is None or rank is None:
        return
    places = [axis for axis in range(rank + len(added)) if axis not in {one % (rank + len(added)) for one in added}]
    for axis in channels.axes(name):
        ids, values = channels.take(name, axis)
        channels.give(node.outputs[0], places[axis], ids, values)


def squeeze(channels: Channels, node: Node) -> None:
    """``Squeeze`` of stated axes. Without, an axis of which one channel is left would go, too."""
    name = node.inputs[0]
    removed, rank = _axes(channels, node), channels.rank(name)
    if removed is None or rank is None:
        return
    places = [axis for axis in range(rank) if axis not in {one % rank for one in removed}]
    for axis in list(channels.axes(name)):
        if axis in places:
            ids, values = channels.take(name, axis)
            channels.give(node.outputs[0], places.index(axis), ids, values)


def _axes(channels: Channels, node: Node) -> tuple[int, ...] | None:
    """What an operator states of axes, as an attribute or as its second input."""
    stated = integers(node, "axes")
    return stated if stated is not None else channels.ints(node, 1)


def flatten(channels: Channels, node: Node) -> None:
    """``Flatten``: all before an axis is one axis, and all from there on."""
    name = node.inputs[0]
    shape = channels.shape(name)
    if shape is None:
        return
    cut = integer(node, "axis", 1)
    cut = cut + len(shape) if cut < 0 else cut
    for axis in list(channels.axes(name)):
        span = range(cut) if axis < cut else range(cut, len(shape))
        _merge(channels, node, shape, axis, span, 0 if axis < cut else 1)


def reshape(channels: Channels, node: Node) -> None:
    """``Reshape``: an axis stays, becomes several of which one has its channels (heads), or several become one."""
    name, output = node.inputs[0], node.outputs[0]
    before, after = channels.shape(name), channels.shape(output)
    target = _target(channels, node)
    if before is None or target is None or (after is not None and len(after) != len(target)):
        return
    # Of a tensor whose size nobody stated, the channels along an axis have been counted.
    counted = {axis: len(track.ids) for axis, track in channels.axes(name).items()}
    before = tuple(counted.get(axis, size) for axis, size in enumerate(before))
    sizes = [size if size is not None and size > 0 else None for size in target]
    known: list[Dim] = list(after) if after is not None else [None] * len(target)
    full = tuple(size if size is not None else old for size, old in zip(sizes, known, strict=True))
    copied = {axis for axis, size in enumerate(target) if size == 0}
    if -1 in target and not copied:
        full = _with_rest(channels, before, full, target.index(-1))
    for axis in list(channels.axes(name)):
        found = _block(before, full, axis, copied)
        if found is not None:
            _reshape_axis(channels, node, before, full, target, axis, *found)


def _with_rest(channels: Channels, before: Sequence[Dim], after: Sequence[Dim], place: int) -> tuple[Dim, ...]:
    """The sizes after a Reshape with that of the axis that is told to be the rest (-1), if it is known.

    Sizes that are not known divide out where both sides have them: exporters write (batch, tokens, -1, size of a head).
    """
    others = Counter(size for axis, size in enumerate(after) if axis != place)
    open_before = Counter(size for size in before if not isinstance(size, int))
    open_after = Counter(size for size in others.elements() if not isinstance(size, int))
    if open_before != open_after or any(not channels.names_one_size(size) for size in open_before):
        return tuple(after)
    whole = math.prod(size for size in before if isinstance(size, int))
    part = math.prod(size for size in others.elements() if isinstance(size, int))
    if not part or not whole or whole % part:
        return tuple(after)
    return (*after[:place], whole // part, *after[place + 1 :])


def _reshape_axis(
    channels: Channels,
    node: Node,
    before: Sequence[Dim],
    after: Sequence[Dim],
    target: Sequence[int | None],
    axis: int,
    inner: range,
    outer: range,
) -> None:
    """Carry the channels of one axis over.

    Args:
        target: what the operator is told; None for what is computed when the model runs.
        inner, outer: axes before and after that hold the same elements.
    """
    name, output = node.inputs[0], node.outputs[0]

    def is_copied_elsewhere(place: int) -> bool:
        return place != axis and axis < len(target) and target[axis] == 0

    old = [one for one in inner if before[one] != 1]
    new = [one for one in outer if after[one] != 1]
    if old == [axis] and len(new) == 1:
        place = new[0]
        if target[place] is None or (target[place] == 0 and place != axis) or is_copied_elsewhere(place):
            return
        ids, values = channels.take(name, axis)
        channels.give(output, place, ids, values)
    elif old == [axis] and len(new) in (2, 3):
        place = new[0] if len(new) == 2 else new[1]
        if not target[place] or is_copied_elsewhere(place) or (len(new) == 3 and after[new[0]] != _THREE_IN_ONE):
            return
        sizes = [size for one in new if isinstance(size := after[one], int)]
        if len(sizes) != len(new) or math.prod(sizes) != len(channels.axes(name)[axis].ids):
            return
        ids, values = channels.take(name, axis)
        rows = np.moveaxis(ids.reshape(sizes), new.index(place), 0).reshape(sizes[new.index(place)], -1)
        held = np.moveaxis(values.reshape(sizes), new.index(place), 0).reshape(rows.shape)
        ids = rows[:, 0]
        channels.link(np.repeat(ids, rows.shape[1] - 1), rows[:, 1:].reshape(-1))
        channels.give(output, place, ids, values_along(held, 0))
    elif len(new) == 1 and axis in old:
        place = new[0]
        if not target[place] or is_copied_elsewhere(place) or not _merge(channels, node, before, axis, inner, place):
            return
        ids = channels.axes(output)[place].ids
    else:
        return
    if (target[place] or 0) > 0:
        channels.targets.append((node, place, ids))


def _merge(channels: Channels, node: Node, shape: Sequence[Dim], axis: int, span: range, place: int) -> bool:
    """Make one axis of several, of which ``axis`` has channels; False where their sizes are not known."""
    sizes = [shape[one] for one in span]
    if not all(isinstance(size, int) for size in sizes) or place in channels.axes(node.outputs[0]):
        return False
    outside = math.prod(int(shape[one] or 0) for one in span if one < axis)
    inside = math.prod(int(shape[one] or 0) for one in span if one > axis)
    ids, values = channels.take(node.inputs[0], axis)
    spread_ids: Indices = np.tile(np.repeat(ids, inside), outside)
    spread: Values = np.tile(np.repeat(values, inside), outside)
    channels.give(node.outputs[0], place, spread_ids, spread)
    return place in channels.axes(node.outputs[0])


def _target(channels: Channels, node: Node) -> list[int | None] | None:
    """What a Reshape is told, None for what is computed when the model runs; None where not even the rank is known."""
    if integer(node, "allowzero", 0):
        return None
    stated = integers(node, "shape") or channels.ints(node, 1)
    if stated is not None:
        return list(stated)
    index = channels.graph.producers.get(node.inputs[1]) if len(node.inputs) > 1 else None
    if index is None:
        return None
    maker = channels.graph.nodes[index]
    if maker.op_type != "Concat" or maker.domain not in STANDARD:
        return None
    target: list[int | None] = []
    for position, name in enumerate(maker.inputs):
        value = channels.ints(maker, position)
        if value is not None:
            if len(value) != 1 and any(size == 0 for size in value):
                return None
            target += value
        elif channels.shape(name) == (1,):
            target.append(None)
        else:
            return None
    return target


def _block(before: Sequence[Dim], after: Sequence[Dim], axis: int, copied: set[int]) -> tuple[range, range] | None:
    """The axes before and after a Reshape that hold the same elements as ``axis`` does; None where none are proven.

    Walks from the right over sizes that are known, as far as both sides have multiplied to the same; then from the left
    over axes that are copied, or equal.
    """
    i, j = len(before), len(after)
    while i and j:
        step = _step(before[:i][::-1], after[:j][::-1])
        if step is None:
            break
        inner, outer = range(i - step[0], i), range(j - step[1], j)
        if axis in inner:
            return inner, outer
        i, j = inner.start, outer.start
    k = 0
    while k < min(i, j):
        is_same = k in copied or (isinstance(before[k], int) and before[k] == after[k])
        if not is_same:
            return None
        if axis == k:
            return range(k, k + 1), range(k, k + 1)
        k += 1
        rest_before, rest_after = before[k:i], after[k:j]
        if axis in range(k, i) and len(rest_after) == 1 and k not in copied:
            return range(k, i), range(k, j)
        if len(rest_before) == 1 and axis == k and rest_after:
            return range(k, i), range(k, j)
    return None


def _step(before: Sequence[Dim], after: Sequence[Dim]) -> tuple[int, int] | None:
    """How many of the first sizes on either side multiply to the same; None where that is not known."""
    if not isinstance(before[0], int) or not isinstance(after[0], int):
        return None
    one, other = before[0], after[0]
    i = j = 1
    while one != other:
        source, place = (before, i) if one < other else (after, j)
        size = source[place] if place < len(source) else None
        if not isinstance(size, int):
            return None
        if one < other:
            one, i = one * size, i + 1
        else:
            other, j = other * size, j + 1
    return (i, j) if one else None


def concat(channels: Channels, node: Node) -> None:
    """``Concat``: the channels of one input after those of the other; along other axes they go only together."""
    rank = channels.rank(node.outputs[0]) or channels.rank(node.inputs[0])
    if rank is None:
        return
    along = integer(node, "axis", 1) % rank
    for axis in range(rank):
        if axis == along:
            continue
        joined = join(channels, node, axis, rank)
        if joined is not None:
            ids, operands = joined
            first = operands[0]
            same = np.logical_and.reduce([np.broadcast_to(first == operand, len(ids)) for operand in operands])
            channels.give(node.outputs[0], axis, ids, np.where(same, first, np.nan))
    if not any(along in channels.axes(name) for name in node.inputs):
        return
    parts: list[Track] = []
    for name in node.inputs:
        if along in channels.axes(name):
            parts.append(channels.axes(name)[along])
            continue
        shape = channels.shape(name)
        size = None if shape is None else shape[along]
        if not isinstance(size, int):
            return
        ids = channels.new(size)
        channels.pin(ids, f"they are of {name!r}, which cannot lose any")
        parts.append(Track(ids, unknown(size)))
    for name in node.inputs:
        if along in channels.axes(name):
            channels.take(name, along)
    channels.give(
        node.outputs[0],
        along,
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.values for part in parts]),
    )


def split(channels: Channels, node: Node) -> None:
    """``Split``: parts of the channels each."""
    name = node.inputs[0]
    rank = channels.rank(name)
    if rank is None or not all(node.outputs):
        return
    along = integer(node, "axis", 0) % rank
    for axis in list(channels.axes(name)):
        if axis != along:
            ids, values = channels.take(name, axis)
            for output in node.outputs:
                channels.give(output, axis, ids, values)
    track = channels.axes(name).get(along)
    if track is None:
        return
    sizes = integers(node, "split")
    if sizes is None and len(node.inputs) > 1 and node.inputs[1]:
        sizes = channels.ints(node, 1)
        if sizes is None:
            return
    if sizes is None:
        part = -(-len(track.ids) // len(node.outputs))
        sizes = tuple(min(part, len(track.ids) - part * place) for place in range(len(node.outputs)))
    if len(sizes) != len(node.outputs) or sum(sizes) != len(track.ids) or min(sizes) < 1:
        return
    channels.take(name, along)
    bounds = np.cumsum(sizes)[:-1]
    parts = np.split(track.ids, bounds)
    for output, ids, values in zip(node.outputs, parts, np.split(track.values, bounds), strict=True):
        channels.give(output, along, ids, values)
    channels.splits.append((node, parts))


def gather(channels: Channels, node: Node) -> None:
    """``Gather`` of whole slices keeps the other axes."""
    name = node.inputs[0]
    rank, indices = channels.rank(name), channels.rank(node.inputs[1])
    if rank is None or indices is None:
        return
    along = integer(node, "axis", 0) % rank
    for axis in list(channels.axes(name)):
        if axis != along:
            ids, values = channels.take(name, axis)
            channels.give(node.outputs[0], axis if axis < along else axis - 1 + indices, ids, values)


def slice_each(channels: Channels, node: Node) -> None:
    """``Slice`` keeps the axes that it does not cut."""
    name = node.inputs[0]
    rank = channels.rank(name)
    cut = integers(node, "axes")
    if cut is None and len(node.inputs) > 3 and node.inputs[3]:
        cut = channels.ints(node, 3)
        if cut is None:
            return
    if cut is None:
        starts = integers(node, "starts")
        shape = channels.shape(node.inputs[1]) if starts is None and len(node.inputs) > 1 else None
        count = len(starts) if starts is not None else shape[0] if shape else None
        if not isinstance(count, int):
            return
        cut = tuple(range(count))
    if rank is None:
        return
    for axis in list(channels.axes(name)):
        if axis not in {one % rank for one in cut}:
            ids, values = channels.take(name, axis)
            channels.give(node.outputs[0], axis, ids, values)


def shape_of(channels: Channels, node: Node) -> None:
    """``Shape``: right as long as nobody looks at the sizes of axes that lose channels."""
    name = node.inputs[0]
    rank = channels.rank(name)
    if rank is None or node.outputs[0] in channels.graph.output_names:
        return
    first = integer(node, "start", 0)
    first = max(first + rank, 0) if first < 0 else first
    last = integer(node, "end", rank)
    last = last + rank if last < 0 else min(last, rank)
    axes = list(range(first, last))
    looked: set[int] = set()
    for index in channels.graph.consumers.get(node.outputs[0], ()):
        picked = _picked(channels, channels.graph.nodes[index], node.outputs[0], len(axes))
        if picked is None:
            return
        looked.update(axes[place] for place in picked)
    for axis in list(channels.axes(name)):
        if axis not in looked:
            channels.take(name, axis)
        else:
            channels.pin(channels.axes(name)[axis].ids, f"{label(node)} tells how many there are")


def _picked(channels: Channels, reader: Node, name: str, count: int) -> set[int] | None:
    """Which elements of a list of ``count`` a node reads; None where that is not known."""
    if reader.domain not in STANDARD or reader.inputs[0] != name or reader.captures:
        return None
    if reader.op_type == "Gather":
        places = channels.ints(reader, 1)
        if places is None or name in reader.inputs[1:] or any(not -count <= place < count for place in places):
            return None
        return {place % count for place in places}
    if reader.op_type == "Slice" and len(reader.inputs) >= 3:
        starts, ends = channels.ints(reader, 1), channels.ints(reader, 2)
        has_steps = len(reader.inputs) > 4 and channels.ints(reader, 4) != (1,)
        if starts is None or ends is None or len(starts) != 1 or len(ends) != 1 or has_steps:
            return None
        return set(range(count)[starts[0] : ends[0]])
    return None
