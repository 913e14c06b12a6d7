"""``parallax.compile``: find a plan for a model and keep it, ready to run, in a bundle."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from parallax.backends.ort import load_failure
from parallax.bundle import CompileOptions, SourceRecord, resolve_target, write_bundle
from parallax.errors import ConfigError
from parallax.machine import memory_limit_bytes
from parallax.memory import parse_bytes
from parallax.model import Model, ModelSource, load_model
from parallax.opening._plan_choice import plan_request
from parallax.opening._trimming import store_trimming, trimming_of
from parallax.opening._what_runs import with_reason
from parallax.options import (
    COMPILE_OPTIONS,
    CompileKeywords,
    Options,
    PlanningOptions,
    check_calibration_names,
    check_folder,
    check_switch,
    gather_compile_options,
    shows_options,
)
from parallax.planner import binding_limit, fit_plan, is_yardstick, plan_model_within, with_noted_peaks


@shows_options(COMPILE_OPTIONS, takes_others=False)
def compile(
    model: ModelSource,
    target: str | os.PathLike[str],
    *,
    options: Options | None = None,
    portable: bool = False,
    memory_limit: int | str | float | None = None,
    **keywords: Unpack[CompileKeywords],
) -> Path:
    """Compile a model into a bundle: a folder that ``InferenceSession`` opens in milliseconds.

    The bundle holds the plan, the graphs as ONNX Runtime optimised them and the weights packed for this CPU, which are
    mapped when it is opened. It is tied to the CPU's features, the versions of Parallax and ONNX Runtime and the
    number of cores: elsewhere it is refused, or made anew where ``portable`` kept the model itself.

    Written whole or not at all; a bundle that is there is replaced. Without ``tune``, compiling needs memory for the
    packed weights once; ``tune`` opens and times the model as it would run. Disk: about twice the weights.

    Of the options, ``memory_budget`` is what a session on this bundle will have to run in (mapped weights do not
    count). A plan that fits is chosen; where none does, that is said now. Sessions state theirs anew.

    Args:
        model: path, bytes or ``onnx.ModelProto``.
        target: where to write it, by convention ``NAME.plx``.
        options: a record of options; those that are a session's alone must be at their defaults.
        portable: keep a copy of the model in the bundle.
        memory_limit: all the memory that processes on this bundle will have, mapped weights included: bytes, a size
            ("150MiB") or a share of what this process has; default what it has (container limits count). Where the
            weights do not fit, the model becomes a chain of segments, and a session reads the weights of the next
            ones while one runs (on Linux). Sessions go by the memory they find.
        keywords: fields of `parallax.Options`, in place of ``options`` or for what that leaves at its default.

    Returns: ``target``.

    Raises:
        ModelError: the model is at fault.
        ConfigError: an option is, or the target cannot be written.
        BudgetError: no plan fits the memory budget; its ``least_bytes`` would do.
        BackendError: the runtime refuses the model.

    Example::

        parallax.compile("model.onnx", "model.plx")
        session = parallax.InferenceSession("model.plx")
    """
    gathered = gather_compile_options(options, keywords)
    portable = check_switch("portable", portable)
    limit = None
    if memory_limit is not None:
        limit = parse_bytes(memory_limit, free_bytes=memory_limit_bytes(), where="memory_limit")
    path = check_folder("target", target)
    if path is None:
        raise ConfigError("target=None names no folder", fix="give the path that the bundle is to have")
    resolve_target(path)
    try:
        note = "adapt=True is of no effect: a bundle holds one plan" if gathered.adapt else ""
        return compile_loaded(load_model(model), path, gathered, portable=portable, memory_limit=limit, note=note)
    except OSError as error:
        raise load_failure(error) from error


def compile_loaded(
    model: Model,
    target: Path,
    options: PlanningOptions,
    *,
    portable: bool = False,
    source: SourceRecord | None = None,
    memory_limit: int | None = None,
    note: str = "",
) -> Path:
    """Likewise, of a model that was loaded without shapes. ``note``: to be told with the reason of the plan."""
    shaped = model if options.shapes is None else model.with_shapes(options.shapes)
    check_calibration_names(options.calibration, shaped)
    trimming = None if options.padding is None else trimming_of(model)
    # Bodies of control flow are left as they are: a bundle holds no segments of theirs.
    request = replace(plan_request(shaped, options, None), plans_bodies=False)
    plan = plan_model_within(request, memory_limit).plan
    if options.budget_bytes is not None:
        plan, _, _ = fit_plan(model, plan, options.budget_bytes, options.shapes, weight_bytes=0, margin=options.margin)
    plan = with_noted_peaks(shaped, plan)
    if note:
        plan = with_reason(plan, f"{plan.provenance.reason}; {note}")
    return write_bundle(
        # Shapes are for planning alone: what is made of the model as it is runs in all of them.
        model,
        plan,
        target,
        options=recorded_options(options, memory_limit=binding_limit(model.weight_bytes, memory_limit)),
        source=source,
        portable=portable,
        trimming=store_trimming(trimming),
        cache_dir=options.cache_dir,
        progress=options.progress,
    )


def compiler_for(options: PlanningOptions) -> Callable[[Model, Path, SourceRecord, int | None], Path]:
    """What the cache of bundles compiles models with."""

    def compile_model(model: Model, target: Path, source: SourceRecord, memory_limit: int | None) -> Path:
        return compile_loaded(model, target, options, source=source, memory_limit=memory_limit)

    return compile_model


def recorded_options(options: PlanningOptions, *, memory_limit: int | None) -> CompileOptions:
    """What of the options a bundle remembers. ``memory_limit``: if it binds.

    On the CPU alone, ``split="never"`` and ``policy="sequential"`` are the same, and so are ``split="always"`` and
    ``min_gain=0``: the latter are what is remembered. Placers share work with devices, which a bundle has none of; a
    yardstick plans for the CPU alone, too.
    """
    min_gain = 0.0 if options.is_split_forced else options.min_gain
    return CompileOptions(
        threads=options.threads,
        policy=_recorded_policy(options),
        shapes=tuple(sorted((options.shapes or {}).items())),
        min_gain=None if min_gain is None else repr(min_gain),
        tune=options.tune,
        memory_limit=memory_limit,
        padding=options.padding,
    )


def _recorded_policy(options: PlanningOptions) -> str:
    if is_yardstick(options.policy):
        from parallax.planner import policy_name  # loads the placers

        return policy_name(options.policy)
    return "sequential" if options.is_kept_whole else "adaptive"


def replayed_options(recorded: CompileOptions, *, cache_dir: Path | None) -> PlanningOptions:
    """The options that a bundle was compiled with.

    Raises: ConfigError if they are none that `compile` would have taken.
    """
    options = Options(
        threads=recorded.threads,
        policy=recorded.policy,
        shapes=dict(recorded.shapes) or None,
        tune=recorded.tune,
        min_gain=None if recorded.min_gain is None else float(recorded.min_gain),
        padding="trim" if recorded.padding is not None else None,
        cache_dir=cache_dir,
        backends=(),
    )
    return PlanningOptions.of(options)
