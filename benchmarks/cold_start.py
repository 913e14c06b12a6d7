"""Start-up overhead: load + first inference - a steady inference, each time in a fresh process.

A bundle against ONNX Runtime's default, its leanest documented settings, and the settings with which it maps packed
weights. Files come from the page cache for all (read once before); libraries are imported before the clock starts.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from _fresh import DEFAULT, MAPPED, OURS, SETTINGS, VARIANTS, ChildError, Order, Outcome, prepare, run_fresh, save_feeds

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
        return {"outcomes": outcomes, "failed": failed, "differences": compare(outputs, outcomes)}


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


def import_times() -> dict[str, float]:
    """Median seconds that a fresh interpreter takes to import a library, its own start taken off."""

    def once(statement: str) -> float:
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True)
        return time.perf_counter() - begin

    statements = {"numpy": "import numpy", "onnxruntime": "import onnxruntime", "parallax": "import parallax"}
    samples: dict[str, list[float]] = {library: [] for library in ("", *statements)}
    for _ in range(IMPORT_ROUNDS):
        for library in samples:
            samples[library].append(once(statements.get(library, "")))
    bare = statistics.median(samples[""])
    return {library: statistics.median(samples[library]) - bare for library in statements}


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
    against_default: dict[str, dict[str, float]] = {variant: {} for variant in variants}
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
            against_default[variant][name] = max(compared.median, LEAST_RATIO)
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
    remarks, means = summarise(against_default, imports)
    return Report(
        title="Start-up overhead",
        method=(
            f"Milliseconds, medians of {arguments.rounds} fresh processes per model and variant, which take turns; "
            "overhead is load + first inference - the median steady inference, with quartiles; the ratio is of a "
            "round's overheads. Files are in the page cache, libraries are imported before the clock starts."
        ),
        columns=["model", "", "load", "first run", "steady run", "overhead", "of ONNX Runtime's", "outputs"],
        rows=rows,
        data={"rounds": arguments.rounds, "results": results, "geometric_means": means, "import_seconds": imports},
        remarks=remarks,
    )


def summarise(
    against_default: dict[str, dict[str, float]], imports: dict[str, float]
) -> tuple[list[str], dict[str, float]]:
    """Remarks, and the geometric mean of each variant's ratios over the models that it can open."""
    remarks, means = [], {}
    for variant, ratios in against_default.items():
        if variant == DEFAULT or not ratios:
            continue
        means[variant] = statistics.geometric_mean(ratios.values())
        verdict = ""
        if variant == OURS:
            verdict = f", bound {TARGET}: " + ("met" if means[variant] <= TARGET else "**missed**")
        remarks.append(f"{variant}: geometric mean {means[variant]:.3f} over {len(ratios)} models{verdict}.")
    shared = [name for name in against_default.get(MAPPED, {}) if name in against_default.get(OURS, {})]
    if shared:
        beside = statistics.geometric_mean(
            against_default[OURS][name] / against_default[MAPPED][name] for name in shared
        )
        means["Parallax of mapped"] = beside
        verdict = "met" if beside <= 1 else "**missed**"
        remarks.append(
            f"Ours against the same weights mapped by hand: {beside:.3f} over {len(shared)} models; bound 1: {verdict}."
        )
    remarks.append(
        "Not in the clock, importing takes (ms): "
        + ", ".join(f"{library} {seconds * 1e3:.0f}" for library, seconds in imports.items())
        + "."
    )
    remarks += [f"{variant}: {text}." for variant, text in SETTINGS.items()]
    return remarks, means


if __name__ == "__main__":
    main()
