"""What a delegate's segment amounts to in its plan: its work, what crosses to it and back, what may stay there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from parallax.graph import OperatorWork, OpGraph, Work, node_work
from parallax.partition import find_constants, tensor_bytes
from parallax.schedule import Plan


def segment_works(plan: Plan, graph: OpGraph, indices: Sequence[int]) -> Mapping[int, Work]:
    """The work of segments, without what is computed when they are loaded.

    A tensor that several segments of a device read moves there once, with the first of them.

    Args:
        graph: with types, in the shapes that were planned for.
        indices: of the segments asked for.
    """
    constants = find_constants(graph)
    owner = {name: segment.backend for segment in plan.segments for name in segment.outputs}
    seen: set[tuple[str, str]] = set()
    found: dict[int, Work] = {}
    outside = _read_outside(plan, graph)
    for segment in plan.segments:
        moved = []
        for name in segment.inputs:
            if owner.get(name) != segment.backend and (segment.backend, name) not in seen:
                seen.add((segment.backend, name))
                moved.append(name)
        moved += [name for name in segment.outputs if name in outside]
        if segment.index not in indices:
            continue
        operators = []
        for index in segment.nodes:
            if index not in constants:
                node = graph.nodes[index]
                work = node_work(graph, node)
                operators.append(
                    OperatorWork(op_type=node.op_type, flops=work.flops or 0, touched_bytes=work.bytes or 0)
                )
        sizes = tuple([tensor_bytes(graph, name) for name in moved])
        found[segment.index] = Work(operators=tuple(operators), moved_bytes=sizes)
    return found


def kept_outputs(plan: Plan, graph: OpGraph, on_host: Set[str]) -> Sequence[frozenset[str]]:
    """Per segment the outputs that may stay in its backend's memory: only its own segments read them, or the memory is
    the processor's to read and they are not returned.

    Args:
        on_host: backends whose memory the processor reads.
    """
    outside, returned = _read_outside(plan, graph), frozenset(graph.output_names)
    return [
        frozenset(segment.outputs) - (returned if segment.backend in on_host else outside) for segment in plan.segments
    ]


def static_shapes(graph: OpGraph, names: Sequence[str]) -> Mapping[str, tuple[int, ...]]:
    """Shapes of those tensors whose sizes are all known."""
    found = {}
    for name in names:
        info = graph.tensors.get(name)
        shape = None if info is None else info.shape
        if shape is not None and all(isinstance(dim, int) for dim in shape):
            found[name] = tuple(dim for dim in shape if isinstance(dim, int))
    return found


def _read_outside(plan: Plan, graph: OpGraph) -> Set[str]:
    """Tensors that leave the backend that made them: read by another's segments, or returned."""
    owner = {name: segment.backend for segment in plan.segments for name in segment.outputs}
    found = set(graph.output_names)
    for segment in plan.segments:
        found.update(name for name in segment.inputs if owner.get(name, segment.backend) != segment.backend)
    return found
