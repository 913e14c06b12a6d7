"""Latency of the reference models: Parallax (tuned) against ONNX Runtime in every mode it offers.

Variants take turns in one process, in rotating order; each turn starts when no thread pool spins any more
and begins with an untimed run, so everyone is timed in the steady state of back-to-back use. The ratio is
the median over rounds of (ours / theirs in that round) against the baseline with the lowest median. Where a process's
threads come to lie differs from process to process, and small models show it: so each model is timed in several
processes, of which the first tunes and finds the best baseline, and the others time ours and that baseline again. A
promise of 2% needs a median that is known to better than that: within a process both go on in turns, whatever the
ratio is, until its 95% interval is narrow enough, or they have had their time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _common import (
    Report,
    add_model_arguments,
    describe_machine,
    dump_timing,
    in_child,
    load_timings,
    make_parser,
    ms,
    open_inputs,
    pick_models,
    publish,
    samples_of,
    say,
    spread,
)
from _figures import Figure, Verdict
from _graphs import serial_chains
from _intervals import figure_of_medians, median_interval, paired, rows_that_keep
from _streams import find_best_streams

import parallax
from parallax import zoo
from parallax.cli import Baseline, Timing, compare_outputs, time_interleaved
from parallax.schedule import Plan

OURS = "Parallax"
CHAINS = "four serial chains"

# What the project promises, per row of the table: no model slower than the best baseline by more than this ...
WORST_RATIO = 1.02
# ... and the synthetic chains at most this share of the best baseline's time on two cores.
CHAINS_RATIO = 0.6

# The median ratio is to be known to this (half of its 95% interval), if so many seconds are enough for it.
PRECISION = 0.01
LONGEST_S = 10.0

TRIAL_ROUNDS = 5
"""In which all baselines are compared; the best of them and ours take more."""

PROCESSES = 3
"""In which each model is timed."""


def open_ours(path: Path, feeds: dict[str, np.ndarray], *, threads: int, cache: Path) -> parallax.InferenceSession:
    """Tuned; the second time the plan that tuning left in the cache."""
    return parallax.InferenceSession(
        path,
        threads=threads,
        shapes=open_inputs(path, feeds),
        calibration=feeds,
        tune=True,
        backends=(),  # the same kernels for everyone; cpu_backends.py compares libraries
        cache_dir=cache,  # of this measurement: a plan found by an earlier one would hide what this version finds
    )


def model_and_feeds(name: str, folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    if name != CHAINS:
        return Path(zoo.load(name)), zoo.example_inputs(name)
    path = folder / "chains.onnx"
    onnx.save(serial_chains(), path)
    return path, {"x": np.random.default_rng(0).standard_normal((640, 640), dtype=np.float32)}


def measure_model(name: str, *, runs: int, threads: int, folder: Path, streams: bool) -> dict[str, Any]:
    """One row: every baseline's samples, ours, the comparison of outputs and the plan's story."""
    path, feeds = model_and_feeds(name, folder)
    say(f"{name}: tuning")
    ours = open_ours(path, feeds, threads=threads, cache=folder / "cache")
    baselines = [Baseline(label="1 thread", threads=1)]
    if threads > 1:
        baselines.append(Baseline(label=f"{threads} threads", threads=threads))
    baselines.append(Baseline(label="ORT_PARALLEL", threads=threads, inter_op_threads=max(2, threads)))
    found = None
    if streams:
        say(f"{name}: looking for streams")
        found = find_best_streams(path, feeds, threads=threads, folder=folder)
    if found is not None:
        baselines.append(found)
    sessions = {baseline.label: baseline.open(path) for baseline in baselines}
    names = [output.name for output in ours.get_outputs()]
    our_outputs = dict(zip(names, ours.run(names, feeds), strict=True))
    reference = dict(zip(names, sessions["1 thread"].run(names, feeds), strict=True))
    difference = compare_outputs(our_outputs, reference)
    say(f"{name}: timing")
    calls = {OURS: lambda: ours.run(None, feeds)}
    calls |= {label: partial(session.run, None, feeds) for label, session in sessions.items()}
    timings = time_interleaved(calls, rounds=min(runs, TRIAL_ROUNDS), cores=threads)
    best = min((timing for label, timing in timings.items() if label != OURS), key=lambda timing: timing.median_ns)
    both = {label: calls[label] for label in (OURS, best.label)}
    more = time_interleaved(both, rounds=runs, cores=threads)
    timings |= narrow_down(both, {label: _joined(timings[label], more[label]) for label in both}, cores=threads)
    return {
        "model": name,
        "best": best.label,
        "rival": asdict(next(baseline for baseline in baselines if baseline.label == best.label)),
        "timings": {label: dump_timing(timing) for label, timing in timings.items()},
        "streams": None if found is None else found.label,
        "identical_outputs": difference.identical,
        "relative_difference": difference.relative,
        "output_detail": difference.detail,
        "plan_is_uncut": ours.plan.is_whole,
        "note": explain(ours.plan),
    }


def narrow_down(
    calls: Mapping[str, Callable[[], object]], timings: Mapping[str, Timing], *, cores: int
) -> dict[str, Timing]:
    """Both timings with more rounds, until the median of their ratios is known well enough or time is up."""
    ours, theirs = (timings[label] for label in calls)
    rounds = len(ours.samples_ns)
    until = time.monotonic() + LONGEST_S
    while half_interval(ours, theirs) > PRECISION and time.monotonic() < until:
        more = time_interleaved(calls, rounds=rounds, cores=cores)
        ours, theirs = (_joined(timing, more[timing.label]) for timing in (ours, theirs))
    return {ours.label: ours, theirs.label: theirs}


def measure_again(name: str, baseline: Baseline, *, runs: int, threads: int, folder: Path) -> dict[str, Any]:
    """Ours, as tuned before, and the best baseline, in another process."""
    path, feeds = model_and_feeds(name, folder)
    ours, theirs = open_ours(path, feeds, threads=threads, cache=folder / "cache"), baseline.open(path)
    calls = {OURS: lambda: ours.run(None, feeds), baseline.label: lambda: theirs.run(None, feeds)}
    timings = time_interleaved(calls, rounds=runs, cores=threads)
    timings = narrow_down(calls, timings, cores=threads)
    return {"timings": {label: dump_timing(timing) for label, timing in timings.items()}}


def half_interval(ours: Timing, theirs: Timing) -> float:
    """Half the 95% interval of the median ratio."""
    ratios = paired(ours.samples_ns, theirs.samples_ns)
    interval = median_interval(ratios)
    if interval is None:
        return float("inf")
    return max(interval[1] - statistics.median(ratios), statistics.median(ratios) - interval[0])


def _joined(first: Timing, second: Timing) -> Timing:
    return replace(
        first,
        samples_ns=(*first.samples_ns, *second.samples_ns),
        discarded_rounds=first.discarded_rounds + second.discarded_rounds,
    )


def explain(plan: Plan) -> str:
    """What was gained or not, and why, from the plan's provenance."""
    provenance = plan.provenance
    form = (
        f"whole model, {plan.segments[0].width} threads"
        if plan.is_whole
        else f"{len(plan.segments)} segments, {plan.lanes} lanes"
    )
    parts = [f"{form}: {provenance.reason}"]
    cuts = [candidate for candidate in provenance.candidates if candidate.segments > 1]
    if plan.is_whole and cuts:
        best = min(cuts, key=lambda candidate: candidate.measured_ns or candidate.simulated_ns)
        figures = f"simulated {ms(best.simulated_ns)} ms"
        figures += ", not measured" if best.measured_ns is None else f", measured {ms(best.measured_ns)} ms"
        whole = "" if provenance.whole_ns is None else f", whole model {ms(provenance.whole_ns)} ms"
        parts.append(f"best cut: {best.label} ({best.segments} segments), {figures}{whole}")
    elif plan.is_whole and provenance.candidates:
        parts.append("no cut was worth simulating")
    return "; ".join(parts)


