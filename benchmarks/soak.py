"""Soak: random small models, random threads, sessions created, run from several threads, and dropped.

Samples the process's memory, threads and file descriptors. The verdict compares the end with the end of the
first minute; growth beyond tolerance exits with 1. ``--baseline`` does the same with plain ONNX Runtime
sessions, so that the runtime's own growth can be told from ours.

On Linux it starts itself anew with ``MALLOC_TRIM_THRESHOLD_`` set. glibc has heaps of its own for threads, up to eight
per core, and by itself keeps up to twice the largest block ever freed (64 MiB at most) at the top of each, which
``malloc_trim`` does not give back either: with the threads that come and go here this adds up to a GiB, with nothing
held. With the threshold fixed, what is freed goes back to the system, and what is measured is what is held.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psutil
from _common import Report, describe_machine, make_parser, pick_models, publish, say
from _figures import Figure, counted

import parallax
from parallax import zoo
from parallax.cli import compare_outputs
from parallax.machine import available_cores

# Models whose sessions take at most this much, so that many cycles fit into the time.
_SMALL_BYTES = 64 * 2**20
_WARM_UP_SHARE = 0.1
_MEMORY_TOLERANCE_SHARE = 0.05
_MEMORY_TOLERANCE_BYTES = 32 * 2**20
"""An allocator's arenas breathe; a leak of one session per cycle passes this within a minute."""
_TOLERANCE = 1e-4
_THRESHOLD = "MALLOC_TRIM_THRESHOLD_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The process at one moment, with no session open."""

    seconds: float
    cycles: int
    rss_bytes: int
    threads: int
    descriptors: int


class Soak:
    """Cycles of open, run from several threads at once, check, drop."""

    def __init__(self, models: Sequence[str], *, baseline: bool, seed: int, cache: Path) -> None:
        self.random = random.Random(seed)
        self.baseline = baseline
        self.cache = cache
        self.models = [(name, str(zoo.load(name)), zoo.example_inputs(name)) for name in models]
        self.expected: dict[str, list[np.ndarray]] = {}
        self.failures: list[str] = []
        self.cycles = 0
        for name, path, feeds in self.models:
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            self.expected[name] = session.run(None, feeds)

    def cycle(self) -> None:
        """One to three sessions at once; every third of ours is cut by force, others as the tables say."""
        chosen = [self.random.choice(self.models) for _ in range(self.random.randint(1, 3))]
        opened = [(name, feeds, self._open(path)) for name, path, feeds in chosen]
        callers = [
            threading.Thread(target=self._run, args=(name, feeds, session))
            for name, feeds, session in opened
            for _ in range(self.random.randint(1, 3))
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        self.cycles += 1

    def _open(self, path: str) -> Any:
        threads = self.random.randint(1, max(2, available_cores()))
        if self.baseline:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        min_gain = self.random.choice((None, None, 0.0))
        return parallax.InferenceSession(path, threads=threads, min_gain=min_gain, cache_dir=self.cache)

    def _run(self, name: str, feeds: dict[str, np.ndarray], session: Any) -> None:
        try:
            for _ in range(3):
                outputs = session.run(None, feeds)
            numbered = {str(place): value for place, value in enumerate(outputs)}  # type: ignore[possibly-undefined]
            expected = {str(place): value for place, value in enumerate(self.expected[name])}
            difference = compare_outputs(numbered, expected)
            if not difference.within(_TOLERANCE):
                self.failures.append(f"{name}: outputs differ by {difference.relative:.1e} {difference.detail}")
        except Exception as error:
            self.failures.append(f"{name}: {error!r}")

    def sample(self, started: float) -> Sample:
        gc.collect()
        _return_free_memory()
        process = psutil.Process()
        descriptors = process.num_fds() if hasattr(process, "num_fds") else process.num_handles()
        return Sample(
            seconds=time.monotonic() - started,
            cycles=self.cycles,
            rss_bytes=process.memory_info().rss,
            threads=process.num_threads(),
            descriptors=descriptors,
        )


def _start_with_fixed_threshold() -> None:
    """See the module's docstring; other C libraries ignore the variable, and other systems are left alone."""
    if sys.platform == "linux" and _THRESHOLD not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {_THRESHOLD: str(128 * 1024)})


