"""Small models for the command line's tests, and a runner that keeps stdout and stderr apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from typer.testing import CliRunner, Result

from parallax.cli import app


def invoke(*arguments: object) -> Result:
    """Run a command in this process; an exception that is not turned into an exit code is raised here."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def save(nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[Any], path: Path) -> Path:
    graph = helper.make_graph(nodes, "test", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def value(name: str, dtype: int, shape: Any) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def affine(path: Path) -> Path:
    """y = x * x + x, x float32 [2, 3]."""
    nodes = [helper.make_node("Mul", ["x", "x"], ["square"]), helper.make_node("Add", ["square", "x"], ["y"])]
    return save(nodes, [value("x", TensorProto.FLOAT, [2, 3])], [value("y", TensorProto.FLOAT, [2, 3])], path)


def affine_of(x: np.ndarray) -> np.ndarray:
    return x * x + x


def two_inputs(path: Path) -> Path:
    """total = Gather(table, index) + bias; table float32 [batch, 4], index int64 [n], bias float32 []."""
    nodes = [
        helper.make_node("Gather", ["table", "index"], ["rows"], axis=1),
        helper.make_node("Add", ["rows", "bias"], ["total"]),
    ]
    inputs = [
        value("table", TensorProto.FLOAT, ["batch", 4]),
        value("index", TensorProto.INT64, ["n"]),
        value("bias", TensorProto.FLOAT, []),
    ]
    return save(nodes, inputs, [value("total", TensorProto.FLOAT, ["batch", "n"])], path)


def branching(path: Path) -> Path:
    """A splitter, two chains of three and a merger over float32 [rows, 8]."""
    nodes = [helper.make_node("Relu", ["x"], ["start"])]
    for side, op_type in (("left", "Sin"), ("right", "Cos")):
        current = "start"
        for link in range(3):
            nodes.append(helper.make_node(op_type, [current], [f"{side}_{link}"]))
            current = f"{side}_{link}"
    nodes.append(helper.make_node("Add", ["left_2", "right_2"], ["y"]))
    shape = ["rows", 8]
    return save(nodes, [value("x", TensorProto.FLOAT, shape)], [value("y", TensorProto.FLOAT, shape)], path)


def choosing(path: Path) -> Path:
    """y = x + x if flag else x * x * x, by an If node."""
    then_graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["sum"])], "then", [], [value("sum", TensorProto.FLOAT, [4])]
    )
    else_graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "x"], ["square"]), helper.make_node("Mul", ["square", "x"], ["cube"])],
        "else",
        [],
        [value("cube", TensorProto.FLOAT, [4])],
    )
    nodes = [
        helper.make_node("If", ["flag"], ["y"], name="choose", then_branch=then_graph, else_branch=else_graph),
    ]
    inputs = [value("x", TensorProto.FLOAT, [4]), value("flag", TensorProto.BOOL, [])]
    return save(nodes, inputs, [value("y", TensorProto.FLOAT, [4])], path)


def counting(path: Path) -> Path:
    """Adds 1 to ``start`` two thousand million times: ends only when it is stopped."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["sum", "one"], ["sum_out"]),
        ],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("sum", TensorProto.FLOAT, [])],
        [value("go_on", TensorProto.BOOL, []), value("sum_out", TensorProto.FLOAT, [])],
    )
    nodes = [
        helper.make_node("Constant", [], ["trips"], value_int=2_000_000_000),
        helper.make_node("Constant", [], ["yes"], value=onnx.numpy_helper.from_array(np.array(True))),
        helper.make_node("Constant", [], ["one"], value_float=1.0),
        helper.make_node("Loop", ["trips", "yes", "start"], ["y"], body=body),
    ]
    return save(nodes, [value("start", TensorProto.FLOAT, [])], [value("y", TensorProto.FLOAT, [])], path)
