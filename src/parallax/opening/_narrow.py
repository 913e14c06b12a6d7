"""A whole model opened once more on one thread, beside what a session has open, for callers side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from parallax.engine import WholeRunner
from parallax.errors import BudgetError, BundleError
from parallax.opening._bundle_opening import BundleOpening
from parallax.opening._source import OpenedBundle
from parallax.opening._whole_model import open_whole
from parallax.options import CPU_PROVIDER, session_cores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from parallax.model import Model, ModelSummary
    from parallax.opening._state import Opened
    from parallax.opening._whole_model import OpeningRequest

_FREE_SHARE: Final = 4
"""Without a memory budget and a bound, a replica takes at most this part of what is free: 1 / 4."""

_GRAPH_BYTES: Final = 1 << 20
"""What a session on a small model takes beside its weights. It is added to them, so that no replica is for nothing."""


def why_not_narrow(opened: Opened, request: OpeningRequest, providers: Sequence[str]) -> str | None:
    """Why a session cannot serve its callers side by side, or None.

    Args:
        opened: what it has open, which is not nothing.
        providers: that ONNX Runtime registered for it.
    """
    from parallax.backends.ort import shared_threads

    plan, options = opened.plan, request.options
    assert plan is not None
    if options.adapt:
        return "the session follows the machine (adapt=True), which changes its plan"
    if opened.trimming is not None:
        return "runs leave out padded places (padding=), so that the rates of two forms are not of equal runs"
    if not isinstance(opened.runner, WholeRunner) or not plan.is_whole:
        return "the model is split"
    if request.devices or list(providers) != [CPU_PROVIDER]:
        return "the model does not run on the CPU's kernels of ONNX Runtime alone"
    if request.session_options is not None:
        return "session options were given, and what they hold cannot all be copied"
    if request.arguments.disabled_optimizers or request.reads_config:
        return "ONNX Runtime was given settings that are for the session itself"
    if shared_threads() is not None:
        return "all sessions share one thread pool"
    if session_cores(options, None) < 2:
        return "there is one core"
    return None


def narrow_weight_bytes(
    opened: Opened,
    look: Model | ModelSummary | None,
    request: OpeningRequest,
    *,
    most_growth: float | None,
) -> int:
    """The bytes of weights that a replica would hold for itself, which fit the memory that there is.

    A bundle's are mapped: replicas share them. Those of a model are packed by each session for itself.

    Args:
        look: what the session loaded or looked at; None where it did neither.
        most_growth: the process's private memory must not become larger than by this factor; None: the replica takes
            at most a quarter of what is free, or what is left of a memory budget, which the caller counts.

    Raises: BudgetError: there is no room.
    """
    from parallax.machine import free_memory_bytes, private_bytes

    known = 0 if opened.mapped_bundle is not None else opened.weight_bytes(look)
    held = request.source.size_bytes if known is None else known
    needed = held + _GRAPH_BYTES
    if most_growth is not None:
        private = private_bytes()
        if private is None or needed > (most_growth - 1) * private:
            raise BudgetError(
                f"a replica would take {held >> 20} MiB of weights, more than {most_growth - 1:.0%} of what the "
                "process holds",
                fix='open a bundle, or with cache=True: replicas share its weights; or write objective="throughput"',
            )
    elif request.options.budget_bytes is None and needed > free_memory_bytes() // _FREE_SHARE:
        raise BudgetError(
            f"a replica would take {held >> 20} MiB of weights, more than a quarter of the memory that is free",
            fix="open a bundle, or with cache=True: replicas share its weights",
        )
    return held


def open_narrow(
    request: OpeningRequest, opened: Opened, *, opened_bundle: OpenedBundle | None, model: Model | None
) -> WholeRunner:
    """Open the model on one thread.

    Args:
        request: its ``open_stock`` opens beside what the session has open.
        opened: what that is, a whole model.
        opened_bundle: where that is a bundle, which the session was given or had from the cache.
        model: what the session loaded, if it did.

    Raises: as opening it did.
    """
    plan = opened.plan
    assert plan is not None
    narrow = replace(plan, segments=tuple([replace(segment, width=1) for segment in plan.segments]))
    alone = request.beside(threads=1)
    if opened.shared_bundle is not None:
        opened_bundle = OpenedBundle.from_cache(opened.shared_bundle, request.options)
    if opened_bundle is not None:
        made = BundleOpening(alone, opened_bundle).open()
        if made is None:
            raise BundleError("the bundle is not there any more", fix="keep a bundle while sessions on it are open")
        made = made.with_plan(narrow)
    else:
        made = open_whole(alone, narrow, model=model, session_options=None, threads=1)
        made = made.within(opened.budget, opened.estimator)
    runner = made.runner
    assert isinstance(runner, WholeRunner)
    return runner
