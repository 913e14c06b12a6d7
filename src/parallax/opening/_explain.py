"""``session.explain()``: the plan, and what to try next, in words."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from parallax.schedule import Plan

if TYPE_CHECKING:
    from parallax.options import PlanningOptions

_SCREEN: Final = 80


def explain(
    plan: Plan,
    options: PlanningOptions,
    *,
    is_bundle: bool,
    is_on_cpu: bool,
    has_session_options: bool,
    open_inputs: Sequence[str],
    fallen_back: Sequence[str],
) -> str:
    """What ``print(plan)`` shows, and a list of what its reader may try.

    Args:
        is_bundle: the session runs a bundle, whose plan was fixed when it was compiled.
        is_on_cpu: no other device was asked for.
        has_session_options: the caller gave ONNX Runtime's session options.
        open_inputs: names of inputs whose sizes the model leaves open.
        fallen_back: providers that were asked for and are not there.
    """
    steps = [
        *(f"{name} was asked for and does not run: install what has it, or leave it out" for name in fallen_back),
        *_on_splitting(plan, options, is_bundle=is_bundle, has_session_options=has_session_options),
    ]
    is_predicted = plan.provenance.source != "measured"
    if open_inputs and options.shapes is None and is_predicted and not is_bundle and plan.cores > 1:
        names = ", ".join(f'"{name}": (...)' for name in open_inputs[:3])
        steps.append(f"shapes={{{names}}} says for which sizes to plan: the model leaves them open")
    if not is_bundle and is_on_cpu:
        steps.append(
            'parallax.compile(model, "model.plx") makes a bundle: it opens in milliseconds, and processes share its '
            "weights"
        )
    steps.append("parallax bench MODEL compares outputs and times with ONNX Runtime's own session on this machine")
    lines = [str(plan), "", "what to try next:"]
    for step in steps:
        lines += textwrap.wrap(step, _SCREEN, initial_indent="* ", subsequent_indent="  ")
    return "\n".join(lines)


def _on_splitting(plan: Plan, options: PlanningOptions, *, is_bundle: bool, has_session_options: bool) -> list[str]:
    told = plan.provenance
    tune = "parallax.compile(..., tune=True)" if is_bundle else "tune=True"
    if not told.is_conclusive:
        return [f"{tune} again when the machine is idle: other processes kept it busy while plans were measured"]
    if told.source == "measured":
        if plan.is_whole:
            return ["nothing about the plan: splits were measured, and ONNX Runtime's own session is the best"]
        return ["nothing about the plan: it was measured to be better than the whole model on this machine"]
    if told.source == "energy":
        return [f"{tune} compares joules of measured runs; these rest on predicted times"]
    if plan.cores < 2 and plan.is_whole:
        return [
            "more than one core (threads=, CPU affinity, the container's quota): with one there is nothing to split"
        ]
    if told.source == "forced":
        return [f'leaving out what forces the split (split="always", min_gain=0), or {tune} to measure whether it pays']
    if options.is_kept_whole:
        return ['leaving out what keeps the model whole (split="never", policy="sequential")']
    if not plan.is_whole:
        return [f"{tune}: this plan rests on predictions; measuring keeps it only where it wins"]
    if has_session_options:
        return ["tune=True: with session options a model is split on demand only; or leaving the options out"]
    return [f"{tune} measures splits of this model on this machine, and remembers the winner: it takes some seconds"]


def open_inputs(arguments: Sequence[Any]) -> tuple[str, ...]:
    """Names of the inputs whose sizes are open."""
    return tuple(
        argument.name for argument in arguments if not all(isinstance(size, int) for size in argument.shape or ())
    )
