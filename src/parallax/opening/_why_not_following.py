"""What a session that follows the machine goes by: what it was planned for, and what keeps it from that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parallax.errors import ConfigError
from parallax.opening._opening import planning_options, why_kept_whole
from parallax.opening._plan_choice import plan_request
from parallax.options import session_cores
from parallax.planner import PlanRequest, is_yardstick
from parallax.schedule import Plan

if TYPE_CHECKING:
    from parallax.model import Model
    from parallax.opening._state import Opened
    from parallax.opening._whole_model import OpeningRequest


def planning_request(request: OpeningRequest, model: Model | None) -> PlanRequest:
    """What the plan of a session was the answer to.

    Args:
        model: what it loaded, as it came.

    Raises: ConfigError if there is no model to plan for; as `parallax.backends.open_backend`.
    """
    if model is None or model.fault is not None:
        raise ConfigError("this model was not analysed", fix="see the reason of its plan")
    options = planning_options(request)
    shaped = model if options.shapes is None else model.with_shapes(options.shapes)
    return plan_request(shaped, options, request.session_options)


def why_not_following(opened: Opened, model: Model | None, request: OpeningRequest) -> str | None:
    """Why a session cannot follow the machine, or None.

    Args:
        opened: what it has open, which is not nothing.
        model: what it loaded; None where there is none to look into.
    """
    options, plan = request.options, opened.plan
    assert plan is not None
    if opened.bundle is not None:
        return "the session runs a bundle, which holds one plan"
    if model is None or model.fault is not None:
        return "the model was not analysed"
    obstacle = why_kept_whole(request, model)
    if obstacle is not None:
        return obstacle
    if options.is_split_forced:
        return 'the plan is the one that was asked for (split="always" or min_gain=0)'
    if is_yardstick(options.policy):
        return "the policy is a baseline for comparisons, whose plan runs whatever it gains"
    if options.objective in Plan.ENERGY_OBJECTIVES:
        return f'the plan is that of objective="{options.objective}", and plans for other states are chosen by time'
    if any(segment.bodies for segment in plan.segments):
        return "the model's control flow is planned"
    if plan.rows_permille is not None:
        return "the model's layers are split by rows"
    if plan.constants_shapes is not None and any(not info.is_static for info in model.graph.inputs):
        return "the model's constants were computed for one shape of its inputs"
    if not request.devices and session_cores(options, request.session_options) < 2:
        return "there is one core, and no device"
    unknown = [
        info.name for info in model.graph.inputs if not info.is_static and info.name not in (options.shapes or {})
    ]
    if unknown:
        return f"how long a run takes depends on the shape of {unknown[0]!r} (shapes= says which it is to follow)"
    return None
