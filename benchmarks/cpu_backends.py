"""Kernels chosen by measuring: Parallax (tuned, with OpenVINO installed) against ONNX Runtime and OpenVINO itself.

Both are set up for one request at a time on the same number of threads, in float32: ONNX Runtime with its defaults,
OpenVINO with its latency hint, inputs shared and its own Python API. Each model has a process of its own; rivals take
turns in it. Needs ``pip install 'parallax-runtime[openvino]'``.

How much there is to gain at all is told by the column "best kernels": the share of ONNX Runtime's time that a model
would take if each of its operators ran on the library that is quicker at it, and going from one to the other cost
nothing (`_kernels.best_kernels`).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _common import (
    Report,
    add_model_arguments,
    describe_machine,
    dump_timing,
    in_child,
    load_timings,
    make_parser,
    measure_as_child,
    open_inputs,
    pick_models,
    publish,
    say,
    spread,
)
from _kernels import best_kernels

import parallax
from parallax import zoo
from parallax.cli import Rival, compare_outputs, ratio, time_interleaved

OURS, RUNTIME, OPENVINO = "Parallax", "ONNX Runtime", "OpenVINO"

WORST_RATIO = 1.02
"""No model slower than the better of the two by more than this ..."""
MEAN_RATIO = 0.86
"""... and at most this of ONNX Runtime's time in the geometric mean."""


def properties(threads: int) -> Mapping[str, Any]:
    """OpenVINO's, as its documentation advises for latency."""
    return {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}


def open_openvino(path: Path, feeds: dict[str, np.ndarray], *, threads: int) -> Callable[[], object]:
    """OpenVINO as its documentation advises for latency: shapes fixed, inputs and outputs shared."""
    import openvino  # an extra: only this benchmark needs it

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape({name: value.shape for name, value in feeds.items()})
    request = core.compile_model(model, "CPU", properties(threads)).create_infer_request()
    return lambda: request.infer(feeds, share_inputs=True, share_outputs=True)


def measure_model(name: str, *, runs: int, threads: int, folder: Path) -> dict[str, Any]:
    """One row: samples of all three, what Parallax chose, and how far its outputs are from ONNX Runtime's."""
    path = Path(zoo.load(name))
    feeds = zoo.example_inputs(name)
    say(f"{name}: tuning")
    ours = parallax.InferenceSession(
        path,
        threads=threads,
        shapes=open_inputs(path, feeds),
        calibration=feeds,
        tune=True,
        cache_dir=folder / "cache",
    )
    runtime = Rival(label=RUNTIME, threads=threads).open(path)
    names = [output.name for output in ours.get_outputs()]
    difference = compare_outputs(
        dict(zip(names, ours.run(names, feeds), strict=True)),
        dict(zip(names, runtime.run(names, feeds), strict=True)),
    )
    say(f"{name}: timing")
    calls = {
        OURS: lambda: ours.run(None, feeds),
        RUNTIME: lambda: runtime.run(None, feeds),
        OPENVINO: open_openvino(path, feeds, threads=threads),
    }
    timings = time_interleaved(calls, rounds=runs, cores=threads)
    say(f"{name}: operator by operator")
    best = best_kernels(path, feeds, open_inputs(path, feeds), properties(threads), threads=threads)
    return {
        "model": name,
        "timings": {label: dump_timing(timing) for label, timing in timings.items()},
        "best_kernels": best,
        "backends": sorted({segment.backend for segment in ours.plan.segments}),
        "segments": len(ours.plan.segments),
        "reason": ours.plan.provenance.reason,
        "relative_difference": difference.relative,
        "output_detail": difference.detail,
    }


def make_report(results: list[dict[str, Any]], *, runs: int, threads: int) -> Report:
    """The table, with what misses its bound."""
    rows, remarks, means, bests, floors = [], [], [], [], []
    for result in results:
        if "failed" in result:
            rows.append([result["model"], *["-"] * 7, f"FAILED: {result['failed']}"])
            continue
        timings = load_timings(result)
        ours, best = timings[OURS], min((timings[RUNTIME], timings[OPENVINO]), key=lambda timing: timing.median_ns)
        to_best, to_runtime = ratio(ours, best), ratio(ours, timings[RUNTIME])
        means.append(to_runtime.median)
        bests.append(min(1.0, ratio(timings[OPENVINO], timings[RUNTIME]).median))
        floors.append(result["best_kernels"])
        if to_best.median > WORST_RATIO:
            remarks.append(f"**{result['model']} misses its bound: {to_best.median:.3f} > {WORST_RATIO}.**")
        rows.append(
            [
                result["model"],
                *(spread(timings[label]) for label in (OURS, RUNTIME, OPENVINO)),
                f"{to_best.median:.3f} ({best.label})",
                f"{to_runtime.median:.3f}",
                f"{floors[-1]:.2f}",
                result["output_detail"] or f"within {result['relative_difference']:.1e}",
                f"{', '.join(result['backends'])}, {result['segments']} segments: {result['reason']}",
            ]
        )
    if means:
        mean = statistics.geometric_mean(means)
        verdict = "met" if mean <= MEAN_RATIO else "**missed**"
        remarks.append(f"geometric mean of Parallax to ONNX Runtime: {mean:.3f}; bound {MEAN_RATIO}: {verdict}")
        remarks.append(
            f"the better of the two libraries to ONNX Runtime: {statistics.geometric_mean(bests):.3f}; the quicker "
            f"kernel of each operator, if going from one library to the other cost nothing: "
            f"{statistics.geometric_mean(floors):.3f}"
        )
    return Report(
        title="CPU kernels of two libraries",
        method=(
            f"Milliseconds per run, median (quartiles) of {runs} interleaved rounds on {threads} threads; ratios are "
            "medians per round. Parallax tunes once and keeps the faster library."
        ),
        columns=[
            "model",
            OURS,
            RUNTIME,
            OPENVINO,
            "to the better",
            "to ONNX Runtime",
            "best kernels",
            "outputs",
            "chosen, and why",
        ],
        rows=rows,
        remarks=remarks,
        data={"runs": runs, "threads": threads, "results": results},
    )


def main() -> None:
    parser = make_parser(__doc__, "cpu_backends")
    add_model_arguments(parser, groups="paper, all")
    arguments = parser.parse_args()
    if arguments.one:
        measure_as_child(measure_model, arguments)
        return
    machine = describe_machine()
    results = [
        in_child(__file__, name, runs=arguments.runs, threads=arguments.threads)
        for name in pick_models(arguments.models)
    ]
    publish(make_report(results, runs=arguments.runs, threads=arguments.threads), arguments.output, machine)


if __name__ == "__main__":
    main()
