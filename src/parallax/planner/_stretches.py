"""Which stretches of a model to compute in slices, so that a run holds no more than it may.

Only where a run would hold too much is anything sliced; all else stays as it is. At the highest peak, the places around
it where a run holds little are tried as beginning and end of a stretch, with few slices and with many. Of what then
fits, that is taken which computes least twice; if nothing fits, what holds least. Then the next peak is the highest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final

from parallax.graph import OpGraph, tensor_bytes
from parallax.memory import PeakTable
from parallax.model import Model, SlicedGraph, Step, is_shape_question, slice_stretches
from parallax.planner._rows import can_share_rows
from parallax.planner._tables import why_model_stays_whole
from parallax.planner._whole import fed_in_full, make_provenance, whole_plan
from parallax.schedule import Plan, Stretch

SLICES: Final = (2, 4, 8, 16)
"""So many are tried."""

PLACES: Final = 12
"""Beginnings and ends of stretches that are tried for one peak, of each so many."""

REACH: Final = 64
"""As far from a peak, in operators, are they looked for."""

MOST_STRETCHES: Final = 200


@dataclass(frozen=True, slots=True)
class _Choice:
    """One way to lower a peak."""

    stretch: Stretch
    begin: int
    end: int
    """Of the steps that it replaces, exclusive."""
    steps: tuple[Step, ...]
    """That stand in their place."""
    peak_bytes: int
    """The highest while they run."""
    extra_bytes: int
    """They make so many more than those that they replace, which is a measure of the work that is done twice."""


def find_stretches(model: Model, room_bytes: int) -> tuple[Stretch, ...] | None:
    """The stretches with which a run of a model holds at most ``room_bytes`` of tensors beside inputs and outputs.

    Args:
        model: in the shapes to plan for.
        room_bytes: 0 for as little as can be found.

    Returns: None where there is nothing to slice, or that does not get there. Seconds for models of a thousand nodes.
    """
    sliced = SlicedGraph(model)
    if any(node.bodies for node in sliced.graph.nodes):
        return None
    order = _Order(sliced, list(_whole_steps(sliced)))
    found: dict[str, Stretch] = {}
    known: _Known = {}
    while order.peak_bytes > room_bytes and len(found) < MOST_STRETCHES:
        choice = _choose(order, room_bytes, known)
        if choice is None:
            break
        found[choice.stretch.output] = choice.stretch
        order = order.after(choice)
    if order.peak_bytes > room_bytes > 0:
        return None
    made = {name for step in order.steps for name in step.outputs if step.node is None}
    return tuple([stretch for name, stretch in found.items() if name in made]) or None


def _whole_steps(sliced: SlicedGraph) -> Iterator[Step]:
    graph = sliced.graph
    for node in graph.nodes:
        if (node.op_type == "Constant" and not node.domain) or is_shape_question(graph, node):
            continue
        sizes = tuple([tensor_bytes(graph, name) if name else 0 for name in node.outputs])
        yield Step(node.index, (*node.inputs, *node.captures), node.outputs, sizes)


def stretched_plans(model: Model, *, room_bytes: int, cores: int, reason: str) -> Iterator[Plan]:
    """Plans of one segment, parts of which are computed in slices: one for this room, and one that takes what it must.

    There are none of a model that must stay whole, or of open shapes.

    Args:
        model: in the shapes to plan for.
        room_bytes: for what runs hold beside inputs and outputs.
        cores: the segment's threads.
        reason: why slices are asked for, for the plan's provenance.
    """
    if why_model_stays_whole(model) is not None or not can_share_rows(model):
        return
    for room in (room_bytes, 0) if room_bytes else (0,):
        stretches = find_stretches(model, room)
        if stretches is None:
            continue
        made = slice_stretches(model, stretches)
        parts = "one part" if len(stretches) == 1 else f"{len(stretches)} parts"
        most = max(stretch.slices for stretch in stretches)
        text = f"{reason}: {parts} computed in slices of rows, one after the other, in {most} at most"
        plan = whole_plan(made, text, cores=cores, provenance=make_provenance("memory", text))
        plan = fed_in_full(plan, made)
        yield replace(plan, structure_digest=model.structure_digest, backfill=False, stretches=stretches)


class _Order:
    """The steps of a run, and what it holds at each."""

    def __init__(self, sliced: SlicedGraph, steps: list[Step]) -> None:
        self.sliced = sliced
        self.steps = steps
        self.root: dict[str, str] = {}
        """Tensor -> the tensor in whose bytes it lies."""
        self.born: dict[str, int] = {}
        self.last: dict[str, int] = {}
        self.size: dict[str, int] = {}
        self._outer: set[str] = set()
        """What lies in the bytes of inputs or weights."""
        outputs = frozenset(sliced.graph.output_names)
        for place, step in enumerate(steps):
            for name in step.inputs:
                if name in self.root:
                    self.last[self.root[name]] = place
            for position, (name, size) in enumerate(zip(step.outputs, step.sizes, strict=True)):
                if not name:
                    continue
                if position == 0 and is_view(sliced.graph, step):
                    if step.inputs[0] in self.root:
                        self.root[name] = self.root[step.inputs[0]]
                    else:
                        self._outer.add(name)
                    continue
                self.root[name], self.born[name], self.last[name] = name, place, place
                self.size[name] = 0 if name in outputs else size
        self.last.update({self.root[name]: len(steps) for name in outputs if name in self.root})
        change, crossing = [0] * (len(steps) + 2), [0] * (len(steps) + 2)
        for name, size in self.size.items():
            change[self.born[name]] += size
            crossing[self.born[name] + 1] += size
            for changes in (change, crossing):
                changes[self.last[name] + 1] -= size
        self.cut_bytes = self._cut_bytes(steps)
        self.held = [size + self.cut_bytes for size in accumulate(change)]
        """Bytes at each step."""
        self.before = list(accumulate(crossing))
        """Bytes between each step and the one before."""
        self.peak_bytes = max(self.held, default=0)

    def _cut_bytes(self, steps: Sequence[Step]) -> int:
        """Of rows of weights: they are held all the time."""
        is_cut = [step.node is None and self.sliced.is_weight(step.inputs[0]) for step in steps]
        return sum(sum(step.sizes) for step, cut in zip(steps, is_cut, strict=True) if cut)

    def after(self, choice: _Choice) -> _Order:
        steps = [*self.steps[: choice.begin], *choice.steps, *self.steps[choice.end :]]
        return _Order(self.sliced, steps)

    def replaced(self, stretch: Stretch, begin: int, end: int) -> _Choice | None:
        """What becomes of the steps in between if the last makes its output in slices; None where it cannot."""
        found = self._outside(self.sliced.steps(stretch, _Stops(self, begin)))
        # Slices may differ in where they have to begin. What is whole for one is for all.
        made = None if found is None else self.sliced.steps(stretch, found)
        inputs = self._outside(made)
        if made is None or found is None or inputs is None or not inputs <= found:
            return None
        there = {name for step in self.steps[begin:end] for name in step.outputs}
        if not all(name in there or self._is_there(name, begin) for name in inputs):
            return None
        steps = self._living([*self.steps[begin : end - 1], *made], begin, end)
        return _Choice(
            stretch=Stretch(
                output=stretch.output, axis=stretch.axis, slices=stretch.slices, inputs=tuple(sorted(inputs))
            ),
            begin=begin,
            end=end,
            steps=tuple(steps),
            peak_bytes=self._peak(steps, begin, end),
            extra_bytes=_made_bytes(steps) - _made_bytes(self.steps[begin:end]),
        )

    def _outside(self, steps: Sequence[Step] | None) -> frozenset[str] | None:
        """The tensors of the graph that steps read and do not make."""
        if steps is None:
            return None
        inside = {name for step in steps for name in step.outputs}
        read = {name for step in steps for name in step.inputs} - inside
        return frozenset(
            name for name in read if name in self.sliced.graph.producers and not self.sliced.is_weight(name)
        )

    def _is_there(self, name: str, place: int) -> bool:
        root = self.root.get(name)
        return name in self._outer if root is None else self.born[root] < place <= self.last[root]

    def _living(self, steps: Sequence[Step], begin: int, end: int) -> list[Step]:
        """Without those that nobody reads any more."""
        read: set[str] = set()
        kept: list[Step] = []
        for step in reversed(steps):
            if any(name in read or self._is_read_from(name, end) for name in step.outputs):
                kept.append(step)
                read.update(step.inputs)
        return kept[::-1]

    def _is_read_from(self, name: str, place: int) -> bool:
        root = self.root.get(name)
        return root is not None and self.last[root] >= place

    def _peak(self, steps: Sequence[Step], begin: int, end: int) -> int:
        """The most that is held while these steps run in the place of those from ``begin`` to ``end``."""
        root: dict[str, str] = {}
        last: dict[str, int] = {}
        size: dict[str, int] = {}
        born: list[list[str]] = [[] for _ in steps]
        for place, step in enumerate(steps):
            for name in step.inputs:
                own = root.get(name) or self.root.get(name)
                if own is not None:
                    last[own] = place
            for position, (name, taken) in enumerate(zip(step.outputs, step.sizes, strict=True)):
                if not name:
                    continue
                if position == 0 and is_view(self.sliced.graph, step):
                    source = root.get(step.inputs[0]) or self.root.get(step.inputs[0])
                    if source is not None:
                        root[name] = source
                        if self._is_read_from(name, end):
                            last[source] = len(steps)
                    continue
                root[name], last[name] = name, place
                size[name] = self.size.get(name, taken)
                born[place].append(name)
        held = self.cut_bytes - self._cut_bytes(self.steps[begin:end]) + self._cut_bytes(steps)
        for name, taken in self.size.items():
            if self.born[name] >= begin or self.last[name] < begin:
                continue
            if self.last[name] >= end:
                last[name] = len(steps)
            if name in last:
                held += taken
                size[name] = taken
        ends: list[int] = [0] * (len(steps) + 1)
        for name, place in last.items():
            if self._is_read_from(name, end):
                place = len(steps)
            ends[place] += size.get(name, 0)
        peak = held
        for place, names in enumerate(born):
            held += sum(size[name] for name in names)
            peak = max(peak, held)
            held -= ends[place]
        return peak


def _made_bytes(steps: Sequence[Step]) -> int:
    return sum(sum(step.sizes) for step in steps)


class _Stops:
    """The tensors that are there before a step."""

    def __init__(self, order: _Order, place: int) -> None:
        self._order, self._place = order, place

    def __contains__(self, name: object) -> bool:
        root = self._order.root.get(str(name))
        return root is not None and self._order.born[root] < self._place


def is_view(graph: OpGraph, step: Step) -> bool:
    """Whether a step's first output lies in the bytes of its first input."""
    if step.node is None or not step.inputs:
        return False
    node = graph.nodes[step.node]
    return not node.domain and node.op_type in PeakTable.VIEWS


