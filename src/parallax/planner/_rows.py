"""The model that a plan is for, and in which shapes backends prepare for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from parallax.errors import PlanError
from parallax.graph import OpGraph
from parallax.model import Model, split_rows
from parallax.planner._request import PlanRequest
from parallax.schedule import CPU_BACKEND, Plan


def planned_model(model: Model, plan: Plan) -> Model:
    """The model whose nodes a plan speaks of: split by rows, where it says so.

    Raises: PlanError if it cannot be split so.
    """
    if plan.rows_permille is None:
        return model
    split = split_rows(model, plan.rows_permille / 1000)
    if split is None:
        raise PlanError(
            f"the plan is for {plan.rows_permille} thousandths of the rows, and the model has none to split",
            fix="make the plan again",
        )
    return split.model


def may_share_rows(request: PlanRequest) -> bool:
    """Whether plans for the model split by rows are of use: see `PlanRequest.shares_rows`."""
    graph = request.model.graph
    return request.shares_rows and all(info.is_static for info in (*graph.inputs, *graph.overridable))


def feed_shapes(feeds: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """By name, what arrays would be fed in."""
    return {name: np.shape(fed) for name, fed in feeds.items()}


def graph_for_backends(model: Model, plan: Plan, expected: Mapping[str, tuple[int, ...]]) -> OpGraph | None:
    """The graph in the shapes that most runs should bring, for backends to prepare for; None if the plan has none.

    Raises: ConfigError if the model does not allow these shapes.
    """
    if all(segment.backend == CPU_BACKEND for segment in plan.segments):
        return None
    inputs = {info.name for info in model.graph.inputs}
    return model.with_shapes({name: shape for name, shape in expected.items() if name in inputs}).inferred()
