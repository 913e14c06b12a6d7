"""Latency of the reference models: Parallax (tuned) against ONNX Runtime in every mode it offers.

Rivals take turns in one process, in rotating order; each turn starts when no thread pool spins any more
and begins with an untimed run, so everyone is timed in the steady state of back-to-back use. The ratio is
the median over rounds of (ours / theirs in that round) against the rival with the lowest median. A promise of 2%
needs a median that is known to better than that: ours and that rival go on in turns, whatever the ratio is, until its
95% interval is narrow enough, or they have had their time.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
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
    measure_as_child,
    ms,
    open_inputs,
    pick_models,
    publish,
    say,
    show_ratio,
    spread,
)
from _graphs import serial_chains
from _streams import find_best_streams

import parallax
from parallax import zoo
from parallax.cli import Rival, Timing, compare_outputs, ratio, time_interleaved
from parallax.schedule import Plan

OURS = "Parallax"
CHAINS = "four serial chains"

# What the project promises, per row of the table: no model slower than the best rival by more than this ...
WORST_RATIO = 1.02
# ... and the synthetic chains at most this share of the best rival's time on two cores.
CHAINS_RATIO = 0.6

# The median ratio is to be known to this (half of its 95% interval), if so many seconds are enough for it.
PRECISION = 0.01
LONGEST_S = 90.0


def measure_model(name: str, *, runs: int, threads: int, folder: Path) -> dict[str, Any]:
    """One row: every rival's samples, ours, the comparison of outputs and the plan's story."""
    if name == CHAINS:
        path = folder / "chains.onnx"
        onnx.save(serial_chains(), path)
        feeds = {"x": np.random.default_rng(0).standard_normal((640, 640), dtype=np.float32)}
    else:
        path = zoo.load(name)
        feeds = zoo.example_inputs(name)
    say(f"{name}: tuning")
    ours = parallax.InferenceSession(
        path,
        threads=threads,
        shapes=open_inputs(path, feeds),
        calibration=feeds,
        tune=True,
        backends=(),  # the same kernels for everyone; cpu_backends.py compares libraries
        cache_dir=folder / "cache",  # a plan found by an earlier run would hide what this version finds
    )
    rivals = [Rival(label="1 thread", threads=1)]
    if threads > 1:
        rivals.append(Rival(label=f"{threads} threads", threads=threads))
    rivals.append(Rival(label="ORT_PARALLEL", threads=threads, inter_op_threads=max(2, threads)))
    say(f"{name}: looking for streams")
    streams = find_best_streams(path, feeds, threads=threads, folder=folder)
    if streams is not None:
        rivals.append(streams)
    sessions = {rival.label: rival.open(path) for rival in rivals}
    names = [output.name for output in ours.get_outputs()]
    our_outputs = dict(zip(names, ours.run(names, feeds), strict=True))
    reference = dict(zip(names, sessions["1 thread"].run(names, feeds), strict=True))
    difference = compare_outputs(our_outputs, reference)
    say(f"{name}: timing")
    calls = {OURS: lambda: ours.run(None, feeds)}
    calls |= {label: partial(session.run, None, feeds) for label, session in sessions.items()}
    timings = time_interleaved(calls, rounds=runs, cores=threads)
    best = min((timing for label, timing in timings.items() if label != OURS), key=lambda timing: timing.median_ns)
    timings |= narrow_down({label: calls[label] for label in (OURS, best.label)}, timings, cores=threads)
    return {
        "model": name,
        "best": best.label,
        "timings": {label: dump_timing(timing) for label, timing in timings.items()},
        "streams": None if streams is None else streams.label,
        "identical_outputs": difference.identical,
        "relative_difference": difference.relative,
        "output_detail": difference.detail,
        "plan_is_uncut": ours.plan.is_uncut,
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


def half_interval(ours: Timing, theirs: Timing) -> float:
    """Half the 95% interval of the median ratio, from the order of the ratios alone."""
    ratios = sorted(mine / other for mine, other in zip(ours.samples_ns, theirs.samples_ns, strict=True))
    reach = 0.98 * math.sqrt(len(ratios))
    low = max(0, math.floor((len(ratios) - 1) / 2 - reach))
    high = min(len(ratios) - 1, math.ceil((len(ratios) - 1) / 2 + reach))
    return max(ratios[high] - statistics.median(ratios), statistics.median(ratios) - ratios[low])


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
        f"uncut, {plan.segments[0].width} threads"
        if plan.is_uncut
        else f"{len(plan.segments)} segments, {plan.lanes} lanes"
    )
    parts = [f"{form}: {provenance.reason}"]
    cuts = [candidate for candidate in provenance.candidates if candidate.segments > 1]
    if plan.is_uncut and cuts:
        best = min(cuts, key=lambda candidate: candidate.measured_ns or candidate.simulated_ns)
        figures = f"simulated {ms(best.simulated_ns)} ms"
        figures += ", not measured" if best.measured_ns is None else f", measured {ms(best.measured_ns)} ms"
        uncut = "" if provenance.uncut_ns is None else f", uncut {ms(provenance.uncut_ns)} ms"
        parts.append(f"best cut: {best.label} ({best.segments} segments), {figures}{uncut}")
    elif plan.is_uncut and provenance.candidates:
        parts.append("no cut was worth simulating")
    return "; ".join(parts)


def make_report(results: list[dict[str, Any]], *, runs: int, threads: int) -> Report:
    """The table; rows that miss the promise say so."""
    rows = []
    remarks = []
    for result in results:
        if "failed" in result:
            rows.append([result["model"], *["-"] * 7, f"FAILED: {result['failed']}"])
            continue
        timings = load_timings(result)
        against = ratio(timings[OURS], timings[result["best"]])
        known_to = half_interval(timings[OURS], timings[result["best"]])
        result["ratio"] = {"median": against.median, "low": against.low, "high": against.high, "known_to": known_to}
        limit = CHAINS_RATIO if result["model"] == CHAINS else WORST_RATIO
        if against.median > limit:
            remarks.append(
                f"**{result['model']} misses its bound: {against.median:.3f} (known to {known_to:.3f}) > {limit}.**"
            )
        discarded = timings[OURS].discarded_rounds
        if discarded:
            remarks.append(f"{result['model']}: {discarded} rounds measured again, as the cores were not all there")
        outputs = "identical" if result["identical_outputs"] else f"within {result['relative_difference']:.1e}"
        parallel, streams = timings["ORT_PARALLEL"], timings.get(result["streams"] or "")
        rows.append(
            [
                result["model"],
                spread(timings[OURS]),
                spread(timings["1 thread"]),
                spread(timings[f"{threads} threads"]) if threads > 1 else "-",
                spread(parallel),
                "nothing to spread" if streams is None else spread(streams),
                f"{show_ratio(against)}, {len(timings[OURS].samples_ns)} rounds",
                result["output_detail"] or outputs,
                result["note"],
            ]
        )
    return Report(
        title="Latency against ONNX Runtime",
        method=(
            f"Milliseconds per run, median (quartiles) of {runs} interleaved rounds on {threads} threads. The ratio is "
            f"ours to the rival with the lowest median, per round; these two take more rounds, until it is known to "
            f"{PRECISION:g} (95% interval) or {LONGEST_S:g} s have passed. "
            "ORT_PARALLEL and streams: inter-op threads as well. Streams are written from a profile "
            "of the optimised graph; the fastest of up to nine set-ups counts."
        ),
        columns=[
            *("model", "Parallax", "ORT, 1 thread", f"ORT, {threads} threads", "ORT_PARALLEL", "ORT streams"),
            *("ratio to best", "outputs", "what was gained, and why"),
        ],
        rows=rows,
        remarks=remarks,
        data={"runs": runs, "threads": threads, "results": results},
    )


def main() -> None:
    parser = make_parser(__doc__, "latency")
    add_model_arguments(parser, groups="paper, all, chains")
    arguments = parser.parse_args()
    if arguments.one:
        measure_as_child(measure_model, arguments)
        return
    machine = describe_machine()
    asked = [name for name in arguments.models if name != "chains"]
    names = [*pick_models(asked)]
    if "chains" in arguments.models or "paper" in arguments.models:
        names.append(CHAINS)
    results = [in_child(__file__, name, runs=arguments.runs, threads=arguments.threads) for name in names]
    publish(make_report(results, runs=arguments.runs, threads=arguments.threads), arguments.output, machine)


if __name__ == "__main__":
    main()
