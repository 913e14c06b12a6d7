"""Redrawn models compute: finite, varied outputs that depend on the input, in ONNX Runtime itself."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from parallax import zoo

SMALL = ("lstm-if-loop", "mobilenetv3-s", "yolov8n")


def session(name: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    path = zoo.load(name)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def check_outputs_are_alive(name: str, **dims: int) -> None:
    running = session(name)
    results = [running.run(None, zoo.example_inputs(name, seed=seed, **dims)) for seed in (0, 1)]
    for output, first, second in zip(zoo.info(name).outputs, *results, strict=True):
        if first.dtype.kind != "f":
            continue
        assert np.isfinite(first).all(), output
        assert float(first.std()) > 1e-3, output
        assert float(np.abs(first).max()) < 1e4, output
        assert first.shape != second.shape or not np.array_equal(first, second), output


@pytest.mark.parametrize("name", SMALL)
def test_small_models_compute(name: str) -> None:
    check_outputs_are_alive(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(zoo.names()) - set(SMALL)))
def test_all_models_compute(name: str) -> None:
    check_outputs_are_alive(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in zoo.names() if zoo.info(name).dynamic_dims])
def test_models_with_dynamic_dims_compute_in_other_sizes(name: str) -> None:
    dims = {dim.name: 2 if dim.name == "batch" else 9 for dim in zoo.info(name).dynamic_dims}
    check_outputs_are_alive(name, **dims)


def test_yolo_output_has_the_known_shape_and_ranges() -> None:
    (output,) = session("yolov8n").run(None, zoo.example_inputs("yolov8n"))
    assert output.shape == (1, 84, 8400)
    assert (output[:, 2:4] > 0).all()
    assert ((output[:, 4:] >= 0) & (output[:, 4:] <= 1)).all()


def test_loop_runs_as_long_as_the_data_says() -> None:
    running = session("lstm-if-loop")
    steps = set()
    for seed in range(6):
        logits, count = running.run(None, zoo.example_inputs("lstm-if-loop", seed=seed))
        assert logits.shape == (1, int(count), 128)
        steps.add(int(count))
    assert len(steps) > 1
