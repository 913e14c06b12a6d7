"""Segments on other backends than the runtime's CPU kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.backends import CompiledModel, CompileOptions, Place, open_backend
from parallax.backends.ort import CPU_DEVICE, RuntimeOptions
from parallax.engine import SpanObserver, TraceRecorder, compile_plan
from parallax.errors import BackendError, ConfigError, RunCancelled, SegmentError
from parallax.model import Model, SegmentModel, load_model
from parallax.planner._placing import plan_whole_on
from parallax.schedule import Plan, Segment

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


def halves() -> Model:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "yz"],
    )
    return load_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


def test_a_whole_model_elsewhere_gives_what_was_asked_for() -> None:
    plan, _ = plan_whole_on("CPUExecutionProvider", halves(), cores=2)
    assert plan is not None
    executor = compile_plan(halves(), plan, RuntimeOptions())
    value = C.OrtValue.ortvalue_from_numpy(X, CPU_DEVICE)
    for names in (["z"], ["z", "y"], ["y", "z", "y"], []):
        for made, name in zip(executor.run({"x": value}, names), names, strict=True):
            np.testing.assert_array_equal(made.numpy(), X + X if name == "y" else -X)
    recorder = TraceRecorder()
    executor.events.add(SpanObserver(recorder))
    executor.run({"x": value}, ["y"])
    assert [span.name for span in recorder.take()] == ["whole_model"]


def test_what_fails_in_a_whole_model_elsewhere_names_its_nodes() -> None:
    plan, _ = plan_whole_on("CPUExecutionProvider", halves(), cores=2)
    assert plan is not None
    executor = compile_plan(halves(), plan, RuntimeOptions())
    wrong = C.OrtValue.ortvalue_from_numpy(np.zeros((5, 5), np.float32), CPU_DEVICE)
    with pytest.raises(SegmentError, match="whole_model"):
        executor.run({"x": wrong}, ["y"])
    stopped = C.RunOptions()
    stopped.terminate = True
    with pytest.raises(RunCancelled):
        executor.run({"x": C.OrtValue.ortvalue_from_numpy(X, CPU_DEVICE)}, ["y"], stopped)
    (y,) = executor.run({"x": C.OrtValue.ortvalue_from_numpy(X, CPU_DEVICE)}, ["y"])
    np.testing.assert_array_equal(y.numpy(), X + X)


def cut(model: Model, parts: Sequence[tuple[tuple[int, ...], str]]) -> Plan:
    """A plan of segments one after the other: (nodes, backend) each."""
    graph = model.graph
    segments = []
    for index, (nodes, backend) in enumerate(parts):
        inside = {name for node in nodes for name in graph.nodes[node].outputs}
        read = dict.fromkeys(name for node in nodes for name in graph.nodes[node].inputs if name not in inside)
        outside = {name for node in graph.nodes if node.index not in nodes for name in node.inputs}
        segments.append(
            Segment(
                index=index,
                name=f"segment_{index}",
                nodes=nodes,
                inputs=tuple(read),
                outputs=tuple(sorted(inside & (outside | set(graph.output_names)))),
                predecessors=tuple(range(index)),
                width=1,
                priority=-index,
                lane=None,
                cost_ns=1000,
                backend=backend,
                reason="hand-made",
            )
        )
    whole, _ = plan_whole_on("CPUExecutionProvider", model, cores=1)
    assert whole is not None
    return replace(whole, segments=tuple(segments))


def test_a_plan_names_the_backend_that_runs_it() -> None:
    model = doubling()
    plan, obstacle = plan_whole_on("CPUExecutionProvider", model, cores=1)
    assert plan is not None, obstacle
    assert not plan.is_whole
    plan = Plan.from_json(plan.to_json())
    assert plan.segments[0].backend == "CPUExecutionProvider"
    executor = compile_plan(model, plan, RuntimeOptions())
    (result,) = executor.run({"x": C.OrtValue.ortvalue_from_numpy(X, CPU_DEVICE)}, ["y"])
    np.testing.assert_array_equal(result.numpy(), X + X)


class Watched:
    """An emulated device that notes where each output is to go."""

    def __init__(self) -> None:
        self._device = open_backend("emulated:jetson-agx-orin", {"speed": 1000})
        self.info = self._device.info
        self.targets: dict[str, object] = {}

    def compile(self, segment: SegmentModel, *, width: int, options: CompileOptions) -> CompiledModel:
        model = self._device.compile(segment, width=width, options=options)
        run_bound = model.run_bound

        def noting(feeds: Any, targets: Any, run_options: Any = None) -> Any:
            self.targets.update(targets)
            return run_bound(feeds, targets, run_options)

        model.run_bound = noting  # type: ignore[method-assign]
        return model


def test_what_the_processor_reads_on_the_device_is_not_copied_but_what_is_returned() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Erf", ["a"], ["b"]),
        helper.make_node("Neg", ["a"], ["y"]),
        helper.make_node("Add", ["b", "y"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "yz"],
    )
    model = load_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    device = Watched()
    plan = cut(model, [((0, 2), device.info.name), ((1, 3), "cpu")])
    executor = compile_plan(model, plan, RuntimeOptions(), backends={device.info.name: device})  # type: ignore[dict-item]
    for _ in range(3):
        y, z = executor.run({"x": C.OrtValue.ortvalue_from_numpy(X - 2, CPU_DEVICE)}, ["y", "z"])
        positive = np.maximum(X - 2, 0)
        np.testing.assert_array_equal(y.numpy(), -positive)
        np.testing.assert_allclose(z.numpy(), np.vectorize(math.erf)(positive) - positive, rtol=1e-6)
        y.update_inplace(np.zeros((2, 3), np.float32))
    assert device.targets == {"a": None, "y": Place.HOST}


def test_a_backend_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises((ConfigError, BackendError), match="nowhere"):
        plan_whole_on("nowhere", doubling(), cores=1)
