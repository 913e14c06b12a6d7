"""Sizes of a graph's tensors, looked up the way operator cost formulas want them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from parallax.graph._elements import ELEMENT_TYPES, packed_bytes
from parallax.graph._op_graph import Node, OpGraph
from parallax.graph._tensor_info import TensorInfo


class UnknownShape(Exception):
    """A size that a formula needs is not known. It is caught where work and costs are computed, never further up."""


class Shapes:
    """Static shapes of the tensors one graph's nodes can see.

    Args:
        graph: the graph whose nodes are asked about.
        outer: the graphs around it, innermost first, when it is the body of a control-flow node.
        assumed_dim: the size to take for a dimension that is symbolic or unknown. None refuses:
            every question about such a tensor then raises UnknownShape.
    """

    __slots__ = ("_assumed_dim", "_infos", "_scopes", "assumed", "graph")

    def __init__(self, graph: OpGraph, *, outer: Sequence[OpGraph] = (), assumed_dim: int | None = None) -> None:
        self.graph = graph
        self._scopes = (graph, *outer)
        self._assumed_dim = assumed_dim
        self._infos: dict[str, TensorInfo | None] = {}
        self.assumed = False
        """Whether a size had to be assumed since this was last set to False."""

    def inside(self, body: OpGraph) -> Shapes:
        """The same question asked from within a body of one of the graph's nodes."""
        return Shapes(body, outer=self._scopes, assumed_dim=self._assumed_dim)

    def info(self, name: str) -> TensorInfo | None:
        """The type of tensor ``name``, wherever around the graph it is defined; formulas ask several times."""
        if name in self._infos:
            return self._infos[name]
        found = None
        for scope in self._scopes:
            found = scope.tensors.get(name) or scope.initializers.get(name)
            if found is not None:
                break
        self._infos[name] = found
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        """The sizes of tensor ``name``, outermost first. Raises UnknownShape."""
        info = self.info(name)
        if info is None or info.shape is None:
            raise UnknownShape(name)
        if self._assumed_dim is None:
            for dim in info.shape:
                if type(dim) is not int:
                    raise UnknownShape(name)
            return info.shape  # type: ignore[return-value]
        sizes = tuple(dim if type(dim) is int else self._assumed_dim for dim in info.shape)
        if sizes != info.shape:
            self.assumed = True
        return sizes

    def size(self, name: str) -> int:
        """How many elements tensor ``name`` has."""
        return math.prod(self.shape(name))

    def bytes(self, name: str) -> int:
        """How many bytes tensor ``name`` takes, rounded up to whole ones."""
        info = self.info(name)
        element = None if info is None or info.kind != "tensor" else ELEMENT_TYPES.get(info.dtype)
        if element is None:
            raise UnknownShape(name)
        return packed_bytes(self.size(name), element.bits)

    def input(self, node: Node, position: int) -> tuple[int, ...]:
        """Shape of an input by position. Raises UnknownShape if it is omitted, too."""
        return self.shape(self.input_name(node, position))

    def output(self, node: Node, position: int = 0) -> tuple[int, ...]:
        if position >= len(node.outputs) or not node.outputs[position]:
            raise UnknownShape(node.name)
        return self.shape(node.outputs[position])

    def in_size(self, node: Node, position: int = 0) -> int:
        return math.prod(self.input(node, position))

    def out_size(self, node: Node) -> int:
        """Elements of the first output that is not omitted."""
        for name in node.outputs:
            if name:
                return self.size(name)
        return 0

    @staticmethod
    def input_name(node: Node, position: int) -> str:
        if position >= len(node.inputs) or not node.inputs[position]:
            raise UnknownShape(node.name)
        return node.inputs[position]

    @staticmethod
    def has_input(node: Node, position: int) -> bool:
        return position < len(node.inputs) and bool(node.inputs[position])
