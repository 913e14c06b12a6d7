"""Which boundary tensors a run can keep in a planned arena, for the shapes it is fed: facts and what was learnt.

Sizes come from inferred types where these tell them. Where they do not, from runs: a shape that two runs of one
signature agree on is taken for theirs, and a law that explains the shapes of several signatures (`ShapeLaw`) for the
shapes of others. Inference can be wrong and agreement can be chance, so nothing here is trusted with memory
safety: the runtime refuses to write an output into a tensor of another shape, and that segment is run again with
outputs of its own.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import field, replace
from typing import Any, Final

from parallax._record import dataclass
from parallax.engine._laws import ShapeLaw, Term
from parallax.engine._moves import Move, Place, Shape, fold, part_places
from parallax.engine._sketch import dim_expression, sketch_outline, spell, spell_expression
from parallax.graph import Dim, ElementType, TensorInfo, bind_dims, packed_bytes, wrapped_type
from parallax.memory import ArenaPlan, MemoryModel, PlanCache, verify_arena_plan
from parallax.schedule import Plan

SIGNATURES: Final = 64
"""Shape signatures whose plans are held."""
MOST_CHOICES: Final = 8
"""So many signatures may allow no move before moves are given up."""

Signature = tuple[Any, ...]
"""The shapes of those model inputs whose shapes are free, and which inputs are fed."""


@dataclass(slots=True, kw_only=True)
class BoundaryPlan:
    """The arena for one signature. Replaced, never changed, when more is learnt: then ``stale`` is set."""

    signature: Signature
    dims: Mapping[str, int]
    """By the planner's own names."""
    arena_bytes: int
    places: Mapping[str, Place]
    """Tensors in the arena. Every other one is allocated by the runtime when it is computed."""
    watched: frozenset[str]
    """Tensors outside whose shapes are worth knowing."""
    skipped: frozenset[int] = frozenset()
    """Segments that only move bytes, and have nothing to move: their outputs lie where their inputs do."""
    stale: bool = False


@dataclass(slots=True)
class _Lesson:
    """What runs of one signature taught."""

    seen: dict[str, Shape] = field(default_factory=dict)
    """By one run."""
    settled: dict[str, Shape] = field(default_factory=dict)
    """By two that agree."""