_Known = dict[tuple[int, int], tuple[int, int, int, int, int]]
"""(Bytes of a peak, bytes made there) -> what was chosen: (begin and end, from the peak, axis, slices, bytes then)."""


def _choose(order: _Order, room_bytes: int, known: _Known) -> _Choice | None:
    """The way to lower the highest peak; None where there is none."""
    peak = max(range(len(order.steps)), key=lambda place: order.held[place])
    key = (order.peak_bytes, sum(order.steps[peak].sizes))
    found = _as_before(order, peak, known[key]) if key in known else None
    if found is None:
        found = _best(list(_choices(order, peak, room_bytes)), order.peak_bytes, room_bytes)
        if found is not None:
            offsets = (found.begin - peak, found.end - peak)
            known[key] = (*offsets, found.stretch.axis, found.stretch.slices, found.peak_bytes)
    return found


def _as_before(order: _Order, peak: int, known: tuple[int, int, int, int, int]) -> _Choice | None:
    """What was chosen for a peak as high as this, which a model of equal layers has often, if it does as much here."""
    begin, end = peak + known[0], peak + known[1]
    if begin < 0 or end > len(order.steps) or not _is_own(order, end - 1) or (begin and not _is_own(order, begin - 1)):
        return None
    choice = _try(order, begin, end, known[2], known[3])
    return choice if choice is not None and choice.peak_bytes == known[4] else None


