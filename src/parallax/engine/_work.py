"""What a delegate's segment amounts to in its plan: its work, what crosses to it and back, what may stay there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set

from parallax.engine._transfers import find_transfers, read_outside
from parallax.graph import OpGraph, Work, operator_work, tensor_bytes
from parallax.partition import find_constants
from parallax.schedule import Plan


def segment_works(plan: Plan, graph: OpGraph, indices: Sequence[int]) -> Mapping[int, Work]:
    """The work of segments, without what is computed when they are loaded.

    Args:
        graph: with types, in the shapes that were planned for.
        indices: of the segments asked for.
    """
    constants = find_constants(graph)
    found: dict[int, Work] = {}
    for segment, moved in zip(plan.segments, find_transfers(plan, graph.output_names), strict=True):
        if segment.index not in indices:
            continue
        operators = [operator_work(graph, graph.nodes[index]) for index in segment.nodes if index not in constants]
        sizes = tuple([tensor_bytes(graph, name) for name in (*moved.inputs, *moved.outputs)])
        found[segment.index] = Work(operators=tuple(operators), moved_bytes=sizes)
    return found


def kept_outputs(plan: Plan, outputs: Collection[str], on_host: Set[str]) -> Sequence[frozenset[str]]:
    """Find per segment the outputs that may stay in its backend's memory: only its own segments read them, or the
    memory is the processor's to read and they are not returned.

    Args:
        outputs: of the model.
        on_host: backends whose memory the processor reads.
    """
    outside, returned = read_outside(plan, outputs), frozenset(outputs)
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
