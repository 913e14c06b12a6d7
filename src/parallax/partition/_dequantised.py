"""Quantised weights with several readers, which no cut may deal out one by one.

A runtime turns a product with a dequantised weight into a kernel that works on the quantised one, and quantises the
activations too, only where nothing else reads that weight, its scales or its zero points (observed with ONNX Runtime
1.31.1: ``DequantizeLinear`` and ``MatMul`` become ``MatMulNBits``). Two such products in two segments would each be
alone with the weight, and would be computed in a lower precision than in the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator

from parallax.graph import OpGraph

_DEQUANTISE = "DequantizeLinear"


def find_bound(graph: OpGraph, fusion_safe: frozenset[str], constants: frozenset[int]) -> tuple[tuple[int, ...], ...]:
    """Groups of nodes that must stay together, for dequantised weights to stay as shared as they are. O(V + E).

    Only weights that the runtime leaves dequantised in the whole model matter: those whose floats are fusion-safe. A
    group holds whatever reads one of these in the end: its floats, or anything that they are made of.

    Args:
        fusion_safe: tensors that the runtime's optimiser leaves.
        constants: as `find_constants` gives them.
    """
    groups = []
    for node in graph.nodes:
        if node.op_type != _DEQUANTISE or not any(name in fusion_safe for name in node.outputs):
            continue
        if not _is_fixed(graph, node.inputs[0], constants):
            continue
        sources = set(_sources(graph, node.index, constants))
        members = {index for name in sources for index in _readers(graph, name, constants)}
        if len(members) > 1:
            groups.append(tuple(sorted(members)))
    return tuple(groups)


def _is_fixed(graph: OpGraph, name: str, constants: frozenset[int]) -> bool:
    producer = graph.producers.get(name)
    return name in graph.initializers if producer is None else producer in constants


def _sources(graph: OpGraph, node: int, constants: frozenset[int]) -> Iterator[str]:
    """The constant tensors that a node's output is made of, at any distance."""
    stack, seen = [node], {node}
    while stack:
        for name in graph.nodes[stack.pop()].inputs:
            if not name or not _is_fixed(graph, name, constants):
                continue
            yield name
            producer = graph.producers.get(name)
            if producer is not None and producer not in seen:
                seen.add(producer)
                stack.append(producer)


def _readers(graph: OpGraph, name: str, constants: frozenset[int]) -> Iterator[int]:
    """The nodes that read a tensor at run time, through constants too; those constants are among them."""
    stack, seen = [name], {name}
    while stack:
        for index in graph.consumers.get(stack.pop(), ()):
            yield index
            if index in constants:
                found = [output for output in graph.nodes[index].outputs if output and output not in seen]
                seen.update(found)
                stack.extend(found)
