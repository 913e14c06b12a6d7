"""A plan for people and for JSON: what runs where, what was compared, and why this won."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console

from parallax.cli._console import make_table, print_line, print_table
from parallax.cli._units import milliseconds, size
from parallax.schedule import CPU_BACKEND, Plan

if TYPE_CHECKING:
    from parallax.adapt import Adaptation

# Segments listed one by one; a plan of more says how many there are.
_LISTED_SEGMENTS = 40


def describe_plan(plan: Plan) -> dict[str, Any]:
    """The plan's figures, for a report."""
    provenance = plan.provenance
    return {
        "summary": summarise_plan(plan),
        "uncut": plan.is_whole,
        "policy": plan.policy,
        "cores": plan.cores,
        "lanes": plan.lanes,
        "rows_permille": plan.rows_permille,
        "rows_whole": list(plan.rows_whole),
        "constants_computed": plan.constants_shapes is not None,
        "segments": [
            {
                "name": segment.name,
                "nodes": len(segment.nodes),
                "backend": segment.backend,
                "width": segment.width,
                "lane": segment.lane,
                "predicted_ms": segment.cost_ns / 1e6,
                "peak_bytes": segment.peak_bytes or None,
                "after": list(segment.predecessors),
                "reason": segment.reason,
            }
            for segment in plan.segments
        ],
        "source": provenance.source,
        "reason": provenance.reason,
        "uncut_ms": _ms(provenance.whole_ns),
        "chosen_ms": _ms(provenance.chosen_ns),
        "candidates": [
            {
                "label": candidate.label,
                "segments": candidate.segments,
                "lanes": candidate.lanes,
                "simulated_ms": candidate.simulated_ns / 1e6,
                "measured_ms": _ms(candidate.measured_ns),
                "note": candidate.note,
            }
            for candidate in provenance.candidates
        ],
        "runtime_version": provenance.runtime_version,
        "machine": provenance.machine,
    }


def summarise_plan(plan: Plan) -> str:
    """One line: ``whole model, 2 threads: reason``, ``split into 12 segments on 2 lanes (3 on webgpu): reason``."""
    return f"{form_of(plan)}: {plan.provenance.reason}"


def form_of(plan: Plan) -> str:
    """``whole model, 2 threads``, ``whole model, openvino``, ``split into 12 segments on 2 lanes (3 on webgpu)``."""
    if plan.is_whole:
        width = plan.segments[0].width if plan.segments else plan.cores
        return f"whole model, {width} thread{'s' if width > 1 else ''}"
    on = Counter(segment.backend for segment in plan.segments if segment.backend != CPU_BACKEND)
    if len(plan.segments) == 1:
        return f"whole model, {plan.segments[0].backend}" if on else "whole model, with bodies split"
    form = f"split into {len(plan.segments)} segments on {plan.lanes} lanes"
    return f"{form} ({', '.join(f'{number} on {backend}' for backend, number in on.items())})" if on else form


def summarise_memory(usage: Mapping[str, int | None]) -> str:
    """One line from `MemoryUsage.to_json`: what a run holds, arenas, weights, the budget."""
    peak, arena, mapped = (usage[key] for key in ("run_peak_bytes", "reserved_bytes", "weights_mapped_bytes"))
    parts = ["a run holds what cannot be known beforehand" if peak is None else f"a run holds {size(peak)} at most"]
    if arena:
        parts.append(f"arenas {size(arena)}")
    if mapped:
        parts.append(f"weights mapped {size(mapped)}")
    private = usage["process_private_bytes"]
    if private is not None:
        parts.append(f"this process {size(private)}")
    budget, least = usage["budget_bytes"], usage["least_budget_bytes"]
    if budget is not None:
        parts.append(f"budget {size(budget)}" + ("" if least is None else f", of which {size(least)} would do"))
    return "; ".join(parts)


def describe_adaptation(adaptation: Adaptation | None) -> dict[str, Any] | None:
    """What a session that follows the machine knows and did, for a report; None of one that does not."""
    return None if adaptation is None else {**adaptation.to_json(), "summary": str(adaptation)}


def render_adaptation(report: Mapping[str, Any] | None, console: Console) -> None:
    """Its lines, if there is any."""
    for line in () if report is None else report["summary"].splitlines():
        print_line(console, line)


def render_plan(plan: Plan, console: Console) -> None:
    """Segments, if the model is split, and the candidates that were compared."""
    print_line(console, f"plan: {summarise_plan(plan)}")
    if not plan.is_whole:
        mixed = any(segment.backend != CPU_BACKEND for segment in plan.segments)
        place = ("runs on",) if mixed else ()
        table = make_table(
            "segment", *place, "why", "operators", "width", "lane", "predicted ms", "peak", left=2 + len(place)
        )
        for segment in plan.segments[:_LISTED_SEGMENTS]:
            table.add_row(
                segment.name,
                *((segment.backend,) if mixed else ()),
                segment.reason,
                str(len(segment.nodes)),
                str(segment.width),
                "any" if segment.lane is None else str(segment.lane),
                milliseconds(segment.cost_ns),
                size(segment.peak_bytes) if segment.peak_bytes else "-",
            )
        print_table(console, table, optional=("peak", "lane", "why", "width"))
        if len(plan.segments) > _LISTED_SEGMENTS:
            print_line(
                console, f"... and {len(plan.segments) - _LISTED_SEGMENTS} more segments (--json lists them all)"
            )
    render_candidates(plan, console)


def render_candidates(plan: Plan, console: Console) -> None:
    """What the search looked at; nothing where it did not search."""
    if not plan.provenance.candidates:
        return
    print_line(console, "candidates:")
    table = make_table("candidate", "note", "segments", "lanes", "simulated ms", "measured ms", left=2)
    for candidate in plan.provenance.candidates:
        table.add_row(
            candidate.label,
            candidate.note,
            str(candidate.segments),
            str(candidate.lanes),
            milliseconds(candidate.simulated_ns),
            "-" if candidate.measured_ns is None else milliseconds(candidate.measured_ns),
        )
    print_table(console, table, optional=("lanes", "note", "segments"))


def _ms(ns: int | None) -> float | None:
    return None if ns is None else ns / 1e6
