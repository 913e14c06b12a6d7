"""Options that were given and change nothing: a plan says each of them, with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from parallax.options import Options, is_onnx_source, why_not_cut

if TYPE_CHECKING:
    from parallax.opening._state import Opened
    from parallax.opening._whole_model import OpeningRequest
    from parallax.options import PlanningOptions


def planning_of_no_effect(options: PlanningOptions, *, has_devices: bool) -> Iterator[str]:
    """Which options of planning change nothing, one sentence each.

    Args:
        has_devices: whether a device was named that the model may be shared with.
    """
    if options.policy not in ("adaptive", "sequential") and not has_devices:
        from parallax.planner import is_yardstick, policy_name  # few sessions name another

        if not is_yardstick(options.policy):
            yield f'policy="{policy_name(options.policy)}" is of no effect: no device is named to share the model with'
    if options.margin != Options().margin and options.budget_bytes is None:
        yield f"margin={options.margin:g} is of no effect: there is no memory_budget="
    if options.calibration is not None and not (options.tune or has_devices):
        yield "calibration= is of no effect: nothing is measured without tune=True"


def options_of_no_effect(request: OpeningRequest, opened: Opened) -> Iterator[str]:
    """Say which options have no effect, but for those that are followed while it runs (``adapt=``, ``objective=``).

    Args:
        request: what the session was given.
        opened: what it has open, which is not nothing.
    """
    options, plan = request.options, opened.plan
    assert plan is not None
    # A bundle is opened with the policy of its devices, or refuses another.
    yield from planning_of_no_effect(options, has_devices=bool(request.devices) or request.source.is_bundle)
    if opened.bundle is None and options.cache:
        why = why_not_cached(request) or "the bundle could not be kept, or not be opened, as the log says"
        yield f"cache=True is of no effect: {why}"
    if opened.bundle is None and options.verify != Options().verify:
        yield f'verify="{options.verify}" is of no effect: no bundle is opened'
    if options.backends and not options.tune and plan.provenance.source != "measured":
        yield f"backends={options.backends} is of no effect: what they are worth is measured with tune=True"


def why_not_cached(request: OpeningRequest) -> str | None:
    """Why ``cache=True`` is of no effect with what else a session was given, or None."""
    path = request.source.path
    if path is None:
        return "the model was given as bytes"
    if request.arguments.disabled_optimizers:
        return "single optimisers were disabled"
    if not is_onnx_source(path, None, None):
        return "the model is not in ONNX format"
    if request.session_options is not None:
        return "session options were given"
    return why_not_cut(None, request.arguments.providers)
