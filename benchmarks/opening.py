"""Time to open a session, Parallax against ONNX Runtime, without anything cached by us.

In one process, in turn, in alternating order; files come from the page cache for both. The order
alternates because whoever opens second finds memory that the allocator already holds.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
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
from parallax.cli import Timing, ratio, wait_until_quiet

RATIO_LIMIT = 1.3
"""What the project promises: at most this times ONNX Runtime's time."""


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
        samples: dict[str, list[float]] = {label: [] for label in openers}
        plan: dict[str, Any] = {}
        for number in range(rounds + 1):
            labels = list(openers)
            shift = number % len(labels)
            for label in (*labels[shift:], *labels[:shift]):
                gc.collect()
                wait_until_quiet()
                begin = time.perf_counter_ns()
                session = openers[label]()
                elapsed = time.perf_counter_ns() - begin
                if number:  # round 0 reads the file from disk
                    samples[label].append(elapsed)
                if label == "Parallax":
                    plan = {"uncut": session.plan.is_uncut, "reason": session.plan.provenance.reason}
                del session
    return {label: Timing(label=label, samples_ns=tuple(values)) for label, values in samples.items()}, plan


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
    values = [figure.value for figure in rows.values()]
    return [
        *rows.values(),
        rows_that_keep(
            "opening.models",
            f"of {len(rows)} openings of the reference models, those that take at most {RATIO_LIMIT} of ONNX Runtime's "
            "time",
            rows,
            note=f"from {min(values):.2f} to {max(values):.2f} of it",
        ),
    ]


def main() -> None:
    parser = make_parser(__doc__, "opening")
    parser.add_argument("--models", nargs="+", default=["paper"], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    machine = describe_machine()
    rows, results = [], []
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
    publish(
        Report(
            title="Opening a session",
            method=(
                f"Milliseconds, median (quartiles) of {arguments.rounds} interleaved openings; ratio per round. "
                f"The bound is {RATIO_LIMIT}."
            ),
            columns=["model", "", "time", "ONNX Runtime", "ratio", "plan"],
            rows=rows,
            data={"rounds": arguments.rounds, "results": results},
            figures=make_figures(results),
        ),
        arguments.output,
        machine,
    )


if __name__ == "__main__":
    main()
