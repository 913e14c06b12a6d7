"""What `parallax bench` found: a document for programs, and tables for people that begin with the verdict."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from parallax.cli._baselines import Difference
from parallax.cli._bench_rounds import BenchPlan, End, Measured
from parallax.cli._console import make_table, print_line, print_table
from parallax.cli._energy import BenchEnergy, energy_cell, energy_heading, energy_notes
from parallax.cli._open import Subject
from parallax.cli._plan_view import describe_adaptation, describe_plan, render_adaptation, summarise_memory
from parallax.cli._timing import quartiles
from parallax.cli._units import milliseconds, significant
from parallax.cli._verdict import Verdict, judge, speed
from parallax.machine import NOISY_SHARE
from parallax.profile import machine_fingerprint
from parallax.schedule import Plan
from parallax.session import InferenceSession

OURS = "Parallax"

# Different kernels or splits of a sum give different last bits; beyond this something is wrong.
TOLERANCE = 1e-4

PERCENTILES = {"p50": 50, "p90": 90, "p99": 99}
_LEAST_BEYOND = 1
"""A percentile is given where at least so many runs lie beyond it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What was compared, and how: what a report tells whether a round ended or not."""

    subject: Subject
    session: InferenceSession
    """Ours."""
    how: BenchPlan
    cores: int
    wanted: int
    """Rounds that were to be measured."""
    differences: Mapping[str, Difference]
    """Of outputs from ours, by label."""
    failed: Mapping[str, str]
    """Baselines that do not run the model, and what the runtime said."""
    left_out: Mapping[str, str]
    """Baselines that were not timed, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What was measured, in one round at least."""

    compared: Compared
    measured: Measured
    elapsed_s: float
    max_time_s: float
    policies: Mapping[str, Plan]
    """The plans of our sessions with other policies that were timed, by label."""
    energy: BenchEnergy | None = None
    """Joules, where they were asked for."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Of all that were timed, ours first."""
        others = list(self.compared.differences)
        timed = self.measured.rounds[0].turns
        return tuple(sorted(timed, key=lambda label: -1 if label == OURS else others.index(label)))

    @property
    def obstacle(self) -> str:
        """What stands against any conclusion; "" if nothing does."""
        if not self.measured.is_spoiled:
            return ""
        others_cores, cores = self.measured.others_cores, self.compared.cores
        if others_cores > NOISY_SHARE * cores:
            return f"other programs used up to {others_cores:.1f} of {cores} cores meanwhile"
        return "the host of this machine took cores away meanwhile"


def is_ours(label: str) -> bool:
    """Whether a label is that of a session of ours, with the policy that was asked for or another."""
    return label == OURS or label.startswith(f"{OURS}, ")


def describe_bench(bench: Bench) -> dict[str, Any]:
    """The document: everything that the tables show, and more."""
    measured = bench.measured
    rows = [_describe_row(bench, label) for label in bench.labels]
    baselines = [row for row in rows if not is_ours(row["label"])]
    best = (
        max(baselines, key=lambda row: row["runs_per_s"], default=None)
        if bench.compared.how.is_load
        else min(baselines, key=lambda row: row["median_ms"], default=None)
    )
    verdict = None if best is None else _verdict(bench, best["label"])
    return describe_compared(
        bench.compared,
        {
            "runs": len(measured.rounds),
            "discarded_rounds": 0 if measured.is_spoiled else measured.noisy,
            "disturbed_rounds": measured.noisy,
            "others_cores": measured.others_cores,
            "interrupted": measured.ended_by is End.INTERRUPT,
            "ended_by": measured.ended_by.value,
            "elapsed_s": bench.elapsed_s,
            "max_time_s": bench.max_time_s,
            "verdict": None if verdict is None else verdict.to_json(),
            "timings": rows,
            "best_of_onnxruntime": None if best is None else best["label"],
            "ratio_to_best": None if best is None else best["ours_over_this"],
            "conclusion": _conclusion(bench, None if best is None else best["label"], verdict),
            "adaptation": describe_adaptation(bench.compared.session.adaptation),
            "policies": {label: describe_plan(plan) for label, plan in bench.policies.items()},
            "energy": None if bench.energy is None else bench.energy.to_json(),
        },
    )


