"""What can be told of a model from one look at each of its nodes, without edges or types.

Building the graph takes some ten microseconds per node and inferring its types some fifty more, a good part of what
ONNX Runtime takes to open the model. Where a plan does not need them, this answers instead.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from parallax._record import dataclass
from parallax.model._body_operators import may_have_bodies

if TYPE_CHECKING:
    import onnx

_ONNX: Final = ("", "ai.onnx")


@dataclass(frozen=True, slots=True, kw_only=True)
class Branches:
    """What the branches of the main graph's Ifs hold, and those of Ifs inside them. A run takes a part of it, once."""

    graphs: int
    operators: Mapping[str, int]
    """As `Survey.operators`, of all these graphs together."""
    largest_elements: int
    """As `Survey.largest_elements`, of what these graphs state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The size of a model's main graph and of what it states."""

    node_count: int
    operators: Mapping[str, int]
    """Operator type -> how many nodes of the main graph have it, whatever their domain."""
    with_bodies: int
    """How many nodes of the main graph have a graph for an attribute (If, Loop, Scan, ...)."""
    loops: int
    """How many of these may run something any number of times: all but Ifs whose branches, at any depth, hold no other
    operator with a body."""
    branches: Branches
    inputs: tuple[str, ...]
    """Names of the graph's inputs that are not initializers."""
    outputs: tuple[str, ...]
    largest_elements: int
    """Elements of the largest tensor whose shape the file states (inputs, outputs, initializers, constants, stated
    intermediates). A size that it leaves open counts as 1, as it does where costs are estimated."""
    picked_rows: Mapping[int, int]
    """Of Gather nodes that pick rows of a weight by indices whose number is stated, as embeddings are looked up:
    elements of a row -> elements that such nodes write together. Others are not among them."""
    row_pickers: int
    """How many nodes these are."""


class RowsPicked:
    """Counts Gather nodes that pick whole rows of weights, one `note` each."""

    def __init__(self) -> None:
        self.rows: Counter[int] = Counter()
        self.nodes = 0

    def note(self, table: Sequence[int] | None, indices: int | None) -> None:
        """Count a node with axis 0.

        Args:
            table: the shape of the weight that it reads; None where it reads something else.
            indices: how many there are; None where the file does not state it.
        """
        if table and indices is not None:
            row = math.prod(table[1:])
            self.rows[row] += indices * row
            self.nodes += 1


def survey_graph(graph: onnx.GraphProto) -> Survey:
    """One pass over nodes and stated types, microseconds for each.

    Raises: ModelFileError if a name of an operator, input or output is not text.
    """
    from parallax.model._build import check_text

    types = [node.op_type for node in graph.node]
    defined = {tensor.name for tensor in graph.initializer} | {
        sparse.values.name for sparse in graph.sparse_initializer
    }
    inputs = tuple(value.name for value in graph.input if value.name not in defined)
    outputs = tuple(value.name for value in graph.output)
    check_text((*set(types), *inputs, *outputs))
    picked = _picked_rows(graph)
    branches = BranchesSeen()
    are_bounded = [_note_branches(node, branches) for node in _nodes_with_bodies(graph, types)]
    return Survey(
        node_count=len(types),
        operators=dict(Counter(types)),
        with_bodies=len(are_bounded),
        loops=are_bounded.count(False),
        branches=branches.seen(),
        inputs=inputs,
        outputs=outputs,
        largest_elements=max(_stated_elements(graph, types), default=0),
        picked_rows=dict(picked.rows),
        row_pickers=picked.nodes,
    )


class BranchesSeen:
    """Adds up what branches hold, one `note` for each of them."""

    def __init__(self) -> None:
        self._graphs = 0
        self._operators: Counter[str] = Counter()
        self._largest = 0

    def note(self, operators: Iterable[str] | Mapping[str, int], largest_elements: int) -> None:
        """Add a branch with operators of these types, which states tensors of at most so many elements."""
        self._graphs += 1
        self._operators.update(operators)
        self._largest = max(self._largest, largest_elements)

    def seen(self) -> Branches:
        """All that was noted so far."""
        return Branches(graphs=self._graphs, operators=dict(self._operators), largest_elements=self._largest)


def _note_branches(node: onnx.NodeProto, seen: BranchesSeen) -> bool:
    """Note what is in the branches of an If. False if there is a loop in one, or the node is no If."""
    if node.op_type != "If" or node.domain not in _ONNX:
        return False
    graphs = [attribute.g for attribute in node.attribute if attribute.type == attribute.GRAPH]
    # All are noted, also those after one with a loop.
    are_bounded = [_note_branch(graph, seen) for graph in graphs]
    return all(are_bounded)


def _note_branch(graph: onnx.GraphProto, seen: BranchesSeen) -> bool:
    types = [node.op_type for node in graph.node]
    seen.note(types, max(_stated_elements(graph, types), default=0))
    are_bounded = [_note_branches(node, seen) for node in _nodes_with_bodies(graph, types)]
    return all(are_bounded)


def _picked_rows(graph: onnx.GraphProto) -> RowsPicked:
    picked = RowsPicked()
    pickers = [node for node in graph.node if is_row_picker(node.op_type, node.domain, len(node.input))]
    if not pickers:
        return picked
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    stated = {name: math.prod(dims) for name, dims in weights.items()}
    for value in graph.input:
        if value.type.HasField("tensor_type") and value.name not in stated:
            stated[value.name] = _elements(value)
    for node in pickers:
        if all(attribute.name == "axis" and not attribute.i for attribute in node.attribute):
            picked.note(weights.get(node.input[0]), stated.get(node.input[1]))
    return picked


def is_row_picker(op_type: str, domain: str, inputs: int) -> bool:
    """Whether a node with these may pick rows."""
    return op_type == "Gather" and domain in _ONNX and inputs == 2


def _elements(value: onnx.ValueInfoProto) -> int:
    return math.prod(dim.dim_value if dim.HasField("dim_value") else 1 for dim in value.type.tensor_type.shape.dim)


def _nodes_with_bodies(graph: onnx.GraphProto, types: Iterable[str]) -> list[onnx.NodeProto]:
    nodes = zip(graph.node, types, strict=True)
    return [node for node, op_type in nodes if may_have_bodies(op_type, node.domain) and _has_body(node)]


def _has_body(node: onnx.NodeProto) -> bool:
    return any(attribute.type in (attribute.GRAPH, attribute.GRAPHS) for attribute in node.attribute)


def _stated_elements(graph: onnx.GraphProto, types: Iterable[str]) -> Iterable[int]:
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.HasField("tensor_type"):
            yield _elements(value)
    for tensor in graph.initializer:
        yield math.prod(tensor.dims)
    for sparse in graph.sparse_initializer:
        yield math.prod(sparse.dims)
    for node, op_type in zip(graph.node, types, strict=True):
        if op_type == "Constant":
            yield from (math.prod(attribute.t.dims) for attribute in node.attribute if attribute.HasField("t"))
