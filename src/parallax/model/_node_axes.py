"""Attributes of nodes, and the axes along which an operator mixes elements, for rules about operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from parallax.graph import Node


class Shapes(Protocol):
    """What these functions ask of a graph."""

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        ...


def int_attribute(node: Node, name: str, default: int) -> int:
    """The attribute if it is an integer, otherwise ``default``."""
    value = node.attributes.get(name)
    return value if isinstance(value, int) else default


def ints_attribute(node: Node, name: str, default: Sequence[int] = ()) -> tuple[int, ...]:
    """The attribute if it is a list of integers, otherwise ``default``."""
    value = node.attributes.get(name)
    return tuple(value) if isinstance(value, tuple) else tuple(default)


def attribute_axis(default: int) -> Callable[[Shapes, Node], Sequence[int]]:
    """A function that gives the one axis that the attribute ``axis`` names. It may be negative."""
    return lambda graph, node: (int_attribute(node, "axis", default),)


def softmax_axes(graph: Shapes, node: Node) -> Sequence[int]:
    """The axes that Softmax and its like normalise over. Before opset 13 the axes from one on were taken for one."""
    if graph.opset >= 13:
        return (int_attribute(node, "axis", -1),)
    rank = len(graph.shape(node.inputs[0]))
    return range(int_attribute(node, "axis", 1) % rank, rank)


def normalised_axes(graph: Shapes, node: Node) -> Sequence[int]:
    """The axes that LayerNormalization and its like normalise over: those from ``axis`` on."""
    rank = len(graph.shape(node.inputs[0]))
    return range(int_attribute(node, "axis", -1) % rank, rank)
