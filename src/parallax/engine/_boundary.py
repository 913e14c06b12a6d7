"""Which boundary tensors a run can keep in a planned arena, for the shapes it is fed: facts and what was learnt.

Sizes come from inferred types where these tell them. Where they do not, from runs: a shape that two runs of one
signature agree on is taken for theirs, and a function fitted to the shapes of several signatures (`ShapeFunction`)
gives the shapes of others. Inference can be wrong and agreement can be chance, so nothing here is trusted with memory
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
from parallax.engine._shape_functions import ShapeFunction, Term
from parallax.engine._stated_types import dim_expression, memory_model_from_types, spell, spell_expression
from parallax.engine._view_ops import Place, Shape, ViewOp, alias_parts, part_places
from parallax.graph import Dim, ElementType, TensorInfo, bind_dims, packed_bytes, wrapped_type
from parallax.memory import ArenaPlan, MemoryModel, PlanCache, verify_arena_plan
from parallax.schedule import Plan

SIGNATURES: Final = 64
"""Shape signatures whose plans are held."""
MOST_CHOICES: Final = 8
"""So many signatures may allow no view before views are given up."""

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
class _Observed:
    """What runs of one signature taught."""

    seen: dict[str, Shape] = field(default_factory=dict)
    """By one run."""
    settled: dict[str, Shape] = field(default_factory=dict)
    """By two that agree."""


class BoundaryPlanner:
    """Plans per shape signature for one executor. Thread-safe.

    Args:
        plan: of the executor.
        memory_model: of that plan, made with ``place_outputs=False``.
        inputs: types of the model's inputs, as the runtime states them.
        input_count: how many inputs there are, with those of which no type is stated.
        element_types: ONNX Runtime's name of the type of each boundary tensor, by tensor.
        outputs: names of the model's outputs, which belong to the caller.
        view_ops: segments that need not run where tensors lie well (`find_view_ops`).
    """

    def __init__(
        self,
        plan: Plan,
        memory_model: MemoryModel,
        *,
        inputs: Mapping[str, TensorInfo],
        input_count: int,
        element_types: Mapping[str, str],
        outputs: Sequence[str],
        view_ops: Sequence[ViewOp] = (),
    ) -> None:
        self._plan = plan
        self._view_ops = tuple(view_ops)  # (lock)
        self._aliases: bool | None = None if view_ops else False  # (lock) whether that is worth it; None: not known yet
        self._choices = 0  # (lock) signatures that allowed no view so far
        self._outputs = tuple(outputs)
        self._input_count = input_count
        self._free = tuple(name for name, info in inputs.items() if info.kind == "tensor" and not info.is_static)
        # Dimensions get names of our own that any expression can hold; the model's may be anything, or none.
        self._own_names: dict[str, str] = {}  # the memory model's -> ours
        self._inputs = {name: replace(info, shape=self._renamed(info)) for name, info in inputs.items()}
        self._types = memory_model.types
        self._element_types: dict[str, ElementType] = {}
        for info in memory_model.types:
            element = wrapped_type(element_types.get(info.name, ""))
            is_stated = element is not None and element.code == info.dtype and info.kind == "tensor"
            if element is not None and is_stated and info.name not in self._outputs:
                self._element_types[info.name] = element
        self._lock = threading.Lock()
        self._plans: OrderedDict[Signature, BoundaryPlan] = OrderedDict()  # (lock)
        self._observed: OrderedDict[Signature, _Observed] = OrderedDict()  # (lock)
        self._data_dependent: set[str] = set()  # (lock) tensors whose size depends on more than shapes
        self._functions: dict[str, ShapeFunction] = {}  # (lock)
        self._fitted: frozenset[str] = frozenset()  # (lock) tensors whose shape a fitted function gives
        # (lock) of each dimension, up to two values that functions were fitted under
        self._met: dict[str, set[int]] = {}
        self._use(memory_model, dict(self._own_names))

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

    def _use(self, memory_model: MemoryModel, names: Mapping[str, str]) -> None:
        """Plan by this memory model, which calls the inputs' dimensions by these names of its own (-> ours)."""
        self._memory_model = memory_model
        self._cache = PlanCache(memory_model, capacity=SIGNATURES)
        self._model_names = {own: name for name, own in names.items()}
        self._candidates = {info.name: info for info in memory_model.types if info.name in self._element_types}
        dims = {dim for info in self._candidates.values() for dim in info.shape or () if isinstance(dim, str)}
        self._sizes = {dim: dim_expression(dim, names) for dim in dims}
        self._alias()

    def _alias(self) -> None:
        """Plan by the aliased plan as well."""
        if self._view_ops:
            self._aliased_plan = alias_parts(self._plan, self._view_ops)
            self._aliased_model = memory_model_from_types(
                self._aliased_plan, self._inputs, self._own_types(), self._outputs
            )
            self._aliased_cache = PlanCache(self._aliased_model, capacity=SIGNATURES)

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
            noted = self._observed.setdefault(plan.signature, _Observed())
            self._observed.move_to_end(plan.signature)
            if len(self._observed) > SIGNATURES:
                self._observed.popitem(last=False)
            is_new = False
            observed = False
            for name, shape in shapes.items():
                before = noted.seen.get(name)
                if before is None:
                    noted.seen[name] = shape
                    if len(plan.dims) == len(self._own_names) > 0:
                        self._functions.setdefault(name, ShapeFunction()).observe(plan.dims, shape)
                        observed = True
                elif before != shape:
                    self._data_dependent.add(name)
                    is_new = True
                elif name not in noted.settled:
                    noted.settled[name] = shape
                    is_new = True
            if observed and self._has_news(plan.dims, shapes):
                self._use_functions()
            elif is_new:
                plan.stale = True
                if self._plans.get(plan.signature) is plan:
                    del self._plans[plan.signature]

    def _has_news(self, dims: Mapping[str, int], observed: Iterable[str]) -> bool:
        """Whether what was just observed for these dimensions changes which fitted functions are used."""
        is_wider = not self._is_covered(dims)
        if 0 not in dims.values():
            for name, size in dims.items():
                met = self._met.setdefault(name, set())
                if len(met) < 2:
                    met.add(size)
        for name in observed:
            function, is_followed = self._functions.get(name), name in self._fitted
            if function is not None and (function.terms is not None) != is_followed:
                return True
            if is_wider and is_followed:
                return True
        return False

    def _is_covered(self, dims: Mapping[str, int]) -> bool:
        """Whether fitted functions hold for these dimensions. How a shape depends on one that was the same in all runs
        that functions were fitted to is not known."""
        if len(dims) < len(self._own_names):
            return False
        return all(len(met) > 1 or dims[name] in met for name, met in self._met.items())

    def misplaced(self, plan: BoundaryPlan, shapes: Mapping[str, Shape]) -> None:
        """Tensors of ``plan`` turned out to have these shapes instead of those they were placed with."""
        with self._lock:
            for name, shape in shapes.items():
                terms = self._functions[name].terms if name in self._fitted else None
                if terms is None or tuple([term.value(plan.dims) for term in terms]) == shape:
                    self._data_dependent.add(name)
                else:  # the function is at fault, and another may do
                    self._functions[name].observe(plan.dims, shape)
            plan.stale = True
            self._forget_plans()
            if self._fitted:
                self._use_functions()

    def _forget_plans(self) -> None:
        for plan in self._plans.values():
            plan.stale = True
        self._plans.clear()

    def _use_functions(self) -> None:
        """Plan by a memory model in which fitted functions give what inference could not."""
        self._fitted = frozenset(name for name, function in self._functions.items() if function.terms is not None)
        self._use(
            memory_model_from_types(self._plan, self._inputs, self._own_types(), self._outputs),
            {own: own for own in self._own_names.values()},
        )
        self._forget_plans()

    def _own_types(self) -> dict[str, TensorInfo]:
        functions = self._functions
        return {
            info.name: replace(
                info, shape=self._spelt(info, functions[info.name].terms if info.name in functions else None)
            )
            for info in self._types
        }

    def _spelt(self, info: TensorInfo, terms: Sequence[Term] | None) -> tuple[Dim, ...] | None:
        """A shape in our names: as inferred, and by a fitted function where inference gives nothing."""
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
        dims = {self._model_names[name]: size for name, size in own.items() if name in self._model_names}
        noted = self._observed.get(signature)
        learnt: Mapping[str, Shape] = {} if noted is None else noted.settled
        if learnt:
            self._cache.learn(dims, {name: shape for name, shape in learnt.items() if name not in self._data_dependent})
        arena = self._cache.get(dims).arena
        values = {dim: None if expression is None else expression.bytes(own) for dim, expression in self._sizes.items()}
        unreliable = (
            self._data_dependent if self._is_covered(own) else self._data_dependent | (self._fitted - learnt.keys())
        )
        shapes = {
            name: None if name in unreliable else learnt.get(name) or _shape(info, values)
            for name, info in self._candidates.items()
        }
        places = self._places(arena, shapes)
        plan, memory_model, skipped = self._plan, self._memory_model, frozenset[int]()
        if self._aliases is None:
            self._choose_view_ops(
                shapes, waiting=self._candidates.keys() - places.keys() - self._data_dependent - learnt.keys()
            )
        if self._aliases is not False:
            if learnt:
                self._aliased_cache.learn(
                    own, {name: shape for name, shape in learnt.items() if name not in unreliable}
                )
            aliased = self._aliased_cache.get(own).arena
            inside = self._aliased_places(aliased, shapes)
            if inside is not None and self._aliases is None:
                self._aliases = aliased.arena_bytes <= arena.arena_bytes
            if inside is not None and self._aliases:
                arena, places, plan, memory_model = aliased, inside, self._aliased_plan, self._aliased_model
                skipped = frozenset(view_op.segment for view_op in self._view_ops)
        sizes: dict[str, int | None] = {slot.tensor: slot.size_bytes for slot in arena.slots}
        sizes.update(dict.fromkeys(arena.dynamic))
        verify_arena_plan(arena, plan, sizes=sizes, model_outputs=self._outputs, order=memory_model.lifetimes.order)
        return BoundaryPlan(
            signature=signature,
            dims=own,
            arena_bytes=arena.arena_bytes if places else 0,
            places=places,
            watched=frozenset(self._candidates.keys() - places.keys() - self._data_dependent - learnt.keys()),
            skipped=skipped,
        )

    def _choose_view_ops(self, shapes: Mapping[str, Shape | None], *, waiting: Collection[str]) -> None:
        """Keep the views that the first shapes to allow any do: others, mostly along inner axes, would prevent all."""
        if any(not view_op.names.isdisjoint(waiting) for view_op in self._view_ops):
            return  # it may be known later
        chosen = []
        for view_op in self._view_ops:
            shape = shapes.get(view_op.whole)
            types = {self._element_types.get(name) for name in view_op.names}
            element = types.pop() if len(types) == 1 else None
            if shape is not None and element is not None and view_op.names.isdisjoint(self._data_dependent):
                whole = Place(offset=0, shape=shape, element_type=element.code)
                if part_places(view_op, whole, shapes, element.bits // 8) is not None:
                    chosen.append(view_op)
        self._choices += 1
        if not chosen:
            self._aliases = None if self._choices < MOST_CHOICES else False
        elif len(chosen) < len(self._view_ops):
            self._view_ops = tuple(chosen)
            self._alias()

    def _places(self, arena: ArenaPlan, shapes: Mapping[str, Shape | None]) -> dict[str, Place]:
        places: dict[str, Place] = {}
        for slot in arena.slots:
            shape = shapes.get(slot.tensor)
            if shape is not None:
                element = self._element_types[slot.tensor]
                if packed_bytes(math.prod(shape), element.bits) == slot.size_bytes:
                    places[slot.tensor] = Place(offset=slot.offset, shape=shape, element_type=element.code)
        return places

    def _aliased_places(self, arena: ArenaPlan, shapes: Mapping[str, Shape | None]) -> dict[str, Place] | None:
        """Places in the aliased plan's arena; None unless that has one for every part of every view."""
        places = self._places(arena, shapes)
        for view_op in self._view_ops:
            whole = places.get(view_op.whole)
            if whole is None or not self._data_dependent.isdisjoint(view_op.names):
                return None
            parts = part_places(view_op, whole, shapes, self._element_types[view_op.whole].bits // 8)
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
