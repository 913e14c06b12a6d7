"""``parallax.compile``: find a plan for a model and keep it, ready to run, in a bundle."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast

from parallax.backends.ort import RuntimeOptions, load_failure
from parallax.bundle import (
    CompileOptions,
    DeviceParts,
    SourceRecord,
    describe_parts,
    is_placing_policy,
    resolve_target,
    write_bundle,
)
from parallax.errors import ConfigError
from parallax.machine import memory_limit_bytes
from parallax.memory import parse_bytes
from parallax.model import Model, ModelSource, load_model
from parallax.opening._bundle_devices import asked_device
from parallax.opening._no_effect import planning_of_no_effect
from parallax.opening._plan_choice import may_slice, plan_request
from parallax.opening._slimming import slimmed, slimming_note
from parallax.opening._trimming import store_trimming, trimming_of
from parallax.opening._what_runs import with_reason
from parallax.options import (
    COMPILE_OPTIONS,
    CPU_PROVIDERS,
    CompileKeywords,
    Device,
    Options,
    PlanningOptions,
    check_calibration_names,
    check_folder,
    check_providers,
    check_switch,
    gather_compile_options,
    open_devices,
    shows_options,
    sliced_options,
    split_providers,
)
from parallax.planner import (
    PlanRequest,
    binding_limit,
    feed_shapes,
    fit_plan,
    graph_for_backends,
    is_yardstick,
    plan_model_within,
    planned_model,
    with_noted_peaks,
)
from parallax.schedule import CPU_BACKEND, Plan

if TYPE_CHECKING:
    from parallax.backends.ort._types import Provider


@shows_options(COMPILE_OPTIONS, takes_others=False)
def compile(
    model: ModelSource,
    target: str | os.PathLike[str],
    *,
    options: Options | None = None,
    providers: Sequence[Provider] | None = None,
    provider_options: Sequence[Mapping[Any, Any]] | None = None,
    portable: bool = False,
    memory_limit: int | str | float | None = None,
    **keywords: Unpack[CompileKeywords],
) -> Path:
    """Compile a model into a bundle: a folder that ``InferenceSession`` opens in milliseconds.

    The bundle holds the plan, the graphs as ONNX Runtime optimised them and the weights packed for this CPU, which are
    mapped when it is opened. It is tied to the CPU's features, the versions of Parallax and ONNX Runtime and the
    number of cores, and to the devices that it uses and their versions: elsewhere it is refused, or made anew where
    ``portable`` kept the model itself.

    Written whole or not at all; a bundle that is there is replaced. Without ``tune``, compiling needs memory for the
    packed weights once; ``tune`` opens and times the model as it would run. Disk: about twice the weights.

    Of the options, ``memory_budget`` is what a session on this bundle will have to run in (mapped weights do not
    count). A plan that fits is chosen, one that computes parts of the model in slices where nothing else does (of
    models whose inputs have fixed shapes); where none does, that is said now. Sessions state theirs anew.

    Args:
        model: path, bytes or ``onnx.ModelProto``.
        target: where to write it, by convention ``NAME.plx``.
        options: a record of options; those that are a session's alone must be at their defaults.
        providers, provider_options: as in ``InferenceSession``: devices that the plan may use. What gains there is kept
            as the device compiles it when the bundle is opened; the session opens with these devices, and needs no
            ``providers``, unless one of them is described by a file or has options beside numbers. ONNX Runtime's own
            providers need ``tune``.
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
    gathered = replace(gathered, devices=_devices_of(providers, provider_options, tunes=gathered.tune))
    portable = check_switch("portable", portable)
    limit = None
    if memory_limit is not None:
        limit = parse_bytes(memory_limit, free_bytes=memory_limit_bytes(), where="memory_limit")
    path = check_folder("target", target)
    if path is None:
        raise ConfigError("target=None names no folder", fix="give the path that the bundle is to have")
    resolve_target(path)
    try:
        notes = [*planning_of_no_effect(gathered, has_devices=bool(gathered.devices))]
        if gathered.adapt:
            notes.append("adapt=True is of no effect: a bundle holds one plan")
        return compile_loaded(
            load_model(model), path, gathered, portable=portable, memory_limit=limit, note="; ".join(notes)
        )
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
    if options.slim:
        model = slimmed(model, None)
        note = "; ".join(part for part in (note, slimming_note(model)) if part)
    shaped = model if options.shapes is None else model.with_shapes(options.shapes)
    check_calibration_names(options.calibration, shaped)
    trimming = None if options.padding is None else trimming_of(model, None)
    is_static = all(info.is_static for info in model.graph.inputs)
    request = replace(
        plan_request(shaped, options, None),
        # Bodies of control flow are left as they are: a bundle holds no segments of theirs.
        plans_bodies=False,
        # A model is rewritten for one shape. A session opens the whole one beside for others, which a bundle has not.
        shares_rows=is_static,
        computes_constants=is_static,
    )
    recorded = recorded_options(options, memory_limit=binding_limit(model.as_given.weight_bytes, memory_limit))
    plan = plan_model_within(request, memory_limit).plan
    if options.budget_bytes is not None:
        plan, _, _ = fit_plan(
            model,
            plan,
            options.budget_bytes,
            options.shapes,
            weight_bytes=None,
            margin=options.margin,
            may_slice=is_static and not plan.is_streamed and may_slice(options),
        )
    parts = planned_model(shaped, plan) if plan.is_rewritten else None
    plan = with_noted_peaks(parts or shaped, plan)
    if options.devices and plan.is_streamed:
        note = "; ".join(filter(None, (note, "devices are left out of a model whose weights are read while it runs")))
    if note:
        plan = with_reason(plan, f"{plan.provenance.reason}; {note}")
    return write_bundle(
        # Shapes are for planning alone: what is made of the model as it is runs in all of them.
        model,
        plan,
        target,
        options=recorded,
        parts=parts,
        devices=_device_parts(parts or model, plan, request, options),
        source=source,
        portable=portable,
        trimming=store_trimming(trimming),
        optimising=sliced_options(RuntimeOptions()) if plan.stretches else None,
        cache_dir=options.cache_dir,
        progress=options.progress,
    )


