"""Operators that keep channels apart while they mix other axes: pooling, sums, padding, resizing."""

from __future__ import annotations

from typing import Final

import numpy as np

from parallax.graph._op_graph import Node
from parallax.graph.slimming._channels import (
    Channels,
    integer,
    integers,
    is_padded,
    number,
    unknown,
    value_of,
    zeros_only,
)

_STAY: Final = frozenset({"ReduceMean", "ReduceMax", "ReduceMin"})
"""Of equal elements, these give one of them."""
_SPATIAL: Final = 2


def pool(channels: Channels, node: Node) -> None:
    """Pooling over all axes but batch and channels."""
    name = node.inputs[0]
    if channels.is_read(node, 1):  # places of the largest, counted over all channels
        return
    mixes_border = node.op_type == "LpPool" or (
        node.op_type == "AveragePool"
        and (bool(integer(node, "ceil_mode", 0)) or (bool(integer(node, "count_include_pad", 0)) and is_padded(node)))
    )
    keeps = not mixes_border and node.op_type != "GlobalLpPool"
    for axis in list(channels.axes(name)):
        if axis < _SPATIAL:
            ids, values = channels.take(name, axis)
            channels.give(node.outputs[0], axis, ids, values if keeps else zeros_only(values))


def reduce_axes(channels: Channels, node: Node) -> None:
    """Sums, means and the like over stated axes."""
    name = node.inputs[0]
    rank = channels.rank(name)
    stated = integers(node, "axes")
    if stated is None and len(node.inputs) > 1 and node.inputs[1]:
        stated = channels.ints(node, 1)
    if rank is None or not stated:
        return
    reduced = {axis % rank for axis in stated}
    keeps_rank = bool(integer(node, "keepdims", 1))
    for axis in list(channels.axes(name)):
        if axis not in reduced:
            ids, values = channels.take(name, axis)
            place = axis if keeps_rank else axis - sum(one < axis for one in reduced)
            if node.op_type in ("ReduceLogSum", "ReduceLogSumExp", "ReduceProd"):
                values = unknown(len(ids))
            elif node.op_type not in _STAY:
                values = zeros_only(values)
            channels.give(node.outputs[0], place, ids, values)


def pad(channels: Channels, node: Node) -> None:
    """``Pad`` along other axes."""
    name = node.inputs[0]
    rank = channels.rank(name)
    pads = integers(node, "pads") or channels.ints(node, 1)
    has_axes = len(node.inputs) > 3 and bool(node.inputs[3])
    if rank is None or pads is None or len(pads) != 2 * rank or has_axes:
        return
    mode = node.attributes.get("mode", "constant")
    filled = number(node, "value", 0.0)
    if len(node.inputs) > 2 and node.inputs[2]:
        filled = value_of(channels.array(node, 2))
    for axis in list(channels.axes(name)):
        if not pads[axis] and not pads[axis + rank]:
            ids, values = channels.take(name, axis)
            if mode == "constant":
                values = np.where(values == filled, values, np.nan)
            channels.give(node.outputs[0], axis, ids, values)


def resize(channels: Channels, node: Node) -> None:
    """``Resize`` and ``Upsample`` by constant scales, of which that of the channels is 1."""
    name = node.inputs[0]
    rank = channels.rank(name)
    scales = channels.array(node, 2 if node.op_type == "Resize" and channels.opset >= 11 else 1)
    if rank is None or node.attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return
    axes = integers(node, "axes") or tuple(range(rank))
    for axis in list(channels.axes(name)):
        places = [place for place, one in enumerate(axes) if one % rank == axis]
        is_kept = not places or (
            scales is not None and scales.shape == (len(axes),) and all(scales[place] == 1 for place in places)
        )
        if is_kept:
            ids, values = channels.take(name, axis)
            is_nearest = node.attributes.get("mode", "nearest") == "nearest"
            channels.give(node.outputs[0], axis, ids, values if is_nearest else zeros_only(values))
