"""Casts there and back that a body captures, which stay with what they cast.

A runtime takes such a pair out, and what read its result then reads what was cast. Where that comes from a node, the
node is given the result's name. Where it is an input of the graph, readers are given the input's name instead, but not
those in bodies: the body then reads what nobody makes (observed with ONNX Runtime 1.31.1, at every optimisation level:
"Missing Input"). What is an input of a segment is none of the whole model, which runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from parallax.graph import Node, OpGraph

_CAST = "Cast"
_PASSING = frozenset({_CAST, "Identity", "Dropout"})
"""What a runtime takes out, or may take out, between a value and its reader."""


def find_cast_back(graph: OpGraph, constants: frozenset[int]) -> tuple[tuple[int, ...], ...]:
    """Groups of nodes that must stay together: casts in a row that a body captures, and what makes the value.

    Casts in bodies count with those around them: a runtime puts the arm of an If into the graph where the condition is
    constant. O(V + E) for each captured tensor at worst, as long as a row of casts is.

    Args:
        constants: as `find_constants` gives them.
    """
    groups = []
    for holder, name, inside in _ends(graph.nodes):
        row, casts = _walk(graph, name, constants)[:2]
        members = {*row, holder} if inside else set(row)
        if inside + casts > 1 and len(members) > 1:
            groups.append(tuple(sorted(members)))
    return tuple(dict.fromkeys(groups))


def bodies_cast_back(node: Node) -> bool:
    """Whether a body of a node has such casts of what comes from outside, and so cannot be a model of its own."""
    return any(inside > 1 for _, _, inside in _ends([node]))


def _ends(nodes: Iterable[Node]) -> Iterator[tuple[int, str, int]]:
    """What bodies of nodes read of the nodes' graph.

    Each time: the node that has the body, the tensor, and how many casts in bodies follow it. Only casts whose result
    a body further inside captures are counted.
    """
    for node in nodes:
        for name in node.captures:
            yield node.index, name, 0
        for _, body in node.bodies:
            for _, name, inside in _ends(body.nodes):
                _, casts, source = _walk(body, name, frozenset())
                if source is not None and inside + casts:
                    yield node.index, source, inside + casts


def _walk(graph: OpGraph, name: str, constants: frozenset[int]) -> tuple[list[int], int, str | None]:
    """The casts that end in a tensor, what lies between, and what makes their source; how many casts those are.

    Third comes the source where nothing in the graph makes it.
    """
    row: list[int] = []
    casts = 0
    while (producer := graph.producers.get(name)) is not None:
        if producer in constants:
            return row, casts, None
        row.append(producer)
        node = graph.nodes[producer]
        if node.op_type not in _PASSING:
            return row, casts, None
        casts += node.op_type == _CAST
        name = node.inputs[0]
    return row, casts, name
