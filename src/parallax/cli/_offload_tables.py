"""The report on a device (`parallax.cli._offload`) for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from parallax.cli._console import make_table, print_line, print_table
from parallax.cli._units import milliseconds, size

_LISTED_OPERATORS = 8
"""Rows per verdict in the table; --json has them all."""
_LISTED_ADVICE = 6


def render_offload(report: Mapping[str, Any], console: Console) -> None:
    """The same for people."""
    mark = report["figures"]
    device = f" ({report['device']})" if report["device"] else ""
    print_line(console, f"\non {report['name']}{device}")
    console.print(report["note"])
    nodes = report["nodes"]
    inside = f" and {nodes['in_bodies']} inside control flow" if nodes["in_bodies"] else ""
    print_line(
        console,
        f"\nIt supports {nodes['supported']} of {nodes['all'] - nodes['in_bodies']} operators{inside}; it would be "
        f"given {nodes['taken']}.",
    )
    memory = report["memory"]
    allowed = "" if memory["budget_bytes"] is None else f" of {size(memory['budget_bytes'])} allowed"
    if memory["held_bytes"] or allowed:
        print_line(
            console,
            f"Of its memory that takes {size(memory['held_bytes'])}{allowed}: weights {size(memory['weight_bytes'])}, "
            f"tensors of a run {size(memory['tensor_bytes'])} (estimated).",
        )
    console.print(f"{report['reason'][0].upper()}{report['reason'][1:]}.")
    print_line(console, "")
    table = make_table("predicted", "ms", "of CPU", "launches", "transfers", "moved", "from")
    for row in report["placements"]:
        ratio = row["ratio_to_cpu_only"]
        launched = row["launches"]
        table.add_row(
            row["placement"],
            milliseconds(row["ms"] * 1e6),
            "-" if ratio is None else f"{ratio:.2f}",
            str(launched) if launched else "-",
            str(row["transfers"]) if launched else "-",
            size(row["transferred_bytes"]) if launched else "-",
            row["figures"],
        )
    print_table(console, table, optional=("moved", "transfers", "launches"))
    before, after = report["before"], report["after"]
    print_line(
        console,
        f"Fragments: {before['launches']} greedy > {after['launches']} ours; transfers: {before['transfers']} "
        f"({size(before['transferred_bytes'])}) > {after['transfers']} ({size(after['transferred_bytes'])}).",
    )
    if report["bodies"]:
        _render_bodies(report["bodies"], mark, console)
    _render_groups(report["groups"], mark, console)
    _render_advice(report["advice"], mark, console)


def _render_bodies(bodies: Sequence[Mapping[str, Any]], mark: str, console: Console) -> None:
    print_line(console, "\nbodies, as graphs of their own (once through)")
    table = make_table("inside", "body", "verdict", "nodes", "supported", "CPU ms", f"ours ms ({mark})", left=3)
    for row in bodies:
        table.add_row(
            row["inside"],
            row["body"],
            "gains" if row["gains"] else "stays on the CPU",
            str(row["nodes"]),
            str(row["supported"]),
            milliseconds(row["cpu_ms"] * 1e6),
            milliseconds(row["ours_ms"] * 1e6),
        )
    print_table(console, table, optional=("supported", "nodes", "body"))


def _render_groups(groups: Sequence[Mapping[str, Any]], mark: str, console: Console) -> None:
    print_line(console, "")
    table = make_table("what becomes of them", "why", "nodes", "CPU ms", f"{mark} ms", left=2)
    for group in groups:
        table.add_row(group["verdict"], group["why"], *_figures(group), style="bold")
        for row in group["operators"][:_LISTED_OPERATORS]:
            table.add_row(f"  {row['operator']}", _first_of(row["why"]), *_figures(row))
        rest = group["operators"][_LISTED_OPERATORS:]
        if rest:
            table.add_row(f"  and {len(rest)} more", "", str(sum(row["nodes"] for row in rest)), "", "")
    print_table(console, table, optional=("why",))


def _first_of(reasons: Sequence[str]) -> str:
    return "".join(reasons[:1]) + (f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else "")


def _figures(row: Mapping[str, Any]) -> tuple[str, str, str]:
    times = (row["cpu_ms"], row["device_ms"])
    cpu, device = ("-" if ms is None else milliseconds(ms * 1e6) for ms in times)
    return str(row["nodes"]), cpu, device


def _render_advice(advice: Sequence[Mapping[str, Any]], mark: str, console: Console) -> None:
    if not advice:
        print_line(console, "\nNo single reason for falling back stands in the way of a gain.")
        return
    print_line(console, "\nwhat to change to gain most (one thing after the other)")
    table = make_table("operator", "change", "nodes", f"saves ms ({mark})", "of ms", left=2)
    for row in advice[:_LISTED_ADVICE]:
        table.add_row(
            row["operator"],
            row["change"],
            str(row["nodes"]),
            milliseconds(row["saves_ms"] * 1e6),
            milliseconds(row["now_ms"] * 1e6),
        )
    print_table(console, table, optional=("of ms", "nodes"))
