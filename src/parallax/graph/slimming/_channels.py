"""The state of the search: for every tensor, along which axes its slices can be told apart, and which are constant.

A slice of a tensor along an axis is a *channel*. Each has a number; channels that can only go together (both sides of
an Add, the values of one attention head) end up with one number. Along with it goes the value that the channel has in
every element and for every input, NaN where there is no such value: constant propagation, on the lattice "unknown or
one number" per channel.

An operator's rule passes numbers and values on (`give`), says that channels go only together (`link`), or that they
cannot go (`pin`). What an operator reads along a numbered axis and its rule does not `take` is pinned, so that an
operator nobody knows keeps all that it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from parallax.graph._elements import NUMPY_TYPES
from parallax.graph._op_graph import Node, OpGraph, constant_value
from parallax.graph._tensor_info import Dim, TensorInfo
from parallax.graph.slimming._finite import find_unbounded
from parallax.graph.slimming._records import Indices, Refusal, Values

Array = npt.NDArray[Any]
STANDARD = ("", "ai.onnx")


class Track(NamedTuple):
    """The channels of one tensor along one axis."""

    ids: Indices
    values: Values


class Source(NamedTuple):
    """An operator that makes channels."""

    node: Node
    axis: int
    ids: Indices
    zero: npt.NDArray[np.bool_]
    """All weights of the channel are 0."""
    fixed: npt.NDArray[np.bool_]
    """The channel is constant."""


class Use(NamedTuple):
    """An input that reads a constant. ``node`` is None for an output of the graph."""

    node: Node | None
    position: int
    axes: Mapping[int, Indices]
    """Axis -> the channels that lie along it; along others the reader needs all."""


class Fold(NamedTuple):
    """A reader whose bias takes in what constant channels add to its output."""

    node: Node
    incoming: Indices
    outgoing: Indices
    delta: Callable[[npt.NDArray[np.bool_]], Values]
    """From which incoming channels go to what they add to each outgoing one."""


@dataclass(slots=True)
class Channels:
    """See the module.

    Args:
        graph: with inferred types.
        opset: of the standard operators.
        constant: the values of an initializer, or None where they are not numbers that can be read.
    """

    graph: OpGraph
    opset: int
    constant: Callable[[str], Array | None]
    tracks: dict[str, dict[int, Track]] = field(default_factory=dict)
    count: int = 0
    links: list[tuple[Indices, Indices]] = field(default_factory=list)
    pins: list[tuple[Indices, str]] = field(default_factory=list)
    """What cannot go, and why; of several reasons the first counts."""
    sources: list[Source] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    uses: dict[str, list[Use]] = field(default_factory=dict)
    folds: list[Fold] = field(default_factory=list)
    groups: list[tuple[Node, Indices, int]] = field(default_factory=list)
    """Convolution, its incoming channels, and how many of them make a group."""
    targets: list[tuple[Node, int, Indices]] = field(default_factory=list)
    splits: list[tuple[Node, list[Indices]]] = field(default_factory=list)
    unbounded: Mapping[str, str] = field(init=False)
    _fed: frozenset[str] = field(init=False)
    _untaken: set[tuple[str, int]] = field(default_factory=set)
    _claimed: dict[int, dict[int, Indices]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._fed = frozenset(info.name for info in self.graph.overridable)
        self.unbounded = find_unbounded(self.graph, lambda name: self._value(self.root(name)))

    # -- what is known -----------------------------------------------------------------------------------

    def shape(self, name: str) -> tuple[Dim, ...] | None:
        """The sizes of a tensor as far as they are known; None where its rank is not."""
        info = self.graph.tensors.get(name) or self.graph.initializers.get(name)
        return None if info is None or info.kind != "tensor" else info.shape

    def names_one_size(self, size: Dim) -> bool:
        """Whether an open size is the same wherever it stands: its name is given to one axis of one input at most, so
        that nobody can feed two sizes for it."""
        stated = [dim for info in self.graph.inputs for dim in info.shape or ()]
        return isinstance(size, str) and stated.count(size) <= 1

    def rank(self, name: str) -> int | None:
        """Of a tensor; None where it is not known."""
        shape = self.shape(name)
        return None if shape is None else len(shape)

    def root(self, name: str) -> str | None:
        """The constant that a tensor is, be it by way of Identity nodes; None where it is none that can be read."""
        graph = self.graph
        while name and name not in self._fed:
            if name in graph.initializers:
                return name
            index = graph.producers.get(name)
            if index is None:
                return None
            node = graph.nodes[index]
            if node.domain not in STANDARD:
                return None
            if node.op_type == "Constant":
                return name
            if node.op_type != "Identity":
                return None
            name = node.inputs[0]
        return None

    def _value(self, root: str | None) -> Array | None:
        if root is None:
            return None
        small = constant_value(self.graph, root)
        return small if small is not None else self.constant(root)

    def array(self, node: Node, position: int) -> Array | None:
        """The values of an input that is constant; None where it is left out or not constant."""
        if position >= len(node.inputs):
            return None
        return self._value(self.root(node.inputs[position]))

    def array_of(self, name: str) -> Array | None:
        """Likewise, by name."""
        return self._value(self.root(name))

    def ints(self, node: Node, position: int) -> tuple[int, ...] | None:
        """The values of a constant input of whole numbers."""
        array = self.array(node, position)
        if array is None or array.dtype.kind not in "iu":
            return None
        return tuple(int(value) for value in array.reshape(-1))

    def is_read(self, node: Node, position: int) -> bool:
        """Whether anybody reads this output."""
        if position >= len(node.outputs) or not node.outputs[position]:
            return False
        name = node.outputs[position]
        return bool(self.graph.consumers.get(name)) or name in self.graph.output_names

    def axes(self, name: str) -> Mapping[int, Track]:
        """Axis -> channels of a tensor, for all of its axes that have some."""
        return self.tracks.get(name, {})

    # -- what rules say -----------------------------------------------------------------------------------

    def take(self, name: str, axis: int) -> Track:
        """The channels of an input, whose rule answers for them."""
        self._untaken.discard((name, axis))
        return self.tracks[name][axis]

    def give(self, name: str, axis: int, ids: Indices, values: Values) -> None:
        """Number the channels of an output.

        Their values are rounded to its element type. Of what is no floating-point number only zeros are taken to be
        known: whole numbers are divided, and run over, in another way.
        """
        if not name:
            return
        shape = self.shape(name)
        size = shape[axis] if shape is not None and axis < len(shape) else None
        if shape is not None and size != len(ids) and isinstance(size, int):
            self.pin(ids, f"the shape stated of {name!r} contradicts the operators")
            return
        self.tracks.setdefault(name, {})[axis] = Track(ids, _rounded(values, self.graph.tensors.get(name)))

    def new(self, count: int) -> Indices:
        """Numbers for channels that are made here."""
        first, self.count = self.count, self.count + count
        return np.arange(first, self.count, dtype=np.int64)

    def link(self, one: Indices, other: Indices) -> None:
        """Channels that go only together."""
        if one is not other:
            self.links.append((one, other))

    def pin(self, ids: Indices, why: str) -> None:
        """Channels that stay."""
        if ids.size:
            self.pins.append((ids, why))

    def claim(self, position: int, axis: int, ids: Indices) -> None:
        """A constant input has these channels along an axis."""
        self._claimed.setdefault(position, {})[axis] = ids

    def refuse(self, node: Node, why: str, count: int | None = None) -> None:
        """Record that an operator was not looked at closer."""
        self.refusals.append(Refusal(node=node.name, op_type=node.op_type, count=count, why=why))

    # -- one operator after the other -----------------------------------------------------------------------

    def visit(self, node: Node, rule: Callable[[Channels, Node], None] | None) -> None:
        """Apply a rule to a node; all nodes are visited, in their order."""
        if node.op_type in ("Identity", "Constant") and node.outputs and self.root(node.outputs[0]) is not None:
            return
        reads = (*node.inputs, *node.captures)
        self._untaken = {(name, axis) for name in reads for axis in self.axes(name)}
        self._claimed = {}
        if rule is not None and not node.bodies:
            rule(self, node)
        for name, axis in sorted(self._untaken):
            self.pin(self.tracks[name][axis].ids, f"{label(node)} needs all of {name!r}")
        for position, name in enumerate(reads):
            root = self.root(name)
            if root is not None:
                self.uses.setdefault(root, []).append(Use(node, position, self._claimed.get(position, {})))

    def end(self) -> None:
        """To be called after the last node."""
        for info in self.graph.outputs:
            for track in self.axes(info.name).values():
                self.pin(track.ids, f"{info.name!r} is an output of the model")
            root = self.root(info.name)
            if root is not None:
                self.uses.setdefault(root, []).append(Use(None, 0, {}))
        for name, axes in self.tracks.items():
            if name not in self.graph.consumers and name not in self.graph.output_names:
                for track in axes.values():
                    self.pin(track.ids, f"nothing reads {name!r}")


def label(node: Node) -> str:
    """How a node is called in reasons."""
    return f"{node.op_type} {node.name!r}"


def unknown(count: int) -> Values:
    """Values of channels of which nothing is known."""
    return np.full(count, np.nan)


def _rounded(values: Values, info: TensorInfo | None) -> Values:
    dtype = None if info is None else NUMPY_TYPES.get(info.dtype)
    if dtype is None or dtype.kind != "f":
        return zeros_only(values)
    with np.errstate(over="ignore"):
        rounded = values.astype(dtype).astype(np.float64)
    return np.where(np.isfinite(rounded), rounded, np.nan)


def zeros_only(values: Values) -> Values:
    """Of constant channels, those that are 0."""
    return np.where(values == 0, 0.0, np.nan)


def values_along(array: Array, axis: int) -> Values:
    """The value that each slice of a constant along ``axis`` has throughout, NaN where it has several."""
    rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    if not rows.size:
        return unknown(len(rows))
    first = rows[:, 0].astype(np.float64)
    if rows.shape[1] == 1:
        return first
    return np.where((rows == rows[:, :1]).all(axis=1), first, np.nan)


def value_of(array: Array | None) -> float:
    """The value that all elements of a constant have, else NaN."""
    if array is None or not array.size or array.dtype.kind not in "fiu":
        return float("nan")
    first = array.reshape(-1)[0]
    return float(first) if array.size == 1 or bool((array == first).all()) else float("nan")


def number(node: Node, name: str, default: float) -> float:
    """An attribute that is a number."""
    value = node.attributes.get(name, default)
    return float(value) if isinstance(value, (int, float)) else default


def integer(node: Node, name: str, default: int) -> int:
    """An attribute that is a whole number."""
    value = node.attributes.get(name, default)
    return value if isinstance(value, int) else default


def integers(node: Node, name: str) -> tuple[int, ...] | None:
    """An attribute that is a list of whole numbers."""
    value = node.attributes.get(name)
    return tuple(int(item) for item in value) if isinstance(value, (tuple, list)) else None


def is_padded(node: Node) -> bool:
    """Whether a convolution or a pooling reads beyond the border of its input."""
    how = node.attributes.get("auto_pad", "NOTSET")
    return how not in ("NOTSET", "VALID") or (how == "NOTSET" and any(integers(node, "pads") or ()))
