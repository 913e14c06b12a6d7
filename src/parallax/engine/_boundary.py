"""Which boundary tensors a run can keep in a planned arena, for the shapes it is fed: facts and what was learnt.

Sizes come from inferred types where these tell them. Where they do not, from runs: a shape that two runs of one
signature agree on is taken for theirs. Inference can be wrong and agreement can be chance, so nothing here is
trusted with memory safety: the runtime refuses to write an output into a tensor of another shape, the
segment is run again with outputs of its own, and the tensor is left out of arenas from then on.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from parallax.memory import ArenaPlan, MemoryOutline, PlanCache, bind_dims, size_expression, verify_arena_plan
from parallax.model import TensorInfo
from parallax.schedule import Plan

SIGNATURES: Final = 64
"""Shape signatures whose plans are held."""

_UINT8: Final = 2

# Bits are left out: types of less than a byte are packed differently by different kernels.
ELEMENT_TYPES: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(
    {
        "tensor(float)": (1, 4),
        "tensor(uint8)": (_UINT8, 1),
        "tensor(int8)": (3, 1),
        "tensor(uint16)": (4, 2),
        "tensor(int16)": (5, 2),
        "tensor(int32)": (6, 4),
        "tensor(int64)": (7, 8),
        "tensor(bool)": (9, 1),
        "tensor(float16)": (10, 2),
        "tensor(double)": (11, 8),
        "tensor(uint32)": (12, 4),
        "tensor(uint64)": (13, 8),
        "tensor(bfloat16)": (16, 2),
        "tensor(float8e4m3fn)": (17, 1),
        "tensor(float8e4m3fnuz)": (18, 1),
        "tensor(float8e5m2)": (19, 1),
        "tensor(float8e5m2fnuz)": (20, 1),
    }
)
"""ONNX Runtime's name of a tensor type -> (onnx.TensorProto.DataType, bytes per element)."""

Signature = tuple[Any, ...]
"""The shapes of those model inputs whose shapes are free, and which inputs are fed."""
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a boundary tensor lives."""

    offset: int
    shape: Shape
    element_type: int
    """onnx.TensorProto.DataType."""


@dataclass(slots=True, kw_only=True)
class BoundaryPlan:
    """The arena for one signature. Replaced, never changed, when more is learnt: then ``stale`` is set."""

    signature: Signature
    dims: Mapping[str, int]
    arena_bytes: int
    places: Mapping[str, Place]
    """Tensors in the arena. Every other one is allocated by the runtime when it is computed."""
    watched: frozenset[str]
    """Tensors outside whose shapes are worth knowing."""
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
        element_types: ONNX Runtime's name of the type of each boundary tensor, by tensor.
        outputs: names of the model's outputs, which belong to the caller.
    """

    def __init__(
        self,
        plan: Plan,
        outline: MemoryOutline,
        *,
        inputs: Mapping[str, TensorInfo],
        input_count: int,
        element_types: Mapping[str, str],
        outputs: Sequence[str],
    ) -> None:
        self._plan = plan
        self._outline = outline
        self._cache = PlanCache(outline, capacity=SIGNATURES)
        self._outputs = frozenset(outputs)
        self._inputs = inputs
        self._input_count = input_count
        self._free = tuple(
            name
            for name, info in inputs.items()
            if info.kind == "tensor" and (info.shape is None or not info.is_static)
        )
        symbols = {dim for info in inputs.values() for dim in info.shape or () if isinstance(dim, str)}
        self._candidates: dict[str, tuple[TensorInfo, int, int]] = {}
        for info in outline.types:
            element_type, element_bytes = ELEMENT_TYPES.get(element_types.get(info.name, ""), (0, 0))
            if element_type == info.dtype != 0 and info.kind == "tensor" and info.name not in self._outputs:
                self._candidates[info.name] = (info, element_type, element_bytes)
        names = {dim for info, _, _ in self._candidates.values() for dim in info.shape or () if isinstance(dim, str)}
        # A dimension is the size of a row of that many bytes.
        self._dims = {
            name: size_expression(TensorInfo(name=name, dtype=_UINT8, shape=(name,)), symbols=symbols) for name in names
        }
        self._lock = threading.Lock()
        self._plans: OrderedDict[Signature, BoundaryPlan] = OrderedDict()  # (lock)
        self._lessons: OrderedDict[Signature, _Lesson] = OrderedDict()  # (lock)
        self._unsteady: set[str] = set()  # (lock) tensors whose size depends on more than shapes

    @property
    def is_useful(self) -> bool:
        """Whether any tensor could ever live in an arena."""
        return bool(self._candidates)

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
            settled: dict[str, Shape] = {}
            torn: set[str] = set()
            for name, shape in shapes.items():
                before = lesson.seen.get(name)
                if before is None:
                    lesson.seen[name] = shape
                elif before != shape:
                    torn.add(name)
                elif name not in lesson.settled:
                    settled[name] = shape
            self._unsteady |= torn
            lesson.settled.update(settled)
            if settled:
                self._cache.learn(plan.dims, settled)
            if settled or torn:
                plan.stale = True
                if self._plans.get(plan.signature) is plan:
                    del self._plans[plan.signature]

    def misplaced(self, plan: BoundaryPlan, shapes: Mapping[str, Shape]) -> None:
        """Tensors of ``plan`` turned out to have these shapes instead: none of them is placed again."""
        with self._lock:
            self._unsteady.update(shapes)
            self._cache.learn(plan.dims, shapes)
            plan.stale = True
            for other in self._plans.values():
                other.stale = True
            self._plans.clear()

    def _make(self, signature: Signature) -> BoundaryPlan:
        shapes = {name: shape for name, shape in zip(self._free, signature, strict=False) if shape is not None}
        dims = bind_dims(self._inputs.values(), shapes)
        memory = self._cache.get(dims)
        arena = memory.arena
        self._verify(arena)
        values = {
            name: None if expression is None else expression.bytes(dims) for name, expression in self._dims.items()
        }
        lesson = self._lessons.get(signature)
        learnt: Mapping[str, Shape] = {} if lesson is None else lesson.settled
        places: dict[str, Place] = {}
        for slot in arena.slots:
            candidate = self._candidates.get(slot.tensor)
            if candidate is None or slot.tensor in self._unsteady:
                continue
            info, element_type, element_bytes = candidate
            shape = _shape(info, values) or learnt.get(slot.tensor)
            if shape is not None and math.prod(shape) * element_bytes == slot.size_bytes:
                places[slot.tensor] = Place(offset=slot.offset, shape=shape, element_type=element_type)
        open_ones = self._candidates.keys() - places.keys() - self._unsteady - learnt.keys()
        return BoundaryPlan(
            signature=signature,
            dims=dims,
            arena_bytes=arena.arena_bytes if places else 0,
            places=places,
            watched=frozenset(open_ones),
        )

    def _verify(self, arena: ArenaPlan) -> None:
        sizes: dict[str, int | None] = {slot.tensor: slot.size_bytes for slot in arena.slots}
        sizes.update(dict.fromkeys(arena.dynamic))
        order = self._outline.lifetimes.order
        verify_arena_plan(arena, self._plan, sizes=sizes, model_outputs=self._outputs, order=order)


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
