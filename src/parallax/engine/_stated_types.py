"""Outlines of a plan's memory made from stated types alone, and the names of dimensions that they are written in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from parallax.engine._shape_functions import Term
from parallax.graph import Dim, OpGraph, SizeExpression, TensorInfo, size_expression, wrapped_type
from parallax.memory import MemoryModel
from parallax.schedule import Plan

_UINT8: Final = 2


def memory_model_from_types(
    plan: Plan, inputs: Mapping[str, TensorInfo], tensors: Mapping[str, TensorInfo], outputs: Sequence[str]
) -> MemoryModel:
    """Lifetimes, and sizes of boundary tensors by these types. Peaks of segments are all 0: nodes are not looked at."""
    graph = OpGraph(
        name="stated types",
        nodes=(),
        inputs=tuple(inputs.values()),
        overridable=(),
        outputs=tuple(tensors.get(name) or TensorInfo(name=name, kind="unknown") for name in outputs),
        tensors={**inputs, **tensors},
        initializers={},
        producers={},
        consumers={},
    )
    bare = replace(plan, segments=tuple([replace(segment, nodes=()) for segment in plan.segments]))
    return MemoryModel(bare, graph, place_outputs=False)


def stated_type(argument: Any) -> TensorInfo:
    """The type of an input or output as ONNX Runtime's ``NodeArg`` states it."""
    if not argument.type.startswith("tensor("):
        return TensorInfo(name=argument.name, kind="unknown")
    element = wrapped_type(argument.type)
    shape = argument.shape
    return TensorInfo(
        name=argument.name,
        dtype=0 if element is None else element.code,
        # The runtime states no shape and a scalar's alike.
        shape=tuple(dim if isinstance(dim, int) and dim >= 0 else dim or None for dim in shape) if shape else None,
    )


def proven_type(info: TensorInfo, inputs: Mapping[str, TensorInfo]) -> TensorInfo:
    """A type of which only those names of dimensions are left that inputs have. The runtime makes others up anew in
    each segment, so that the same one may mean different sizes."""
    symbols = {dim for other in inputs.values() for dim in other.shape or () if isinstance(dim, str)}
    if info.shape is None:
        return info
    return replace(info, shape=tuple(dim if isinstance(dim, int) or dim in symbols else None for dim in info.shape))


def dim_expression(dim: str, names: Mapping[str, str]) -> SizeExpression | None:
    """What a dimension is in terms of the inputs', whose names are the keys; in ours, which are the values. None
    unless it depends on nothing else."""
    # A dimension is the size of a row of that many bytes.
    expression = size_expression(TensorInfo(name=dim, dtype=_UINT8, shape=(dim,)), symbols=names.keys())
    if expression is None or not expression.symbols <= names.keys():
        return None
    return replace(
        expression,
        terms=tuple((count, tuple(names[symbol] for symbol in symbols)) for count, symbols in expression.terms),
    )


def spell_expression(expression: SizeExpression | None) -> Dim:
    """A dimension as text that `dim_expression` reads."""
    if expression is None:
        return None
    text = "0"
    for count, symbols in expression.terms:
        text += (" - " if count < 0 else " + ") + "*".join([str(abs(count)), *symbols])
    return text


def spell(term: Term) -> Dim:
    """Likewise, of a term of a shape function."""
    return str(term) if term.symbols else term.offset
