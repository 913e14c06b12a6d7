"""The plan that a session makes: ``inspect --provider ... --policy ... --objective ...``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from parallax.cli._console import make_table, print_line, print_table
from parallax.cli._device import Device
from parallax.cli._units import milliseconds
from parallax.model import Model
from parallax.planner import PlanDevice, PlanRequest, open_placer, plan_model


def describe_session_plan(
    model: Model, devices: Sequence[Device], policy: str, *, objective: str, cores: int
) -> dict[str, Any]:
    """What the planner answers for a session that is not tuned.

    Args:
        model: in the shapes to plan for.
        devices: those of ``providers=``, in order.

    Raises: ConfigError if there is no such policy, or its placer proposes what is no placement; BackendError if a
        device cannot be asked.
    """
    request = PlanRequest(
        model=model,
        cores=cores,
        policy=policy,
        placer=open_placer(policy),
        objective=objective,
        devices={
            device.name: PlanDevice(backend=device.opened, budget_bytes=device.budget_bytes) for device in devices
        },
    )
    plan = plan_model(request).plan
    provenance = plan.provenance
    return {
        "policy": policy,
        "objective": objective,
        "devices": [device.name for device in devices],
        "reason": provenance.reason,
        "cpu_ms": None if provenance.whole_ns is None else provenance.whole_ns / 1e6,
        "predicted_ms": None if provenance.chosen_ns is None else provenance.chosen_ns / 1e6,
        "compared": [
            {"plan": entry.label, "segments": entry.segments, "ms": entry.simulated_ns / 1e6, "note": entry.note}
            for entry in provenance.candidates
        ],
        "segments": [
            {
                "segment": segment.name,
                "operators": len(segment.nodes),
                "backend": segment.backend,
                "width": segment.width,
                "lane": segment.lane,
                "ms": segment.cost_ns / 1e6,
                "reason": segment.reason,
            }
            for segment in plan.segments
        ],
    }


def render_session_plan(report: Mapping[str, Any], console: Console) -> None:
    """The same for people."""
    where = " and ".join(report["devices"]) or "the CPU alone"
    aim = "" if report["objective"] == "latency" else f", objective {report['objective']!r}"
    print_line(console, f"\nthe plan of a session on {where}, policy {report['policy']!r}{aim}")
    print_line(console, f"{report['reason']}.")
    table = make_table("segment", "operators", "runs on", "threads", "predicted ms", left=1)
    for row in report["segments"]:
        threads = str(row["width"]) if row["width"] else "-"
        table.add_row(row["segment"], str(row["operators"]), row["backend"], threads, milliseconds(row["ms"] * 1e6))
    print_table(console, table, optional=("threads", "operators"))
    if report["compared"]:
        compared = make_table("compared", "segments", "predicted ms", "modelled", left=1)
        for row in report["compared"]:
            compared.add_row(row["plan"], str(row["segments"]), milliseconds(row["ms"] * 1e6), row["note"])
        print_table(console, compared, optional=("segments",))
