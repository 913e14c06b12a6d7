"""Operators that compute each element from the elements at its place: activations, arithmetic, normalisation."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from parallax.graph._op_graph import Node
from parallax.graph.slimming._channels import (
    Array,
    Channels,
    integer,
    number,
    unknown,
    value_of,
    zeros_only,
)
from parallax.graph.slimming._joining import join
from parallax.graph.slimming._records import Values

Function = Callable[[Values], Values]
_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: Values) -> Values:
    return 1 / (1 + np.exp(-x))


def _softplus(x: Values) -> Values:
    return np.logaddexp(0.0, x)


def _gelu(node: Node) -> Function:
    if node.attributes.get("approximate", "none") == "tanh":
        return lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def _elu(node: Node) -> Function:
    alpha = number(node, "alpha", 1.0)
    return lambda x: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _selu(node: Node) -> Function:
    alpha, gamma = number(node, "alpha", 1.6732632423543772), number(node, "gamma", 1.0507009873554805)
    return lambda x: gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _celu(node: Node) -> Function:
    alpha = number(node, "alpha", 1.0)
    return lambda x: np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(x / alpha))


def _hard_sigmoid(node: Node) -> Function:
    alpha, beta = number(node, "alpha", 0.2), number(node, "beta", 0.5)
    return lambda x: np.clip(alpha * x + beta, 0, 1)


def _leaky(node: Node) -> Function:
    alpha = number(node, "alpha", 0.01)
    return lambda x: np.where(x >= 0, x, alpha * x)


def _same(function: Function) -> Callable[[Node], Function]:
    return lambda node: function


UNARY: Final[Mapping[str, Callable[[Node], Function]]] = {
    "Abs": _same(np.abs),
    "Cast": _same(lambda x: x),
    "Ceil": _same(zeros_only),
    "Celu": _celu,
    "Cos": _same(np.cos),
    "Elu": _elu,
    "Erf": _same(_erf),
    "Exp": _same(np.exp),
    "Floor": _same(zeros_only),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _same(lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "Identity": _same(lambda x: x),
    "LeakyRelu": _leaky,
    "Log": _same(np.log),
    "Mish": _same(lambda x: x * np.tanh(_softplus(x))),
    "Neg": _same(np.negative),
    "Reciprocal": _same(lambda x: 1 / x),
    "Relu": _same(lambda x: np.maximum(x, 0)),
    "Round": _same(zeros_only),
    "Selu": _selu,
    "Sigmoid": _same(_sigmoid),
    "Sign": _same(zeros_only),
    "Sin": _same(np.sin),
    "Softplus": _same(_softplus),
    "Softsign": _same(lambda x: x / (1 + np.abs(x))),
    "Sqrt": _same(np.sqrt),
    "Tanh": _same(np.tanh),
    "ThresholdedRelu": _same(zeros_only),
}
"""Operator -> what makes its function of one number. Of functions with steps only what they make of 0 is stated: the
runtime's own arithmetic, of less precision than this one, may give it a number on the other side of a step."""

JOINS: Final[Mapping[str, Callable[[list[Values]], Values]]] = {
    "Add": lambda operands: operands[0] + operands[1],
    "Div": lambda operands: operands[0] / operands[1],
    "Max": lambda operands: _fold(np.maximum, operands),
    "Mean": lambda operands: _fold(np.add, operands) / len(operands),
    "Min": lambda operands: _fold(np.minimum, operands),
    "Mul": lambda operands: operands[0] * operands[1],
    "PRelu": lambda operands: np.where(operands[0] >= 0, operands[0], operands[1] * operands[0]),
    "Pow": lambda operands: operands[0] ** operands[1],
    "Sub": lambda operands: operands[0] - operands[1],
    "Sum": lambda operands: _fold(np.add, operands),
    "Where": lambda operands: np.where(operands[1] == operands[2], operands[1], np.nan),
}
"""Operator -> its function of the values of its operands, NaN where one is not known and counts."""


def _fold(function: Any, operands: list[Values]) -> Values:
    result: Values = operands[0]
    for operand in operands[1:]:
        result = function(result, operand)
    return result


def _known(function: Callable[[], Values], count: int) -> Values:
    """What a function gives, one value per channel."""
    with np.errstate(all="ignore"):
        return np.broadcast_to(np.asarray(function(), np.float64), count)


def map_each(channels: Channels, node: Node) -> None:
    """A function of one operand."""
    name, function = node.inputs[0], UNARY[node.op_type](node)
    for axis in channels.axes(name):
        ids, values = channels.take(name, axis)
        channels.give(node.outputs[0], axis, ids, _known(functools.partial(function, values), len(ids)))


def drop_out(channels: Channels, node: Node) -> None:
    """``Dropout`` outside of training gives what it reads."""
    if channels.is_read(node, 1) or (len(node.inputs) > 2 and node.inputs[2]):
        return
    for axis in channels.axes(node.inputs[0]):
        ids, values = channels.take(node.inputs[0], axis)
        channels.give(node.outputs[0], axis, ids, values)


