"""Start-up overhead: load + first inference - a steady inference, each time in a fresh process.

A bundle against ONNX Runtime's default, its leanest documented settings, and the settings with which it maps packed
weights. Files come from the page cache for all (read once before); libraries are imported before the clock starts.

Beside it, the whole: from the start of a process to its first answer, interpreter and imports included, for ONNX
Runtime on the model, and on packed weights mapped by hand, and for Parallax on a bundle and on the model.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import _whole
import numpy as np
from _common import (
    Report,
    describe_machine,
    dump_timing,
    make_parser,
    ms,
    pick_models,
    publish,
    say,
    show_ratio,
    spread,
)
from _environment import as_installed
from _figures import Figure
from _fresh import (
    DEFAULT,
    MAPPED,
    ORT_FORMAT,
    OURS,
    SETTINGS,
    VARIANTS,
    ChildError,
    Order,
    Outcome,
    prepare,
    run_fresh,
    save_feeds,
)
from _intervals import figure_of_medians, median_interval, paired
from _processes import in_turn

from parallax import zoo
from parallax.cli import Timing, ratio

TARGET = 0.25
"""Of ONNX Runtime's overhead, geometric mean over the models."""
LEAST_RATIO = 0.001
"""In means, for what is lost in the noise of the steady runs that are taken off."""
IMPORT_ROUNDS = 7


def measure_model(name: str, *, rounds: int, variants: Sequence[str]) -> dict[str, Any]:
    """Outcomes by variant, in rounds that go through the variants forwards and backwards in turn; or how it failed."""
    model = Path(zoo.load(name))
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        paths = prepare(model, folder)
        feeds = save_feeds(zoo.example_inputs(name), folder)
        outcomes: dict[str, list[Outcome]] = {variant: [] for variant in variants}
        failed: dict[str, str] = {}
        outputs = {variant: str(folder / f"outputs{number}.npz") for number, variant in enumerate(variants)}
        for number in range(rounds):
            for variant in variants if number % 2 == 0 else reversed(variants):
                if variant in failed:
                    continue
                order = Order(
                    variant=variant,
                    path=paths[variant],
                    feeds=feeds,
                    outputs=outputs[variant] if number == 0 else None,
                )
                try:
                    outcomes[variant].append(run_fresh(order))
                except ChildError as error:
                    failed[variant] = str(error)
                    say(f"  {variant}: {error}")
        for variant in failed:
            del outcomes[variant]
        whole = whole_processes(
            {
                _whole.RUNTIME: paths[DEFAULT],
                _whole.MAPPED: paths[MAPPED],
                _whole.BUNDLE: paths[OURS],
                _whole.MODEL: paths[DEFAULT],
            },
            feeds,
            rounds=rounds,
        )
        return {"outcomes": outcomes, "failed": failed, "differences": compare(outputs, outcomes), "whole": whole}


def whole_processes(paths: Mapping[str, str], feeds: str, *, rounds: int) -> dict[str, list[int]]:
    """ns from the start of a process to its first answer, by variant, in turn; variants that end badly are left out."""
    found = in_turn({variant: (path, feeds) for variant, path in paths.items()}, rounds=rounds)
    return {variant: [process.elapsed_ns for process in processes] for variant, processes in found.items()}


def compare(outputs: dict[str, str], outcomes: dict[str, list[Outcome]]) -> dict[str, str]:
    """How each variant's outputs differ from the default's."""
    said = {}
    with np.load(outputs[DEFAULT]) as expected:
        for variant, found in outcomes.items():
            if found[0].digest == outcomes[DEFAULT][0].digest:
                said[variant] = "same bits"
                continue
            with np.load(outputs[variant]) as actual:
                largest = max(float(np.max(np.abs(actual[key] - expected[key]))) for key in expected.files)
            said[variant] = f"up to {largest:.1e} off"
    return said


def timing(label: str, outcomes: Sequence[Outcome]) -> Timing:
    return Timing(label=label, samples_ns=tuple(outcome.overhead_ns for outcome in outcomes))


def import_times() -> dict[str, list[float]]:
    """Seconds that a fresh interpreter takes to import a library, its own start taken off; several of each."""

    def once(statement: str) -> float:
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True, env=as_installed())
        return time.perf_counter() - begin

    statements = {
        "numpy": "import numpy",
        "onnxruntime": "import onnxruntime",
        # The package alone loads nothing: see start.py.
        "parallax": "from parallax import InferenceSession",
    }
    samples: dict[str, list[float]] = {library: [] for library in ("", *statements)}
    for _ in range(IMPORT_ROUNDS):
        for library in samples:
            samples[library].append(once(statements.get(library, "")))
    bare = statistics.median(samples[""])
    return {library: [seconds - bare for seconds in samples[library]] for library in statements}


def main() -> None:
    parser = make_parser(__doc__, "cold_start")
    parser.add_argument("--models", nargs="+", default=["paper"], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="VARIANT")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON there as well")
    arguments = parser.parse_args()
    variants = tuple(dict.fromkeys((DEFAULT, *arguments.variants)))
    machine = describe_machine()
    measured = {}
    for name in pick_models(arguments.models):
        say(name)
        measured[name] = measure_model(name, rounds=arguments.rounds, variants=variants)
    report = make_report(measured, variants, arguments)
    publish(report, arguments.output, machine)
    if arguments.json is not None:
        arguments.json.write_text(arguments.output.with_suffix(".json").read_text())


