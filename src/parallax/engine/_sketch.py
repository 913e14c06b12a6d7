"""An outline of a plan's memory made from compiled segments alone, for what was opened without its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from parallax.engine._boundary import ELEMENT_TYPES
from parallax.memory import MemoryOutline
from parallax.model import OpGraph, TensorInfo
from parallax.schedule import Plan


def sketch_outline(
    plan: Plan, inputs: Mapping[str, TensorInfo], tensors: Mapping[str, TensorInfo], outputs: Sequence[str]
) -> MemoryOutline:
    """Lifetimes and sizes of boundary tensors, as the runtime knows their types. Peaks of segments are all 0: their
    nodes are not known."""
    symbols = {dim for info in inputs.values() for dim in info.shape or () if isinstance(dim, str)}
    # Other names are the runtime's own, made up anew in each segment: the same one may mean different sizes.
    proven = {
        name: replace(
            info,
            shape=None
            if info.shape is None
            else tuple(dim if isinstance(dim, int) or dim in symbols else None for dim in info.shape),
        )
        for name, info in tensors.items()
    }
    graph = OpGraph(
        name="sketch",
        nodes=(),
        inputs=tuple(inputs.values()),
        overridable=(),
        outputs=tuple(proven.get(name) or TensorInfo(name=name, kind="unknown") for name in outputs),
        tensors={**inputs, **proven},
        initializers={},
        producers={},
        consumers={},
    )
    bare = replace(plan, segments=tuple(replace(segment, nodes=()) for segment in plan.segments))
    return MemoryOutline(bare, graph, place_outputs=False)


def stated_type(argument: Any) -> TensorInfo:
    """The type of an input or output as ONNX Runtime's ``NodeArg`` states it."""
    if not argument.type.startswith("tensor("):
        return TensorInfo(name=argument.name, kind="unknown")
    element_type, _ = ELEMENT_TYPES.get(argument.type, (0, 0))
    shape = argument.shape
    return TensorInfo(
        name=argument.name,
        dtype=element_type,
        # The runtime states no shape and a scalar's alike.
        shape=tuple(dim if isinstance(dim, int) and dim >= 0 else dim or None for dim in shape) if shape else None,
    )
