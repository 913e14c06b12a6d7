"""What runs of a bundle hold: from the model where it is kept, else from what was noted when it was compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from parallax.bundle._open import Bundle
from parallax.engine import memory_model_from_types, proven_type, stated_type
from parallax.graph import TensorInfo, bind_dims, size_expression
from parallax.memory import Effort, MemoryRequirement
from parallax.model import load_model, slim_model
from parallax.planner import RequirementEstimator, estimate_model, split_requirement, with_counted_peaks


def counted_bundle(bundle: Bundle) -> Bundle:
    """The bundle, its plan with a peak for every segment; see `with_counted_peaks`."""
    peaks = [segment.peak_bytes for segment in bundle.plan.segments]
    return replace(bundle, plan=with_counted_peaks(bundle.plan, peaks))


def estimate_bundle(bundle: Bundle, sessions: Sequence[Any]) -> RequirementEstimator:
    """Return an estimator for a bundle: from the model where it is kept, else what was noted when it was compiled,
    which holds for the shapes it was compiled with.

    Args:
        bundle: as it was opened.
        sessions: its C sessions, one per segment.
    """
    planned = dict(bundle.manifest.options.shapes)
    if bundle.portable_path is not None:
        model = load_model(bundle.portable_path)
        if bundle.manifest.options.slim:
            model = slim_model(model)
        return estimate_model(model, bundle.plan, planned=planned)
    plan, interface = bundle.plan, bundle.manifest.interface
    known: dict[str, TensorInfo] = {}
    produced: dict[str, TensorInfo] = {}
    for session in sessions:
        for argument in (*session.inputs_meta, *session.overridable_initializers):
            known[argument.name] = stated_type(argument)
        for argument in session.outputs_meta:
            produced[argument.name] = stated_type(argument)
    inputs = {name: known[name] for name in (*interface.inputs, *interface.overridable) if name in known}
    produced = {name: proven_type(info, inputs) for name, info in produced.items()}

    def estimate(shapes: Mapping[str, Sequence[int]]) -> MemoryRequirement:
        asked = {**planned, **{name: tuple(shape) for name, shape in shapes.items()}}
        open_names = [name for name, info in inputs.items() if not info.is_static]
        if any(name not in asked or asked[name] != planned.get(name) for name in open_names):
            return MemoryRequirement.UNKNOWN
        peaks = [segment.peak_bytes for segment in plan.segments]
        if not all(peaks):
            return MemoryRequirement.UNKNOWN
        if plan.is_whole:
            return MemoryRequirement(fixed_bytes=0, peaks=tuple(peaks), wanted_bytes=sum(peaks))
        dims = bind_dims(inputs.values(), asked)
        memory_model = memory_model_from_types(plan, inputs, produced, interface.outputs)
        arena = memory_model.plan(dims, effort=Effort.QUICK).arena
        sizes = [
            None if expression is None else expression.bytes(dims)
            for expression in (size_expression(produced[name], symbols=dims) for name in interface.outputs)
        ]
        return split_requirement(
            plan,
            arena_bytes=arena.arena_bytes,
            output_bytes=sum(size or 0 for size in sizes),
            peaks=peaks,
            is_known=not arena.dynamic and None not in sizes,
        )

    return RequirementEstimator(plan, tuple(inputs.values()), estimate)
