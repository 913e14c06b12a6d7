"""What ``parallax inspect --sparsity`` found (`parallax.cli._sparsity`), for people: the summary first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from parallax.cli._console import make_table, print_line, print_table
from parallax.cli._units import count, significant
from parallax.sparsity import WORTHWHILE

_LISTED = 20
"""Operators in the table, those of most work; --json lists all."""
_WIDE_COLUMNS = 120


def render_sparsity(report: Mapping[str, Any], console: Console) -> None:
    """All of it."""
    _render_summary(report, console)
    _render_operators(report, console)
    _render_worth(report["worth"], console)
    if report["plot"] is not None:
        print_line(console, f"\nplot: {report['plot']}")


def _render_summary(report: Mapping[str, Any], console: Console) -> None:
    summary, examples = report["summary"], report["examples"]
    zeros = summary["zero_multiplications"]
    print_line(console, f"{zeros:.1%} of the multiplications are on exact zeros; {_use(report['worth'])}")
    print_line(
        console,
        f"whole channels that are zero: {summary['zero_output_channels']} of {summary['output_channels']} output, "
        f"{summary['zero_input_channels']} of {summary['input_channels']} input channels "
        f"({summary['removed_by']} removes those that no answer depends on)",
    )
    if summary["padding_removed_by"] is not None:
        print_line(
            console,
            f"zeros that pad sequences: {summary['padding_removed_by']} leaves them out, by the mask",
        )
    listed = report["operators"]
    unseen = len(listed) - summary["operators_seen"]
    print_line(
        console,
        f"seen: the main inputs of {summary['operators_seen']} of {len(listed)} operators, "
        f"in {examples['number']} {'example' if examples['number'] == 1 else 'examples'} ({examples['source']})"
        + (f"; {unseen} not observed (--json says why)" if unseen else ""),
    )
    inside = sum(row["inside"] is not None for row in listed)
    if inside:
        print_line(console, f"{inside} operators are inside control flow: their weights are seen, activations are not")
    if examples["note"]:
        print_line(console, examples["note"])


def _use(worth: Mapping[str, Any]) -> str:
    """What the backends were measured to make of zeros, in a clause."""
    backends = worth["backends"]
    if not backends:
        return "it was not measured yet whether a kernel here is quicker for them (--measure does, once per machine)"
    using = [name for name, entry in backends.items() if entry["changes_prices"]]
    if not using:
        return "no kernel here uses that (measured)"
    return f"some kernels of {', '.join(using)} are quicker for them (measured; see below)"


def _render_operators(report: Mapping[str, Any], console: Console) -> None:
    bounds = report["thresholds"]
    print_line(console, "\noperators, those of most work first")
    table = make_table(
        *("node", "operator", "FLOPs", "FLOPs/byte", "input zeros", "weight zeros", "zero out", "zero in", "quadrant"),
        left=2,
    )
    ranked = sorted(report["operators"], key=lambda row: -row["flops"])
    for row in ranked[:_LISTED]:
        seen, weights, intensity = row["input_zeros"], row["weight_zeros"], row["flops_per_byte"]
        table.add_row(
            _short(row["node"], 48 if console.width >= _WIDE_COLUMNS else 24),
            row["operator"],
            count(row["flops"]),
            "-" if intensity is None else significant(intensity),
            "-" if seen is None else f"{seen['mean']:.1%} ±{seen['deviation']:.1%}",
            "-" if weights is None else f"{weights['share']:.1%}",
            _channels(weights, "output"),
            _channels(weights, "input"),
            row["quadrant"],
        )
    print_table(
        console, table, optional=("operator", "FLOPs/byte", "zero in", "zero out", "quadrant", "FLOPs", "weight zeros")
    )
    if len(ranked) > _LISTED:
        print_line(console, f"{len(ranked) - _LISTED} more operators: --json lists them")
    numbers = Counter(row["quadrant"] for row in ranked)
    told = "; ".join(f"{number} {quadrant}" for quadrant, number in numbers.most_common())
    print_line(
        console,
        f"heavy: at least {count(bounds['min_flops'])} FLOPs; sparse: more than {bounds['max_zeros']:.1%} zeros "
        f"(--min-flops, --max-zeros). {told}.",
    )


def _short(name: str, most: int) -> str:
    """The end of a long name, which tells nodes apart."""
    return name if len(name) <= most else f"...{name[3 - most :]}"


def _channels(weights: Mapping[str, Any] | None, side: str) -> str:
    if weights is None or not weights[f"{side}_channels"]:
        return "-"
    return f"{weights[f'zero_{side}_channels']}/{weights[f'{side}_channels']}"


def _render_worth(worth: Mapping[str, Any], console: Console) -> None:
    for name, entry in worth["backends"].items():
        print_line(console, f"\ntime with zeros on {name}, as a share of that without (measured on this machine, once)")
        forms = list(dict.fromkeys(row["form"] for row in entry["timings"]))
        kinds = list(dict.fromkeys(row["operator"] for row in entry["timings"]))
        ratios = {(row["form"], row["operator"]): row for row in entry["timings"]}
        table = make_table("zeros", *kinds)
        for form in forms:
            table.add_row(form, *(f"{ratios[form, kind]['time_ratio']:.2f}" for kind in kinds))
        print_table(console, table)
    if worth["backends"]:
        print_line(
            console,
            f"Plans take an operator to be quicker for zeros that make it take less than {WORTHWHILE:g} of its time; "
            "other zeros change nothing.",
        )
