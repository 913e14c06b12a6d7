"""Kernels chosen by measuring: Parallax (tuned, with OpenVINO installed) against ONNX Runtime and OpenVINO itself.

Both are set up for one request at a time on the same number of threads, in float32: ONNX Runtime with its defaults,
OpenVINO with its latency hint, inputs shared and its own Python API. Each model has a process of its own; variants take
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
    samples_of,
    say,
    spread,
)
from _figures import Figure, Verdict
from _intervals import figure_of_medians, paired, rows_that_keep
from _kernels import best_kernels

import parallax
from parallax import zoo
from parallax.cli import Baseline, compare_outputs, ratio, time_interleaved

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
    runtime = Baseline(label=RUNTIME, threads=threads).open(path)
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


def make_figures(data: Mapping[str, Any]) -> list[Figure]:
    """Each model against the better of the two libraries, and all of them against ONNX Runtime."""
    rows: dict[str, Figure] = {}
    to_runtime, best_to_runtime, floors = [], [], []
    for result in data["results"]:
        if "failed" in result:
            continue
        ours, runtime, openvino = (samples_of(result, label) for label in (OURS, RUNTIME, OPENVINO))
        better = runtime if statistics.median(runtime) <= statistics.median(openvino) else openvino
        rows[result["model"]] = figure_of_medians(
            f"cpu_backends.{result['model']}",
            f"{result['model']}, tuned with OpenVINO installed, against the better of OpenVINO and ONNX Runtime: share "
            "of its time",
            [[paired(ours, better)]],
            bound=WORST_RATIO,
            headline=False,
        )
        to_runtime.append([paired(ours, runtime)])
        best_to_runtime.append([paired(better, runtime)])
        floors.append([[result["best_kernels"]]])
    if not rows:
        return []
    return [
        *rows.values(),
        rows_that_keep(
            "cpu_backends.models",
            f"of {len(rows)} reference models, tuned with OpenVINO installed, those that take at most {WORST_RATIO} of "
            "the time of the better of OpenVINO and ONNX Runtime",
            rows,
        ),
        figure_of_medians(
            "cpu_backends.mean",
            "the reference models, tuned with OpenVINO installed, against ONNX Runtime: share of its time, geometric "
            "mean",
            to_runtime,
            bound=MEAN_RATIO,
        ),
        figure_of_medians(
            "cpu_backends.better",
            "for comparison: the better of OpenVINO and ONNX Runtime against ONNX Runtime, geometric mean",
            best_to_runtime,
        ),
        figure_of_medians(
            "cpu_backends.floor",
            "for comparison: the quicker kernel of each operator, if going from one library to the other cost nothing, "
            "against ONNX Runtime, geometric mean",
            floors,
            headline=False,
        ),
    ]


def make_report(results: list[dict[str, Any]], *, runs: int, threads: int) -> Report:
    """The table, with what misses its bound."""
    rows = []
    data = {"runs": runs, "threads": threads, "results": results}
    by_model = {figure.name: figure for figure in make_figures(data)}
    for result in results:
        if "failed" in result:
            rows.append([result["model"], *["-"] * 8, f"FAILED: {result['failed']}"])
            continue
        timings = load_timings(result)
        ours, best = timings[OURS], min((timings[RUNTIME], timings[OPENVINO]), key=lambda timing: timing.median_ns)
        to_best = by_model[f"cpu_backends.{result['model']}"]
        low, high = to_best.interval or (float("nan"), float("nan"))
        rows.append(
            [
                result["model"],
                *(spread(timings[label]) for label in (OURS, RUNTIME, OPENVINO)),
                f"{to_best.value:.3f} ({low:.3f} to {high:.3f}; {best.label})",
                f"{to_best.verdict}" if to_best.verdict is Verdict.MET else f"**{to_best.verdict}**",
                f"{ratio(ours, timings[RUNTIME]).median:.3f}",
                f"{result['best_kernels']:.2f}",
                result["output_detail"] or f"within {result['relative_difference']:.1e}",
                f"{', '.join(result['backends'])}, {result['segments']} segments: {result['reason']}",
            ]
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
            "to the better (95%)",
            "",
            "to ONNX Runtime",
            "best kernels",
            "outputs",
            "chosen, and why",
        ],
        rows=rows,
        data=data,
        figures=make_figures(data),
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
