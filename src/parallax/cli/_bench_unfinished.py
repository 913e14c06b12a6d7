"""The report of a `parallax bench` in which no round ended: the first runs, from which nothing is concluded."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from parallax.cli._bench_report import (
    Compared,
    describe_compared,
    describe_outputs,
    is_ours,
    outputs_cell,
    render_outputs,
    render_untimed_and_plan,
)
from parallax.cli._console import make_table, print_line, print_table
from parallax.cli._units import milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstRuns:
    """What ran before the time was over."""

    compared: Compared
    runs_ns: Mapping[str, Sequence[float]]
    """Of each that ran, by label: the very first run, untimed ones, and those of a round that did not end."""
    opening_s: float | None
    """Seconds from the start of the command until all were opened; None where the time was over before."""
    others_cores: float
    """Cores that other programs still used when waiting for them had ended."""


def describe_first_runs(first: FirstRuns, unmeasured: Mapping[str, Any]) -> dict[str, Any]:
    """The document: as that of a bench, with nothing in it that rests on rounds.

    Args:
        unmeasured: why no round ended, as `describe_unmeasured` tells it.
    """
    found = {
        "discarded_rounds": 0,
        "disturbed_rounds": 0,
        "others_cores": first.others_cores,
        "opening_s": first.opening_s,
        "timings": [_describe_row(first, label) for label in first.runs_ns],
        "best_of_onnxruntime": None,
        "ratio_to_best": None,
    }
    return {**unmeasured, **describe_compared(first.compared, found)}


def _describe_row(first: FirstRuns, label: str) -> dict[str, Any]:
    runs_ns = first.runs_ns[label]
    row: dict[str, Any] = {
        "label": label,
        "p50_ms": statistics.median(runs_ns) / 1e6,
        "min_ms": min(runs_ns) / 1e6,
        "max_ms": max(runs_ns) / 1e6,
        "timed_runs": len(runs_ns),
    }
    if label in first.compared.differences:
        row["outputs"] = describe_outputs(first.compared.differences[label])
    return row


def render_first_runs(report: Mapping[str, Any], console: Console) -> None:
    """Print that nothing is concluded, and why; then a table of the first runs."""
    print_line(console, report["conclusion"])
    print_line(console, _how_far_it_came(report))
    table = make_table("", "runs", "p50 ms", "least", "most", "outputs")
    for row in report["timings"]:
        figures = (milliseconds(row[f"{name}_ms"] * 1e6) for name in ("p50", "min", "max"))
        table.add_row(row["label"], str(row["timed_runs"]), *figures, outputs_cell(row.get("outputs")))
    print_table(console, table, optional=("most", "least", "outputs"))
    print_line(console, "these are first runs, which do work that later runs do not: their times are no comparison")
    compared = [row["outputs"] for row in report["timings"] if "outputs" in row and not is_ours(row["label"])]
    render_outputs(compared, console)
    render_untimed_and_plan(report, console)


def _how_far_it_came(report: Mapping[str, Any]) -> str:
    opening_s = report["opening_s"]
    opened = "not all was opened" if opening_s is None else f"{opening_s:.0f} s until all was opened"
    return f"{report['model']} on {report['threads']} threads: no round in {report['elapsed_s']:.0f} s, {opened}"