def describe_compared(compared: Compared, found: Mapping[str, Any]) -> dict[str, Any]:
    """The document: ``found``, and beside it what describes the model, the machine and the sessions."""
    subject, plan = compared.subject, compared.session.plan
    return {
        "model": subject.source.label,
        "inputs": {name: [str(value.dtype), list(value.shape)] for name, value in subject.feeds.items()},
        "threads": compared.cores,
        "callers": compared.how.callers,
        "batch": compared.how.items_per_run,
        "measures": "throughput" if compared.how.is_load else "latency",
        "wanted_rounds": compared.wanted,
        "tuned": plan.provenance.source == "measured" and not plan.provenance.is_noisy,
        "machine": machine_fingerprint(),
        "is_onnxruntime": plan.is_whole,
        **found,
        "failed": dict(compared.failed),
        "left_out": dict(compared.left_out),
        "plan": describe_plan(plan),
        "memory": compared.session.memory().to_json(),
    }


def _describe_row(bench: Bench, label: str) -> dict[str, Any]:
    turns = [measured.turns[label] for measured in bench.measured.rounds]
    runs = np.array([ns for turn in turns for ns in turn.runs_ns])
    medians = [statistics.median(turn.runs_ns) for turn in turns]
    low, high = quartiles(medians)
    runs_per_s = len(runs) * 1e9 / sum(turn.wall_ns for turn in turns)
    row: dict[str, Any] = {
        "label": label,
        "median_ms": statistics.median(medians) / 1e6,
        "quartiles_ms": [low / 1e6, high / 1e6],
        "min_ms": min(medians) / 1e6,
        "max_ms": max(medians) / 1e6,
        **{f"{name}_ms": percentile_ms(runs, percent) for name, percent in PERCENTILES.items()},
        "timed_runs": len(runs),
        "runs_per_s": runs_per_s,
        "items_per_s": runs_per_s * bench.compared.how.items_per_run,
    }
    if bench.energy is not None and label in bench.energy.rows:
        row["energy"] = bench.energy.rows[label].to_json()
    if label != OURS:
        ratios = _ratios(bench, label)
        low, high = quartiles(ratios)
        verdict = _verdict(bench, label)
        difference = bench.compared.differences[label]
        row["ours_over_this"] = {
            "median": verdict.ratio,
            "quartiles": [low, high],
            "interval": None if verdict.interval is None else list(verdict.interval),
        }
        row["verdict"] = verdict.to_json()
        row["outputs"] = describe_outputs(difference)
    return row


def describe_outputs(difference: Difference) -> dict[str, Any]:
    """Describe how a baseline's outputs differ from ours, in JSON types."""
    return {
        "identical": difference.identical,
        "relative_difference": None if difference.detail else difference.relative,
        "detail": difference.detail,
    }


def percentile_ms(runs_ns: NDArray[Any], percent: int) -> float | None:
    """A percentile of durations; None where there are too few of them to have one."""
    if percent > 50 and len(runs_ns) * (100 - percent) < 100 * _LEAST_BEYOND:
        return None
    return float(np.percentile(runs_ns, percent)) / 1e6


def _ratios(bench: Bench, label: str) -> list[float]:
    return [measured.turns[OURS].sample_ns / measured.turns[label].sample_ns for measured in bench.measured.rounds]


def _verdict(bench: Bench, label: str) -> Verdict:
    return judge(_ratios(bench, label), obstacle=bench.obstacle)


def _conclusion(bench: Bench, best: str | None, verdict: Verdict | None) -> str:
    """The sentence that a reader came for."""
    whole = ""
    plan = bench.compared.session.plan
    if plan.is_whole:
        width = plan.segments[0].width if plan.segments else bench.compared.cores
        whole = (
            f"The model runs whole, so that this is ONNX Runtime, on {width} thread{'s' if width > 1 else ''}: what "
            "differs from that row is noise. "
        )
    if verdict is None or best is None:
        return f"{whole}There is nothing to compare with."
    what = " in runs per second" if bench.compared.how.is_load else ""
    return f"{whole}{_capitalised(verdict.sentence(OURS, f'the best of ONNX Runtime ({_short(best)}){what}'))}."


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def _short(label: str) -> str:
    return label.removeprefix("ONNX Runtime, ")


# For people -------------------------------------------------------------------------------------------


