"""Time to open a session, Parallax against ONNX Runtime, without anything cached by us.

Beside that, a bundle with regions on an emulated device against a bundle of the same segments on the CPU alone, and
against the one that the model has on the CPU, which is whole as a rule.

In one process, in turn, in alternating order; files come from the page cache for both. The order
alternates because whoever opens second finds memory that the allocator already holds.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
from _common import (
    Report,
    describe_machine,
    dump_timing,
    make_parser,
    open_inputs,
    pick_models,
    publish,
    say,
    show_ratio,
    spread,
)
from _figures import Figure
from _intervals import figure_of_medians, paired, rows_that_keep

import parallax
from parallax import zoo
from parallax.bundle import CompileOptions, read_bundle, write_bundle
from parallax.cli import Timing, ratio, wait_until_quiet
from parallax.model import load_model
from parallax.schedule import CPU_BACKEND, Plan

RATIO_LIMIT = 1.3
"""What the project promises: at most this times ONNX Runtime's time; and of a bundle with a device, at most this times
the time of a bundle of the same segments without."""

DEVICE = "emulated:pixel-6-gpu"
FOR_CPU = "bundle for the CPU"
SAME_CUT = "bundle of the same segments, all on the CPU"
WITH_DEVICE = f"bundle with {DEVICE}"


def open_in_turn(name: str, *, rounds: int) -> tuple[dict[str, Timing], dict[str, Any]]:
    """Timings of both, and what plan ours opened with."""
    path = Path(zoo.load(name))
    shapes = open_inputs(path, zoo.example_inputs(name))
    with tempfile.TemporaryDirectory() as folder:
        openers: dict[str, Callable[[], Any]] = {
            "Parallax": lambda: parallax.InferenceSession(path, cache_dir=folder, providers=["CPUExecutionProvider"]),
            "Parallax, shapes given": lambda: parallax.InferenceSession(
                path, cache_dir=folder, shapes=shapes, providers=["CPUExecutionProvider"]
            ),
            "ONNX Runtime": lambda: onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]),
        }
        if shapes is None:
            del openers["Parallax, shapes given"]
        timings, plans = time_openers(openers, rounds=rounds)
    return timings, plans["Parallax"]


def open_bundles_in_turn(name: str, *, rounds: int) -> tuple[dict[str, Timing], dict[str, Any]]:
    """Timings of a bundle of a model with a device, of the same cut without, and of the model's own bundle for the CPU;
    and what plan the first opened with."""
    path = Path(zoo.load(name))
    shapes = open_inputs(path, zoo.example_inputs(name))
    with tempfile.TemporaryDirectory() as folder:
        bundles = {
            WITH_DEVICE: parallax.compile(
                path, Path(folder, "device.plx"), shapes=shapes, providers=[DEVICE, "CPUExecutionProvider"]
            ),
            FOR_CPU: parallax.compile(path, Path(folder, "cpu.plx"), shapes=shapes),
        }
        plan = without_device(read_bundle(bundles[WITH_DEVICE]).plan)
        bundles[SAME_CUT] = write_bundle(load_model(path), plan, Path(folder, "cut.plx"), options=CompileOptions())
        openers = {label: partial(parallax.InferenceSession, bundle) for label, bundle in bundles.items()}
        timings, plans = time_openers(openers, rounds=rounds)
    return timings, plans[WITH_DEVICE]


def without_device(plan: Plan) -> Plan:
    """The same segments on the CPU, one after the other, each on all cores."""
    if plan.is_whole:
        return plan
    segments = tuple(
        replace(segment, backend=CPU_BACKEND, width=plan.cores, lane=0, priority=-segment.index)
        for segment in plan.segments
    )
    return replace(plan, policy="sequential", lanes=1, backfill=False, segments=segments)


def time_openers(
    openers: Mapping[str, Callable[[], Any]], *, rounds: int
) -> tuple[dict[str, Timing], dict[str, dict[str, Any]]]:
    """Timings by label, in turn, in an order that rotates; and the plan that each of ours opened with."""
    samples: dict[str, list[float]] = {label: [] for label in openers}
    plans: dict[str, dict[str, Any]] = {}
    for number in range(rounds + 1):
        labels = list(openers)
        shift = number % len(labels)
        for label in (*labels[shift:], *labels[:shift]):
            gc.collect()
            wait_until_quiet()
            begin = time.perf_counter_ns()
            session = openers[label]()
            elapsed = time.perf_counter_ns() - begin
            if number:  # round 0 reads the files from disk
                samples[label].append(elapsed)
            if isinstance(session, parallax.InferenceSession):
                plan = session.plan
                regions = sum(segment.backend == DEVICE for segment in plan.segments)
                plans[label] = {"uncut": plan.is_whole, "reason": plan.provenance.reason, "regions": regions}
            del session
    timings = {label: Timing(label=label, samples_ns=tuple(values)) for label, values in samples.items()}
    return timings, plans


def make_figures(results: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """A ratio per model, and how many keep the bound."""
    rows: dict[str, Figure] = {}
    timings: Mapping[str, Any] = {}
    for result in reversed(results):  # the last row of a model has the timings of all of them
        timings = result.get("timings", timings)
        ours, theirs = (timings[label]["samples_ns"] for label in (result["label"], "ONNX Runtime"))
        name = result["model"] + (", shapes given" if "shapes" in result["label"] else "")
        rows[name] = figure_of_medians(
            f"opening.{name.replace(', ', '-').replace(' ', '-')}",
            f"opening {name}: share of ONNX Runtime's time",
            [[paired(ours, theirs)]],
            bound=RATIO_LIMIT,
            headline=False,
        )
    rows = dict(reversed(rows.items()))
    what = (
        f"of {len(rows)} openings of the reference models, those that take at most {RATIO_LIMIT} of ONNX Runtime's time"
    )
    return with_count("opening.models", what, rows)


def with_count(name: str, what: str, rows: Mapping[str, Figure]) -> list[Figure]:
    """Ratios, and how many of them keep the bound."""
    values = [figure.value for figure in rows.values()]
    note = f"from {min(values):.2f} to {max(values):.2f} of it"
    return [*rows.values(), rows_that_keep(name, what, rows, note=note)]


def make_device_figures(results: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """A ratio per model of a bundle with regions on a device, and how many keep the bound; none without any."""
    rows: dict[str, Figure] = {}
    for result in results:
        if not result["plan"]["regions"]:
            continue
        ours, theirs = (result["timings"][label]["samples_ns"] for label in (WITH_DEVICE, SAME_CUT))
        rows[result["model"]] = figure_of_medians(
            f"opening.device.{result['model']}",
            f"opening a bundle of {result['model']} with {DEVICE}: share of the time of the same segments on the CPU",
            [[paired(ours, theirs)]],
            bound=RATIO_LIMIT,
            headline=False,
        )
    if not rows:
        return []
    what = (
        f"of {len(rows)} bundles with regions on {DEVICE}, those that open in at most {RATIO_LIMIT} of the time of the "
        "same segments on the CPU"
    )
    return with_count("opening.device", what, rows)


def main() -> None:
    parser = make_parser(__doc__, "opening")
    parser.add_argument("--models", nargs="+", default=["paper"], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    machine = describe_machine()
    rows, results, with_devices = [], [], []
    for name in pick_models(arguments.models):
        say(name)
        timings, plan = open_in_turn(name, rounds=arguments.rounds)
        theirs = timings["ONNX Runtime"]
        for label, timing in timings.items():
            if label == "ONNX Runtime":
                continue
            against = ratio(timing, theirs)
            rows.append([name, label, spread(timing), spread(theirs), show_ratio(against), plan["reason"]])
            results.append({"model": name, "label": label, "ratio": against.median, "plan": plan})
        results[-1]["timings"] = {label: dump_timing(timing) for label, timing in timings.items()}
        timings, plan = open_bundles_in_turn(name, rounds=arguments.rounds)
        for label in (SAME_CUT, FOR_CPU):
            against = ratio(timings[WITH_DEVICE], timings[label])
            note = f"{plan['regions']} regions, against a {label}: {plan['reason']}"
            compared = spread(timings[label])
            rows.append([name, WITH_DEVICE, spread(timings[WITH_DEVICE]), compared, show_ratio(against), note])
        dumped = {label: dump_timing(timing) for label, timing in timings.items()}
        with_devices.append({"model": name, "plan": plan, "timings": dumped})
    publish(
        Report(
            title="Opening a session",
            method=(
                f"Milliseconds, median (quartiles) of {arguments.rounds} interleaved openings; ratio per round, to "
                f"ONNX Runtime on the model, or of a bundle with {DEVICE} to bundles without. "
                f"The bound is {RATIO_LIMIT}."
            ),
            columns=["model", "", "time", "compared with", "ratio", "plan"],
            rows=rows,
            data={"rounds": arguments.rounds, "results": results, "devices": with_devices},
            figures=[*make_figures(results), *make_device_figures(with_devices)],
        ),
        arguments.output,
        machine,
    )


if __name__ == "__main__":
    main()
