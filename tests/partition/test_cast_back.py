"""Casts there and back that a body captures stay with what they cast: ONNX Runtime cannot run them by themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import parallax
from parallax.graph import OpGraph
from parallax.partition import bodies_cast_back, group_fusions
from tests.partition._graphs import op_graph

Rows = list[tuple[str, str, list[str], list[str]]]
TWO: Rows = [("there", "Cast", ["a"], ["b"]), ("back", "Cast", ["b"], ["c"])]
WITH_MORE: Rows = [("there", "Cast", ["a"], ["b"]), ("i", "Identity", ["b"], ["d"]), ("back", "Cast", ["d"], ["c"])]
ONE: Rows = [("back", "Cast", ["a"], ["c"])]


def captured(rows: Rows) -> OpGraph:
    body = op_graph([("neg", "Neg", ["c"], ["z"])], outputs=["z"])
    return op_graph(
        [("make", "Sin", ["x"], ["a"]), *rows, ("if", "If", ["k"], ["y"])],
        outputs=["y"],
        bodies={"if": body},
        captures={"if": ["c"]},
    )


def group_of(graph: OpGraph, name: str) -> set[str]:
    """The names in the group of a node."""
    groups = group_fusions(graph, tiny_elements=0)
    return next(names for group in groups.members if name in (names := {graph.nodes[index].name for index in group}))


@pytest.mark.parametrize("rows", [TWO, WITH_MORE], ids=["two casts", "something between"])
def test_casts_there_and_back_stay_with_what_they_cast(rows: Rows) -> None:
    assert group_of(captured(rows), "make") == {"make", *(name for name, *_ in rows)}


def test_one_cast_may_part_from_what_it_casts() -> None:
    assert group_of(captured(ONE), "make") == {"make"}


def test_casts_that_no_body_captures_may_part_from_what_they_cast() -> None:
    graph = op_graph([("make", "Sin", ["x"], ["a"]), *TWO, ("read", "Neg", ["c"], ["y"])], outputs=["y"])
    assert group_of(graph, "make") == {"make"}


def test_casts_in_an_arm_stay_with_what_they_cast() -> None:
    """The runtime puts the arm into the graph, if the condition is constant."""
    inner = op_graph([("neg", "Neg", ["c"], ["z"])], outputs=["z"])
    arm = op_graph(
        [*TWO, ("inner", "If", ["k2"], ["y2"])], outputs=["y2"], bodies={"inner": inner}, captures={"inner": ["c"]}
    )
    graph = op_graph(
        [("make", "Sin", ["x"], ["a"]), ("if", "If", ["k"], ["y"]), ("read", "Neg", ["a"], ["v"])],
        outputs=["y", "v"],
        bodies={"if": arm},
        captures={"if": ["a"]},
    )
    assert group_of(graph, "make") == {"make", "if"}
    assert bodies_cast_back(graph.nodes[1]), "by itself, what the arm casts would be its input"
    assert not bodies_cast_back(captured(TWO).nodes[-1]), "there, the casts are outside"


def test_a_split_model_whose_body_captures_casts_there_and_back_gives_onnx_runtimes_answer(tmp_path: Path) -> None:
    def told(
        name: str, element: int = TensorProto.FLOAT, shape: tuple[int, ...] | None = (2, 8)
    ) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, element, shape)

    arms = [
        helper.make_graph([helper.make_node(kind, ["c"], ["z"])], kind, [], [told("z", shape=None)])
        for kind in ("Neg", "Abs")
    ]
    nodes = [
        helper.make_node("Sin", ["x"], ["a"]),
        helper.make_node("Cast", ["a"], ["b"], to=TensorProto.DOUBLE),
        helper.make_node("Cast", ["b"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("If", ["k"], ["y"], then_branch=arms[0], else_branch=arms[1]),
        # A second way through the model, so that there is something to split for.
        helper.make_node("Cos", ["x"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["e"]),
        helper.make_node("Add", ["a", "e"], ["v"]),
    ]
    graph = helper.make_graph(
        nodes,
        "casts",
        [told("x"), told("k", TensorProto.BOOL, ())],
        [told("y"), told("v")],
        [onnx.numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")],
    )
    path = tmp_path / "casts.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    feeds = {"x": np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8), "k": np.array(True)}
    want = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)
    session = parallax.InferenceSession(path, min_gain=0, threads=2)
    assert len(session.plan.segments) > 1
    for one, other in zip(want, session.run(None, feeds), strict=True):
        np.testing.assert_array_equal(one, other)