def render_bench(report: Mapping[str, Any], console: Console) -> None:
    """The verdict, what it rests on, and the plan."""
    print_line(console, report["conclusion"])
    print_line(console, _how_it_was_measured(report))
    load = report["measures"] == "throughput"
    per_second = "items/s" if report["batch"] > 1 else "runs/s"
    energy = report["energy"]
    columns = ["", "p50 ms", "p90 ms", "p99 ms", per_second, "quartiles", "outputs", "Parallax is"]
    table = make_table(*columns, *(() if energy is None else (energy_heading(energy),)))
    for row in report["timings"]:
        low, high = (milliseconds(ms * 1e6) for ms in row["quartiles_ms"])
        against = row.get("ours_over_this")
        table.add_row(
            row["label"],
            *(_ms(row[f"{name}_ms"]) for name in PERCENTILES),
            significant(row["items_per_s"]),
            f"{low} - {high}",
            outputs_cell(row.get("outputs")),
            "" if against is None else speed(against["median"]),
            *(() if energy is None else (energy_cell(row.get("energy")),)),
        )
    print_table(console, table, optional=("quartiles", "p99 ms", "p90 ms", "p50 ms" if load else per_second, "outputs"))
    render_outputs([row["outputs"] for row in report["timings"] if not is_ours(row["label"])], console)
    _render_notes(report, console)


def render_outputs(outputs: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Say how our outputs compare with ONNX Runtime's; nothing if no baseline ran."""
    if not outputs:
        return
    if all(row["identical"] for row in outputs):
        print_line(console, "outputs: equal to ONNX Runtime's, bit for bit")
    elif any(row["detail"] for row in outputs):
        detail = next(row["detail"] for row in outputs if row["detail"])
        print_line(console, f"outputs: NOT those of ONNX Runtime in some row ({detail})")
    else:
        worst = max(row["relative_difference"] for row in outputs)
        print_line(console, f"outputs: within {worst:.1e} of their magnitude of ONNX Runtime's")


def _how_it_was_measured(report: Mapping[str, Any]) -> str:
    callers = report["callers"]
    many = f"{callers} callers at once, " if callers > 1 else ""
    batch = f"batch {report['batch']}, " if report["batch"] > 1 else ""
    tuned = "" if report["tuned"] else ", not tuned"
    return (
        f"{report['model']} on {report['threads']} threads{tuned}: {many}{batch}{report['runs']} rounds in "
        f"{report['elapsed_s']:.0f} s"
    )


def _rounds_measured(report: Mapping[str, Any]) -> str:
    runs, wanted = report["runs"], report["wanted_rounds"]
    # Where too few rounds were quiet, the noisy ones count as well.
    return f"{runs} of {wanted} rounds" if runs < wanted else f"{runs} rounds, of which less than {wanted} were quiet"


def _render_notes(report: Mapping[str, Any], console: Console) -> None:
    if report["interrupted"]:
        print_line(console, f"interrupted after {_rounds_measured(report)}")
    elif report["ended_by"] == "time":
        print_line(
            console,
            f"--max-time {report['max_time_s']:g} ended it after {_rounds_measured(report)}; "
            "more time makes the interval narrower",
        )
    if report["discarded_rounds"]:
        print_line(
            console,
            f"{report['discarded_rounds']} rounds were thrown away: others (or the host) took cores meanwhile",
        )
    render_untimed_and_plan(report, console)
    render_adaptation(report["adaptation"], console)
    for label, plan in report["policies"].items():
        print_line(console, f"plan of {label}: {plan['summary']}")
    print_line(console, f"memory: {summarise_memory(report['memory'])}")
    if report["energy"] is not None:
        for line in energy_notes(report):
            print_line(console, line)


def render_untimed_and_plan(report: Mapping[str, Any], console: Console) -> None:
    """Which baselines were not timed, and why; then the plan of our session."""
    for label, reason in report["failed"].items():
        print_line(console, f"{label} does not run this model: {reason}")
    for label, reason in report["left_out"].items():
        print_line(console, f"{label} was not timed: {reason}")
    print_line(console, f"plan: {report['plan']['summary']}")


def _ms(value: float | None) -> str:
    return "-" if value is None else milliseconds(value * 1e6)


def outputs_cell(outputs: Mapping[str, Any] | None) -> str:
    """How a baseline's outputs compare with ours, in a word or two; "" in our own row."""
    if outputs is None:
        return ""
    if outputs["identical"]:
        return "identical"
    return str(outputs["detail"] or f"within {outputs['relative_difference']:.1e}")
