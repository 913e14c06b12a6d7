"""A model with its constants computed: what an exporter left to be computed from shapes and weights, as values.

Exported models compute sizes, positions and masks by chains of Shape, Gather, Unsqueeze, Concat, Range, Expand and
Where. Where the shapes of the inputs are known these are constants. A converter for an accelerator computes them, and
so do the basic optimisations of ONNX Runtime; left in the graph, each is work that a device may not take.

A rewrite of the graph alone: which nodes go depends on operators, types and sizes, never on values.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from onnx import numpy_helper

from parallax.errors import BackendError
from parallax.graph import NUMPY_TYPES, Node, tensor_bytes
from parallax.model._model import Model
from parallax.model._propagation import shape_value
from parallax.model._segment_model import SegmentModel

_log = logging.getLogger(__name__)

MOST_BYTES: Final = 4 << 20
"""Of all values together that become weights. What would hold more is computed in each run, as before."""

Arrays = Mapping[str, npt.NDArray[Any]]

Compute = Callable[[SegmentModel, Arrays], Sequence[npt.NDArray[Any]]]
"""Runs a model once: called with the model and what it is fed, by name; returns its outputs in their order.

It raises BackendError where the runtime refuses the model.
"""

_ONNX: Final = ("", "ai.onnx")
_SHAPES: Final = ("Shape", "Size")
_RANDOM: Final = ("Random", "Bernoulli", "Multinomial", "Dropout")
"""How the names of operators begin that draw numbers."""
_QUANTISING: Final = ("DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear")
"""Left as they are: a dequantised weight takes four times the memory, and kernels of integers need it as it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputedModel:
    """A model whose constants are computed."""

    model: Model
    by_shapes: bool
    """Whether some follow from shapes of tensors. If not, the model is the same for all shapes of its inputs."""
    value_bytes: int
    """Of the values that became weights: they are beside those of the model."""


def compute_constants(model: Model, compute: Compute) -> ComputedModel | None:
    """The same model with weights in place of all nodes that compute constants.

    Such a node reads constants alone, or asks for the shape of a tensor whose shape is proven. Nodes that are random,
    have bodies, are of another domain than ONNX's, (de)quantise, or make outputs of the model stay, and so do those
    whose values would together take more than `MOST_BYTES`, and all whose sizes are not inferred. The other nodes keep
    their names and order; what nobody reads any more is left out.

    Args:
        model: in the shapes to compute constants for.
        compute: runs the nodes, once.

    Returns: None where there is nothing to compute, where no part can be taken out of the model, or the runtime
        refuses to compute it. Milliseconds for hundreds of nodes.
    """
    if model.why_whole is not None:
        return None
    found = _Constants(model)
    values = found.compute(compute)
    if values is None:
        return None
    constants = [numpy_helper.from_array(np.asarray(value, order="C"), name) for name, value in values.items()]
    kept = read_by_outputs(model, {index for index in found.nodes if found.is_computed(index)})
    nodes = [model.protos[index] for index in kept]
    return ComputedModel(
        model=model.rewritten(nodes, constants),
        by_shapes=found.by_shapes,
        value_bytes=sum(np.asarray(value).nbytes for value in values.values()),
    )


class _Constants:
    """The nodes of a model that compute constants."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._graph = model.inferred()
        self._shapes: dict[int, npt.NDArray[Any]] = {}
        """What nodes that ask for shapes return."""
        self.nodes = self._find(frozenset())
        refused: set[int] = set()
        while (largest := self._first_beyond()) is not None:
            refused.add(largest)
            self.nodes = self._find(refused)

    @property
    def by_shapes(self) -> bool:
        return any(index in self._shapes for index in self.nodes)

    def is_computed(self, index: int) -> bool:
        """Whether a node goes; a Constant is one already, and stays where it is read."""
        return self._graph.nodes[index].op_type != "Constant"

    def compute(self, compute: Compute) -> dict[str, npt.NDArray[Any]] | None:
        """The values that other nodes read; None where there are none."""
        graph = self._graph
        read = [name for index in sorted(self.nodes) for name in self._read_outputs(index)]
        if not read:
            return None
        fed = {graph.nodes[index].outputs[0]: value for index, value in self._shapes.items() if index in self.nodes}
        outputs = [name for name in read if name not in fed]
        values = {name: fed[name] for name in read if name in fed}
        if outputs:
            nodes = sorted(index for index in self.nodes if index not in self._shapes)
            try:
                part = self._model.extract(nodes, list(fed), outputs, name="constants")
                values |= zip(outputs, compute(part, fed), strict=True)
            except BackendError as error:
                _log.info("constants are left in the graph: %s", error)
                return None
        return values

    def _find(self, refused: Set[int]) -> frozenset[int]:
        graph = self._graph
        overridable = {info.name for info in graph.overridable}
        constant = {"", *(name for name in graph.initializers if name not in overridable)}
        found: set[int] = set()
        for node in graph.nodes:
            if node.index in refused or not self._may_go(node):
                continue
            if not all(name in constant for name in node.inputs) and not self._has_known_shape(node):
                continue
            found.add(node.index)
            constant.update(node.outputs)
        return frozenset(found)

    def _may_go(self, node: Node) -> bool:
        graph = self._graph
        return (
            node.domain in _ONNX
            and not node.bodies
            and not node.captures
            and node.op_type not in _QUANTISING
            and not node.op_type.startswith(_RANDOM)
            and not any(name in graph.output_names for name in node.outputs)
            and all(self._bytes(name) <= MOST_BYTES for name in node.outputs if name)
        )

    def _has_known_shape(self, node: Node) -> bool:
        """Whether a node asks for a shape that is proven."""
        if node.op_type not in _SHAPES or node.domain not in _ONNX or len(node.inputs) != 1:
            return False
        if node.index not in self._shapes:
            value = shape_value(self._model.protos[node.index], self._model.proven_type(node.inputs[0]))
            if value is None:
                return False
            self._shapes[node.index] = value
        return True

    def _bytes(self, name: str) -> float:
        info = self._graph.tensors.get(name)
        if info is None or info.kind != "tensor" or info.dtype not in NUMPY_TYPES or not info.is_static:
            return math.inf
        return tensor_bytes(self._graph, name)

    def _read_outputs(self, index: int) -> list[str]:
        """Outputs of a computed node that others read."""
        if not self.is_computed(index):
            return []
        consumers = self._graph.consumers
        return [
            name
            for name in self._graph.nodes[index].outputs
            if name and any(reader not in self.nodes for reader in consumers.get(name, ()))
        ]

    def _first_beyond(self) -> int | None:
        """The node with the largest values, where all together take too much; the last of several."""
        held = {index: sum(map(self._bytes, self._read_outputs(index))) for index in self.nodes}
        if sum(held.values()) <= MOST_BYTES:
            return None
        return max(held, key=lambda index: (held[index], index))


def read_by_outputs(model: Model, gone: set[int]) -> list[int]:
    """The nodes without those that are gone, and without those that nobody reads then; ascending."""
    graph = model.graph
    wanted = set(graph.output_names)
    kept: list[int] = []
    for node in reversed(graph.nodes):
        if node.index not in gone and not wanted.isdisjoint(name for name in node.outputs if name):
            kept.append(node.index)
            wanted.update((*node.inputs, *node.captures))
    return kept[::-1]
