"""Random models in child processes, so that one that ends a process costs that one, and is told from the rest.

A child notes what came of each seed. Where it ends before the last, the model is given to ONNX Runtime
alone, in processes of its own: if one of these ends so too, the seed is excluded and listed; else the fault is ours.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from tests.fuzz._counts import Counts, Fault, Kind
from tests.fuzz._models import Made, make_model
from tests.fuzz._modes import NATIVE, run_stock, try_model

ROOT = Path(__file__).resolve().parents[2]
SEED_SECONDS = 240
"""What takes a model longer counts as hanging: one takes about a quarter of a second."""
STOCK_PROCESSES = 8
"""That must all live before ONNX Runtime is held innocent: a damaged heap ends one process and not the next."""
STOCK_TURNS = 6
"""Openings and runs in each of these processes."""
Trying = Callable[[int, Made, Path, Counts], None]

CHILD = "tests.fuzz._chunks"
"""The module that children run."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a child came to an end."""

    done: Sequence[int]
    """Seeds tried to the end, in order."""
    begun: int | None
    """The seed that was its turn when it died; None where it came through."""
    how: str = ""


def run_seeds(seeds: range, *, child: str = CHILD, stock_processes: int = STOCK_PROCESSES) -> Counts:
    """What came of these models, whatever they do to the processes they are tried in.

    Raises: subprocess.CalledProcessError for a model that cannot be made.
    """
    counts = Counts()
    at = seeds.start
    while at < seeds.stop:
        ended = _child(child, range(at, seeds.stop), counts)
        if ended.begun is None:
            break
        # A heap that is damaged by one model may end the process at a later one.
        suspects = dict.fromkeys((ended.begun, *reversed(ended.done)))
        guilty = next((seed for seed in suspects if _stock_dies(child, seed, stock_processes)), None)
        if guilty is None:
            counts.faults.append(Fault(seed=ended.begun, mode="any", kind=Kind.DIED, text=ended.how))
        else:
            counts.excluded.append(guilty)
        # Where an earlier one is guilty, this one has its turn yet.
        at += len(ended.done) if guilty in ended.done else ended.begun + 1 - at
    return counts


def _stock_dies(child: str, seed: int, processes: int) -> bool:
    """Whether ONNX Runtime alone crashes or hangs on a model, in one of several processes."""
    for _ in range(processes):
        try:
            ended = _start(child, "stock", seed, seconds=SEED_SECONDS)
        except subprocess.TimeoutExpired:
            return True
        if ended.returncode < 0:
            return True
        ended.check_returncode()
    return False


def _child(child: str, seeds: range, counts: Counts) -> Ended:
    """Try models in a process of their own, until it ends; ``counts`` takes in those that were tried to the end."""
    with tempfile.TemporaryDirectory(prefix="parallax-fuzz-") as folder:
        notes = Path(folder) / "notes.jsonl"
        notes.touch()
        ended = _start(child, "try", seeds.start, seeds.stop, notes)
        lines = notes.read_text(encoding="utf-8").split("\n")[:-1]
    done = []
    for line in map(json.loads, lines):
        counts.add(Counts.from_json(line["counts"]))
        done.append(line["seed"])
    if not ended.returncode and len(done) == len(seeds):
        return Ended(done=done, begun=None)
    how = f"exit code {ended.returncode}: {' '.join(ended.stderr.split())[:600]}"
    # One that dies at its very end dies of the last, if of none before.
    return Ended(done=done, begun=min(seeds.start + len(done), seeds.stop - 1), how=how)


def _start(child: str, *arguments: object, seconds: float | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", child, *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
        timeout=seconds,
    )


# Inside the child ----------------------------------------------------------------------------------------------------


def _try(first: int, last: int, notes: Path, trying: Trying) -> None:
    with notes.open("a", encoding="utf-8") as file:
        for seed in range(first, last):
            counts = Counts()
            faulthandler.dump_traceback_later(SEED_SECONDS, exit=True)
            with tempfile.TemporaryDirectory(prefix="parallax-fuzz-", ignore_cleanup_errors=True) as folder:
                trying(seed, make_model(seed), Path(folder), counts)
            faulthandler.cancel_dump_traceback_later()
            print(json.dumps({"seed": seed, "counts": counts.to_json()}), file=file, flush=True)


def _stock(seed: int) -> None:
    made = make_model(seed)
    with tempfile.TemporaryDirectory(prefix="parallax-fuzz-", ignore_cleanup_errors=True) as folder:
        path = made.save(Path(folder))
        for _ in range(STOCK_TURNS):
            with contextlib.suppress(*NATIVE):
                run_stock(path, made)
                # And with the options that a session has by default.
                onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, made.feeds[0])


def main(what: str, *arguments: str, trying: Trying = try_model) -> None:
    """``stock SEED``, or ``try FIRST LAST FILE``, by ``trying``."""
    faulthandler.enable()
    logging.disable(logging.WARNING)
    onnxruntime.set_default_logger_severity(4)
    if what == "stock":
        _stock(int(arguments[0]))
    else:
        _try(int(arguments[0]), int(arguments[1]), Path(arguments[2]), trying)


if __name__ == "__main__":
    main(*sys.argv[1:])
