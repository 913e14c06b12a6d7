"""When boundary tensors are alive, in terms of what must precede what.

A boundary tensor is alive from the start of the segment that produces it until the end of the last one that
reads it; an output of the model, to the end of the run. How segments on several lanes interleave is known
only while they run, so two tensors may share bytes only if *every* execution keeps them apart: all uses of one
are ancestors of the producer of the other. A plan of one lane whose order no capacity can change is
refined: there the place in that order decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from parallax._record import dataclass
from parallax.errors import InternalError
from parallax.graph import Dag, topological_order
from parallax.memory._protocols import PlanLike
from parallax.partition import find_branches


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetimes:
    """The boundary tensors of a plan, and which of them may be alive at once, whatever their sizes.

    Tensors are numbered by producer, then by position among its outputs. Model inputs are the
    caller's and are not here.
    """

    tensors: tuple[str, ...]
    producers: tuple[int, ...]
    """Per tensor: the segment that produces it."""
    uses: tuple[tuple[int, ...], ...]
    """Per tensor: segments that must be done before its bytes are free (its producer among them), ascending."""
    to_the_end: tuple[bool, ...]
    """Per tensor: whether it is an output of the model."""
    conflicts: tuple[bytes, ...]
    """Row i, column j: 1 where tensors i and j may be alive at once, in some execution. Symmetric; 0 on the
    diagonal. The rest is a strict partial order (before, after): of three tensors, if a is before b and b
    before c, a is before c."""
    neighbours: tuple[tuple[int, ...], ...]
    """Per tensor those it conflicts with, ascending: the rows of ``conflicts`` as lists."""
    order: tuple[int, ...] | None
    """The one order in which segments run, where there is only one; else None."""
    branch_of: tuple[int, ...]
    """Per segment: its branch in the graph of segments."""
    sweeps: tuple[tuple[tuple[int, int], ...], ...]
    """Executions, one segment at a time, as (tensor, +1 | -1): it begins, it ends. What is alive at one
    moment of an execution conflicts pairwise, so the most bytes held in any of them is a lower bound."""

    def __len__(self) -> int:
        return len(self.tensors)


def find_lifetimes(
    plan: PlanLike,
    model_outputs: Iterable[str],
    *,
    place_outputs: bool = True,
    order: Sequence[int] | None = None,
) -> Lifetimes:
    """Lifetimes of the tensors that segments pass on. O(T²) bytes, fast for some thousand tensors.

    Args:
        plan: a plan that `verify_plan` accepts.
        model_outputs: names of the model's outputs.
        place_outputs: False leaves the model's outputs out, for an engine that hands them to its caller.
        order: lifetimes if segments run one by one in this topological order, whatever the plan says.

    Raises: InternalError if a segment reads what only a later one, or none of its ancestors, produces.
    """
    segments = plan.segments
    ends = frozenset(model_outputs)
    producer_of: dict[str, int] = {}
    tensors: list[str] = []
    for position, segment in enumerate(segments):
        for name in segment.outputs:
            if name not in producer_of:
                producer_of[name] = position
                if place_outputs or name not in ends:
                    tensors.append(name)
    users: dict[str, list[int]] = {name: [producer_of[name]] for name in tensors}
    for position, segment in enumerate(segments):
        for name in dict.fromkeys(segment.inputs):
            if name in users:
                if producer_of[name] >= position:
                    raise InternalError(f"segment {position} reads {name!r} before segment {producer_of[name]} made it")
                users[name].append(position)
    producers = tuple(producer_of[name] for name in tensors)
    uses = tuple(tuple(users[name]) for name in tensors)
    to_the_end = tuple(name in ends for name in tensors)

    predecessors = [segment.predecessors for segment in segments]
    order = fixed_order(plan) if order is None else tuple(order)
    later = descendants(predecessors) if order is None else _followers(order)
    for name, row in zip(tensors, uses, strict=True):
        for user in row[1:]:
            if not later[row[0]] >> user & 1:
                raise InternalError(f"segment {user} reads {name!r} of segment {row[0]}, which it does not depend on")
    dispatch = dispatch_order(plan) if order is None else order
    conflicts, neighbours = _conflict_rows(producers, uses, to_the_end, later)
    return Lifetimes(
        tensors=tuple(tensors),
        producers=producers,
        uses=uses,
        to_the_end=to_the_end,
        conflicts=conflicts,
        neighbours=neighbours,
        order=order,
        branch_of=find_branches(Dag.from_predecessors(predecessors)).branch_of,
        sweeps=tuple(
            _sweep(sequence, producers, uses, to_the_end)
            for sequence in dict.fromkeys((dispatch,) if order is not None else (dispatch, tuple(range(len(segments)))))
        ),
    )


def dispatch_order(plan: PlanLike) -> tuple[int, ...]:
    """The order in which segments start on one lane without limits: ready ones by priority, then position."""
    segments = plan.segments
    precedence = [-segment.priority for segment in segments]
    return tuple(topological_order([segment.predecessors for segment in segments], precedence=precedence))


def fixed_order(plan: PlanLike) -> tuple[int, ...] | None:
    """The order of a plan of one lane, if no number of cores and no budget can change it; else None.

    By the rules of the dispatcher: without backfill nothing passes the first in order; with it, a segment is
    passed only where another asks for fewer cores or fewer bytes, which where all ask for the same none does.
    """
    if plan.lanes != 1:
        return None
    alike = len({(segment.width, segment.peak_bytes) for segment in plan.segments}) <= 1
    return dispatch_order(plan) if alike or not plan.backfill else None


def descendants(predecessors: Sequence[Sequence[int]]) -> list[int]:
    """Per node a bit set of those that depend on it. Nodes are in topological order."""
    below = [0] * len(predecessors)
    for index in range(len(predecessors) - 1, -1, -1):
        reached = below[index] | 1 << index
        for other in predecessors[index]:
            below[other] |= reached
    return below


def _followers(order: Sequence[int]) -> list[int]:
    """Per segment a bit set of those after it in the order."""
    after = [0] * len(order)
    passed = 0
    for segment in reversed(order):
        after[segment] = passed
        passed |= 1 << segment
    return after


def _conflict_rows(
    producers: Sequence[int], uses: Sequence[tuple[int, ...]], to_the_end: Sequence[bool], later: Sequence[int]
) -> tuple[tuple[bytes, ...], tuple[tuple[int, ...], ...]]:
    """`Lifetimes.conflicts` and `Lifetimes.neighbours`."""
    count = len(producers)
    if not count:
        return (), ()
    width = (len(later) + 7) // 8
    before = np.zeros((count, count), dtype=np.bool_)
    columns = np.array(producers)
    for tensor, row in enumerate(uses):
        if to_the_end[tensor]:
            continue
        after = later[row[0]]
        for user in row[1:]:
            after &= later[user]
        if after:
            before[tensor] = _bits(after, width)[columns]
    conflict = ~(before | before.T)
    np.fill_diagonal(conflict, False)
    return tuple(row.tobytes() for row in conflict), tuple(tuple(row.nonzero()[0].tolist()) for row in conflict)


def _bits(mask: int, width_bytes: int) -> npt.NDArray[np.uint8]:
    return np.unpackbits(np.frombuffer(mask.to_bytes(width_bytes, "little"), dtype=np.uint8), bitorder="little")


def _sweep(
    order: Sequence[int], producers: Sequence[int], uses: Sequence[tuple[int, ...]], to_the_end: Sequence[bool]
) -> tuple[tuple[int, int], ...]:
    begin: list[list[int]] = [[] for _ in order]
    end: list[list[int]] = [[] for _ in order]
    place = {segment: position for position, segment in enumerate(order)}
    for tensor, segment in enumerate(producers):
        begin[place[segment]].append(tensor)
        if not to_the_end[tensor]:
            end[max(place[user] for user in uses[tensor])].append(tensor)
    events: list[tuple[int, int]] = []
    for born, dead in zip(begin, end, strict=True):
        events += [(tensor, 1) for tensor in born]
        events += [(tensor, -1) for tensor in dead]
    return tuple(events)
