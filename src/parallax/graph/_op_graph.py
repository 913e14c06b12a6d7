"""A model as a value: `OpGraph`, a frozen graph of operators in topological order.

Costs, partitions, memory plans and schedules read this and nothing else; protobuf objects stay in `parallax.model`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import TYPE_CHECKING

from parallax._record import dataclass
from parallax.graph._tensor_info import TensorInfo

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Describes one operator of a graph.

    ``index`` is its position in ``OpGraph.nodes``, which is a topological order. An omitted optional
    input or output is "". ``captures`` are the outer-scope tensors its bodies read (at any depth),
    which make it depend on their producers although they are not listed as inputs.
    """

    index: int
    name: str
    """Unique within the graph; made up (``op_type_index``) where the file has none or a duplicate."""
    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, object] = field(default_factory=dict)
    """Scalars, strings and tuples of them; tensors and bodies are not here."""
    bodies: tuple[tuple[str, OpGraph], ...] = ()
    captures: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OpGraph:
    """A graph of operators: nodes in topological order, with edges by producer and consumer.

    Invariants: ``nodes[i].index == i``; every edge goes from a lower to a higher index; each tensor
    has one producer. ``predecessors`` and ``successors`` hold distinct neighbour *nodes*, ascending.
    """

    name: str
    nodes: tuple[Node, ...]
    inputs: tuple[TensorInfo, ...]
    """Graph inputs without those that are also initializers."""
    overridable: tuple[TensorInfo, ...]
    """Initializers that are graph inputs too: fed optionally."""
    outputs: tuple[TensorInfo, ...]
    tensors: Mapping[str, TensorInfo]
    """Every tensor whose type is known: inputs, initializers, outputs, intermediates."""
    initializers: Mapping[str, TensorInfo]
    producers: Mapping[str, int]
    """Tensor name -> index of the node that produces it."""
    consumers: Mapping[str, tuple[int, ...]]
    """Tensor name -> indices of the nodes that read it (captures included), ascending."""
    constants: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict, repr=False, compare=False)
    """Values of small initializers and Constant nodes, decoded when asked for; see ``constant_value``."""

    @functools.cached_property
    def predecessors(self) -> tuple[tuple[int, ...], ...]:
        producers = self.producers
        return tuple(
            tuple(sorted({producers[name] for name in (*node.inputs, *node.captures) if name in producers}))
            for node in self.nodes
        )

    @functools.cached_property
    def successors(self) -> tuple[tuple[int, ...], ...]:
        out: list[list[int]] = [[] for _ in self.nodes]
        for index, preds in enumerate(self.predecessors):
            for pred in preds:
                out[pred].append(index)
        return tuple(tuple(targets) for targets in out)

    @functools.cached_property
    def output_names(self) -> frozenset[str]:
        return frozenset(info.name for info in self.outputs)

    def walk(self) -> Iterator[tuple[OpGraph, Node]]:
        """Every node of this graph and of all nested bodies, with the graph that holds it."""
        stack: list[OpGraph] = [self]
        while stack:
            graph = stack.pop()
            for node in graph.nodes:
                yield graph, node
                stack.extend(body for _, body in node.bodies)


CONSTANT_BYTES = 1024
"""Constants up to this size have their value kept within reach; larger ones are weights."""


def constant_value(graph: OpGraph, tensor_name: str) -> npt.NDArray[np.generic] | None:
    """The value of a small initializer or Constant node's output, or None.

    None also for a constant over ``CONSTANT_BYTES``, for one that a caller may override, and for
    strings. Values of outer graphs are not seen from a body: ask the graph that holds them.
    """
    return graph.constants.get(tensor_name)
