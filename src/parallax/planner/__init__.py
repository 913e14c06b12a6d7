"""From a question to a plan: what to run where, chosen from the tables of costs or measured.

A `PlanRequest` holds all that a plan follows from, a `PlannedModel` the answer. Nothing here knows a session.
"""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.planner._candidates import PlanningContext, host_machine
    from parallax.planner._choices import PlanChoices, is_kept_whole, is_split_forced, is_unasked, is_yardstick
    from parallax.planner._constants import with_constants
    from parallax.planner._default_policy import why_whole_at_sight
    from parallax.planner._devices import DeviceStudy
    from parallax.planner._fitting import check_fit, fit_plan, with_counted_peaks, with_known_peaks, with_noted_peaks
    from parallax.planner._forms import forms_of_shapes
    from parallax.planner._kept import remembered_plan
    from parallax.planner._learned import KIND_KEY, PROPOSER, SCHEDULER, VERSION_KEY, Learned
    from parallax.planner._lowering import LOWERING_NS
    from parallax.planner._placers import open_placer, placer_names, policy_name
    from parallax.planner._planning import plan_model
    from parallax.planner._power import power_of, touched_bytes
    from parallax.planner._remembered import may_be_remembered
    from parallax.planner._request import PlanDevice, PlannedModel, PlanRequest
    from parallax.planner._requirement import RequirementEstimator, estimate_model, split_requirement
    from parallax.planner._rows import feed_shapes, graph_for_backends, planned_model
    from parallax.planner._states import expected_input_bytes, plans_for_states
    from parallax.planner._streaming import binding_limit, plan_model_within
    from parallax.planner._tables import DEFAULT_MIN_GAIN
    from parallax.planner._whole import whole_plan
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_candidates": "PlanningContext host_machine",
            "_choices": "PlanChoices is_kept_whole is_split_forced is_unasked is_yardstick",
            "_constants": "with_constants",
            "_default_policy": "why_whole_at_sight",
            "_devices": "DeviceStudy",
            "_fitting": "check_fit fit_plan with_counted_peaks with_known_peaks with_noted_peaks",
            "_forms": "forms_of_shapes",
            "_kept": "remembered_plan",
            "_learned": "KIND_KEY PROPOSER SCHEDULER VERSION_KEY Learned",
            "_lowering": "LOWERING_NS",
            "_placers": "open_placer placer_names policy_name",
            "_planning": "plan_model",
            "_power": "power_of touched_bytes",
            "_remembered": "may_be_remembered",
            "_request": "PlanDevice PlanRequest PlannedModel",
            "_requirement": "RequirementEstimator estimate_model split_requirement",
            "_rows": "feed_shapes graph_for_backends planned_model",
            "_states": "expected_input_bytes plans_for_states",
            "_streaming": "binding_limit plan_model_within",
            "_tables": "DEFAULT_MIN_GAIN",
            "_whole": "whole_plan",
        },
    )

__all__ = [
    "DEFAULT_MIN_GAIN",
    "KIND_KEY",
    "LOWERING_NS",
    "PROPOSER",
    "SCHEDULER",
    "VERSION_KEY",
    "DeviceStudy",
    "Learned",
    "PlanChoices",
    "PlanDevice",
    "PlanRequest",
    "PlannedModel",
    "PlanningContext",
    "RequirementEstimator",
    "binding_limit",
    "check_fit",
    "estimate_model",
    "expected_input_bytes",
    "feed_shapes",
    "fit_plan",
    "forms_of_shapes",
    "graph_for_backends",
    "host_machine",
    "is_kept_whole",
    "is_split_forced",
    "is_unasked",
    "is_yardstick",
    "may_be_remembered",
    "open_placer",
    "placer_names",
    "plan_model",
    "plan_model_within",
    "planned_model",
    "plans_for_states",
    "policy_name",
    "power_of",
    "remembered_plan",
    "split_requirement",
    "touched_bytes",
    "whole_plan",
    "why_whole_at_sight",
    "with_constants",
    "with_counted_peaks",
    "with_known_peaks",
    "with_noted_peaks",
]
