"""What ``parallax inspect --slim`` shows: what was removed from a model, what was not, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rich.console import Console

from parallax._json_records import write_record
from parallax.cli._console import make_table, print_line, print_table
from parallax.cli._units import count
from parallax.model import Model

_LISTED: Final = 24
"""Rows of a table; --json lists all."""


def describe_slimming(model: Model) -> dict[str, Any]:
    """The report of a model that was slimmed, under "slimming"; nothing of any other."""
    slimming = model.slimming
    if slimming is None:
        return {}
    return {"slimming": {**write_record(slimming), "channels": slimming.channels, "summary": slimming.summary}}


def render_slimming(report: Mapping[str, Any], console: Console) -> None:
    """The summary, and a line per operator that lost channels or could have."""
    print_line(console, report["summary"])
    if report["removals"]:
        print_line(
            console,
            f"removed: {count(report['parameters'])} of {count(report['of_parameters'])} parameters, "
            f"{count(report['flops'])} of {count(report['of_flops'])} FLOPs per run",
        )
        table = make_table("operator", "why", "removed", "of", left=2)
        for row in report["removals"][:_LISTED]:
            table.add_row(f"{row['op_type']} {row['node']}", row["why"], str(row["count"]), str(row["of"]))
        _show(table, len(report["removals"]), console)
    stays = [row for row in report["refusals"] if row["node"]]
    if stays:
        table = make_table("operator", "what stands in the way", "stays", left=2)
        for row in stays[:_LISTED]:
            shown = "unknown" if row["count"] is None else str(row["count"])
            table.add_row(f"{row['op_type']} {row['node']}", row["why"], shown)
        _show(table, len(stays), console)


def _show(table: Any, rows: int, console: Console) -> None:
    print_table(console, table)
    if rows > _LISTED:
        print_line(console, f"... and {rows - _LISTED} more rows (--json lists all)")