def _choices(order: _Order, peak: int, room_bytes: int) -> Iterator[_Choice]:
    for end in _ends(order, peak):
        shape = order.sliced.known_shape(order.steps[end].outputs[0]) or ()
        for begin in _begins(order, peak):
            for axis in [axis for axis, size in enumerate(shape[:3]) if size > 1]:
                for slices in SLICES:
                    choice = _try(order, begin, end + 1, axis, slices)
                    if choice is None:
                        break
                    yield choice
                    if choice.peak_bytes <= room_bytes:
                        break


def _try(order: _Order, begin: int, end: int, axis: int, slices: int) -> _Choice | None:
    output = order.steps[end - 1].outputs[0]
    return order.replaced(Stretch(output=output, axis=axis, slices=slices, inputs=()), begin, end)


def _best(choices: Sequence[_Choice], peak_bytes: int, room_bytes: int) -> _Choice | None:
    fitting = [choice for choice in choices if choice.peak_bytes <= room_bytes]
    if fitting:
        coarse = max(1, peak_bytes // 4)
        return min(fitting, key=lambda one: (one.extra_bytes // coarse, one.stretch.slices, one.extra_bytes))
    best = min(choices, key=lambda one: (one.peak_bytes, one.extra_bytes), default=None)
    return best if best is not None and best.peak_bytes < peak_bytes else None


def _is_own(order: _Order, place: int) -> bool:
    """Whether a step makes a tensor of the graph, whole."""
    step = order.steps[place]
    return step.need is None and len(step.outputs) == 1 and step.outputs[0] in order.sliced.graph.producers


def _ends(order: _Order, peak: int) -> list[int]:
    """Steps at a peak or behind it after which less is held than after any in between."""
    places = [place for place in range(peak, len(order.steps)) if _is_own(order, place)][:REACH]
    return _lows(places, [order.before[place + 1] for place in places])


def _begins(order: _Order, peak: int) -> list[int]:
    """Steps at a peak or before it before which less is held than before any in between."""
    places = [place for place in range(peak, -1, -1) if place == 0 or _is_own(order, place - 1)][:REACH]
    return _lows(places, [order.before[place] for place in places])


def _lows(places: Sequence[int], held: Sequence[int]) -> list[int]:
    lowest, found = math.inf, []
    for place, size in zip(places, held, strict=True):
        if size < lowest:
            lowest = size
            found.append(place)
    return found[:PLACES]