def clip(channels: Channels, node: Node) -> None:
    """``Clip``, whose bounds are attributes or inputs of one element."""
    bounds = []
    for position, name, default in ((1, "min", -np.inf), (2, "max", np.inf)):
        if position < len(node.inputs) and node.inputs[position]:
            bounds.append(value_of(channels.array(node, position)))
        else:
            bounds.append(number(node, name, float(default)))
    name = node.inputs[0]
    for axis in channels.axes(name):
        ids, values = channels.take(name, axis)
        low, high = bounds
        clipped = np.minimum(np.maximum(values, low), high)  # unknown where a bound is
        channels.give(node.outputs[0], axis, ids, clipped)


def join_each(channels: Channels, node: Node) -> None:
    """A function of several operands that are broadcast to each other."""
    ranks = [channels.rank(name) if channels.array(node, place) is None else None for place, name in _named(node)]
    arrays = [channels.array(node, place) for place, _ in _named(node)]
    if any(rank is None and array is None for rank, array in zip(ranks, arrays, strict=True)):
        return
    rank = max(array.ndim if array is not None else (known or 0) for known, array in zip(ranks, arrays, strict=True))
    output = channels.rank(node.outputs[0])
    if output is not None and output != rank:
        return
    function = JOINS[node.op_type]
    is_bounded = not any(name in channels.unbounded for name in node.inputs)
    for axis in range(rank):
        joined = join(channels, node, axis, rank)
        if joined is None:
            continue
        ids, operands = joined
        values = _known(functools.partial(function, operands), len(ids))
        if node.op_type == "Mul" and is_bounded:
            values = np.where((operands[0] == 0) | (operands[1] == 0), 0.0, values)
        channels.give(node.outputs[0], axis, ids, values)


def _named(node: Node) -> list[tuple[int, str]]:
    return [(place, name) for place, name in enumerate(node.inputs) if name]


def _vectors(channels: Channels, node: Node, count: int, positions: range) -> list[Array] | None:
    """Constant inputs of one number per channel; None where one is something else."""
    found = [channels.array(node, position) for position in positions]
    if any(array is None or array.shape != (count,) for array in found):
        return None
    return [array.astype(np.float64) for array in found if array is not None]


def normalise_batch(channels: Channels, node: Node) -> None:
    """``BatchNormalization`` outside of training: a scale and a shift per channel."""
    name = node.inputs[0]
    track = channels.axes(name).get(1)
    if (
        track is None
        or integer(node, "training_mode", 0)
        or any(channels.is_read(node, place) for place in range(1, 5))
    ):
        return
    vectors = _vectors(channels, node, len(track.ids), range(1, 5))
    if vectors is None or not integer(node, "spatial", 1):
        return
    scale, shift, mean, variance = vectors
    channels.take(name, 1)
    slope = scale / np.sqrt(variance + number(node, "epsilon", 1e-5))
    values = track.values * slope + (shift - mean * slope)
    cause = channels.unbounded.get(name)
    if cause is None:
        values = np.where(scale == 0, shift, values)
    for position in range(1, 5):
        channels.claim(position, 0, track.ids)
    channels.give(node.outputs[0], 1, track.ids, values)


def normalise_instances(channels: Channels, node: Node) -> None:
    """``InstanceNormalization``: of zeros it makes the shift. Other constants are left with what rounding makes of
    their variance."""
    name = node.inputs[0]
    track = channels.axes(name).get(1)
    vectors = None if track is None else _vectors(channels, node, len(track.ids), range(1, 3))
    if track is None or vectors is None:
        return
    channels.take(name, 1)
    values = np.where(track.values == 0, vectors[1], np.nan)
    for position in (1, 2):
        channels.claim(position, 0, track.ids)
    channels.give(node.outputs[0], 1, track.ids, values)


def soften(channels: Channels, node: Node) -> None:
    """``Softmax`` and what else mixes the elements along some axes, and keeps the others apart."""
    name = node.inputs[0]
    rank = channels.rank(name)
    if rank is None or any(channels.is_read(node, place) for place in range(1, len(node.outputs))):
        return
    is_to_the_end = node.op_type == "LayerNormalization" or channels.opset < 13
    default = -1 if node.op_type == "LayerNormalization" or channels.opset >= 13 else 1
    mixed = integer(node, "axis", default) % rank
    for axis in channels.axes(name):
        if (axis < mixed or (axis > mixed and not is_to_the_end)) and not _has_own(channels, node, axis - rank):
            ids = channels.take(name, axis).ids
            channels.give(node.outputs[0], axis, ids, unknown(len(ids)))


def _has_own(channels: Channels, node: Node, place: int) -> bool:
    """Whether a scale or bias has, or may have, numbers of its own for each channel.

    Args:
        place: of the axis with the channels, counted from the last one (-1).
    """
    shapes = [channels.shape(name) for name in node.inputs[1:] if name]
    return any(shape is None or (-place <= len(shape) and shape[place] != 1) for shape in shapes)
