"""``parallax bench``: our session against plain ONNX Runtime on the same model and inputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import typer
from rich.console import Console

from parallax.backends.ort import FOREIGN_EXCEPTIONS
from parallax.cli._console import Screen, make_table, print_line
from parallax.cli._open import Subject, check_writable, prepare
from parallax.cli._plan_view import describe_plan, summarise_memory
from parallax.cli._rivals import Difference, Rival, compare_outputs, runtime_rivals
from parallax.cli._timing import Timing, ratio, time_interleaved
from parallax.cli._units import milliseconds
from parallax.machine import available_cores
from parallax.planner import is_yardstick
from parallax.profile import machine_fingerprint
from parallax.session import InferenceSession, Options

OURS = "Parallax"

# Different kernels or splits of a sum give different last bits; beyond this something is wrong.
TOLERANCE = 1e-4


def bench_model(
    model: str,
    *,
    inputs: Sequence[str],
    shapes: Sequence[str],
    options: Options,
    runs: int,
    seed: int,
    save: Path | None,
    providers: Sequence[str],
    policies: Sequence[str],
    screen: Screen,
) -> None:
    """Time ``model`` here and in plain ONNX Runtime, interleaved, and compare outputs.

    Exits with 1 where our outputs agree with no rival's, or those of a policy not with ours.

    Args:
        policies: names of others to time as well. Yardsticks among them are never tuned.
    """
    if save is not None:
        check_writable(save)
    subject = prepare(model, inputs=inputs, shapes=shapes, seed=seed, screen=screen)
    cores = options.threads or available_cores()
    with screen.progress() as progress:
        session = subject.open(replace(options, progress=progress), providers=providers)
        subject.run(session)
        others: dict[str, InferenceSession] = {}
        for policy in policies:
            tune = options.tune and not is_yardstick(policy)
            changed = replace(options, policy=policy, tune=tune, progress=progress)
            others[f"{OURS}, {policy}"] = subject.open(changed, providers=providers)
            subject.run(others[f"{OURS}, {policy}"])
        opened, failed = _open_rivals(runtime_rivals(cores), subject, progress)
        differences = _compare(session, opened, subject)
        between = _compare(session, others, subject)
        calls = {OURS: _caller(session, subject)}
        calls.update((label, _caller(rival, subject)) for label, rival in {**others, **opened}.items())
        timings = time_interleaved(
            calls, rounds=runs, cores=cores, progress=lambda done, of: progress("rounds", done, of)
        )
    report = _make_report(
        subject, session, timings, {**between, **differences}, failed, cores=cores, tuned=options.tune
    )
    if others:
        report["policies"] = {label: describe_plan(other.plan) for label, other in others.items()}
    if save is not None:
        save.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    screen.show(report, lambda console: _render(report, session, others, console))
    if differences and not any(difference.within(TOLERANCE) for difference in differences.values()):
        print_line(screen.err, "error: outputs differ from ONNX Runtime's beyond tolerance; please report this model")
        raise typer.Exit(1)
    for label, difference in between.items():
        if not difference.within(TOLERANCE):
            told = f"error: outputs of {label} differ from ours beyond tolerance; please report this model"
            print_line(screen.err, told)
            raise typer.Exit(1)


def _open_rivals(
    rivals: Sequence[Rival], subject: Subject, progress: Callable[[str, int, int], None]
) -> tuple[dict[str, onnxruntime.InferenceSession], dict[str, str]]:
    """Sessions that open and run once, and for the others what the runtime said."""
    opened: dict[str, onnxruntime.InferenceSession] = {}
    failed: dict[str, str] = {}
    for number, rival in enumerate(rivals, start=1):
        try:
            opened[rival.label] = rival.open(subject.source.path)
            opened[rival.label].run(None, subject.feeds)
        except FOREIGN_EXCEPTIONS as error:
            opened.pop(rival.label, None)
            failed[rival.label] = " ".join(str(error).split())
        progress("opening ONNX Runtime", number, len(rivals))
    return opened, failed


def _compare(
    session: InferenceSession, opened: Mapping[str, onnxruntime.InferenceSession], subject: Subject
) -> dict[str, Difference]:
    names = [entry.name for entry in session.get_outputs()]
    ours = dict(zip(names, session.run(names, subject.feeds), strict=True))
    return {
        label: compare_outputs(ours, dict(zip(names, rival.run(names, subject.feeds), strict=True)))
        for label, rival in opened.items()
    }


def _caller(session: onnxruntime.InferenceSession, subject: Subject) -> Callable[[], object]:
    return lambda: session.run(None, subject.feeds)


def _make_report(
    subject: Subject,
    session: InferenceSession,
    timings: dict[str, Timing],
    differences: dict[str, Difference],
    failed: dict[str, str],
    *,
    cores: int,
    tuned: bool,
) -> dict[str, Any]:
    ours = timings[OURS]
    rows = []
    for label, timing in timings.items():
        low, high = timing.quartiles_ns
        row: dict[str, Any] = {
            "label": label,
            "median_ms": timing.median_ns / 1e6,
            "quartiles_ms": [low / 1e6, high / 1e6],
            "min_ms": timing.min_ns / 1e6,
            "max_ms": timing.max_ns / 1e6,
        }
        if label != OURS:
            against = ratio(ours, timing)
            difference = differences[label]
            row["ours_over_this"] = {"median": against.median, "quartiles": [against.low, against.high]}
            row["outputs"] = {
                "identical": difference.identical,
                "relative_difference": None if difference.detail else difference.relative,
                "detail": difference.detail,
            }
        rows.append(row)
    rivals = [row for row in rows if not row["label"].startswith(OURS)]
    best = min(rivals, key=lambda row: row["median_ms"], default=None)
    return {
        "model": subject.source.label,
        "inputs": {name: [str(value.dtype), list(value.shape)] for name, value in subject.feeds.items()},
        "threads": cores,
        "runs": len(ours.samples_ns),
        "discarded_rounds": ours.discarded_rounds,
        "tuned": tuned,
        "machine": machine_fingerprint(),
        "timings": rows,
        "failed": failed,
        "best_of_onnxruntime": None if best is None else best["label"],
        "ratio_to_best": None if best is None else best["ours_over_this"],
        "plan": describe_plan(session.plan),
        "memory": session.memory().to_json(),
    }


def _render(
    report: dict[str, Any], session: InferenceSession, others: Mapping[str, InferenceSession], console: Console
) -> None:
    print_line(console, f"{report['model']}, {report['runs']} interleaved runs on {report['threads']} threads")
    table = make_table("", "outputs", "median ms", "quartiles", "min", "max", "Parallax takes", left=2)
    for row in report["timings"]:
        low, high = (milliseconds(ms * 1e6) for ms in row["quartiles_ms"])
        against = row.get("ours_over_this")
        table.add_row(
            row["label"],
            _outputs_cell(row.get("outputs")),
            milliseconds(row["median_ms"] * 1e6),
            f"{low} - {high}",
            milliseconds(row["min_ms"] * 1e6),
            milliseconds(row["max_ms"] * 1e6),
            "" if against is None else f"{against['median']:.2f} x",
        )
    console.print(table)
    if report["discarded_rounds"]:
        print_line(
            console,
            f"{report['discarded_rounds']} rounds were measured again: others (or the host) took cores meanwhile",
        )
    for label, reason in report["failed"].items():
        print_line(console, f"{label} does not run this model: {reason}")
    if report["ratio_to_best"] is not None:
        median, (low, high) = report["ratio_to_best"]["median"], report["ratio_to_best"]["quartiles"]
        print_line(
            console,
            f"Parallax takes {median:.3f} of the time of the best ({report['best_of_onnxruntime']}); "
            f"quartiles over rounds {low:.3f} - {high:.3f}",
        )
    print_line(console, f"plan: {session.plan.summary}")
    for label, other in others.items():
        print_line(console, f"plan of {label}: {other.plan.summary}")
    print_line(console, f"memory: {summarise_memory(report['memory'])}")


def _outputs_cell(outputs: dict[str, Any] | None) -> str:
    if outputs is None:
        return ""
    if outputs["identical"]:
        return "identical"
    return outputs["detail"] or f"within {outputs['relative_difference']:.1e}"
