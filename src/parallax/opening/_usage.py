"""What a session holds, for people and programs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from parallax.admission import IDLE_TRIM_S, SessionMemory
from parallax.bundle import estimate_bundle
from parallax.engine import Estimator, RunnerHandle, SplitRunner
from parallax.machine import private_bytes
from parallax.memory import MemoryRequirement
from parallax.model import Model
from parallax.opening._state import Opened
from parallax.options import PlanningOptions
from parallax.planner import estimate_model


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUsage:
    """Says what memory one session holds, all in bytes. None: it cannot be known, or there is no such thing.

    Tensors between segments lie in *arenas*, one per run in flight, which stay for the next run. The session of a whole
    model has none: there the runtime's own arena holds everything, and does not say how much.
    """

    planned_bytes: int | None
    """Of arenas, by the plans in use. None for a whole model."""
    reserved_bytes: int | None
    """Address space of arenas. None for a whole model."""
    touched_bytes: int | None
    """Of it, what was written to since it was reserved: at most this much is in memory. None for a whole model."""
    run_peak_bytes: int | None
    """What one run holds at most: arena, outputs, and what segments running together make and use up inside. Estimated
    for the shapes of the last run; before one, and without a budget, for those planned for. None where sizes
    depend on what is not known."""
    weights_mapped_bytes: int | None
    """Weights that are pages of files, shared with every process that maps them. They take memory only while it is
    there, and no budget counts them."""
    weights_private_bytes: int | None
    """An upper bound on copies of weights that this session alone holds, as kernels want them laid out."""
    process_private_bytes: int | None
    """Of the whole process, other sessions and Python included: see `parallax.machine.private_bytes`."""
    budget_bytes: int | None
    """What ``memory_budget=`` came to. None without one; so are the next four."""
    limit_bytes: int | None
    """What runs may hold together now: the budget less its margin, weights and the runtime's own, or less under
    pressure."""
    admitted_bytes: int | None
    """What runs in flight were admitted with."""
    admitted_peak_bytes: int | None
    """The most that was admitted at once since the session opened."""
    least_budget_bytes: int | None
    """The smallest budget that would do, for the shapes of ``run_peak_bytes``."""

    def to_json(self) -> dict[str, int | None]:
        """Return the fields by name: bytes, or None."""
        return asdict(self)


def estimate_opened(
    opened: Opened, model: Model | None, whole: Any, planned: Mapping[str, Sequence[int]] | None
) -> Estimator | None:
    """What runs of this hold, where no budget made that known before; None where there is no model to look at.

    Args:
        model: what the session loaded, if it did.
        whole: the C session of the whole model, if that is what runs.
        planned: shapes to take where a run's are not known.
    """
    if opened.mapped_bundle is not None:
        return estimate_bundle(opened.mapped_bundle, [whole] if opened.split is None else opened.split.sessions)
    if opened.plan is None or model is None or model.fault is not None:
        return None
    return estimate_model(model, opened.plan, planned=planned)


def describe_usage(
    opened: Opened,
    model: Model | None,
    memory: SessionMemory | None,
    estimator: Estimator | None,
    *,
    prepared: int = 1,
) -> MemoryUsage:
    """A snapshot of what a session with this open holds.

    Args:
        memory: its budget at work; None without one.
        prepared: plans that are compiled, the one in force among them.
    """
    shapes = {} if memory is None else memory.last_shapes
    required = MemoryRequirement.UNKNOWN if estimator is None else estimator.requirement(shapes)
    arenas = None if opened.split is None else opened.split.executor.memory()
    controller = None if memory is None else memory.controller
    budget = opened.budget
    return MemoryUsage(
        planned_bytes=None if arenas is None else arenas.planned_bytes,
        reserved_bytes=None if arenas is None else arenas.reserved_bytes,
        touched_bytes=None if arenas is None else arenas.touched_bytes,
        run_peak_bytes=required.wanted_bytes if required.is_known else None,
        weights_mapped_bytes=_mapped_bytes(opened, model),
        weights_private_bytes=_private_bytes(opened, model, prepared),
        process_private_bytes=private_bytes(),
        budget_bytes=None if budget is None else budget.budget_bytes,
        limit_bytes=None if controller is None else controller.limit_bytes,
        admitted_bytes=None if controller is None else controller.granted_bytes,
        admitted_peak_bytes=None if controller is None else controller.peak_granted_bytes,
        least_budget_bytes=None if budget is None or not required.is_known else budget.least_bytes(required),
    )


def _private_bytes(opened: Opened, model: Model | None, copies: int) -> int | None:
    if opened.mapped_bundle is not None:
        return opened.mapped_bundle.manifest.held_weight_bytes
    return None if model is None else copies * model.weight_bytes


def _mapped_bytes(opened: Opened, model: Model | None) -> int | None:
    if opened.mapped_bundle is not None:
        return sum(record.size for record in opened.mapped_bundle.manifest.files if record.path.endswith(".data"))
    if opened.split is None or model is None:
        return None  # whether the runtime maps external data is its own affair
    return model.weight_bytes if model.files.mapped_bytes else 0


def watch_memory(
    opened: Opened, options: PlanningOptions, runners: RunnerHandle, give_back: Callable[[], int]
) -> SessionMemory | None:
    """What admits the runs of a session from now on, and has it give back idle memory; None where neither is asked for.

    Args:
        runners: what the session runs now and later.
        give_back: a method of the session, which is not kept alive by it.
    """
    if not options.is_watched:
        return None
    trim = weakref.WeakMethod(give_back)

    def trim_if_alive() -> None:
        method = trim()
        if method is not None:
            method()

    def arena_bytes() -> int:
        runner = runners.current
        return runner.executor.memory().touched_bytes if isinstance(runner, SplitRunner) else 0

    return SessionMemory(
        budget=opened.budget,
        idle_trim_s=IDLE_TRIM_S if options.idle_trim_s is None else options.idle_trim_s,
        trim=trim_if_alive,
        arenas=arena_bytes,
    )
