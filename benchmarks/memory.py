"""Memory: private bytes at peak, weights shared by processes, planned arenas, budgets, dynamic shapes, a hard limit.

Private memory is anonymous resident memory above what the process held when its libraries were imported, read from
/proc every millisecond by the parent. Linux only. ``--sections`` picks tables.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from _common import describe_machine, make_parser, ms, open_inputs, pick_models, say
from _figures import Figure, counted
from _fresh import (
    DEFAULT,
    OURS,
    SETTINGS,
    VARIANTS,
    Child,
    ChildError,
    Order,
    Outcome,
    prepare,
    proportional_bytes,
    run_watched,
    save_feeds,
)
from _intervals import median_interval
from _limited import limited
from _memory_figures import budget_figures, private_figures
from _sections import Section, publish_sections

import parallax
from parallax import zoo
from parallax.errors import BudgetError
from parallax.memory import PEAK_RATIO
from parallax.memory._report import MemoryReport, report_memory
from parallax.model import load_model

MIB = 2**20
COPIES_TARGET = 1.02
ARENA_TARGET = 1.05
SHARES = (1.0, 0.6, 0.3)
PROCESSES = 10
CALLERS = 4
GROWTH_BYTES = 4 * MIB
"""What allocators may keep more at the end: their blocks are not cut the same way twice."""
REPLAN_US = 1000
SHAPE_RUNS, SIGNATURES, SHAPE_ROUNDS = 500, 20, 6


def mib(size: float) -> str:
    return f"{size / MIB:.0f}" if size >= 10 * MIB else f"{size / MIB:.1f}"


# -- private memory ---------------------------------------------------------------------------------------------


def private(models: Sequence[str], rounds: int) -> Section:
    rows: list[list[str]] = []
    results: list[dict[str, Any]] = []
    ratios: dict[str, dict[str, float]] = {variant: {} for variant in VARIANTS}
    for name in models:
        say(f"private: {name}")
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            paths = prepare(Path(zoo.load(name)), folder)
            feeds = save_feeds(zoo.example_inputs(name), folder)
            default = 0.0
            outcomes: dict[str, list[Outcome]] = {variant: [] for variant in VARIANTS}
            failed: dict[str, str] = {}
            for number in range(rounds):
                for variant in VARIANTS if number % 2 == 0 else reversed(VARIANTS):
                    if variant not in failed:
                        try:
                            outcomes[variant].append(
                                run_watched(Order(variant=variant, path=paths[variant], feeds=feeds))
                            )
                        except ChildError as error:
                            failed[variant] = str(error)
            for variant in VARIANTS:
                if variant in failed:
                    rows.append([name, variant, "", "", "", failed[variant]])
                    results.append({"model": name, "variant": variant, "failed": failed[variant]})
                    continue
                figures = {
                    key: statistics.median(getattr(outcome, key) for outcome in outcomes[variant])
                    for key in ("opened_bytes", "peak_bytes", "after_bytes")
                }
                default = default or figures["peak_bytes"]
                ratios[variant][name] = figures["peak_bytes"] / default
                shown = "1" if variant == DEFAULT else f"{ratios[variant][name]:.3f}"
                rows.append([name, variant, *map(mib, figures.values()), shown])
                samples = [outcome.peak_bytes for outcome in outcomes[variant]]
                results.append({"model": name, "variant": variant, **figures, "peak_samples": samples})
    return Section(
        title="Private memory",
        method=f"MiB, median of {rounds} fresh processes: after opening, at the highest point, after the last run.",
        columns=["model", "", "opened", "peak", "after runs", "peak, of ONNX Runtime's"],
        rows=rows,
        data={"rounds": rounds, "results": results},
        figures=private_figures(results),
        remarks=[f"{variant}: {text}." for variant, text in SETTINGS.items()],
    )


# -- weights shared by processes --------------------------------------------------------------------------------


def shared(name: str) -> Section:
    say(f"shared: {name}")
    rows, results = [], []
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        paths = prepare(Path(zoo.load(name)), folder)
        feeds = save_feeds(zoo.example_inputs(name), folder)
        for variant in (DEFAULT, OURS):
            order = Order(variant=variant, path=paths[variant], feeds=feeds, least_runs=2, least_seconds=0, hold=True)
            children: list[Child] = []
            before = 0
            for _ in range(PROCESSES):
                child = Child(order)
                before += child.private_bytes()
                child.start()
                child.outcome()
                children.append(child)
            whole = [proportional_bytes(child.process.pid) for child in children]
            weights = [proportional_bytes(child.process.pid, ".data") for child in children]
            private_bytes = sum(child.private_bytes() for child in children) - before
            for child in children:
                child.end()
            resident, proportional = (sum(figures) for figures in zip(*weights, strict=True))
            once = resident / PROCESSES
            total = sum(figures[1] for figures in whole)
            rows.append([variant, *map(mib, (once, resident, proportional, private_bytes, total))])
            results.append(
                {
                    "variant": variant,
                    "weights_resident_bytes": resident,
                    "weights_proportional_bytes": proportional,
                    "private_bytes": private_bytes,
                    "proportional_bytes": total,
                }
            )
            if variant == OURS and once:
                copies = proportional / once
                figures.append(
                    Figure(
                        name="memory.copies",
                        what=f"copies of the mapped weights that {PROCESSES} processes of one bundle hold together",
                        value=copies,
                        unit="ratio",
                        interval=(copies, copies),
                        bound=COPIES_TARGET,
                    )
                )
    return Section(
        title=f"{PROCESSES} processes of {name}",
        method=(
            "MiB, while all have run twice and wait. Mapped weights: resident pages of the bundle's data as one "
            "process sees them, their sum, and the sum of proportional set sizes (each page divided by the processes "
            "that map it), which is what they really take. Private: anonymous memory above the imports, summed."
        ),
        columns=["", "weights in one", "weights summed", "weights, proportional", "private", "all, proportional"],
        rows=rows,
        data={"model": name, "processes": PROCESSES, "results": results},
        figures=figures,
    )


# -- planned arenas ---------------------------------------------------------------------------------------------


def arenas(models: Sequence[str], threads: int) -> Section:
    rows, results = [], []
    reports: list[MemoryReport] = []
    for name in models:
        say(f"arenas: {name}")
        path = Path(zoo.load(name))
        shapes = open_inputs(path, zoo.example_inputs(name))
        session = parallax.InferenceSession(path, min_gain=0, threads=threads, shapes=shapes)
        plan = session.plan
        if plan.is_whole:
            rows.append([name, "1", *[""] * 6, plan.provenance.reason])
            results.append({"model": name, "segments": 1, "reason": plan.provenance.reason})
            continue
        graph = load_model(path, shapes=shapes).inferred()
        report = report_memory(plan, graph)
        reports.append(report)
        rows.append(
            [
                name,
                str(report.segments),
                str(report.tensors),
                *map(mib, (report.naive_bytes, report.arena_bytes, report.lower_bound_bytes)),
                f"{report.arena_ratio:.3f}",
                f"{report.peak_ratio:.3f}",
                f"{report.unknown_tensors} tensors of unknown size" if report.unknown_tensors else "",
            ]
        )
        fields = ("naive_bytes", "arena_bytes", "lower_bound_bytes", "interior_bytes", "parallel_peak_bytes")
        results.append(
            {
                "model": name,
                "segments": report.segments,
                "tensors": report.tensors,
                "unknown_tensors": report.unknown_tensors,
                **{field: getattr(report, field) for field in fields},
                "sequential_peak_bytes": report.sequential_peak_bytes,
                "admission_bytes": report.admission_bytes,
            }
        )
    arena_ratios = [report.arena_ratio for report in reports]
    peak_ratios = [report.peak_ratio for report in reports]
    figures = []
    if arena_ratios:
        largest, highest = max(arena_ratios), max(peak_ratios)
        figures = [
            Figure(
                name="memory.arena",
                what="planned arenas, share of the least any plan must take, the largest of all models",
                value=largest,
                unit="ratio",
                interval=(largest, largest),
                bound=ARENA_TARGET,
                headline=False,
            ),
            Figure(
                name="memory.parallel_peak",
                what="planned parallel peak, of the same segments' one by one, the largest of all models",
                value=highest,
                unit="ratio",
                interval=(highest, highest),
                bound=PEAK_RATIO,
                headline=False,
            ),
        ]
    return Section(
        title="Planned arenas",
        method=(
            f"Every model cut at each branch (min_gain=0) for {threads} threads. MiB of boundary tensors: if nothing "
            "were shared, as planned, and the least any plan must take (the heaviest set of tensors of which any two "
            "may be alive at once). Peaks add what running segments hold inside; the parallel one is what the "
            "dispatcher can reach with the limit that the plan sets it, the sequential one is of the same segments one "
            "by one."
        ),
        columns=["model", "segments", "tensors", "naive", "arena", "lower bound", "arena / bound", "peak ratio", ""],
        rows=rows,
        data={"threads": threads, "results": results},
        figures=figures,
    )


# -- budgets ----------------------------------------------------------------------------------------------------


def budgets(models: Sequence[str], threads: int, rounds: int) -> Section:
    rows, results = [], []
    for name in models:
        say(f"budgets: {name}")
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            path, fed = Path(zoo.load(name)), zoo.example_inputs(name)
            shapes = open_inputs(path, fed)
            bundle = parallax.compile(path, folder / "cut.plx", min_gain=0, threads=threads, shapes=shapes)
            feeds = save_feeds(fed, folder)
            for callers in (1, CALLERS):
                whole = Order(
                    variant=OURS,
                    path=str(bundle),
                    feeds=feeds,
                    options={"threads": threads},
                    pause=True,
                    callers=callers,
                    least_runs=12,
                )
                free = run_watched(whole)
                peak = free.usage.get("run_peak_bytes")
                if peak is None:
                    rows.append([name, str(callers), "none", "", "", "", "what a run holds is not known"])
                    continue
                wanted = callers * peak
                rows.append(
                    [name, str(callers), "none", f"wants {mib(wanted)}", mib(free.peak_bytes), ms(free.steady_ns), ""]
                )
                results.append({"model": name, "callers": callers, "wanted": wanted, "peak": free.peak_bytes})
                full = full_budget(bundle, threads, wanted)
                for share in SHARES:
                    budget, note = int(share * full), ""
                    try:
                        parallax.InferenceSession(bundle, threads=threads, memory_budget=budget)
                    except BudgetError as error:
                        note = f"{mib(budget)} refused, this is the least"
                        budget = error.least_bytes or budget
                    given = replace(whole, options={**whole.options, "memory_budget": budget})
                    outcomes = [run_watched(given) for _ in range(rounds)]
                    highest = max(outcome.peak_bytes for outcome in outcomes)
                    latency = statistics.median(outcome.steady_ns for outcome in outcomes)
                    right = all(outcome.digest == free.digest for outcome in outcomes)
                    faults = ("" if highest <= budget else "**over**", "" if right else "**other answers**")
                    said = "; ".join(filter(None, (note, *faults)))
                    rows.append([name, str(callers), f"{share:.0%}", mib(budget), mib(highest), ms(latency), said])
                    results.append(
                        {
                            "model": name,
                            "callers": callers,
                            "share": share,
                            "budget": budget,
                            "peak": highest,
                            "run_ns": latency,
                            "same_bits": right,
                            "note": note,
                            "usage": dict(outcomes[-1].usage),
                        }
                    )
    return Section(
        title="Budgets",
        method=(
            f"Bundles cut at each branch (min_gain=0) for {threads} threads, opened with memory_budget= of so much of "
            "what lets all callers' runs have what they want at once. Peak: private memory above that of the opened "
            f"session, the highest of {rounds} fresh processes. MiB; ms per run."
        ),
        columns=["model", "callers", "budget", "MiB", "peak", "run", ""],
        rows=rows,
        data={"threads": threads, "results": results},
        figures=budget_figures(results),
        remarks=[
            "With one caller, a budget below what one run needs is refused when the session opens, with the least that "
            "would do: nothing is narrowed to fit. That least was measured instead. With several callers, less memory "
            "means that fewer runs go on at the same time."
        ],
    )


def full_budget(bundle: Path, threads: int, wanted: int) -> int:
    """The smallest budget whose limit on runs is at least ``wanted``, to 1%."""
    low, high = wanted, 2 * wanted + 64 * MIB
    while high - low > low // 100:
        middle = (low + high) // 2
        try:
            limit = parallax.InferenceSession(bundle, threads=threads, memory_budget=middle).memory().limit_bytes
        except BudgetError:
            limit = 0
        if (limit or 0) >= wanted:
            high = middle
        else:
            low = middle
    return high


# -- dynamic shapes ---------------------------------------------------------------------------------------------


def shapes() -> Section:
    rows, results = [], []
    figures: dict[str, Figure] = {}
    replans: list[Figure] = []
    wrong = 0
    with tempfile.TemporaryDirectory() as made:
        for name, (model, signatures) in dynamic_models(Path(made)).items():
            say(f"shapes: {name}")
            given = Path(made, "signatures.json")
            given.write_text(json.dumps(signatures))
            script = Path(__file__).with_name("_dynamic.py")
            rounds = []
            for _ in range(SHAPE_ROUNDS):
                done = subprocess.run(
                    [sys.executable, script, model, given, str(SHAPE_RUNS)], capture_output=True, text=True, check=False
                )
                if done.returncode:
                    raise SystemExit(f"{name}: {done.stderr.strip()[-2000:]}")
                rounds.append(json.loads(done.stdout))
            growth = [found["end_bytes"] - found["after_first_pass_bytes"] for found in rounds]
            late = [
                found["samples_bytes"][-1] - found["samples_bytes"][len(found["samples_bytes"]) // 2]
                for found in rounds
            ]
            worst = max(found["worst_error"] for found in rounds)
            unlike = sum(found["unlike_first_time"] for found in rounds)
            right = all(found["right"] for found in rounds)
            replan_us = statistics.median(found["replan"]["median_us"] for found in rounds)
            longest_us = max(found["replan"]["max_us"] for found in rounds)
            rows.append(
                [
                    name,
                    str(rounds[0]["segments"]),
                    "right" if right else f"**wrong**: {unlike}, {worst:.1e}",
                    f"{worst:.1e}",
                    mib(statistics.median(found["after_first_pass_bytes"] for found in rounds)),
                    spread_mib(growth),
                    spread_mib(late),
                    f"{replan_us:.0f} (at most {longest_us:.0f})",
                ]
            )
            figures[name] = Figure(
                name=f"memory.shapes.{name.replace(', ', '-').replace(' ', '-')}",
                what=f"{name}, {SHAPE_RUNS} runs in {SIGNATURES} shapes: private memory grows after the first pass by",
                value=statistics.median(growth) / MIB,
                unit="MiB",
                interval=median_interval([size / MIB for size in growth]),
                bound=GROWTH_BYTES / MIB,
                note="" if right else "with wrong answers",
            )
            replans.append(
                Figure(
                    name=f"memory.replan.{name.replace(', ', '-').replace(' ', '-')}",
                    what=f"{name}: planning the memory of a shape never seen",
                    value=replan_us,
                    unit="us",
                    interval=median_interval([found["replan"]["median_us"] for found in rounds]),
                    bound=REPLAN_US,
                    headline=False,
                )
            )
            wrong += 0 if right else 1
            results.append({"model": name, "rounds": rounds})
    return Section(
        title="Dynamic shapes",
        method=(
            f"{SHAPE_RUNS} runs in {SIGNATURES} random shapes, of sessions cut at each branch for two threads, in "
            f"{SHAPE_ROUNDS} fresh processes: answers against ONNX Runtime's (largest error of the output's scale) and "
            "against the same shape's first run, bit for bit; private memory (MiB) after the first "
            "pass over the shapes, its change from there to the end, and in the second half, median (least - "
            "most: which tensors of both lanes live together is chance); "
            "microseconds to plan the memory of a shape never seen, median of 100. "
        ),
        columns=["model", "segments", "answers", "error", "after a pass", "until the end", "second half", "replan"],
        rows=rows,
        data={"results": results},
        figures=[
            *figures.values(),
            *replans,
            counted("memory.shapes.wrong", "models in dynamic shapes with wrong answers", wrong, bound=0),
        ],
    )


def spread_mib(sizes: Sequence[int]) -> str:
    """Median (least - most) of changes, in MiB."""
    return f"{statistics.median(sizes) / MIB:+.1f} ({min(sizes) / MIB:+.1f} - {max(sizes) / MIB:+.1f})"


def dynamic_models(folder: Path) -> dict[str, tuple[str, list[dict[str, list[int]]]]]:
    """DistilBERT, and MobileNetV2 with batch, height and width left open; each with its random shapes."""
    chosen = random.Random(0)
    texts = [[chosen.randint(1, 3), chosen.randint(8, 160)] for _ in range(SIGNATURES)]
    images = [[chosen.randint(1, 2), 3, *(32 * chosen.randint(3, 9) for _ in "hw")] for _ in range(SIGNATURES)]
    model = onnx.load(zoo.load("mobilenetv2"))
    image = model.graph.input[0]
    for axis, name in ((0, "batch"), (2, "height"), (3, "width")):
        image.type.tensor_type.shape.dim[axis].dim_param = name
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]
    open_images = folder / "open.onnx"
    onnx.save(model, open_images)
    text_inputs = list(zoo.example_inputs("distilbert"))
    return {
        "distilbert": (str(zoo.load("distilbert")), [dict.fromkeys(text_inputs, shape) for shape in texts]),
        "mobilenetv2, open shapes": (str(open_images), [{image.name: shape} for shape in images]),
    }


def main() -> None:
    parser = make_parser(__doc__, "memory")
    parser.add_argument("--models", nargs="+", default=["paper"], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="for the plans that are cut")
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=SECTIONS)
    parser.add_argument("--shared-model", default="distilbert", metavar="NAME")
    parser.add_argument("--limited-model", default="vit-b16", metavar="NAME")
    parser.add_argument("--budget-models", nargs="+", default=["yolov8n", "swinv2-t", "mobilenetv2"], metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON there as well")
    arguments = parser.parse_args()
    if sys.platform != "linux":
        raise SystemExit("this reads /proc: Linux only")
    models = pick_models(arguments.models)
    machine = describe_machine()
    makers: dict[str, Callable[[], Any]] = {
        "private": lambda: private(models, arguments.rounds),
        "shared": lambda: shared(arguments.shared_model),
        "arenas": lambda: arenas(models, arguments.threads),
        "budgets": lambda: budgets(pick_models(arguments.budget_models), arguments.threads, arguments.rounds),
        "shapes": shapes,
        "limited": lambda: limited(arguments.limited_model),
    }
    sections = {name: makers[name]() for name in SECTIONS if name in arguments.sections}
    publish_sections("Memory", sections, arguments.output, machine, json_copy=arguments.json)


SECTIONS = ("private", "shared", "arenas", "budgets", "shapes", "limited")


if __name__ == "__main__":
    main()
