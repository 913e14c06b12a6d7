"""Convolutions and matrix products: they make channels from channels, each a sum of all that they read.

A channel that is read can go where the reader multiplies it by 0, where it is 0, or where it is constant and what it
adds can go into the reader's bias. At a border that a convolution pads with zeros, a constant adds less than elsewhere:
there it has to be 0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from parallax.graph._op_graph import Node
from parallax.graph.slimming._channels import (
    Array,
    Channels,
    Fold,
    Source,
    integer,
    is_padded,
    label,
    number,
    unknown,
    zeros_only,
)
from parallax.graph.slimming._joining import join
from parallax.graph.slimming._records import Indices, Values

Mask = npt.NDArray[np.bool_]


def convolve(channels: Channels, node: Node) -> None:
    """``Conv``: W is (out, in / groups, kernel...)."""
    weight, bias = channels.array(node, 1), channels.array(node, 2)
    if weight is None or weight.ndim < 3:
        _refuse_computed(channels, node, 1)
        return
    has_bias = len(node.inputs) > 2 and bool(node.inputs[2])
    groups = integer(node, "group", 1)
    if (has_bias and bias is None) or groups < 1 or weight.shape[0] % groups:
        channels.refuse(node, "its bias is computed")
        return
    name, count = node.inputs[0], weight.shape[0]
    incoming = channels.axes(name).get(1)
    if incoming is not None and len(incoming.ids) != weight.shape[1] * groups:
        return
    known = unknown(weight.shape[1] * groups) if incoming is None else incoming.values
    added = np.zeros(count) if bias is None else bias.astype(np.float64)
    if groups == 1:
        kernel = weight.reshape(*weight.shape[:2], -1)
        foldable, sums = not is_padded(node), kernel.sum(axis=2, dtype=np.float64)
        made = _multiply(channels, node, _used(kernel), sums, known, added, foldable=foldable)
        outgoing = channels.new(count)
        if incoming is not None:
            _drop_inputs(channels, node, made, outgoing, foldable=foldable)
            channels.claim(1, 1, incoming.ids)
    else:
        made = _multiply_groups(channels, node, weight, known, added, groups)
        if incoming is None:
            # What it reads has no channels that could go, and a group is one of what it reads.
            outgoing = channels.new(count)
            channels.pin(outgoing, f"{label(node)} has {groups} groups, and what it reads stays")
        elif weight.shape[1] == 1:
            outgoing = np.repeat(incoming.ids, count // groups)
        else:
            outgoing = channels.new(count)
            _link_groups(channels, incoming.ids, outgoing, groups)
        if incoming is not None:
            channels.take(name, 1)
            channels.groups.append((node, incoming.ids, weight.shape[1]))
    channels.claim(1, 0, outgoing)
    if has_bias:
        channels.claim(2, 0, outgoing)
    _make(channels, node, 1, outgoing, made)


def convolve_transposed(channels: Channels, node: Node) -> None:
    """``ConvTranspose``: W is (in, out, kernel...). What a constant adds differs from place to place."""
    weight, bias = channels.array(node, 1), channels.array(node, 2)
    has_bias = len(node.inputs) > 2 and bool(node.inputs[2])
    if weight is None or weight.ndim < 3 or (has_bias and bias is None):
        _refuse_computed(channels, node, 1)
        return
    incoming = channels.axes(node.inputs[0]).get(1)
    if integer(node, "group", 1) != 1 or (incoming is not None and len(incoming.ids) != weight.shape[0]):
        return
    kernel = np.moveaxis(weight.reshape(*weight.shape[:2], -1), 0, 1)
    known = unknown(weight.shape[0]) if incoming is None else incoming.values
    added = np.zeros(weight.shape[1]) if bias is None else bias.astype(np.float64)
    made = _multiply(channels, node, _used(kernel), kernel.sum(axis=2, dtype=np.float64), known, added, foldable=False)
    outgoing = channels.new(weight.shape[1])
    if incoming is not None:
        _drop_inputs(channels, node, made, outgoing, foldable=False)
        channels.claim(1, 0, incoming.ids)
    channels.claim(1, 1, outgoing)
    if has_bias:
        channels.claim(2, 0, outgoing)
    _make(channels, node, 1, outgoing, made)


def multiply_add(channels: Channels, node: Node) -> None:
    """``Gemm``: alpha * A * B + beta * C, of which B and C are constant."""
    matrix, bias = channels.array(node, 1), channels.array(node, 2)
    has_bias = len(node.inputs) > 2 and bool(node.inputs[2])
    if matrix is None or matrix.ndim != 2:
        _refuse_computed(channels, node, 1)
        return
    if (has_bias and bias is None) or integer(node, "transA", 0):
        return
    is_transposed = bool(integer(node, "transB", 0))
    weight = matrix if is_transposed else matrix.T
    count = weight.shape[0]
    is_row = bias is not None and bias.ndim > 0 and bias.shape[-1] == count
    if bias is not None and bias.ndim == 2 and bias.shape[0] != 1:
        return
    alpha, beta = number(node, "alpha", 1.0), number(node, "beta", 1.0)
    added = np.zeros(count)
    if bias is not None:
        added = added + beta * bias.reshape(-1).astype(np.float64)
    incoming = channels.axes(node.inputs[0]).get(1)
    if incoming is not None and len(incoming.ids) != weight.shape[1]:
        return
    known = unknown(weight.shape[1]) if incoming is None else incoming.values
    scaled = weight if alpha == 1 else alpha * weight
    # A constant that all of the bias shares cannot take in one value per channel.
    foldable = beta != 0 and (bias is None or is_row)
    made = _multiply(channels, node, weight != 0, scaled, known, added, foldable=True)
    outgoing = channels.new(count)
    if incoming is not None:
        _drop_inputs(channels, node, made, outgoing, foldable=foldable, scale=1 / beta if beta else 1.0)
        channels.claim(1, 1 if is_transposed else 0, incoming.ids)
    channels.claim(1, 0 if is_transposed else 1, outgoing)
    if is_row and bias is not None:
        channels.claim(2, bias.ndim - 1, outgoing)
    _make(channels, node, 1, outgoing, made)


def multiply(channels: Channels, node: Node) -> None:
    """``MatMul``: by a constant matrix, or of two computed tensors."""
    left = node.inputs[0]
    matrix, rank = channels.array(node, 1), channels.rank(left)
    if matrix is None:
        _refuse_computed(channels, node, 1)
        if channels.root(left) is None:
            _multiply_computed(channels, node)
        return
    if matrix.ndim != 2 or rank is None or rank < 2:
        return
    inner = rank - 1
    for axis, track in channels.axes(left).items():
        if axis != inner:
            channels.take(left, axis)
            channels.give(node.outputs[0], axis, track.ids, zeros_only(track.values))
    incoming = channels.axes(left).get(inner)
    if incoming is not None and len(incoming.ids) != matrix.shape[0]:
        return
    weight = matrix.T
    known = unknown(matrix.shape[0]) if incoming is None else incoming.values
    made = _multiply(channels, node, weight != 0, weight, known, np.zeros(len(weight)), foldable=True)
    outgoing = channels.new(len(weight))
    if incoming is not None:
        _drop_inputs(channels, node, made, outgoing, foldable=True)
        channels.claim(1, 0, incoming.ids)
    channels.claim(1, 1, outgoing)
    _make(channels, node, inner, outgoing, made)


def _multiply_computed(channels: Channels, node: Node) -> None:
    """Two computed tensors, as in attention: leading axes go along, the inner one is summed over."""
    left, right = node.inputs
    if left == right:  # an axis of it is summed over on one side, and kept on the other
        return
    rank_left, rank_right = channels.rank(left) or 0, channels.rank(right) or 0
    if min(rank_left, rank_right) < 2:
        return
    rank = max(rank_left, rank_right)
    output = node.outputs[0]
    is_bounded = _cause(channels, node) is None
    for axis in range(rank - 2):
        joined = join(channels, node, axis, rank)
        if joined is not None:
            ids, (one, other) = joined
            is_zero = ((one == 0) | (other == 0)) if is_bounded else (one == 0) & (other == 0)
            channels.give(output, axis, ids, np.where(np.broadcast_to(is_zero, len(ids)), 0.0, np.nan))
    for name, own, axis in ((left, rank_left - 2, rank - 2), (right, rank_right - 1, rank - 1)):
        if own in channels.axes(name):
            track = channels.take(name, own)
            channels.give(output, axis, track.ids, zeros_only(track.values))
    inner = (left, rank_left - 1), (right, rank_right - 2)
    if all(axis in channels.axes(name) for name, axis in inner):
        summed, with_them = (channels.take(name, axis) for name, axis in inner)
        channels.link(summed.ids, with_them.ids)
        adds = ~((summed.values == 0) | (with_them.values == 0))
        channels.pin(summed.ids[adds], f"{label(node)} adds up products of which none is known to be 0")
        if not is_bounded:
            channels.pin(summed.ids, str(_cause(channels, node)))


# -- a constant matrix, (out, in) ----------------------------------------------------------------------------------


class _Product:
    """What is known of a product: of each channel that is made, and of each that is read."""

    def __init__(self, used: Mask, weight: Array, known: Values) -> None:
        self.used = used
        """(out, in): whether any weight between the two is not 0."""
        self.weight = weight
        """(out, in): what a constant 1 of the latter adds to the former."""
        self.known = known
        self.values = unknown(len(used))
        self.zero: Mask = np.asarray(~used.any(axis=1))
        self.fixed: Mask = self.zero.copy()


def _used(kernel: Array) -> Mask:
    return np.asarray((kernel != 0).any(axis=2))


def _cause(channels: Channels, node: Node) -> str | None:
    """What can make an input of this node infinite or NaN."""
    return next((channels.unbounded[name] for name in node.inputs if name in channels.unbounded), None)


def _multiply(
    channels: Channels, node: Node, used: Mask, weight: Array, known: Values, added: Values, *, foldable: bool
) -> _Product:
    """What is known of the channels that are made.

    Args:
        known: the values of those that are read.
        added: to each that is made; what the bias is.
        foldable: whether a constant that is read adds the same everywhere.
    """
    made = _Product(used, weight, known)
    is_open = np.isnan(known)
    values = np.where(is_open, 0.0, known)
    made.fixed = np.asarray(~used[:, is_open].any(axis=1))
    if (values != 0).any():
        if foldable:
            added = added + weight[:, values != 0].astype(np.float64) @ values[values != 0]
        else:
            made.fixed &= ~used[:, values != 0].any(axis=1)
    cause = _cause(channels, node)
    if cause is None:
        made.values = np.where(made.fixed, added, np.nan)
    return made


def _multiply_groups(
    channels: Channels, node: Node, weight: Array, known: Values, added: Values, groups: int
) -> _Product:
    """Likewise, where each group of channels is made from one of those that are read."""
    inside = weight.shape[1]
    kernel = weight.reshape(groups, weight.shape[0] // groups, inside, -1)
    used = (kernel != 0).any(axis=3)
    sums = kernel.sum(axis=3, dtype=np.float64)
    values = known.reshape(groups, 1, inside)
    is_open = np.isnan(values)
    fixed = ~(used & is_open).any(axis=2)
    adds = used & ~is_open & (values != 0)
    made = _Product(used.reshape(len(weight), inside), sums.reshape(len(weight), inside), known)
    if is_padded(node):
        fixed &= ~adds.any(axis=2)
    else:
        added = added + np.where(adds, sums * np.where(is_open, 0.0, values), 0.0).sum(axis=2).reshape(-1)
    made.fixed = fixed.reshape(-1)
    if _cause(channels, node) is None:
        made.values = np.where(made.fixed, added, np.nan)
    return made


def _drop_inputs(
    channels: Channels, node: Node, made: _Product, outgoing: Indices, *, foldable: bool, scale: float = 1.0
) -> None:
    """Take what a product reads along its inner axis: pin what counts, and fold what is constant."""
    name = node.inputs[0]
    axis = 1 if node.op_type != "MatMul" else (channels.rank(name) or 0) - 1
    incoming = channels.take(name, axis).ids
    known = made.known
    is_open, is_used = np.isnan(known), made.used.any(axis=0)
    channels.pin(incoming[is_open & is_used], f"{label(node)} multiplies them by weights that are not 0")
    cause = _cause(channels, node)
    if cause is not None:
        channels.pin(incoming[is_open], cause)
    adds = is_used & ~is_open & (known != 0)
    if not adds.any():
        return
    if not foldable:
        why = "zero padding stands before" if node.op_type == "Conv" else "a constant that is not 0 has no place in"
        channels.pin(incoming[adds], f"{why} {label(node)}")
        return
    weight = made.weight

    def delta(gone: Mask) -> Values:
        folded = gone & adds
        return np.asarray(scale * (weight[:, folded].astype(np.float64) @ known[folded]), np.float64)

    channels.folds.append(Fold(node, incoming, outgoing, delta))


def _make(channels: Channels, node: Node, axis: int, outgoing: Indices, made: _Product) -> None:
    channels.sources.append(Source(node, axis, outgoing, made.zero, made.fixed))
    cause = _cause(channels, node)
    if cause is not None:
        channels.pin(outgoing[made.fixed], cause)
    channels.give(node.outputs[0], axis, outgoing, made.values)


def _link_groups(channels: Channels, incoming: Indices, outgoing: Indices, groups: int) -> None:
    """A group goes as a whole: what it reads and what it makes."""
    for ids in (incoming, outgoing):
        members = ids.reshape(groups, -1)
        channels.link(members[:, 1:].reshape(-1), np.repeat(members[:, 0], members.shape[1] - 1))
    channels.link(incoming.reshape(groups, -1)[:, 0], outgoing.reshape(groups, -1)[:, 0])


def _refuse_computed(channels: Channels, node: Node, position: int) -> None:
    """Say why the weights of a product cannot be looked at."""
    graph = channels.graph
    index = graph.producers.get(node.inputs[position]) if position < len(node.inputs) else None
    if index is None:
        if position < len(node.inputs) and node.inputs[position] in graph.initializers:
            channels.refuse(node, "its weights may be fed by callers, or are of a type that is not looked into")
        return
    maker = graph.nodes[index]
    if maker.op_type == "DequantizeLinear":
        channels.refuse(node, "its weights are quantised")
    elif maker.op_type == "Constant":
        channels.refuse(node, "its weights lie in a Constant node")
    elif all(channels.root(name) is not None for name in maker.inputs if name):
        channels.refuse(node, f"its weights are computed by {maker.op_type}")
