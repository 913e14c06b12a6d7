"""The model that a plan is for, and in which shapes backends prepare for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from parallax.errors import ConfigError, PlanError
from parallax.graph import OpGraph, TensorInfo
from parallax.model import Model, slice_stretches, split_rows
from parallax.schedule import CPU_BACKEND, Plan

_AGAIN: Final = "make the plan again"


def planned_model(model: Model, plan: Plan) -> Model:
    """The model whose nodes a plan speaks of: with its constants computed, split by rows, or with stretches in
    slices, where it says so, in the shapes that this was done in.

    Raises: PlanError if it cannot be made so.
    """
    if not plan.is_rewritten:
        return model
    try:
        _check_shapes(model, dict(plan.constants_shapes or ()))
        made = in_rows_shapes(model, plan.own_shapes)
        if plan.stretches:
            return slice_stretches(made, plan.stretches)
        if plan.constants_shapes is not None:
            from parallax.planner._constants import with_constants  # plans for devices alone need it

            computed = with_constants(made)
            if computed is None:
                raise PlanError("the plan is for a model whose constants were computed, and it has none", fix=_AGAIN)
            made = computed.model
        if plan.rows_permille is None:
            return made
        for _ in range(plan.rows_rounds):
            split = split_rows(made, plan.rows_permille / 1000, whole=plan.rows_whole, joins_once=plan.rows_joined)
            if split is None:
                raise PlanError(
                    f"the plan is for {plan.rows_permille} thousandths of the rows, and the model has none to split",
                    fix=_AGAIN,
                )
            made = split.model
    except ConfigError as error:
        raise PlanError(f"the plan is for shapes that the model does not take: {error}", fix=_AGAIN) from error
    return made


def _check_shapes(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises: PlanError if inputs have other shapes than a plan is for."""
    for info in model.graph.inputs:
        if info.is_static and info.name in shapes and info.shape != tuple(shapes[info.name]):
            raise PlanError(
                f"the plan is for {info.name!r} of shape {list(shapes[info.name])}, where {list(info.shape or ())} is "
                "planned for",
                fix=_AGAIN,
            )


def in_rows_shapes(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> Model:
    """The model with these shapes of the inputs that it leaves open. Raises: ConfigError if it does not take them."""
    stated = open_shapes(model, shapes)
    return model.with_shapes(stated) if stated else model


def open_shapes(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Of these shapes those of inputs that the model leaves open."""
    return {info.name: tuple(shapes[info.name]) for info in open_inputs(model) if info.name in shapes}


def open_inputs(model: Model) -> tuple[TensorInfo, ...]:
    """The inputs whose shapes the model leaves open."""
    return tuple(info for info in model.graph.inputs if not info.is_static)


def can_share_rows(model: Model, shapes: Mapping[str, tuple[int, ...]] | None = None) -> bool:
    """Whether all shapes of the model's inputs are known, given these, as a split by rows needs them."""
    given = shapes or {}
    return all(info.is_static for info in model.graph.overridable) and all(
        info.name in given for info in open_inputs(model)
    )


def feed_shapes(feeds: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of feeds by name."""
    return {name: np.shape(fed) for name, fed in feeds.items()}


def graph_for_backends(model: Model, plan: Plan, expected: Mapping[str, tuple[int, ...]]) -> OpGraph | None:
    """The graph in the shapes that most runs should bring, for backends to prepare for; None if the plan has none.

    Raises: ConfigError if the model does not allow these shapes.
    """
    if all(segment.backend == CPU_BACKEND for segment in plan.segments):
        return None
    inputs = {info.name for info in model.graph.inputs}
    return model.with_shapes({name: shape for name, shape in expected.items() if name in inputs}).inferred()
