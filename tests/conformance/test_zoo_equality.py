"""Every zoo model gives ONNX Runtime's outputs, whole and split, also when eight threads share the session."""

from __future__ import annotations

import collections
import threading
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

import parallax
import parallax.zoo
from parallax.model import load_model

MODES: dict[str, dict[str, Any]] = {
    "default": {"threads": 2},
    "split": {"threads": 2, "policy": "adaptive", "min_gain": 0},
}
QUICK = ("mobilenetv3-s", "lstm-if-loop")
"""Light enough for the everyday tests: convolutions with fused activations; recurrence and control flow."""
PATIENCE_S = 1500.0
"""How long the threads may take before the test gives up on them; nothing is timed."""

_models = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in parallax.zoo.names()],
)


def _plain(name: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    return onnxruntime.InferenceSession(parallax.zoo.load(name), options)


def _compare(ours: list[NDArray[Any]], theirs: list[NDArray[Any]], context: str) -> None:
    """Bit for bit; or within 1e-4 of the output's magnitude, where a cut chose another fused kernel."""
    assert len(ours) == len(theirs)
    for index, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        where = f"{context}, output {index}"
        assert our.dtype == their.dtype, where
        assert our.shape == their.shape, where
        if our.tobytes() == their.tobytes():
            continue
        assert our.dtype.kind == "f", f"{where}: whole numbers differ"
        magnitude = float(np.abs(their[np.isfinite(their)]).max(initial=0.0))
        np.testing.assert_allclose(our, their, rtol=1e-4, atol=1e-4 * magnitude, err_msg=where)


@_models
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.timeout(900)
def test_outputs_are_onnxruntimes(name: str, mode: str) -> None:
    plain = _plain(name)
    session = parallax.InferenceSession(parallax.zoo.load(name), **MODES[mode])
    for seed in range(3):
        feed = parallax.zoo.example_inputs(name, seed=seed)
        _compare(session.run(None, feed), plain.run(None, feed), f"{name}, seed {seed}")


@_models
@pytest.mark.timeout(900)
def test_forced_splitting_cuts(name: str) -> None:
    session = parallax.InferenceSession(parallax.zoo.load(name), **MODES["split"])
    assert len(session.plan.segments) > 1
    graph = load_model(parallax.zoo.load(name)).graph
    fed = {info.name for info in graph.inputs}
    varies = set()
    for node in graph.nodes:
        if not fed.isdisjoint((*node.inputs, *node.captures)) or not varies.isdisjoint(graph.predecessors[node.index]):
            varies.add(node.index)
    times = collections.Counter(node for segment in session.plan.segments for node in segment.nodes)
    # What is constant may be copied into every segment that reads it, and is folded there when it is opened.
    assert [node for node, count in times.items() if count > 1 and node in varies] == [], "work is done twice"


def _eight_threads(name: str, mode: str, runs: int) -> None:
    """Eight threads, ``runs`` runs each, of eight different inputs that every thread takes in another order."""
    plain = _plain(name)
    feeds = [parallax.zoo.example_inputs(name, seed=seed) for seed in range(8)]
    answers = [plain.run(None, feed) for feed in feeds]
    assert any(not np.array_equal(first, second) for first, second in zip(answers[0], answers[1], strict=True)), (
        "the inputs must tell the runs apart"
    )
    del plain
    session = parallax.InferenceSession(parallax.zoo.load(name), **MODES[mode])
    start, errors = threading.Barrier(8), []

    def work(number: int) -> None:
        try:
            start.wait(PATIENCE_S)
            for step in range(runs):
                which = (number + step * (1 + number % 3)) % 8
                _compare(session.run(None, feeds[which]), answers[which], f"thread {number}, run {step}")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    assert not errors, errors[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", QUICK)
def test_eight_threads_share_a_session(name: str, mode: str) -> None:
    _eight_threads(name, mode, runs=10)


RUNS = 200
RUNS_OF_HEAVY_CUTS = 25
HEAVY = ("clip-text", "distilbert", "swin-t", "swinv2-t", "vit-b16", "whisper-tiny-encoder")
"""Models that 1600 runs of take minutes: as sessions come they do them all, cut by force they do fewer."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", parallax.zoo.names())
def test_eight_threads_share_a_session_for_long(name: str, mode: str) -> None:
    _eight_threads(name, mode, runs=RUNS_OF_HEAVY_CUTS if mode == "split" and name in HEAVY else RUNS)