def ratio_figure(result: Mapping[str, Any]) -> Figure:
    """Ours to the best baseline, over all processes."""
    best = result["best"]
    runs = [paired(samples_of(run, OURS), samples_of(run, best)) for run in (result, *result.get("again", ()))]
    name = result["model"]
    return figure_of_medians(
        f"latency.{name.replace(' ', '-')}",
        f"{name}, tuned, against the best of ONNX Runtime's modes ({best}): share of its time",
        [runs],
        bound=CHAINS_RATIO if name == CHAINS else WORST_RATIO,
        note=f"{len(runs)} processes" if len(runs) > 1 else "one process",
        headline=name == CHAINS,
    )


def make_figures(data: Mapping[str, Any]) -> list[Figure]:
    rows = {result["model"]: ratio_figure(result) for result in data["results"] if "failed" not in result}
    reference = {name: figure for name, figure in rows.items() if name != CHAINS}
    figures = list(rows.values())
    if reference:
        figures.append(
            rows_that_keep(
                "latency.models",
                f"of {len(reference)} reference models, tuned, those that take at most {WORST_RATIO} of the time of "
                "the best of ONNX Runtime's modes",
                reference,
                note=""
                if any(result.get("streams") for result in data["results"])
                else "no hand-written streams tried",
            )
        )
    return figures