class BoundaryPlanner:
    """Plans per shape signature for one executor. Thread-safe.

    Args:
        plan: of the executor.
        outline: of that plan, made with ``place_outputs=False``.
        inputs: types of the model's inputs, as the runtime states them.
        input_count: how many inputs there are, with those of which no type is stated.
        element_types: ONNX Runtime's name of the type of each boundary tensor, by tensor.
        outputs: names of the model's outputs, which belong to the caller.
        moves: segments that need not run where tensors lie well (`find_moves`).
    """

    def __init__(
        self,
        plan: Plan,
        outline: MemoryModel,
        *,
        inputs: Mapping[str, TensorInfo],
        input_count: int,
        element_types: Mapping[str, str],
        outputs: Sequence[str],
        moves: Sequence[Move] = (),
    ) -> None:
        self._plan = plan
        self._moves = tuple(moves)  # (lock)
        self._folds: bool | None = None if moves else False  # (lock) whether that is worth it; None: not known yet
        self._choices = 0  # (lock) signatures that allowed no move so far
        self._outputs = tuple(outputs)
        self._input_count = input_count
        self._free = tuple(name for name, info in inputs.items() if info.kind == "tensor" and not info.is_static)
        # Dimensions get names of our own that any expression can hold; the model's may be anything, or none.
        self._own_names: dict[str, str] = {}  # the outline's -> ours
        self._inputs = {name: replace(info, shape=self._renamed(info)) for name, info in inputs.items()}
        self._types = outline.types
        self._element_types: dict[str, ElementType] = {}
        for info in outline.types:
            element = wrapped_type(element_types.get(info.name, ""))
            is_stated = element is not None and element.code == info.dtype and info.kind == "tensor"
            if element is not None and is_stated and info.name not in self._outputs:
                self._element_types[info.name] = element
        self._lock = threading.Lock()
        self._plans: OrderedDict[Signature, BoundaryPlan] = OrderedDict()  # (lock)
        self._lessons: OrderedDict[Signature, _Lesson] = OrderedDict()  # (lock)
        self._unsteady: set[str] = set()  # (lock) tensors whose size depends on more than shapes
        self._laws: dict[str, ShapeLaw] = {}  # (lock)
        self._lawful: frozenset[str] = frozenset()  # (lock) tensors of which laws tell the shape
        self._met: dict[str, set[int]] = {}  # (lock) of each dimension, up to two values that laws were found under
        self._use(outline, dict(self._own_names))

    def _renamed(self, info: TensorInfo) -> tuple[Dim, ...] | None:
        if info.shape is None:
            return None
        shape: list[Dim] = []
        for axis, dim in enumerate(info.shape):
            if isinstance(dim, int):
                shape.append(dim)
            else:  # an unnamed one has this name in `bind_dims`
                shape.append(self._own_names.setdefault(dim or f"?{info.name}:{axis}", f"d{len(self._own_names)}"))
        return tuple(shape)

    def _use(self, outline: MemoryModel, names: Mapping[str, str]) -> None:
        """Plan by this outline, which calls the inputs' dimensions by these names of its own (-> ours)."""
        self._outline = outline
        self._cache = PlanCache(outline, capacity=SIGNATURES)
        self._outline_names = {own: name for name, own in names.items()}
        self._candidates = {info.name: info for info in outline.types if info.name in self._element_types}
        dims = {dim for info in self._candidates.values() for dim in info.shape or () if isinstance(dim, str)}
        self._sizes = {dim: dim_expression(dim, names) for dim in dims}
        self._fold()

    def _fold(self) -> None:
        """Plan by the folded plan as well."""
        if self._moves:
            self._folded_plan = fold(self._plan, self._moves)
            self._folded_outline = sketch_outline(self._folded_plan, self._inputs, self._own_types(), self._outputs)
            self._folded_cache = PlanCache(self._folded_outline, capacity=SIGNATURES)

    @property
    def is_useful(self) -> bool:
        """Whether any tensor could ever live in an arena."""
        return bool(self._element_types)

    def signature(self, feeds: Mapping[str, Any]) -> Signature:
        """Of a run's feeds: model input name -> C OrtValue."""
        shapes = tuple([tuple(feeds[name].shape()) if name in feeds else None for name in self._free])
        return shapes if len(feeds) == self._input_count else (*shapes, frozenset(feeds))

    def plan(self, signature: Signature) -> BoundaryPlan:
        """The plan for a signature.

        Raises: PlanError if the arena would not keep tensors apart (`verify_arena_plan`).
        """
        with self._lock:
            made = self._plans.get(signature)
            if made is not None:
                self._plans.move_to_end(signature)
                return made
            made = self._plans[signature] = self._make(signature)
            if len(self._plans) > SIGNATURES:
                self._plans.popitem(last=False)
            return made

    def observe(self, plan: BoundaryPlan, shapes: Mapping[str, Shape]) -> None:
        """Take note of the shapes of watched tensors that a run by ``plan`` produced."""
        with self._lock:
            lesson = self._lessons.setdefault(plan.signature, _Lesson())
            self._lessons.move_to_end(plan.signature)
            if len(self._lessons) > SIGNATURES:
                self._lessons.popitem(last=False)
            is_new = False
            observed = False
            for name, shape in shapes.items():
                before = lesson.seen.get(name)
                if before is None:
                    lesson.seen[name] = shape
                    if len(plan.dims) == len(self._own_names) > 0:
                        self._laws.setdefault(name, ShapeLaw()).observe(plan.dims, shape)
                        observed = True
                elif before != shape:
                    self._unsteady.add(name)
                    is_new = True
                elif name not in lesson.settled:
                    lesson.settled[name] = shape
                    is_new = True
            if observed and self._has_news(plan.dims, shapes):
                self._follow_laws()
            elif is_new:
                plan.stale = True
                if self._plans.get(plan.signature) is plan:
                    del self._plans[plan.signature]

    def _has_news(self, dims: Mapping[str, int], observed: Iterable[str]) -> bool:
        """Whether laws of the tensors just observed for these dimensions say else than those that are followed."""
        is_wider = not self._is_covered(dims)
        if 0 not in dims.values():
            for name, size in dims.items():
                met = self._met.setdefault(name, set())
                if len(met) < 2:
                    met.add(size)
        for name in observed:
            law, is_followed = self._laws.get(name), name in self._lawful
            if law is not None and (law.terms is not None) != is_followed:
                return True
            if is_wider and is_followed:
                return True
        return False

    def _is_covered(self, dims: Mapping[str, int]) -> bool:
        """Whether laws can be asked about these dimensions. What one does to shapes that was the same in all runs that
        laws were found in is not known."""
        if len(dims) < len(self._own_names):
            return False
        return all(len(met) > 1 or dims[name] in met for name, met in self._met.items())

    def misplaced(self, plan: BoundaryPlan, shapes: Mapping[str, Shape]) -> None:
        """Tensors of ``plan`` turned out to have these shapes instead of those they were placed with."""
        with self._lock:
            for name, shape in shapes.items():
                terms = self._laws[name].terms if name in self._lawful else None
                if terms is None or tuple([term.value(plan.dims) for term in terms]) == shape:
                    self._unsteady.add(name)
                else:  # the law is at fault, and another may do
                    self._laws[name].observe(plan.dims, shape)
            plan.stale = True
            self._forget_plans()
            if self._lawful:
                self._follow_laws()

    def _forget_plans(self) -> None:
        for plan in self._plans.values():
            plan.stale = True
        self._plans.clear()

    def _follow_laws(self) -> None:
        """Plan by an outline in which the laws say what inference could not."""
        self._lawful = frozenset(name for name, law in self._laws.items() if law.terms is not None)
        self._use(
            sketch_outline(self._plan, self._inputs, self._own_types(), self._outputs),
            {own: own for own in self._own_names.values()},
        )
        self._forget_plans()

    def _own_types(self) -> dict[str, TensorInfo]:
        laws = self._laws
        return {
            info.name: replace(info, shape=self._spelt(info, laws[info.name].terms if info.name in laws else None))
            for info in self._types
        }

    def _spelt(self, info: TensorInfo, terms: Sequence[Term] | None) -> tuple[Dim, ...] | None:
        """A shape in our names: as inferred, and by law where that tells nothing."""
        if info.shape is None:
            return None if terms is None else tuple([spell(term) for term in terms])
        shape: list[Dim] = []
        for axis, dim in enumerate(info.shape):
            if isinstance(dim, int):
                shape.append(dim)
                continue
            inferred = None if dim is None else spell_expression(dim_expression(dim, self._own_names))
            if inferred is None and terms is not None and len(terms) == len(info.shape):
                inferred = spell(terms[axis])
            shape.append(inferred)
        return tuple(shape)

    def _make(self, signature: Signature) -> BoundaryPlan:
        shapes = {name: shape for name, shape in zip(self._free, signature, strict=False) if shape is not None}
        own = bind_dims(self._inputs.values(), shapes)
        dims = {self._outline_names[name]: size for name, size in own.items() if name in self._outline_names}
        lesson = self._lessons.get(signature)
        learnt: Mapping[str, Shape] = {} if lesson is None else lesson.settled
        if learnt:
            self._cache.learn(dims, {name: shape for name, shape in learnt.items() if name not in self._unsteady})
        arena = self._cache.get(dims).arena
        values = {dim: None if expression is None else expression.bytes(own) for dim, expression in self._sizes.items()}
        doubtful = self._unsteady if self._is_covered(own) else self._unsteady | (self._lawful - learnt.keys())
        shapes = {
            name: None if name in doubtful else learnt.get(name) or _shape(info, values)
            for name, info in self._candidates.items()
        }
        places = self._places(arena, shapes)
        plan, outline, skipped = self._plan, self._outline, frozenset[int]()
        if self._folds is None:
            self._choose_moves(shapes, waiting=self._candidates.keys() - places.keys() - self._unsteady - learnt.keys())
        if self._folds is not False:
            if learnt:
                self._folded_cache.learn(own, {name: shape for name, shape in learnt.items() if name not in doubtful})
            folded = self._folded_cache.get(own).arena
            inside = self._folded_places(folded, shapes)
            if inside is not None and self._folds is None:
                self._folds = folded.arena_bytes <= arena.arena_bytes
            if inside is not None and self._folds:
                arena, places, plan, outline = folded, inside, self._folded_plan, self._folded_outline
                skipped = frozenset(move.segment for move in self._moves)
        sizes: dict[str, int | None] = {slot.tensor: slot.size_bytes for slot in arena.slots}
        sizes.update(dict.fromkeys(arena.dynamic))
        verify_arena_plan(arena, plan, sizes=sizes, model_outputs=self._outputs, order=outline.lifetimes.order)
        return BoundaryPlan(
            signature=signature,
            dims=own,
            arena_bytes=arena.arena_bytes if places else 0,
            places=places,
            watched=frozenset(self._candidates.keys() - places.keys() - self._unsteady - learnt.keys()),
            skipped=skipped,
        )

    def _choose_moves(self, shapes: Mapping[str, Shape | None], *, waiting: Collection[str]) -> None:
        """Keep those moves that the first shapes to allow any do: others, along inner axes mostly, would spoil all."""
        if any(not move.names.isdisjoint(waiting) for move in self._moves):
            return  # it may be known later
        chosen = []
        for move in self._moves:
            shape = shapes.get(move.whole)
            types = {self._element_types.get(name) for name in move.names}
            element = types.pop() if len(types) == 1 else None
            if shape is not None and element is not None and move.names.isdisjoint(self._unsteady):
                whole = Place(offset=0, shape=shape, element_type=element.code)
                if part_places(move, whole, shapes, element.bits // 8) is not None:
                    chosen.append(move)
        self._choices += 1
        if not chosen:
            self._folds = None if self._choices < MOST_CHOICES else False
        elif len(chosen) < len(self._moves):
            self._moves = tuple(chosen)
            self._fold()

    def _places(self, arena: ArenaPlan, shapes: Mapping[str, Shape | None]) -> dict[str, Place]:
        places: dict[str, Place] = {}
        for slot in arena.slots:
            shape = shapes.get(slot.tensor)
            if shape is not None:
                element = self._element_types[slot.tensor]
                if packed_bytes(math.prod(shape), element.bits) == slot.size_bytes:
                    places[slot.tensor] = Place(offset=slot.offset, shape=shape, element_type=element.code)
        return places

    def _folded_places(self, arena: ArenaPlan, shapes: Mapping[str, Shape | None]) -> dict[str, Place] | None:
        """Places in the folded plan's arena; None unless that has one for every part of every move."""
        places = self._places(arena, shapes)
        for move in self._moves:
            whole = places.get(move.whole)
            if whole is None or not self._unsteady.isdisjoint(move.names):
                return None
            parts = part_places(move, whole, shapes, self._element_types[move.whole].bits // 8)
            if parts is None:
                return None
            places.update(parts)
        return places


def _shape(info: TensorInfo, values: Mapping[str, int | None]) -> Shape | None:
    """The shape that a type has for these dimensions; None unless all of it is known."""
    if info.shape is None:
        return None
    shape = []
    for dim in info.shape:
        size = dim if isinstance(dim, int) else values.get(dim) if dim is not None else None
        if size is None:
            return None
        shape.append(size)
    return tuple(shape)
