"""Plans that fit a memory budget: the one that was found, or the uncut one, or none and what would do."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from parallax.bundle import Bundle
from parallax.engine import sketch_outline, stated_type
from parallax.graph import TensorInfo, bind_dims, size_expression
from parallax.memory import Effort
from parallax.model import Model, load_model
from parallax.planner import uncut_plan
from parallax.schedule import Plan
from parallax.session._estimate import (
    UNKNOWN_NEED,
    Estimator,
    RunNeed,
    Shapes,
    cut_need,
    estimate_graph,
    estimate_model,
    segment_peaks,
    with_peaks,
)
from parallax.session._memory import Budget, describe_shapes

logger = logging.getLogger(__name__)


def fit_plan(
    model: Model, plan: Plan, budget_bytes: int, shapes: Mapping[str, Sequence[int]] | None, *, weight_bytes: int
) -> tuple[Plan, Estimator, Budget]:
    """The plan, or the uncut one where only that fits; with the peaks of its segments.

    What depends on shapes that are not given is left to the run that has them.

    Args:
        model: without ``shapes``.
        weight_bytes: of private weights.

    Raises: BudgetError with the budget that would do.
    """
    estimator = estimate_model(model, plan, planned=shapes)
    budget = Budget.of(budget_bytes, weight_bytes=weight_bytes, segments=len(plan.segments))
    need = estimator.need({})
    if not budget.allows(need) and not plan.is_uncut:
        reason = f"cut, it needs a memory budget of {budget.least_bytes(need)} bytes at least"
        whole = uncut_plan(model, reason, cores=plan.cores)
        other = estimate_model(model, whole, planned=shapes)
        less = Budget.of(budget_bytes, weight_bytes=weight_bytes)
        if less.least_bytes(other.need({})) < budget.least_bytes(need):
            logger.info("the model stays uncut: %s", reason)
            plan, estimator, budget, need = whole, other, less, other.need({})
    budget.check(need, where=f"inputs {describe_shapes(shapes)}" if shapes else "memory_budget")
    return _counted(plan, need.peaks), estimator, budget


def whole_need(model: Model) -> RunNeed:
    """What a run of the uncut model holds, in the shapes that the model has."""
    return estimate_graph(model.inferred(), uncut_plan(model, "asked for its memory"))


def with_known_peaks(model: Model, plan: Plan) -> Plan:
    """A cut plan with the peaks of its segments in the shapes of ``model``, if these tell them."""
    peaks = None if plan.is_uncut else segment_peaks(model.inferred(), plan)
    return plan if peaks is None else _counted(plan, peaks)


def noted_peaks(model: Model, plan: Plan) -> Plan:
    """Likewise for a bundle, whose sessions have no model to look at: of an uncut plan as well."""
    need = estimate_graph(model.inferred(), plan)
    return _counted(plan, need.peaks) if need.is_known else plan


def _counted(plan: Plan, peaks: Sequence[int]) -> Plan:
    """The plan with these peaks, each at least 1: 0 says that it is not known, and without any the dispatcher would not
    count bytes at all."""
    known = peaks if len(peaks) == len(plan.segments) else (0,) * len(plan.segments)
    return with_peaks(plan, [max(1, peak) for peak in known])


def counted_bundle(bundle: Bundle) -> Bundle:
    """The bundle, its plan with a peak for every segment; see `_counted`."""
    return replace(bundle, plan=_counted(bundle.plan, [segment.peak_bytes for segment in bundle.plan.segments]))


def estimate_bundle(bundle: Bundle, sessions: Sequence[Any]) -> Estimator:
    """For a bundle: from the model where it is kept, else what was noted when it was compiled, which holds for the
    shapes it was compiled with.

    Args:
        bundle: as it was opened.
        sessions: its C sessions, one per segment.
    """
    planned = dict(bundle.manifest.options.shapes)
    if bundle.portable_path is not None:
        return estimate_model(load_model(bundle.portable_path), bundle.plan, planned=planned)
    plan, interface = bundle.plan, bundle.manifest.interface
    known: dict[str, TensorInfo] = {}
    produced: dict[str, TensorInfo] = {}
    for session in sessions:
        for argument in (*session.inputs_meta, *session.overridable_initializers):
            known[argument.name] = stated_type(argument)
        for argument in session.outputs_meta:
            produced[argument.name] = stated_type(argument)
    inputs = {name: known[name] for name in (*interface.inputs, *interface.overridable) if name in known}
    symbols = {dim for info in inputs.values() for dim in info.shape or () if isinstance(dim, str)}
    produced = {name: _without_other_names(info, symbols) for name, info in produced.items()}

    def estimate(shapes: Shapes) -> RunNeed:
        asked = {**planned, **{name: tuple(shape) for name, shape in shapes.items()}}
        open_names = [name for name, info in inputs.items() if not info.is_static]
        if any(name not in asked or asked[name] != planned.get(name) for name in open_names):
            return UNKNOWN_NEED
        peaks = [segment.peak_bytes for segment in plan.segments]
        if not all(peaks):
            return UNKNOWN_NEED
        if plan.is_uncut:
            return RunNeed(fixed_bytes=0, peaks=tuple(peaks), wanted_bytes=sum(peaks))
        dims = bind_dims(inputs.values(), asked)
        outline = sketch_outline(plan, inputs, produced, interface.outputs)
        arena = outline.plan(dims, effort=Effort.QUICK).arena
        sizes = [
            None if expression is None else expression.bytes(dims)
            for expression in (size_expression(produced[name], symbols=dims) for name in interface.outputs)
        ]
        return cut_need(
            plan,
            arena_bytes=arena.arena_bytes,
            output_bytes=sum(size or 0 for size in sizes),
            peaks=peaks,
            is_known=not arena.dynamic and None not in sizes,
        )

    return Estimator(plan, tuple(inputs.values()), estimate)


def _without_other_names(info: TensorInfo, symbols: Collection[str]) -> TensorInfo:
    """Names of dimensions that the runtime makes up anew in each segment may mean different sizes."""
    if info.shape is None:
        return info
    return replace(info, shape=tuple(dim if isinstance(dim, int) or dim in symbols else None for dim in info.shape))
