"""Networks that place, made of a few operators: what a trained one looks like to those who run it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from parallax.planner._learned import KIND_KEY, PROPOSER, SCHEDULER, VERSION_KEY
from parallax.schedule.placement import BRANCH_COLUMNS, FEATURES_VERSION, MACHINE_COLUMNS, OBSERVATION_SIZE


def proposer(path: Path, *, column: str = "cpu over device", thresholds: tuple[float, float] = (1.0, 0.5)) -> Path:
    """It inclines by one column of the rows, and always gives the same thresholds."""
    weight = np.zeros((len(BRANCH_COLUMNS), 1), np.float32)
    weight[BRANCH_COLUMNS.index(column)] = 1
    nodes = [
        helper.make_node("MatMul", ["branches", "weight"], ["rows"]),
        helper.make_node("Squeeze", ["rows", "axis"], ["flat"]),
        helper.make_node("Mul", ["flat", "present"], ["inclinations"]),
        helper.make_node("ReduceSum", ["machine", "second"], ["total"], keepdims=1),
        helper.make_node("Mul", ["total", "nothing"], ["zero"]),
        helper.make_node("Add", ["zero", "given"], ["thresholds"]),
    ]
    graph = helper.make_graph(
        nodes,
        "proposer",
        [
            helper.make_tensor_value_info("branches", TensorProto.FLOAT, ["batch", "rows", len(BRANCH_COLUMNS)]),
            helper.make_tensor_value_info("present", TensorProto.FLOAT, ["batch", "rows"]),
            helper.make_tensor_value_info("machine", TensorProto.FLOAT, ["batch", len(MACHINE_COLUMNS)]),
        ],
        [
            helper.make_tensor_value_info("inclinations", TensorProto.FLOAT, ["batch", "rows"]),
            helper.make_tensor_value_info("thresholds", TensorProto.FLOAT, ["batch", 2]),
        ],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.array([2]), "axis"),
            numpy_helper.from_array(np.array([1]), "second"),
            numpy_helper.from_array(np.zeros(1, np.float32), "nothing"),
            numpy_helper.from_array(np.array([thresholds], np.float32), "given"),
        ],
    )
    return _saved(graph, path, PROPOSER)


def scheduler(path: Path, *, bias: float) -> Path:
    """It says the same of every branch."""
    nodes = [
        helper.make_node("MatMul", ["observation", "weight"], ["zero"]),
        helper.make_node("Add", ["zero", "bias"], ["action"]),
    ]
    graph = helper.make_graph(
        nodes,
        "scheduler",
        [helper.make_tensor_value_info("observation", TensorProto.FLOAT, ["batch", OBSERVATION_SIZE])],
        [helper.make_tensor_value_info("action", TensorProto.FLOAT, ["batch", 1])],
        [
            numpy_helper.from_array(np.zeros((OBSERVATION_SIZE, 1), np.float32), "weight"),
            numpy_helper.from_array(np.array([bias], np.float32), "bias"),
        ],
    )
    return _saved(graph, path, SCHEDULER)


def _saved(graph: onnx.GraphProto, path: Path, kind: str) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {KIND_KEY: kind, VERSION_KEY: str(FEATURES_VERSION)})
    path.write_bytes(model.SerializeToString())
    return path
