"""Many runs of one cut session in random shapes, in a process of their own: answers, growth, time to plan anew.

``python _dynamic.py MODEL SIGNATURES_JSON RUNS`` prints one JSON object. A signature maps inputs to shapes.
"""

from __future__ import annotations

import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

import parallax
from parallax.graph import bind_dims
from parallax.machine import private_bytes
from parallax.memory import MemoryModel, PlanCache
from parallax.model import load_model

TOLERANCE = 1e-4
FRESH_SIGNATURES = 100
SAMPLE_EVERY = 20

Signature = Mapping[str, Sequence[int]]


def make_feeds(session: Any, signature: Signature, seed: int) -> dict[str, Any]:
    """Random inputs of these shapes: floats around 0, integers that are valid token numbers and masks."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, Any] = {}
    for info in session.get_inputs():
        shape = tuple(signature[info.name])
        if "int" in info.type:
            feeds[info.name] = rng.integers(0, 2 if "mask" in info.name else 1000, shape).astype(np.int64)
            if "mask" in info.name:
                feeds[info.name][:, 0] = 1
        else:
            feeds[info.name] = rng.standard_normal(shape).astype(np.float32)
    return feeds


def replan_times(session: Any, model: str, signatures: Sequence[Signature], seed: int) -> dict[str, float]:
    """Microseconds to plan the memory of shapes never seen before, of a model whose outline is known."""
    graph = load_model(model).inferred()
    cache = PlanCache(MemoryModel(session.plan, graph, place_outputs=False))
    chosen = random.Random(seed)
    inputs = graph.inputs
    for signature in signatures:  # "seen" is the model, through shapes of ordinary use
        cache.get(bind_dims(inputs, {name: tuple(shape) for name, shape in signature.items()}))
    times = []
    for _ in range(FRESH_SIGNATURES):
        shapes: dict[str, tuple[int, ...]] = {}
        drawn: dict[str, int] = {}
        for info in inputs:
            dims = []
            for axis, dim in enumerate(info.shape or ()):
                if isinstance(dim, str):
                    usual = signatures[0][info.name][axis]
                    drawn.setdefault(dim, chosen.randint(1, 4 * usual))
                    dims.append(drawn[dim])
                else:
                    dims.append(int(dim or 1))
            shapes[info.name] = tuple(dims)
        begin = time.perf_counter_ns()
        cache.get(bind_dims(inputs, shapes))
        times.append((time.perf_counter_ns() - begin) / 1e3)
    return {"median_us": statistics.median(times), "max_us": max(times)}


def main(model: str, signatures: Sequence[Signature], runs: int, seed: int = 0) -> dict[str, Any]:
    first = {name: tuple(shape) for name, shape in signatures[0].items()}
    session = parallax.InferenceSession(model, min_gain=0, threads=2, shapes=first)
    feeds = [make_feeds(session, signature, number) for number, signature in enumerate(signatures)]
    # Copies: an output that the caller holds is the session's memory, but not its growth.
    outputs = [[output.copy() for output in session.run(None, fed)] for fed in feeds]
    gc.collect()
    after_first_pass = private_bytes()
    chosen = random.Random(seed)
    wrong = 0
    samples = []
    for run in range(len(signatures), runs):
        number = chosen.randrange(len(signatures))
        again = session.run(None, feeds[number])
        wrong += any(not np.array_equal(one, other) for one, other in zip(again, outputs[number], strict=True))
        del again
        if run % SAMPLE_EVERY == 0:
            samples.append(private_bytes())
    gc.collect()
    end = private_bytes()
    replan = replan_times(session, model, signatures, seed)
    reference = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    worst = 0.0
    for fed, found in zip(feeds, outputs, strict=True):
        for actual, expected in zip(found, reference.run(None, fed), strict=True):
            scale = max(1.0, float(np.max(np.abs(expected))))
            worst = max(worst, float(np.max(np.abs(actual - expected))) / scale)
    return {
        "segments": len(session.plan.segments),
        "signatures": len(signatures),
        "runs": runs,
        "unlike_first_time": wrong,
        "worst_error": worst,
        "right": wrong == 0 and worst <= TOLERANCE,
        "after_first_pass_bytes": after_first_pass,
        "end_bytes": end,
        "samples_bytes": samples,
        "replan": replan,
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), int(sys.argv[3]))))