def _return_free_memory() -> None:
    """Have glibc give free pages back, so that what is left is what is held; elsewhere the samples are noisier."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def windows(samples: Sequence[Sample], *, settled_after: float) -> tuple[list[Sample], list[Sample]]:
    """The samples around the end of the first minute, and as many at the very end; none where it was too short."""
    early = [sample for sample in samples if 0.5 * settled_after <= sample.seconds <= settled_after]
    late = list(samples[-max(3, len(early)) :])
    return ([], []) if not early or early[-1] in late else (early, late)


def settling_s(minutes: float) -> float:
    """Seconds after which a soak of so many minutes should not grow any more."""
    total = minutes * 60
    return min(60.0, max(_WARM_UP_SHARE * total, total / 3))


def judge(samples: Sequence[Sample], *, settled_after: float) -> list[str]:
    """Complaints: what grew between the end of the first minute and the end of the soak.

    Memory breathes from cycle to cycle, so medians of `windows` are compared.
    """
    early, late = windows(samples, settled_after=settled_after)
    if not early:
        return [f"too short to judge: {len(samples)} samples in all"]
    complaints = []
    before, after = (statistics.median(sample.rss_bytes for sample in part) for part in (early, late))
    allowed = max(_MEMORY_TOLERANCE_BYTES, _MEMORY_TOLERANCE_SHARE * before)
    if after - before > allowed:
        complaints.append(f"memory grew by {(after - before) / 2**20:.0f} MiB, {allowed / 2**20:.0f} MiB are tolerated")
    for what in ("threads", "descriptors"):
        first, last = (max(getattr(sample, what) for sample in part) for part in (early, late))
        if last > first:
            complaints.append(f"{what} grew from {first} to {last}")
    return complaints


def make_figures(data: Mapping[str, Any]) -> list[Figure]:
    """How much memory, threads and descriptors grew, and how many outputs were wrong."""
    samples = [Sample(**sample) for sample in data["samples"]]
    early, late = windows(samples, settled_after=settling_s(data["minutes"]))
    if not early:
        return []
    prefix = "soak-baseline" if data["baseline"] else "soak"
    whose = "ONNX Runtime's sessions" if data["baseline"] else "sessions"
    length = f"{data['minutes']:g} minutes of {whose} opened, run from several threads and dropped"
    before, after = ([sample.rss_bytes / 2**20 for sample in part] for part in (early, late))
    allowed = max(_MEMORY_TOLERANCE_BYTES / 2**20, _MEMORY_TOLERANCE_SHARE * statistics.median(before))
    growth = statistics.median(after) - statistics.median(before)
    figures = [
        Figure(
            name=f"{prefix}.memory",
            what=f"{length}: memory grows after the first minute by",
            value=growth,
            unit="MiB",
            # From the least that the samples allow to the most: memory breathes from cycle to cycle.
            interval=(min(after) - max(before), max(after) - min(before)),
            bound=allowed,
            note=f"from {statistics.median(before):.0f} MiB",
        )
    ]
    for what in ("threads", "descriptors"):
        first, last = (max(getattr(sample, what) for sample in part) for part in (early, late))
        figures.append(counted(f"{prefix}.{what}", f"{length}: {what} more at the end", last - first, bound=0))
    wrong = len(data.get("failures", ()))
    figures.append(counted(f"{prefix}.failures", f"{length}: wrong outputs and errors", wrong, bound=0))
    return figures


def main() -> None:
    _start_with_fixed_threshold()
    parser = make_parser(__doc__, "soak")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--baseline", action="store_true", help="plain ONNX Runtime sessions instead of ours")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="default: zoo models of up to 64 MiB of weights")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    small = [name for name in zoo.names() if zoo.info(name).weight_bytes <= _SMALL_BYTES]
    models = pick_models(arguments.models or small)
    machine = describe_machine()
    total = arguments.minutes * 60
    settled = settling_s(arguments.minutes)
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as cache:
        soak = Soak(models, baseline=arguments.baseline, seed=arguments.seed, cache=Path(cache))
        started = time.monotonic()
        while time.monotonic() - started < total:
            soak.cycle()
            if not samples or time.monotonic() - started - samples[-1].seconds >= min(5.0, total / 60):
                samples.append(soak.sample(started))
                if len(samples) % 12 == 0:
                    last = samples[-1]
                    memory = f"{last.rss_bytes / 2**20:.0f} MiB"
                    say(f"{last.seconds:.0f} s: {memory}, {last.threads} threads, {last.descriptors} descriptors")
    complaints = [*judge(samples, settled_after=settled), *sorted(set(soak.failures))]
    kind = "plain ONNX Runtime" if arguments.baseline else "Parallax"
    output = arguments.output
    if arguments.baseline and output.name == "soak.md":
        output = output.with_name("soak-baseline.md")
    data = {
        "minutes": arguments.minutes,
        "models": list(models),
        "baseline": arguments.baseline,
        "samples": [asdict(sample) for sample in samples],
        "failures": sorted(set(soak.failures)),
        "complaints": complaints,
    }
    shown = samples[:: max(1, len(samples) // 12)]
    publish(
        Report(
            title=f"Soak: {kind}",
            method=(
                f"{soak.cycles} cycles in {arguments.minutes:g} minutes over {', '.join(models)}; "
                "every output compared. Sampled with no session open, and glibc told to keep no free memory "
                "(MALLOC_TRIM_THRESHOLD_, see soak.py)."
            ),
            columns=["seconds", "cycles", "memory MiB", "threads", "descriptors"],
            rows=[
                [f"{s.seconds:.0f}", str(s.cycles), f"{s.rss_bytes / 2**20:.0f}", str(s.threads), str(s.descriptors)]
                for s in shown
            ],
            remarks=complaints or ["no growth beyond the first minute's, no failures"],
            data=data,
            figures=make_figures(data),
        ),
        output,
        machine,
    )
    if complaints:
        sys.exit(1)


if __name__ == "__main__":
    main()
