"""Which stretches of a model to compute in slices, so that a run holds no more than it may.

Only where a run would hold too much is anything sliced; all else stays as it is. At the highest peak, the places around
it where a run holds little are tried as beginning and end of a stretch, with few slices and with many. Of what then
fits, that is taken which computes least twice; if nothing fits, what holds least. Then the next peak is the highest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final

from parallax.graph import Node, OpGraph, tensor_bytes
from parallax.memory import PeakTable
from parallax.model import Model, SlicedGraph, Step, is_shape_question, slice_stretches
from parallax.planner._request import PlannedModel
from parallax.planner._rows import can_share_rows
from parallax.planner._tables import why_model_stays_whole
from parallax.planner._whole import fed_in_full, make_provenance, whole_plan
from parallax.schedule import Stretch

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


def find_stretches(model: Model, budget_bytes: int) -> tuple[Stretch, ...] | None:
    """The stretches with which a run of a model holds at most ``budget_bytes`` of tensors beside inputs and outputs.

    Args:
        model: in the shapes to plan for.
        budget_bytes: 0 for as little as can be found.

    Returns: None where there is nothing to slice, or that does not get there. Seconds for models of a thousand nodes.
    """
    begun = _begin(model)
    return None if begun is None else _narrowed(begun, budget_bytes)[0]


@dataclass(frozen=True, slots=True)
class _State:
    """How far a model is sliced."""

    order: _Order
    found: Mapping[str, Stretch]
    """By their outputs."""
    known: _Known


def _begin(model: Model) -> _State | None:
    """A model before anything is sliced; None where nothing may be."""
    sliced = SlicedGraph(model)
    if any(node.bodies for node in sliced.graph.nodes):
        return None
    return _State(_Order(sliced, list(_whole_steps(sliced))), {}, {})


def _narrowed(state: _State, budget_bytes: int) -> tuple[tuple[Stretch, ...] | None, _State]:
    """The stretches for this room, as `find_stretches` returns them, and how far they are those for any smaller one."""
    shared, order, found, known = state, state.order, dict(state.found), dict(state.known)
    is_shared = True
    while order.peak_bytes > budget_bytes and len(found) < MOST_STRETCHES:
        choices = _choose(order, budget_bytes, known)[: MOST_STRETCHES - len(found)]
        if not choices:
            break
        found.update({choice.stretch.output: choice.stretch for choice in choices})
        order = order.after(choices)
        # Where nothing fits, what holds least is taken, whatever the room.
        is_shared = is_shared and all(choice.peak_bytes > budget_bytes for choice in choices)
        if is_shared:
            shared = _State(order, dict(found), dict(known))
    if order.peak_bytes > budget_bytes > 0:
        return None, shared
    made = {name for step in order.steps for name in step.outputs if step.node is None}
    return tuple([stretch for name, stretch in found.items() if name in made]) or None, shared


def _whole_steps(sliced: SlicedGraph) -> Iterator[Step]:
    graph = sliced.graph
    for node in graph.nodes:
        if (node.op_type == "Constant" and not node.domain) or is_shape_question(graph, node):
            continue
        sizes = tuple([tensor_bytes(graph, name) if name else 0 for name in node.outputs])
        yield Step(node.index, (*node.inputs, *node.captures), node.outputs, sizes)


def stretched_plans(model: Model, *, budget_bytes: int, cores: int, reason: str) -> Iterator[PlannedModel]:
    """Plans of one segment, parts of which are computed in slices: one for this budget, one that takes what it must.

    There are none of a model that must stay whole, or of open shapes.

    Args:
        model: in the shapes to plan for.
        budget_bytes: for what runs hold beside inputs and outputs.
        cores: the segment's threads.
        reason: why slices are asked for, for the plan's provenance.
    """
    if why_model_stays_whole(model) is not None or not can_share_rows(model):
        return
    state = _begin(model)
    for budget in () if state is None else (budget_bytes, 0) if budget_bytes else (0,):
        assert state is not None
        stretches, state = _narrowed(state, budget)
        if stretches is None:
            continue
        made = slice_stretches(model, stretches)
        parts = "one part" if len(stretches) == 1 else f"{len(stretches)} parts"
        most = max(stretch.slices for stretch in stretches)
        text = f"{reason}: {parts} computed in slices of rows, one after the other, in {most} at most"
        plan = whole_plan(made, text, cores=cores, provenance=make_provenance("memory", text))
        plan = fed_in_full(plan, made)
        plan = replace(plan, structure_digest=model.structure_digest, backfill=False, stretches=stretches)
        yield PlannedModel(plan=plan, model=made)


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
        self._outputs = outputs = frozenset(sliced.graph.output_names)
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
        self._cut_before = list(accumulate((_cut_bytes(sliced, step) for step in steps), initial=0))
        """Bytes of rows of weights that steps before each take."""
        self._made_before = list(accumulate((sum(step.sizes) for step in steps), initial=0))
        """Bytes that steps before each make."""
        self.cut_bytes = self._cut_before[-1]
        """Rows of weights are held all the time."""
        self.held = [size + self.cut_bytes for size in accumulate(change)]
        """Bytes at each step."""
        self.before = list(accumulate(crossing))
        """Bytes between each step and the one before."""
        self.peak_bytes = max(self.held, default=0)
        self._there: dict[int, tuple[str, ...]] = {}

    def after(self, choices: Sequence[_Choice]) -> _Order:
        """What becomes of it with these, none of which overlap, in ascending order."""
        steps: list[Step] = []
        done = 0
        for choice in choices:
            steps += (*self.steps[done : choice.begin], *choice.steps)
            done = choice.end
        return _Order(self.sliced, [*steps, *self.steps[done:]])

    def floor(self, begin: int, end: int) -> int:
        """What is held at least when the last of the steps in between makes its output in slices, however many.

        Slices of the output are there, and it as well, beside what is from before and needed after.
        """
        last, graph = self.steps[end - 1], self.sliced.graph
        (output,) = last.outputs
        held = self._cut_outside(begin, end) + self.size.get(output, 0)
        if not is_view_operator(graph.nodes[graph.producers[output]]):
            held += last.sizes[0]
        return held + sum(self.size[name] for name in self._there_before(begin) if self.last[name] >= end)

    def replaced(self, stretch: Stretch, begin: int, end: int) -> _Choice | None:
        """What becomes of the steps in between if the last makes its output in slices; None where it cannot."""
        slices = self.sliced.slices(stretch, _Stops(self, begin))
        if slices is None:
            return None
        inputs = frozenset().union(*slices.inputs)
        if any(names != inputs for names in slices.inputs):
            # Slices differ in where they have to begin. What is whole for one is for all.
            found = inputs
            slices = self.sliced.slices(stretch, found)
            if slices is None:
                return None
            inputs = frozenset().union(*slices.inputs)
            if not inputs <= found:
                return None
        there = {name for step in self.steps[begin:end] for name in step.outputs}
        if not all(name in there or self._is_there(name, begin) for name in inputs):
            return None
        steps = self._living([*self.steps[begin : end - 1], *self.sliced.joined(stretch, slices)], end)
        return _Choice(
            stretch=Stretch(
                output=stretch.output, axis=stretch.axis, slices=stretch.slices, inputs=tuple(sorted(inputs))
            ),
            begin=begin,
            end=end,
            steps=tuple(steps),
            peak_bytes=self._peak(steps, begin, end),
            extra_bytes=sum(sum(step.sizes) for step in steps) - self._made_before[end] + self._made_before[begin],
        )

    def _is_there(self, name: str, place: int) -> bool:
        root = self.root.get(name)
        return name in self._outer if root is None else self.born[root] < place <= self.last[root]

    def _there_before(self, place: int) -> tuple[str, ...]:
        """The tensors that are made before a step and needed in it or after it."""
        if place not in self._there:
            self._there[place] = tuple([name for name, born in self.born.items() if born < place <= self.last[name]])
        return self._there[place]

    def _cut_outside(self, begin: int, end: int) -> int:
        return self.cut_bytes - self._cut_before[end] + self._cut_before[begin]

    def _living(self, steps: Sequence[Step], end: int) -> list[Step]:
        """Without those that nobody reads any more."""
        read: set[str] = set()
        kept: list[Step] = []
        for step in reversed(steps):
            for name in step.outputs:
                if name in read or self._is_read_from(name, end):
                    kept.append(step)
                    read.update(step.inputs)
                    break
        return kept[::-1]

    def _is_read_from(self, name: str, place: int) -> bool:
        root = self.root.get(name)
        return root is not None and self.last[root] >= place

    def _peak(self, steps: Sequence[Step], begin: int, end: int) -> int:
        """The most that is held while these steps run in the place of those from ``begin`` to ``end``."""
        root: dict[str, str] = {}
        last: dict[str, int] = {}
        size: dict[str, int] = {}
        born: list[int] = []
        held = self._cut_outside(begin, end) + sum(_cut_bytes(self.sliced, step) for step in steps)
        for place, step in enumerate(steps):
            for name in step.inputs:
                own = root.get(name) or self.root.get(name)
                if own is not None:
                    last[own] = place
            made = 0
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
                size[name] = 0 if name in self._outputs else taken
                made += size[name]
            born.append(made)
        for name in self._there_before(begin):
            if self.last[name] >= end:
                last[name] = len(steps)
            if name in last:
                size[name] = self.size[name]
                held += size[name]
        ends: list[int] = [0] * (len(steps) + 1)
        for name, place in last.items():
            if self._is_read_from(name, end):
                place = len(steps)
            ends[place] += size.get(name, 0)
        peak = held
        for made, ended in zip(born, ends, strict=False):
            held += made
            peak = max(peak, held)
            held -= ended
        return peak


def _cut_bytes(sliced: SlicedGraph, step: Step) -> int:
    """Bytes of rows of a weight that a step takes."""
    return sum(step.sizes) if step.node is None and sliced.is_weight(step.inputs[0]) else 0


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
    return is_view_operator(graph.nodes[step.node])


def is_view_operator(node: Node) -> bool:
    """Whether the first output of a node with inputs lies in the bytes of its first input."""
    return not node.domain and node.op_type in PeakTable.VIEWS


_Known = dict[tuple[int, int], tuple[int, int, int, int, int]]
"""(Bytes of a peak, bytes made there) -> what was chosen: (begin and end, from the peak, axis, slices, bytes then)."""


def _choose(order: _Order, budget_bytes: int, known: _Known) -> list[_Choice]:
    """Ways to lower the highest peak, and others as high of which one like it is known; none where there is none."""
    peaks = [place for place, held in enumerate(order.held[: len(order.steps)]) if held == order.peak_bytes]
    first = _lowered(order, peaks[0], budget_bytes, known)
    choices = [] if first is None else [first]
    for peak in peaks[1:] if choices else ():
        key = _key(order, peak)
        found = _as_before(order, peak, known[key]) if key in known and peak >= choices[-1].end else None
        if found is not None and found.begin >= choices[-1].end:
            choices.append(found)
    return choices


def _key(order: _Order, peak: int) -> tuple[int, int]:
    return order.peak_bytes, sum(order.steps[peak].sizes)


def _lowered(order: _Order, peak: int, budget_bytes: int, known: _Known) -> _Choice | None:
    """The way to lower one peak; None where there is none."""
    key = _key(order, peak)
    found = _as_before(order, peak, known[key]) if key in known else None
    if found is None:
        found = _search(order, peak, budget_bytes)
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


def _search(order: _Order, peak: int, budget_bytes: int) -> _Choice | None:
    """The best of all ways to lower a peak: of those that fit the one that computes least twice, else the lowest."""
    coarse = max(1, order.peak_bytes // 4)
    fitting: _Choice | None = None
    lowest: _Choice | None = None
    most_bytes = order.peak_bytes - 1
    for end in _ends(order, peak):
        shape = order.sliced.known_shape(order.steps[end].outputs[0]) or ()
        for begin in _begins(order, peak):
            if order.floor(begin, end + 1) > most_bytes:
                continue
            for axis in [axis for axis, size in enumerate(shape[:3]) if size > 1]:
                for slices in SLICES:
                    choice = _try(order, begin, end + 1, axis, slices)
                    if choice is None:
                        break
                    if choice.peak_bytes <= budget_bytes:
                        if fitting is None or _fit_key(choice, coarse) < _fit_key(fitting, coarse):
                            fitting = choice
                        most_bytes = budget_bytes
                        break
                    if choice.peak_bytes <= most_bytes and (lowest is None or _low_key(choice) < _low_key(lowest)):
                        lowest = choice
                        most_bytes = choice.peak_bytes
    return fitting or lowest


def _fit_key(choice: _Choice, coarse: int) -> tuple[int, int, int]:
    """Least of what fits and is best."""
    return choice.extra_bytes // coarse, choice.stretch.slices, choice.extra_bytes


def _low_key(choice: _Choice) -> tuple[int, int]:
    """Least of what holds least."""
    return choice.peak_bytes, choice.extra_bytes


def _try(order: _Order, begin: int, end: int, axis: int, slices: int) -> _Choice | None:
    output = order.steps[end - 1].outputs[0]
    return order.replaced(Stretch(output=output, axis=axis, slices=slices, inputs=()), begin, end)


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
