"""The Parallax paper's models (arXiv 2512.11532) and phones, and what both of its benchmarks share."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnxruntime
from _common import open_inputs

from parallax import zoo
from parallax.model import Model, load_model

MODELS = ("clip-text", "yolov8n", "distilbert", "swinv2-t", "whisper-tiny-encoder")
PHONES = ("pixel-6-gpu", "p30-pro-gpu", "redmi-k50-gpu")

MEAN_GOAL, BEST_GOAL = 0.30, 0.50
"""The reduction that the project promises: mean over the table, and the best row."""

GREEDY_NOTE = (
    "greedy: every supported fragment, one thing after the other, every tensor of a fragment through the host's "
    "memory, as TFLite's GPU delegate (delegates/gpu/delegate.cc: inputs and outputs are CPU_MEMORY) and ONNX "
    "Runtime's NNAPI provider (KernelContext_GetInput and _GetOutput in host memory) do; TFLite's default: likewise, "
    "only the largest fragments (1 of the GPU delegate's, 3 of NNAPI's)"
)


def converted(path: Path, shapes: Mapping[str, Sequence[int]] | None) -> onnx.ModelProto:
    """The model as a delegate's converter leaves it: shapes fixed, everything constant computed, nothing fused.

    ONNX Runtime's basic optimisations do that, and they are the same whatever runs the model.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        fixed, folded = Path(folder) / "fixed.onnx", Path(folder) / "folded.onnx"
        model = onnx.load(path)
        for value in model.graph.input:
            for axis, size in enumerate((shapes or {}).get(value.name, ())):
                value.type.tensor_type.shape.dim[axis].dim_value = size
        onnx.save(model, fixed)
        options.optimized_model_filepath = str(folded)
        onnxruntime.InferenceSession(str(fixed), options, providers=["CPUExecutionProvider"])
        model = onnx.load(folded)
    # The runtime names what it computes; when it optimises parts of this model, it would choose the same names again.
    names = {tensor.name: f"constant_{number}" for number, tensor in enumerate(model.graph.initializer)}
    for tensor in model.graph.initializer:
        tensor.name = names[tensor.name]
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    return model


def load_converted(name: str) -> Model:
    """A zoo model so converted, with its example inputs' shapes."""
    path = Path(zoo.load(name))
    return load_model(converted(path, open_inputs(path, zoo.example_inputs(name))))
