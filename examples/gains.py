"""Where Parallax gains, measured on this machine: two places; a third, where it gains nothing, is ``parallax bench``.

1. A *bundle* (``parallax.compile``) starts sooner and holds less: whole processes, from their start to their first
   answer, ONNX Runtime's and ours in turn.
2. A model of which an accelerator lacks operators: what falls back to the CPU runs beside the accelerator, not after
   it. The accelerator here is emulated (right answers, in the time that a phone's GPU would take beside this CPU), so
   that these figures are a model and no measurement of a phone.

    python examples/gains.py

Exits with 1 if an answer differs from ONNX Runtime's.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

import parallax
from parallax import zoo

LARGE_MODEL = "clip-text"
"""A quarter of a GiB of weights, which ONNX Runtime reads and packs whenever it opens the model."""
FALLBACK_MODEL = "yolov8n"
DEVICE = "emulated:redmi-k50-gpu"
CPU = "CPUExecutionProvider"
OURS = "Parallax's plan"
TOLERANCE = 1e-4
ROUNDS = 5

# What a user's script would import, and nothing else: imports are part of what is measured.
FIRST_ANSWER = """
import sys
import numpy
if sys.argv[1] == "onnxruntime":
    import onnxruntime
    session = onnxruntime.InferenceSession(sys.argv[2], providers=["CPUExecutionProvider"])
else:
    import parallax
    session = parallax.InferenceSession(sys.argv[2])
with numpy.load(sys.argv[3]) as stored:
    outputs = session.run(None, {name: stored[name] for name in stored.files})
print("answered", flush=True)
numpy.save(sys.argv[4], outputs[0])
try:
    lines = open("/proc/self/status").read().splitlines()
except OSError:
    lines = []
print(*(line.split()[1] for line in lines if line.startswith("RssAnon:")), flush=True)
"""


class Start(NamedTuple):
    """A process that opened a model and answered once."""

    seconds: float
    """From before it was started to its answer."""
    private_mib: float | None
    """Memory of its own that it held then; None where the system does not tell."""


def start(runtime: str, model: Path, feeds: Path, answer: Path) -> Start:
    """Start a process that answers once, and wait for its end."""
    command = [sys.executable, "-c", FIRST_ANSWER, runtime, str(model), str(feeds), str(answer)]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - began
        words = process.stdout.read().split()
    if line != "answered\n" or process.returncode:
        raise SystemExit(f"the process with {runtime} did not answer; its message is above")
    return Start(seconds, int(words[0]) / 1024 if words else None)


def show_start_up(folder: Path) -> bool:
    """Compare whole processes. Returns whether the answers are the same."""
    print(f"1. From the start of a process to its first answer: {LARGE_MODEL}")
    model = zoo.load(LARGE_MODEL)
    began = time.perf_counter()
    bundle = parallax.compile(model, folder / "model.plx")
    print(f"   compiled into a bundle, once, in {time.perf_counter() - began:.0f} s")
    feeds = folder / "feeds.npz"
    np.savez(feeds, allow_pickle=False, **zoo.example_inputs(LARGE_MODEL))
    sources = {"onnxruntime": model, "parallax": bundle}
    starts: dict[str, list[Start]] = {runtime: [] for runtime in sources}
    for number in range(ROUNDS + 1):
        for runtime, source in sources.items():
            found = start(runtime, source, feeds, folder / f"{runtime}.npy")
            if number:  # the first of each reads the files from the disk
                starts[runtime].append(found)
    seconds = {runtime: [found.seconds for found in starts[runtime]] for runtime in sources}
    for runtime in sources:
        memory = [found.private_mib for found in starts[runtime] if found.private_mib is not None]
        held = f", {statistics.median(memory):5.0f} MiB of private memory" if memory else ""
        print(f"   {runtime:>12}: {statistics.median(seconds[runtime]):.2f} s{held}")
    print(f"   {compared(seconds['onnxruntime'], seconds['parallax'])}\n")
    return same([np.load(folder / "parallax.npy")], [np.load(folder / "onnxruntime.npy")])


def show_fallback() -> bool:
    """Compare placements between the CPU and an emulated device. Returns whether the answers are the same."""
    print(f"2. {FALLBACK_MODEL} beside {DEVICE}, which lacks some of its operators (emulated figures)")
    model = str(zoo.load(FALLBACK_MODEL))
    feeds = zoo.example_inputs(FALLBACK_MODEL)
    sessions = {
        "the CPU alone": onnxruntime.InferenceSession(model, providers=[CPU]),
        "all that it takes there": parallax.InferenceSession(model, providers=[DEVICE, CPU], split="always"),
        OURS: parallax.InferenceSession(model, providers=[DEVICE, CPU]),
    }
    calls = {name: functools.partial(session.run, None, feeds) for name, session in sessions.items()}
    answers = {name: call() for name, call in calls.items()}
    times = in_turn(calls, rounds=3 * ROUNDS)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    for name, seconds in medians.items():
        print(f"   {name:>24}: {1e3 * seconds:6.1f} ms")
    best = min((name for name in times if name != OURS), key=medians.__getitem__)
    print(f"   against {best}: {compared(times[best], times[OURS])}")
    print(f"   {sessions[OURS].plan.provenance.reason}\n")
    want = answers["the CPU alone"]
    return all(same(found, want) for found in answers.values())


def in_turn(calls: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of each, called in turn, so that a busy moment of the machine falls on all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    return times


def compared(theirs: Sequence[float], ours: Sequence[float]) -> str:
    """One line: how much faster, or slower, in the middle half of the rounds; inconclusive where that has both."""
    low, middle, high = statistics.quantiles([one / other for one, other in zip(theirs, ours, strict=True)])
    if low <= 1 <= high:
        return f"inconclusive: from {1 / low:.2f}x slower to {high:.2f}x faster; on a busy machine, try again"
    if middle > 1:
        return f"{middle:.2f}x faster (half of the rounds between {low:.2f} and {high:.2f})"
    return f"{1 / middle:.2f}x slower: on a busy machine, or one unlike those that were tried, try again"


def same(found: Sequence[NDArray[Any]], want: Sequence[NDArray[Any]]) -> bool:
    """Whether outputs agree, but for the last digits, which depend on the kernels."""
    return all(
        one.shape == other.shape and float(np.abs(one - other).max()) <= TOLERANCE * float(np.abs(other).max())
        for one, other in zip(found, want, strict=True)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(description="Where Parallax gains, measured on this machine.")
    parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        is_right = show_start_up(Path(folder))
    is_right = show_fallback() and is_right
    print("answers: the same as ONNX Runtime's" if is_right else "answers: DIFFERENT from ONNX Runtime's")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
