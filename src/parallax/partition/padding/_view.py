"""What rules about operators see of a graph, and what they ask of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from parallax.graph import Node
from parallax.partition.padding._lengths import Length
from parallax.partition.padding._seen import NotProven, Seen


class View(Protocol):
    """A graph that is looked at, one node after the other."""

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators."""
        ...

    @property
    def sequence(self) -> Length:
        """The length of the sequence."""
        ...

    @property
    def symbol(self) -> str:
        """Its name."""
        ...

    def seen(self, name: str) -> Seen:
        """What is known of a tensor."""
        ...

    def filling(self, node: Node) -> np.generic | None:
        """What a ConstantOfShape repeats, where it is known."""
        ...

    def keep_at_least(self, places: int) -> None:
        """The model reads so many places by their numbers: no fewer may be kept."""
        ...

    def allow_at_most(self, places: int) -> None:
        """A table of the model has so many places: longer sequences are no concern of the proof."""
        ...


Rule = Callable[[View, Node], Sequence[Seen]]
"""What is known of a node's outputs, in their order; of those beyond the answer nothing is. Raises: NotProven."""


def given(node: Node, place: int) -> str:
    """The name of an input; "" where it is omitted."""
    return node.inputs[place] if place < len(node.inputs) else ""


def int_of(node: Node, name: str, default: int) -> int:
    """An attribute that is an integer."""
    value = node.attributes.get(name)
    return value if isinstance(value, int) else default


def numbers(view: View, node: Node, place: int, attribute: str = "") -> tuple[int, ...] | None:
    """Integers that are an input in newer versions and an attribute in older ones; None where they are omitted.

    Raises: NotProven if they are not known.
    """
    name = given(node, place)
    if not name:
        value = node.attributes.get(attribute)
        return tuple(value) if isinstance(value, tuple) else None
    items = view.seen(name).items
    found = [item.number for item in items or ()]
    if items is None or None in found:
        raise NotProven(f"{name!r} is not known beforehand")
    return tuple(number for number in found if number is not None)


def axes_of(view: View, node: Node, place: int, rank: int) -> tuple[int, ...] | None:
    """Axes that are an input or the attribute ``axes``, counted from the first; None where they are omitted.

    Raises: NotProven if they are not known.
    """
    found = numbers(view, node, place, "axes")
    return None if found is None else tuple(axis % rank for axis in found)
