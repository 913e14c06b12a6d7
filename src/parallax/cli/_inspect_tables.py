"""What `parallax inspect` shows of a model (`parallax.cli._inspect`), for people: answers first, then tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from parallax.cli._answers import render_answers
from parallax.cli._console import make_table, print_line, print_table
from parallax.cli._offload_tables import render_offload
from parallax.cli._session_plan import render_session_plan
from parallax.cli._slimming import render_slimming
from parallax.cli._types import show_shape
from parallax.cli._units import count, milliseconds, significant, size
from parallax.partition import NodeClass

# Operator types listed in the table; --json lists all.
_LISTED_OPERATORS = 24
_LISTED_CANDIDATES = 8


def render_inspection(report: Mapping[str, Any], console: Console) -> None:
    """All of it."""
    render_answers(report["answers"], console)
    if "slimming" in report:
        render_slimming(report["slimming"], console)
    _render_file(report, console)
    _render_operators(report, console)
    _render_memory(report["memory"], console)
    if report["control_flow"]:
        print_line(console, "\ncontrol flow")
        table = make_table("node", "operator", "bodies", "reads from outside", left=3)
        for row in report["control_flow"]:
            bodies = ", ".join(f"{body['name']} ({body['nodes']} operators)" for body in row["bodies"])
            table.add_row(row["node"], row["operator"], bodies, str(len(row["captures"])))
        print_table(console, table, optional=("reads from outside",))
    _render_structure(report["structure"], console)
    _render_prediction(report["prediction"], console)
    if "provider" in report:
        render_offload(report["provider"], console)
    if "session" in report:
        render_session_plan(report["session"], console)


def _render_file(report: Mapping[str, Any], console: Console) -> None:
    opsets = ", ".join(f"{domain} {version}" for domain, version in report["opsets"].items())
    print_line(console, f"{report['model']}: IR version {report['ir_version']}, opsets {opsets}")
    print_line(console, f"weights: {size(report['weight_bytes'])} in {report['initializers']} initializers")
    for role, key in (("input", "inputs"), ("optional input", "overridable_inputs"), ("output", "outputs")):
        for tensor in report[key]:
            print_line(console, f"{role} {tensor['name']}: {tensor['type']} {show_shape(tensor['shape'])}")
    for name, places in report["dynamic_dims"].items():
        shown = ", ".join(places[:6]) + (", ..." if len(places) > 6 else "")
        print_line(console, f"open size {name}: {shown}")


def _render_operators(report: Mapping[str, Any], console: Console) -> None:
    print_line(console, "\noperators")
    table = make_table("type", "nodes", "FLOPs", "bytes", "FLOPs/byte", "cost unknown")
    for row in report["operators"][:_LISTED_OPERATORS]:
        intensity = row["flops_per_byte"]
        table.add_row(
            row["operator"],
            str(row["nodes"]),
            count(row["flops"]),
            size(row["bytes"]),
            "-" if intensity is None else significant(intensity),
            str(row["nodes_with_unknown_cost"] or ""),
        )
    rest = report["operators"][_LISTED_OPERATORS:]
    if rest:
        total = sum(row["nodes"] for row in rest)
        table.add_row(f"{len(rest)} more types", str(total), *(["..."] * 3), "")
    table.add_row(
        "all",
        str(report["nodes"]),
        count(report["flops"]),
        size(report["bytes"]),
        significant(report["flops"] / report["bytes"]) if report["bytes"] else "-",
        str(report["nodes_with_unknown_cost"] or ""),
        style="bold",
    )
    print_table(console, table, optional=("cost unknown", "FLOPs/byte"))


def _render_memory(memory: Mapping[str, Any], console: Console) -> None:
    if memory["run_peak_bytes"] is None:
        print_line(console, "\nmemory: what a run holds depends on open sizes (give them with --shape)")
        return
    print_line(
        console,
        f"\nmemory: a run holds {size(memory['run_peak_bytes'])} beside weights; a budget of "
        f"{size(memory['least_budget_bytes'])} would do, {size(memory['least_budget_of_bundle_bytes'])} for a bundle",
    )


def _render_structure(structure: Mapping[str, Any], console: Console) -> None:
    kinds = [kind.value for kind in NodeClass]
    print_line(console, "\nstructure")
    table = make_table("graph of", "nodes", *kinds, "branches", "layers", "parallel layers", "widest layer")
    for name, shown in (("operators", "operators"), ("units", "fusion groups")):
        row = structure[name]
        table.add_row(
            shown,
            str(row["nodes"]),
            *(str(row["classes"][kind]) for kind in kinds),
            *(str(row[key]) for key in ("branches", "layers", "parallel_layers", "widest_layer")),
        )
    print_table(console, table, optional=(*reversed(kinds), "layers"))
    print_line(
        console,
        f"A fusion group is what no split separates; {structure['tensors_that_may_be_cut']} tensors lie between them.",
    )


def _render_prediction(prediction: Mapping[str, Any], console: Console) -> None:
    chosen = [layer for layer in prediction["layers"] if layer["parallel"]]
    print_line(
        console,
        f"\nThe {prediction['rule']} rule would run {len(chosen)} of {len(prediction['layers'])} layers of several "
        "branches in parallel.",
    )
    for reason, number in Counter(layer["reason"] for layer in prediction["layers"]).most_common():
        print_line(console, f"  {number} x {reason}")
    print_line(
        console,
        f"\npredicted from {prediction['costs']} for {prediction['cores']} cores "
        f"({prediction['known_fraction']:.0%} of operators known)",
    )
    table = make_table("plan", "segments", "lanes", "ms", "of whole model")
    table.add_row("whole model", "1", "1", milliseconds(prediction["uncut_ms"] * 1e6), "1.00")
    for row in prediction["candidates"][:_LISTED_CANDIDATES]:
        ratio = row["ratio_to_uncut"]
        table.add_row(
            row["label"],
            str(row["segments"]),
            str(row["lanes"]),
            milliseconds(row["simulated_ms"] * 1e6),
            "-" if ratio is None else f"{ratio:.2f}",
        )
    print_table(console, table, optional=("lanes", "segments"))
    if not prediction["candidates"]:
        print_line(console, "No split is worth simulating.")
