"""What the engine adds: per segment on a lane or on all cores, per hand-over between lanes, per run of a whole model.

All but the second run operators that take next to nothing, so that the difference to bare calls of ONNX Runtime's
C sessions is overhead. Rounds are interleaved; figures are medians of per-round differences.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
from _common import ORIGIN, Report, describe_machine, make_parser, publish, us
from _figures import Figure
from _graphs import product_chain, trivial_chain
from _intervals import median_interval
from onnxruntime.capi import onnxruntime_pybind11_state as C

import parallax
from parallax.backends.ort import CPU_DEVICE, RuntimeOptions
from parallax.cli import quartiles, time_interleaved
from parallax.engine import Executor, SpanObserver, TraceRecorder, compile_plan
from parallax.machine import available_cores
from parallax.model import Model, load_model
from parallax.partition.candidates._segments import every_group
from parallax.planner import PlanningContext
from parallax.schedule import Plan

# Bounds that the project promises, in ns.
SEGMENT_LIMIT_NS = 10_000
HANDOVER_LIMIT_NS = 15_000
WHOLE_LIMIT_NS = 5_000

WIDE_LENGTH = 12
WIDE_ROUNDS = 40


def chain_plan(model: Model, *, lanes: int) -> Plan:
    """Every operator a segment of its own; with two lanes, each on the other lane than its predecessor."""
    context = PlanningContext(model, cores=max(1, lanes))
    plan = context.plan(context.propose(every_group(context.groups, lanes=lanes)), ORIGIN)
    return replace(
        plan,
        cores=lanes,
        lanes=lanes,
        segments=tuple(replace(segment, lane=segment.index % lanes, width=1) for segment in plan.segments),
    )


def check_lanes(executor: Executor, feeds: dict[str, Any], outputs: list[str]) -> None:
    """Stop unless a run really changes lanes after every segment."""
    recorder = TraceRecorder()
    observer = SpanObserver(recorder)
    executor.events.add(observer)
    executor.run(feeds, outputs)
    executor.events.remove(observer)
    lanes = [span.lane for span in sorted(recorder.take(), key=lambda span: span.segment)]
    if lanes != [index % 2 for index in range(len(executor.segments))]:
        raise SystemExit(f"segments ran on lanes {lanes}, not in turn")


def bare_caller(executor: Executor, feeds: dict[str, Any]) -> Callable[[], object]:
    """The same C sessions called one after the other with nothing in between but the values handed on."""
    steps = [
        (segment.session.run_with_ort_values, segment.inputs[0], [segment.outputs[0]]) for segment in executor.segments
    ]
    options = C.RunOptions()
    (start,) = feeds.values()

    def call() -> object:
        value = start
        for run, input_name, output_names in steps:
            value = run({input_name: value}, output_names, options)[0]
        return value

    return call


def interleave(calls: dict[str, Callable[[], object]], *, rounds: int, repeats: int) -> dict[str, list[float]]:
    """ns per call, one sample per variant and round. No pool spins here (all sessions have width 1), so no pauses."""
    for call in calls.values():
        for _ in range(50):
            call()
    samples: dict[str, list[float]] = {label: [] for label in calls}
    labels = list(calls)
    for number in range(rounds):
        shift = number % len(labels)
        for label in (*labels[shift:], *labels[:shift]):
            call = calls[label]
            call()
            begin = time.perf_counter_ns()
            for _ in range(repeats):
                call()
            samples[label].append((time.perf_counter_ns() - begin) / repeats)
    return samples


def measure_engine(*, length: int, rounds: int) -> dict[str, list[float]]:
    """Overhead samples in ns: per segment on one lane, per hand-over between two."""
    model = load_model(trivial_chain(length))
    value = C.OrtValue.ortvalue_from_numpy(np.full(8, 0.5, np.float32), CPU_DEVICE)
    feeds = {"t0": value}
    outputs = [f"t{length}"]
    one = compile_plan(model, chain_plan(model, lanes=1), RuntimeOptions())
    two = compile_plan(model, chain_plan(model, lanes=2), RuntimeOptions())
    if len(one.segments) != length or len(two.segments) != length:
        raise SystemExit(f"the chain was cut into {len(one.segments)} segments, not {length}")
    check_lanes(two, feeds, outputs)
    samples = interleave(
        {
            "bare": bare_caller(one, feeds),
            "one lane": lambda: one.run(feeds, outputs),
            "two lanes": lambda: two.run(feeds, outputs),
        },
        rounds=rounds,
        repeats=20,
    )
    # The last segment's end is reported to the caller's lane: one more hand-over if it ran on the other.
    handovers = length - 1 + (length - 1) % 2
    return {
        "segment": [(ours - bare) / length for ours, bare in zip(samples["one lane"], samples["bare"], strict=True)],
        "handover": [
            (two_ns - one_ns) / handovers
            for two_ns, one_ns in zip(samples["two lanes"], samples["one lane"], strict=True)
        ],
        "bare_call": [bare / length for bare in samples["bare"]],
    }


def measure_wide(*, rounds: int, cores: int) -> dict[str, list[float]]:
    """Overhead in ns of a segment on all cores: a chain cut at each product against the same chain as one segment.

    A segment's threads stop spinning when it ends, so that they take no core of another lane; the next one wakes them.
    """
    model = load_model(product_chain(WIDE_LENGTH))
    value = C.OrtValue.ortvalue_from_numpy(np.full((256, 256), 0.5, np.float32), CPU_DEVICE)
    cut_plan = chain_plan(model, lanes=1)
    cut_plan = replace(cut_plan, cores=cores, segments=tuple(replace(s, width=cores) for s in cut_plan.segments))
    cut = compile_plan(model, cut_plan, RuntimeOptions())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores
    whole = onnxruntime.InferenceSession(model.whole(), options, providers=["CPUExecutionProvider"])
    feeds, outputs = {"t0": value}, [f"t{WIDE_LENGTH}"]
    named = {"t0": onnxruntime.OrtValue(value)}
    timings = time_interleaved(
        {
            "cut": lambda: cut.run(feeds, outputs),
            "whole": lambda: whole.run_with_ort_values(outputs, named),
        },
        rounds=rounds,
        cores=cores,
    )
    differences = zip(timings["cut"].samples_ns, timings["whole"].samples_ns, strict=True)
    return {"wide_segment": [(ours - theirs) / WIDE_LENGTH for ours, theirs in differences]}


def measure_whole(*, rounds: int) -> dict[str, list[float]]:
    """Overhead of ``run`` on a whole model in ns, and what ``onnxruntime`` takes for the same."""
    model = trivial_chain(1).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    theirs = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    ours = parallax.InferenceSession(model, threads=1)
    if not ours.plan.is_whole:
        raise SystemExit("the trivial model was cut")
    feeds = {"t0": np.full(8, 0.5, np.float32)}
    samples = interleave(
        {"theirs": lambda: theirs.run(None, feeds), "ours": lambda: ours.run(None, feeds)}, rounds=rounds, repeats=500
    )
    return {
        "uncut_run": [mine - base for mine, base in zip(samples["ours"], samples["theirs"], strict=True)],
        "onnxruntime_run": samples["theirs"],
    }


ROWS: Mapping[str, tuple[str, float | None]] = {
    "segment": ("segment on a lane: the engine beyond bare C calls, per segment", SEGMENT_LIMIT_NS),
    "handover": ("hand-over: two lanes in turn beyond one lane, per hand-over", HANDOVER_LIMIT_NS),
    "uncut_run": ("run of an uncut model: ours beyond onnxruntime's", WHOLE_LIMIT_NS),
    "wide_segment": ("segment on all cores: cut beyond whole, per segment (it wakes its threads)", None),
    "bare_call": ("for comparison: one bare C call on a trivial segment", None),
    "onnxruntime_run": ("for comparison: onnxruntime's run of the trivial model", None),
}
"""What each kind of sample is, and its bound in ns."""

COMPARISONS = ("bare_call", "onnxruntime_run")


def make_figures(samples: Mapping[str, Sequence[float]]) -> list[Figure]:
    """In microseconds."""
    figures = []
    for key, (what, limit_ns) in ROWS.items():
        if key not in samples:
            continue
        microseconds = [sample / 1e3 for sample in samples[key]]
        figures.append(
            Figure(
                name=f"overhead.{key}",
                what=what,
                value=statistics.median(microseconds),
                unit="us",
                interval=median_interval(microseconds),
                bound=None if limit_ns is None else limit_ns / 1e3,
                headline=key not in COMPARISONS,
            )
        )
    return figures


def main() -> None:
    parser = make_parser(__doc__, "overhead")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--length", type=int, default=41, help="segments of the chain")
    arguments = parser.parse_args()
    machine = describe_machine()
    samples = measure_engine(length=arguments.length, rounds=arguments.rounds) | measure_whole(rounds=arguments.rounds)
    samples |= measure_wide(rounds=min(WIDE_ROUNDS, arguments.rounds), cores=available_cores())
    rows = []
    for key, (label, _) in ROWS.items():
        low, high = quartiles(samples[key])
        rows.append([label, us(statistics.median(samples[key])), f"{us(low)} - {us(high)}"])
    publish(
        Report(
            title="Overhead of the engine",
            method=f"Microseconds, medians over {arguments.rounds} interleaved rounds of per-round differences.",
            columns=["what", "median", "quartiles"],
            rows=rows,
            data={"rounds": arguments.rounds, "length": arguments.length, "samples_ns": samples},
            figures=make_figures(samples),
        ),
        arguments.output,
        machine,
    )


if __name__ == "__main__":
    main()
