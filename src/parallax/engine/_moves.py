"""Segments that only move bytes: a Concat or Split along the leading axis of tensors in the arena is no work at all,
where the parts lie one after the other inside the whole.

The parts of such a *move* have no slots of their own. To plan memory for that, the plan is *folded*: whoever makes or
reads a part makes or reads the whole instead. The folded plan is one like any other, and lifetimes, planners and
`verify_arena_plan` judge it without knowing of parts: the whole is alive while any part of it is.

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
class Move:
    """A segment whose outputs hold the bytes of its inputs in the same order."""

    segment: int
    whole: str
    parts: tuple[str, ...]
    """In order."""
    axis: int
    is_split: bool
    sizes: tuple[int, ...] | None = None
    """Of a Split, along the axis; None for equal ones."""
    home: int = -1
    """Of a Concat: a segment that precedes all that make parts. Counts as the one that makes the whole."""

    @property
    def names(self) -> frozenset[str]:
        """All tensors that take part."""
        return frozenset((self.whole, *self.parts))


def find_moves(graph: OpGraph, plan: Plan) -> tuple[Move, ...]:
    """The moves of a plan of this graph; no tensor has a part in two of them."""
    ancestors: list[int] = []
    makers: dict[str, int] = {}
    for segment in plan.segments:
        mask = 0
        for other in segment.predecessors:
            mask |= ancestors[other] | 1 << other
        ancestors.append(mask)
        makers.update(dict.fromkeys(segment.outputs, segment.index))
    found: list[Move] = []
    taken: set[str] = set()
    for segment in plan.segments:
        if len(segment.nodes) != 1:
            continue
        move = _as_move(graph, segment, graph.nodes[segment.nodes[0]])
        if move is None:
            continue
        names = move.names
        if len(names) <= len(move.parts) or not names <= makers.keys() or names & (taken | graph.output_names):
            continue
        if not move.is_split:
            common = -1
            for part in move.parts:
                common &= ancestors[makers[part]]
            if not common:
                continue
            move = replace(move, home=common.bit_length() - 1)
        found.append(move)
        taken |= names
    return tuple(found)


def _as_move(graph: OpGraph, segment: Segment, node: Node) -> Move | None:
    axis = node.attributes.get("axis", 0)
    if node.domain or not isinstance(axis, int):
        return None
    if node.op_type == "Concat" and set(node.inputs) == set(segment.inputs):
        return Move(segment=segment.index, whole=node.outputs[0], parts=node.inputs, axis=axis, is_split=False)
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
    return Move(segment=segment.index, whole=node.inputs[0], parts=node.outputs, axis=axis, is_split=True, sizes=sizes)


def fold(plan: Plan, moves: Sequence[Move]) -> Plan:
    """The plan in which wholes stand for their parts. To plan memory by, not to run."""
    whole_of = {part: move.whole for move in moves for part in move.parts}
    concats = {move.whole: move.home for move in moves if not move.is_split}
    segments = []
    for segment in plan.segments:
        made = [name for name in segment.outputs if name not in whole_of and name not in concats]
        made += [whole for whole, home in concats.items() if home == segment.index]
        # Whoever writes a part uses the whole: it must be there, and stay.
        used = [whole_of.get(name, name) for name in segment.inputs]
        used += [whole_of[name] for name in segment.outputs if name in whole_of]
        used += [name for name in segment.outputs if name in concats]
        used = [name for name in dict.fromkeys(used) if name not in made]
        segments.append(replace(segment, inputs=tuple(used), outputs=tuple(made)))
    return replace(plan, segments=tuple(segments))


def part_places(
    move: Move, whole: Place, shapes: Mapping[str, Shape | None], element_bytes: int
) -> dict[str, Place] | None:
    """Where the parts of a move lie; None unless they are whole's bytes, in order and each aligned.

    Args:
        whole: the place of the whole.
        shapes: of the parts, as far as known. All are needed for a Concat.
    """
    rank = len(whole.shape)
    axis = move.axis + rank if move.axis < 0 else move.axis
    if not 0 <= axis < rank or prod(whole.shape[:axis]) != 1:
        return None
    length = whole.shape[axis]
    if not move.is_split:
        known = [shapes.get(part) for part in move.parts]
        sizes = [shape[axis] for shape in known if shape is not None and len(shape) == rank]
        if len(sizes) < len(known):
            return None
    elif move.sizes is not None:
        sizes = list(move.sizes)
    elif length % len(move.parts) == 0:
        sizes = [length // len(move.parts)] * len(move.parts)
    else:
        return None  # versions of ONNX differ in how what is left over is dealt out
    if sum(sizes) != length or min(sizes) < 0 or (move.is_split and not length):
        return None  # of nothing the runtime makes no equal parts, which is an error that must stay one
    places: dict[str, Place] = {}
    offset = whole.offset
    row_bytes = prod(whole.shape[axis + 1 :]) * element_bytes
    for part, size in zip(move.parts, sizes, strict=True):
        shape = (*whole.shape[:axis], size, *whole.shape[axis + 1 :])
        if shapes.get(part, shape) not in (shape, None) or offset % ALIGNMENT_BYTES:
            return None
        places[part] = Place(offset=offset, shape=shape, element_type=whole.element_type)
        offset += size * row_bytes
    return places
