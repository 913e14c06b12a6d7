"""Time to open a session, Parallax against ONNX Runtime, without anything cached by us.

In one process, in turn, in alternating order; files come from the page cache for both. The order
alternates because whoever opens second finds memory that the allocator already holds.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable
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
            verdict = "met" if against.median <= RATIO_LIMIT else "**missed**"
            rows.append([name, label, spread(timing), spread(theirs), show_ratio(against), verdict, plan["reason"]])
            results.append({"model": name, "label": label, "ratio": against.median, "plan": plan})
        results[-1]["timings"] = {label: dump_timing(timing) for label, timing in timings.items()}
    publish(
        Report(
            title="Opening a session",
            method=(
                f"Milliseconds, median (quartiles) of {arguments.rounds} interleaved openings; ratio per round. "
                f"The bound is {RATIO_LIMIT}."
            ),
            columns=["model", "", "time", "ONNX Runtime", "ratio", "", "plan"],
            rows=rows,
            data={"rounds": arguments.rounds, "results": results},
        ),
        arguments.output,
        machine,
    )


if __name__ == "__main__":
    main()