def _devices_of(
    providers: Sequence[Any] | None, provider_options: Sequence[Mapping[Any, Any]] | None, *, tunes: bool
) -> tuple[Device, ...]:
    """The devices of a ``providers=`` list, all of which must be there for parts of a model.

    Raises: ConfigError for others; ValueError as ONNX Runtime, for what is no list of providers.
    """
    devices, left, left_options = split_providers(providers, provider_options, tunes=tunes)
    if left is None:
        return devices
    for entry in left:
        name = entry[0] if isinstance(entry, tuple) and entry else entry
        if name not in (*CPU_PROVIDERS, CPU_BACKEND):
            raise ConfigError(
                f"a bundle holds no model that is given to {name!r} as a whole",
                where="providers",
                fix="leave it out" if tunes else "add tune=True, which measures what parts of the model gain there",
            )
    check_providers([name for name in left if name != CPU_BACKEND], left_options)
    open_devices(devices)
    return devices


def _device_parts(parts: Model, plan: Plan, request: PlanRequest, options: PlanningOptions) -> DeviceParts | None:
    """What a plan runs on devices. ``parts``: the model whose nodes it speaks of, without the shapes of the options."""
    expected = {**feed_shapes(options.calibration or {}), **(options.shapes or {})}
    graph = graph_for_backends(parts, plan, {} if plan.is_rewritten else expected)
    return None if graph is None else describe_parts(plan, graph, request.open_backends)


def compiler_for(options: PlanningOptions) -> Callable[[Model, Path, SourceRecord, int | None], Path]:
    """What the cache of bundles compiles models with."""

    def compile_model(model: Model, target: Path, source: SourceRecord, memory_limit: int | None) -> Path:
        return compile_loaded(model, target, options, source=source, memory_limit=memory_limit)

    return compile_model


def recorded_options(options: PlanningOptions, *, memory_limit: int | None) -> CompileOptions:
    """What of the options a bundle remembers. ``memory_limit``: if it binds.

    On the CPU alone, ``split="never"`` and ``policy="sequential"`` are the same, and so are ``split="always"`` and
    ``min_gain=0``: the latter are what is remembered. Without devices, of placers the baselines alone plan anything.

    Raises: ConfigError if a model was placed on devices by what has no name that would do it again.
    """
    min_gain = 0.0 if options.is_split_forced else options.min_gain
    return CompileOptions(
        threads=options.threads,
        policy=_recorded_policy(options),
        shapes=tuple(sorted((options.shapes or {}).items())),
        min_gain=None if min_gain is None else repr(min_gain),
        tune=options.tune,
        memory_limit=memory_limit,
        memory_budget=options.budget_bytes,
        margin=None if options.budget_bytes is None else repr(options.margin),
        padding=options.padding,
        split="never" if options.devices and options.split == "never" else "auto",
        devices=tuple([asked_device(device) for device in options.devices]),
        slim=options.slim,
        objective=options.objective if options.objective in Plan.ENERGY_OBJECTIVES else "latency",
    )


def _recorded_policy(options: PlanningOptions) -> str:
    is_planned = is_yardstick(options.policy)
    if is_planned or options.devices:
        from parallax.planner import policy_name  # loads the placers

        name = policy_name(options.policy)
        if not is_planned and not is_placing_policy(name):
            raise ConfigError(
                f"a bundle says by which policy it was planned, and {name!r:.80} is no name that would do it again",
                where="policy",
                fix="choose a policy by name, one without files; or open the model itself with this one",
            )
        return name
    return "sequential" if options.is_kept_whole else "adaptive"


def replayed_options(recorded: CompileOptions, *, cache_dir: Path | None) -> PlanningOptions:
    """The options that a bundle was compiled with, but for its devices.

    Raises: ConfigError if they are none that `compile` would have taken.
    """
    options = Options(
        threads=recorded.threads,
        policy=recorded.policy,
        shapes=dict(recorded.shapes) or None,
        tune=recorded.tune,
        min_gain=None if recorded.min_gain is None else float(recorded.min_gain),
        padding="trim" if recorded.padding is not None else None,
        memory_budget=recorded.memory_budget,
        margin=Options().margin if recorded.margin is None else float(recorded.margin),
        split=cast("Any", recorded.split),
        cache_dir=cache_dir,
        backends=(),
        slim=recorded.slim,
        objective=cast("Any", recorded.objective),
    )
    return PlanningOptions.of(options)