def make_report(measured: dict[str, Any], variants: Sequence[str], arguments: argparse.Namespace) -> Report:
    rows, results = [], []
    whole = {name: found["whole"] for name, found in measured.items()}
    for name, found in measured.items():
        theirs = timing(DEFAULT, found["outcomes"][DEFAULT])
        for variant in variants:
            if variant in found["failed"]:
                rows.append([name, variant, "", "", "", "", "", found["failed"][variant]])
                results.append({"model": name, "variant": variant, "failed": found["failed"][variant]})
                continue
            outcomes = found["outcomes"][variant]
            overhead = timing(variant, outcomes)
            compared = ratio(overhead, theirs)
            phases = [
                statistics.median(getattr(outcome, phase) for outcome in outcomes)
                for phase in ("load_ns", "first_ns", "steady_ns")
            ]
            difference = found["differences"][variant]
            rows.append(
                [
                    name,
                    variant,
                    *map(ms, phases),
                    spread(overhead),
                    "1" if variant == DEFAULT else show_ratio(compared),
                    "" if variant == DEFAULT else difference,
                ]
            )
            results.append(
                {
                    "model": name,
                    "variant": variant,
                    "load_ns": phases[0],
                    "first_ns": phases[1],
                    "steady_ns": phases[2],
                    "overhead": dump_timing(overhead),
                    "ratio": compared.median,
                    "outputs": difference,
                }
            )
    imports = import_times()
    data = {"rounds": arguments.rounds, "results": results, "whole": whole, "import_samples_s": imports}
    return Report(
        title="Start-up overhead",
        method=(
            f"Milliseconds, medians of {arguments.rounds} fresh processes per model and variant, which take turns; "
            "overhead is load + first inference - the median steady inference, with quartiles; the ratio is of a "
            "round's overheads. Files are in the page cache, libraries are imported before the clock starts."
        ),
        columns=["model", "", "load", "first run", "steady run", "overhead", "of ONNX Runtime's", "outputs"],
        rows=rows,
        data=data,
        figures=make_figures(data),
        remarks=[
            *(
                f"{name}, from the start of a process to its first answer (ms): "
                + ", ".join(f"{variant} {ms(statistics.median(samples))}" for variant, samples in found.items())
                for name, found in whole.items()
            ),
            *(f"{variant}: {text}." for variant, text in SETTINGS.items()),
        ],
    )


def make_figures(data: Mapping[str, Any]) -> list[Figure]:
    """Ours against each of the others, without and with imports."""
    overheads = {
        (row["model"], row["variant"]): row["overhead"]["samples_ns"] for row in data["results"] if "failed" not in row
    }
    whole = {
        (model, variant): samples
        for model, found in data.get("whole", {}).items()
        for variant, samples in found.items()
    }
    models = list(dict.fromkeys(row["model"] for row in data["results"]))

    def mean(
        name: str,
        what: str,
        samples: Mapping[tuple[str, str], Sequence[float]],
        ours: str,
        theirs: str,
        **more: Any,
    ) -> list[Figure]:
        shared = [model for model in models if (model, ours) in samples and (model, theirs) in samples]
        if not shared:
            return []
        rows = []
        for model in shared:
            ratios = paired(samples[model, ours], samples[model, theirs])
            rows.append([[max(value, LEAST_RATIO) for value in ratios]])
        return [figure_of_medians(name, f"{what}, geometric mean over {len(shared)} models", rows, **more)]

    start = "start-up of a bundle (load and first inference, less a steady one; imports not counted)"
    process = "from the start of a process to its first answer, imports included"
    figures = [
        *mean("cold_start.bundle", f"{start}, share of ONNX Runtime's", overheads, OURS, DEFAULT, bound=TARGET),
        *mean(
            "cold_start.bundle_of_mapped",
            f"{start}, against ONNX Runtime with packed weights mapped by hand (same bits), where it runs at all",
            overheads,
            OURS,
            MAPPED,
            bound=1.0,
        ),
        *mean(
            "cold_start.bundle_of_ort_format",
            f"{start}, against ONNX Runtime with an ORT format model mapped by hand (nothing packed: other kernels, so "
            "other last digits and slower runs)",
            overheads,
            OURS,
            ORT_FORMAT,
            bound=1.0,
        ),
        *mean(
            "cold_start.whole_bundle",
            f"{process}: Parallax on a bundle, share of ONNX Runtime's on the model",
            whole,
            _whole.BUNDLE,
            _whole.RUNTIME,
            bound=1.0,
        ),
        *mean(
            "cold_start.whole_model",
            f"{process}: Parallax on the model, share of ONNX Runtime's on the model",
            whole,
            _whole.MODEL,
            _whole.RUNTIME,
            bound=1.0,
        ),
        *mean(
            "cold_start.whole_bundle_of_mapped",
            f"{process}: Parallax on a bundle, share of ONNX Runtime's with packed weights mapped by hand",
            whole,
            _whole.BUNDLE,
            _whole.MAPPED,
            bound=1.0,
        ),
    ]
    for library, seconds in data.get("import_samples_s", {}).items():
        milliseconds = [value * 1e3 for value in seconds]
        figures.append(
            Figure(
                name=f"cold_start.import.{library}",
                what=f"importing {library} in a fresh interpreter",
                value=statistics.median(milliseconds),
                unit="ms",
                interval=median_interval(milliseconds),
                headline=False,
            )
        )
    return figures


if __name__ == "__main__":
    main()
