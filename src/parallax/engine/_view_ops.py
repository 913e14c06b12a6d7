"""Segments that only move bytes: a Concat or Split along the leading axis of tensors in the arena is no work at all,
where the parts lie one after the other inside the whole.

The parts of such a *view operator* have no slots of their own. To plan memory for that, parts are *aliased* in the
plan: whoever makes or reads a part makes or reads the whole instead. The aliased plan is one like any other, and
lifetimes, planners and `verify_arena_plan` judge it without knowing of parts: the whole is alive while any part of it
is.

Only shapes that are facts at run time are relied on, because nothing is left to check them: the runtime writes the
parts of a Concat into places of their shapes, as it does the whole of a Split, whose sizes must be constants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

from parallax._record import dataclass
from parallax.graph import Node, OpGraph, constant_value
from parallax.memory import ALIGNMENT_BYTES
from parallax.schedule import Plan, Segment

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a boundary tensor lives."""

    offset: int
    """From the arena's start, in bytes."""
    shape: Shape
    element_type: int
    """onnx.TensorProto.DataType."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewOp:
    """A segment whose outputs hold the bytes of its inputs in the same order."""

    segment: int
    whole: str
    parts: tuple[str, ...]
    """In order."""
    axis: int
    is_split: bool
    sizes: tuple[int, ...] | None = None
    """Of a Split, along the axis; None for equal ones."""
    producer: int = -1
    """Of a Concat: a segment that precedes all that make parts. Counts as the one that makes the whole."""

    @property
    def names(self) -> frozenset[str]:
        """All tensors that take part."""
        return frozenset((self.whole, *self.parts))


def find_view_ops(graph: OpGraph, plan: Plan) -> tuple[ViewOp, ...]:
    """Find the view operators of a plan of this graph; no tensor has a part in two of them."""
    ancestors: list[int] = []
    makers: dict[str, int] = {}
    for segment in plan.segments:
        mask = 0
        for other in segment.predecessors:
            mask |= ancestors[other] | 1 << other
        ancestors.append(mask)
        makers.update(dict.fromkeys(segment.outputs, segment.index))
    found: list[ViewOp] = []
    taken: set[str] = set()
    for segment in plan.segments:
        if len(segment.nodes) != 1:
            continue
        view_op = _as_view_op(graph, segment, graph.nodes[segment.nodes[0]])
        if view_op is None:
            continue
        names = view_op.names
        if len(names) <= len(view_op.parts) or not names <= makers.keys() or names & (taken | graph.output_names):
            continue
        if not view_op.is_split:
            common = -1
            for part in view_op.parts:
                common &= ancestors[makers[part]]
            if not common:
                continue
            view_op = replace(view_op, producer=common.bit_length() - 1)
        found.append(view_op)
        taken |= names
    return tuple(found)


def _as_view_op(graph: OpGraph, segment: Segment, node: Node) -> ViewOp | None:
    axis = node.attributes.get("axis", 0)
    if node.domain or not isinstance(axis, int):
        return None
    if node.op_type == "Concat" and set(node.inputs) == set(segment.inputs):
        return ViewOp(segment=segment.index, whole=node.outputs[0], parts=node.inputs, axis=axis, is_split=False)
    if node.op_type != "Split" or segment.inputs != node.inputs[:1] or set(segment.outputs) != set(node.outputs):
        return None
    sizes = node.attributes.get("split")
    if len(node.inputs) > 1 and node.inputs[1]:
        constant = constant_value(graph, node.inputs[1])
        if constant is None:
            return None
        sizes = tuple(int(size) for size in constant.ravel())
    if sizes is not None and not (isinstance(sizes, tuple) and len(sizes) == len(node.outputs)):
        return None
    return ViewOp(
        segment=segment.index, whole=node.inputs[0], parts=node.outputs, axis=axis, is_split=True, sizes=sizes
    )


def alias_parts(plan: Plan, view_ops: Sequence[ViewOp]) -> Plan:
    """The plan in which wholes stand for their parts. To plan memory by, not to run."""
    whole_of = {part: view_op.whole for view_op in view_ops for part in view_op.parts}
    concats = {view_op.whole: view_op.producer for view_op in view_ops if not view_op.is_split}
    segments = []
    for segment in plan.segments:
        made = [name for name in segment.outputs if name not in whole_of and name not in concats]
        made += [whole for whole, producer in concats.items() if producer == segment.index]
        # Whoever writes a part uses the whole: it must be there, and stay.
        used = [whole_of.get(name, name) for name in segment.inputs]
        used += [whole_of[name] for name in segment.outputs if name in whole_of]
        used += [name for name in segment.outputs if name in concats]
        used = [name for name in dict.fromkeys(used) if name not in made]
        segments.append(replace(segment, inputs=tuple(used), outputs=tuple(made)))
    return replace(plan, segments=tuple(segments))


def part_places(
    view_op: ViewOp, whole: Place, shapes: Mapping[str, Shape | None], element_bytes: int
) -> dict[str, Place] | None:
    """Where the parts of a view operator lie; None unless they are whole's bytes, in order and each aligned.

    Args:
        whole: the place of the whole.
        shapes: of the parts, as far as known. All are needed for a Concat.
    """
    rank = len(whole.shape)
    axis = view_op.axis + rank if view_op.axis < 0 else view_op.axis
    if not 0 <= axis < rank or prod(whole.shape[:axis]) != 1:
        return None
    length = whole.shape[axis]
    if not view_op.is_split:
        known = [shapes.get(part) for part in view_op.parts]
        sizes = [shape[axis] for shape in known if shape is not None and len(shape) == rank]
        if len(sizes) < len(known):
            return None
    elif view_op.sizes is not None:
        sizes = list(view_op.sizes)
    elif length % len(view_op.parts) == 0:
        sizes = [length // len(view_op.parts)] * len(view_op.parts)
    else:
        return None  # versions of ONNX differ in how what is left over is dealt out
    if sum(sizes) != length or min(sizes) < 0 or (view_op.is_split and not length):
        return None  # of nothing the runtime makes no equal parts, which is an error that must stay one
    places: dict[str, Place] = {}
    offset = whole.offset
    row_bytes = prod(whole.shape[axis + 1 :]) * element_bytes
    for part, size in zip(view_op.parts, sizes, strict=True):
        shape = (*whole.shape[:axis], size, *whole.shape[axis + 1 :])
        if shapes.get(part, shape) not in (shape, None) or offset % ALIGNMENT_BYTES:
            return None
        places[part] = Place(offset=offset, shape=shape, element_type=whole.element_type)
        offset += size * row_bytes
    return places
