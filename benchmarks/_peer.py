"""One runtime in a process of its own, with a model open, that is told how many callers to have and for how long.

``python _peer.py VARIANT MODEL FEEDS OUTPUTS THREADS`` opens the model, writes what it computes for the feeds, and
answers orders: a line of JSON on standard input, `[[callers, seconds], ...]`, is phases of one load; the line that it
prints has what became of them. Every variant imports the same libraries.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime
from _orders import open_answers

import parallax
from parallax.machine import private_bytes

RUNTIME_NARROW = "ONNX Runtime, 1 thread a caller"
RUNTIME_WIDE = "ONNX Runtime, all threads"
OPENVINO_THROUGHPUT = "OpenVINO, throughput"
OPENVINO_LATENCY = "OpenVINO, latency"
OURS = "Parallax"
OURS_BUNDLE = "Parallax, bundle"
PEERS = (RUNTIME_NARROW, RUNTIME_WIDE, OPENVINO_THROUGHPUT, OPENVINO_LATENCY)
VARIANTS = (*PEERS, OURS, OURS_BUNDLE)
OPTIONS = {OURS: {"objective": "throughput"}, OURS_BUNDLE: {"objective": "auto"}}
"""Of our sessions: on the model, and on a bundle of it."""

Feeds = dict[str, Any]
Call = Callable[[], Sequence[Any]]


def open_runtime(path: str, feeds: Feeds, *, threads: int) -> Callable[[], Call]:
    """One session of ONNX Runtime, which all callers share."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: lambda: list(session.run(None, feeds))


def open_openvino(path: str, feeds: Feeds, *, hint: str, threads: int) -> Callable[[], Call]:
    """One compiled model, of which each caller has a request, as OpenVINO's documentation advises."""
    import openvino  # an extra: this benchmark does without where it is not installed

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape({name: value.shape for name, value in feeds.items()})
    properties = {"PERFORMANCE_HINT": hint, "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(model, "CPU", properties)

    def caller() -> Call:
        request = compiled.create_infer_request()
        return lambda: list(request.infer(feeds, share_inputs=True, share_outputs=True).values())

    return caller


def open_variant(variant: str, path: str, feeds: Feeds, *, threads: int) -> Callable[[], Call]:
    """A function that makes a caller's call."""
    if variant == RUNTIME_NARROW:
        return open_runtime(path, feeds, threads=1)
    if variant == RUNTIME_WIDE:
        return open_runtime(path, feeds, threads=threads)
    if variant in (OPENVINO_THROUGHPUT, OPENVINO_LATENCY):
        hint = "THROUGHPUT" if variant == OPENVINO_THROUGHPUT else "LATENCY"
        return open_openvino(path, feeds, hint=hint, threads=threads)
    session = parallax.InferenceSession(path, threads=threads, **OPTIONS[variant])  # type: ignore[arg-type]

    def call() -> Sequence[Any]:
        return session.run(None, feeds)

    call.plan = lambda: str(session.plan.provenance.reason)  # type: ignore[attr-defined]
    return lambda: call


def run_load(new_call: Callable[[], Call], phases: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """Have so many callers for so many seconds, phase by phase; each begins its next run when the last has ended.

    Returns: for each run that ended, the second of its end (from the beginning of the load) and the seconds it took, in
    two lists; what runs failed with; and the process's private memory and threads after the load.
    """
    ends: list[list[float]] = []
    taken: list[list[float]] = []
    failed: list[str] = []
    begin = time.perf_counter()
    wanted = 0

    def work(number: int, my_ends: list[float], my_taken: list[float]) -> None:
        call = new_call()
        while number < wanted:
            asked = time.perf_counter()
            try:
                call()
            except Exception as error:
                failed.append(repr(error))
                return
            ended = time.perf_counter()
            my_ends.append(ended - begin)
            my_taken.append(ended - asked)

    threads: list[threading.Thread] = []
    until = begin
    for callers, seconds in phases:
        wanted = callers
        alive = sum(thread.is_alive() for thread in threads)
        for number in range(alive, callers):
            ends.append([])
            taken.append([])
            threads.append(threading.Thread(target=work, args=(number, ends[-1], taken[-1])))
            threads[-1].start()
        until += seconds
        time.sleep(max(0.0, until - time.perf_counter()))
    wanted = 0
    for thread in threads:
        thread.join()
    pairs = sorted(zip((end for mine in ends for end in mine), (one for mine in taken for one in mine), strict=True))
    return {
        "ends_s": [end for end, _ in pairs],
        "taken_s": [one for _, one in pairs],
        "failed": failed,
        "private_bytes": private_bytes(),
        "threads": len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0,
    }


def main() -> None:
    variant, path, feeds_path, outputs_path, threads = sys.argv[1:]
    answer = open_answers()
    with np.load(feeds_path) as stored:
        feeds = {name: stored[name] for name in stored.files}
    new_call = open_variant(variant, path, feeds, threads=int(threads))
    call = new_call()
    np.savez(outputs_path, *[np.array(value) for value in call()])
    answer("ready")
    for line in sys.stdin:
        result = run_load(new_call, [(int(callers), float(seconds)) for callers, seconds in json.loads(line)])
        plan = getattr(call, "plan", None)
        answer({**result, "plan": "" if plan is None else plan()})


if __name__ == "__main__":
    main()