def make_report(results: list[dict[str, Any]], *, runs: int, threads: int) -> Report:
    """The table, with a verdict for each row."""
    rows = []
    remarks = []
    for result in results:
        if "failed" in result:
            rows.append([result["model"], *["-"] * 8, f"FAILED: {result['failed']}"])
            continue
        timings = load_timings(result)
        figure = ratio_figure(result)
        discarded = timings[OURS].discarded_rounds
        if discarded:
            remarks.append(f"{result['model']}: {discarded} rounds measured again, as the cores were not all there")
        outputs = "identical" if result["identical_outputs"] else f"within {result['relative_difference']:.1e}"
        parallel, streams = timings["ORT_PARALLEL"], timings.get(result["streams"] or "")
        low, high = figure.interval or (float("nan"), float("nan"))
        rows.append(
            [
                result["model"],
                spread(timings[OURS]),
                spread(timings["1 thread"]),
                spread(timings[f"{threads} threads"]) if threads > 1 else "-",
                spread(parallel),
                "-" if streams is None else spread(streams),
                f"{figure.value:.3f} ({low:.3f} to {high:.3f})",
                f"{figure.verdict}" if figure.verdict is Verdict.MET else f"**{figure.verdict}**",
                result["output_detail"] or outputs,
                result["note"],
            ]
        )
    data = {"runs": runs, "threads": threads, "results": results}
    return Report(
        title="Latency against ONNX Runtime",
        method=(
            f"Milliseconds per run, median (quartiles) of interleaved rounds ({TRIAL_ROUNDS} of all, then {runs} and "
            f"more of ours and the best baseline) on {threads} threads. The ratio is "
            "ours to the baseline with the lowest median, per round, over several processes, with its 95% interval; "
            f"these two take more rounds in each, until it is known to {PRECISION:g} or {LONGEST_S:g} s have passed. "
            "ORT_PARALLEL and streams: inter-op threads as well. Streams are written from a profile "
            "of the optimised graph; the fastest of up to nine set-ups counts (-: none runs, or left out)."
        ),
        columns=[
            *("model", "Parallax", "ORT, 1 thread", f"ORT, {threads} threads", "ORT_PARALLEL", "ORT streams"),
            *("ratio to best (95%)", "", "outputs", "what was gained, and why"),
        ],
        rows=rows,
        remarks=remarks,
        data=data,
        figures=make_figures(data),
    )


def measure_in_processes(name: str, *, runs: int, threads: int, processes: int, more: Sequence[str]) -> dict[str, Any]:
    """A row: one process tunes and compares all, the others compare ours and the best baseline again."""
    with tempfile.TemporaryDirectory() as folder:
        shared = ["--folder", folder, *more]
        row = in_child(__file__, name, runs=runs, threads=threads, more=shared)
        row["again"] = []
        while "failed" not in row and len(row["again"]) < processes - 1:
            say(f"{name}: process {len(row['again']) + 2}")
            again = in_child(
                __file__, name, runs=runs, threads=threads, more=[*shared, "--again", json.dumps(row["rival"])]
            )
            if "failed" in again:
                return row | again
            row["again"].append(again)
    return row


def measure_one(arguments: argparse.Namespace) -> None:
    """In a process of its own: see `measure_in_processes`."""
    name, result = arguments.one
    given = {"runs": arguments.runs, "threads": arguments.threads, "folder": arguments.folder}
    if arguments.again is None:
        row = measure_model(name, streams=not arguments.no_streams, **given)
    else:
        row = measure_again(name, Baseline(**json.loads(arguments.again)), **given)
    Path(result).write_text(json.dumps(row))


def main() -> None:
    parser = make_parser(__doc__, "latency")
    add_model_arguments(parser, groups="paper, all, chains")
    parser.add_argument("--processes", type=int, default=PROCESSES, help="in which each model is timed")
    parser.add_argument("--no-streams", action="store_true", help="leave hand-written streams out, which take minutes")
    parser.add_argument("--folder", type=Path, help="of files that processes share (used by the script itself)")
    parser.add_argument("--again", metavar="BASELINE", help="time ours and this baseline (used by the script itself)")
    arguments = parser.parse_args()
    if arguments.one:
        measure_one(arguments)
        return
    machine = describe_machine()
    asked = [name for name in arguments.models if name != "chains"]
    names = [*pick_models(asked)]
    if "chains" in arguments.models or "paper" in arguments.models:
        names.append(CHAINS)
    results = [
        measure_in_processes(
            name,
            runs=arguments.runs,
            threads=arguments.threads,
            processes=arguments.processes,
            more=["--no-streams"] if arguments.no_streams else [],
        )
        for name in names
    ]
    publish(make_report(results, runs=arguments.runs, threads=arguments.threads), arguments.output, machine)


if __name__ == "__main__":
    main()
