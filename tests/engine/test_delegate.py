"""Segments on other backends than the runtime's CPU kernels."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.engine import CPU_DEVICE, RuntimeOptions, compile_plan
from parallax.errors import BackendError, ConfigError
from parallax.model import Model, load_model
from parallax.schedule import Plan
from parallax.session._planning import plan_whole_on

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def doubling() -> Model:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return load_model(model)


def test_a_plan_names_the_backend_that_runs_it() -> None:
    model = doubling()
    plan, obstacle = plan_whole_on("CPUExecutionProvider", model, cores=1)
    assert plan is not None, obstacle
    assert not plan.is_uncut
    plan = Plan.from_json(plan.to_json())
    assert plan.segments[0].backend == "CPUExecutionProvider"
    executor = compile_plan(model, plan, RuntimeOptions())
    (result,) = executor.run({"x": C.OrtValue.ortvalue_from_numpy(X, CPU_DEVICE)}, ["y"])
    np.testing.assert_array_equal(result.numpy(), X + X)


def test_a_backend_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises((ConfigError, BackendError), match="nowhere"):
        plan_whole_on("nowhere", doubling(), cores=1)
