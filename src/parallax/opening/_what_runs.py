"""A session's plan as it came true. What was opened may be other than what was asked for, and a plan says what runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from parallax.backends.ort import shared_threads
from parallax.machine import physical_cores
from parallax.options import CPU_PROVIDERS, AskedProviders, given_to
from parallax.schedule import CPU_BACKEND, Plan, Segment


def plan_that_runs(
    plan: Plan,
    asked: AskedProviders,
    *,
    devices: Sequence[str] = (),
    providers: Sequence[str],
    threads: int | None = None,
    refused: Collection[int] = (),
    note: str = "",
) -> Plan:
    """The plan, in which nothing is said that what was opened contradicts.

    Args:
        asked: the providers that were asked for.
        devices: accelerators that the plan was made for, by name.
        providers: those of ONNX Runtime's that were registered, in order of preference.
        threads: of the session of a whole model; None where that is not known, or the model is split.
        refused: segments that their backend does not compile, so that the CPU runs them.
        note: what else there is to say.
    """
    running = (*devices, *providers)
    fallback = asked.describe_fallback(running)
    reason = plan.provenance.reason
    if reason in [given_to(name) for name in asked.missing(running)]:
        reason = ""
    if note and note in reason:  # of a plan that another such session showed
        note = ""
    if fallback or note:
        reason = "; ".join(part for part in (fallback, reason, note) if part)
    if reason != plan.provenance.reason:
        plan = with_reason(plan, reason)
    if refused:
        plan = replace(plan, segments=tuple([_on_cpu(segment, refused) for segment in plan.segments]))
    return _as_opened(plan, providers, threads) if plan.is_whole and plan.segments else plan


def with_reason(plan: Plan, reason: str) -> Plan:
    """The plan with another reason, as the whole model's segment gives it too."""
    told = replace(plan.provenance, reason=reason)
    if not plan.is_whole:
        return replace(plan, provenance=told)
    return replace(
        plan, provenance=told, segments=tuple([replace(segment, reason=reason) for segment in plan.segments])
    )


def _on_cpu(segment: Segment, refused: Collection[int]) -> Segment:
    if segment.index not in refused:
        return segment
    reason = f"{segment.backend} does not compile it, so the CPU runs it; it was planned there because: "
    return replace(segment, backend=CPU_BACKEND, reason=reason + segment.reason)


def _as_opened(plan: Plan, providers: Sequence[str], threads: int | None) -> Plan:
    """A whole model's plan with the provider that takes it first, and the threads that its session has."""
    (segment,) = plan.segments
    backend = next((name for name in providers if name not in CPU_PROVIDERS), CPU_BACKEND)
    width = threads or segment.width
    if (backend, width) == (segment.backend, segment.width):
        return plan
    return replace(plan, cores=max(plan.cores, width), segments=(replace(segment, backend=backend, width=width),))


def threads_of(whole: Any) -> int | None:
    """Threads that a C session computes with, the caller's among them; None where others share them by a pool that
    this package did not make."""
    options = whole.session_options
    if not options.use_per_session_threads:
        return shared_threads()
    return int(options.intra_op_num_threads) or physical_cores()
