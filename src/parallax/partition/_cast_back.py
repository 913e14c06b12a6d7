"""Casts there and back that a body captures, which stay with what they cast.

A runtime takes such a pair out, and what read its result then reads what was cast. Where that comes from a node, the
node is given the result's name. Where it is an input of the graph, readers are given the input's name instead, but not
those in bodies: the body then reads what nobody makes (observed with ONNX Runtime 1.31.1, at every optimisation level:
"Missing Input"). What is an input of a segment is none of the whole model, which runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from parallax.model import OpGraph

_CAST = "Cast"
_PASSING = frozenset({_CAST, "Identity", "Dropout"})
"""What a runtime takes out, or may take out, between a value and its reader."""


def find_cast_back(graph: OpGraph, constants: frozenset[int]) -> tuple[tuple[int, ...], ...]:
    """Groups of nodes that must stay together: casts in a row that a body captures, and what makes the value.

    O(V + E) for each captured tensor at worst, as long as a row of casts is.

    Args:
        constants: as `find_constants` gives them.
    """
    captured = dict.fromkeys(name for node in graph.nodes for name in node.captures)
    return tuple(group for name in captured if (group := tuple(sorted(_row(graph, name, constants)))))


def _row(graph: OpGraph, name: str, constants: frozenset[int]) -> Iterator[int]:
    """The casts that end in a tensor, what lies between, and what makes their source; nothing for less than two."""
    row = []
    producer = graph.producers.get(name)
    while producer is not None and producer not in constants:
        row.append(producer)
        node = graph.nodes[producer]
        if node.op_type not in _PASSING:
            break
        producer = graph.producers.get(node.inputs[0])
    if sum(graph.nodes[index].op_type == _CAST for index in row) > 1:
        yield from row
