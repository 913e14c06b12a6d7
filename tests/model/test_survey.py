"""What one look at the nodes tells agrees with what the graph tells."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from parallax import zoo
from parallax.errors import ModelError, ModelFileError
from parallax.model import load_model, read_model, read_summary

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'
IMPORTS = [helper.make_opsetid("", 21)]


@pytest.mark.parametrize("name", ["mobilenetv3-s", "lstm-if-loop"])
def test_it_counts_what_the_graph_holds(name: str) -> None:
    model = load_model(zoo.load(name))
    survey, graph = model.survey, model.graph
    assert survey.node_count == len(graph.nodes)
    assert survey.operators == Counter(node.op_type for node in graph.nodes)
    assert survey.inputs == tuple(info.name for info in graph.inputs)
    assert survey.outputs == tuple(info.name for info in graph.outputs)
    assert survey.with_bodies == sum(bool(node.bodies) for node in graph.nodes)


def test_the_largest_tensor_is_looked_for_wherever_the_file_states_one() -> None:
    def largest(text: str) -> int:
        return read_model(parser.parse_model(HEADER + text)).survey.largest_elements

    assert largest("g (float[3,5] x) => (float[N] y) { y = ReduceSum(x) }") == 15
    assert largest("g (float[N,7] x) => (float[N,9] y) { y = Concat<axis=1>(x, x) }") == 9
    assert largest("g (float[1] x) => (float[1] y) <float[4,4] a> { a = Expand(x, x)  y = ReduceSum(a) }") == 16
    weight = numpy_helper.from_array(np.zeros((6, 7), np.float32), "w")
    for constant in ([helper.make_node("Constant", [], ["w"], value=weight)], []):
        graph = helper.make_graph(
            [*constant, helper.make_node("Add", ["x", "w"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [] if constant else [weight],
        )
        assert read_model(helper.make_model(graph, ir_version=10, opset_imports=IMPORTS)).survey.largest_elements == 42


def test_gathers_that_pick_rows_of_weights_are_told_apart() -> None:
    def picked(node: str, data: str = "w", *, indices: str = "int64[2,3] i") -> tuple[int, dict[int, int]]:
        text = f"g (float[7,5,4] x, {indices}) => (float[N] y) <float[7,5,4] w, int64[2] k> {{ y = Gather{node} }}"
        model = parser.parse_model(HEADER + text.replace("DATA", data))
        weights = {"w": np.zeros((7, 5, 4), np.float32), "k": np.zeros(2, np.int64)}
        model.graph.initializer.extend([numpy_helper.from_array(array, name) for name, array in weights.items()])
        del model.graph.value_info[:]
        read = read_model(model).survey
        looked = read_summary(model.SerializeToString())
        assert looked is not None
        assert looked.survey == read
        return read.row_pickers, dict(read.picked_rows)

    assert picked("(DATA, i)") == picked("<axis=0>(DATA, i)") == (1, {20: 120})
    assert picked("(DATA, i)", indices="int64[N,3] i") == (1, {20: 60})  # an open size counts as 1
    assert picked("(DATA, k)") == (1, {20: 40})
    for other in ("<axis=1>(DATA, i)", "<axis=-3>(DATA, i)"):
        assert picked(other) == (0, {})
    assert picked("(DATA, i)", "x") == (0, {})  # no weight


def test_bodies_are_noticed_in_any_domain_that_may_have_them() -> None:
    body = parser.parse_graph("b () => (float[1] z) { z = Identity(x) }")
    for op_type, domain, attribute in (("If", "", "then_branch"), ("Own", "my.domain", "inner")):
        node = helper.make_node(op_type, ["c"], ["y"], domain=domain, **{attribute: body})
        graph = helper.make_graph(
            [node],
            "g",
            [helper.make_tensor_value_info("c", TensorProto.BOOL, []), helper.make_tensor_value_info("x", 1, [1])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        )
        imports = [helper.make_opsetid("", 21), helper.make_opsetid("my.domain", 1)]
        assert read_model(helper.make_model(graph, opset_imports=imports, ir_version=10)).survey.with_bodies == 1


def test_ifs_are_told_from_loops_and_what_their_branches_hold_is_counted() -> None:
    text = """
    g (bool c, int64 n, float[4] x) => (float[4] y) {
      a = If(c) <
        then_branch = t () => (float[4] p) { p = Sin(x) },
        else_branch = e () => (float[9,9] q) {
          q = If(c) <then_branch = u () => (r) { r = Sin(x) }, else_branch = v () => (s) { s = Cos(x) }>
        }
      >
      b = If(c) <then_branch = w () => (h) { h = Sin(x) }, else_branch = k () => (j) { j = LOOP }>
      y = Add(a, b)
    }"""
    loop = "Loop(n, c, x) <body = m (int64 i, bool d, float[4] f) => (bool g, float[4] l) { g = Not(d) l = Cos(f) }>"
    for inside, loops in (("Cos(x)", 0), (loop, 1)):
        survey = read_model(parser.parse_model(HEADER + text.replace("LOOP", inside))).survey
        assert (survey.with_bodies, survey.loops) == (2, loops)
        assert survey.operators == {"If": 2, "Add": 1}
        assert survey.largest_elements == 4
        assert (survey.branches.graphs, survey.branches.largest_elements) == (6, 81)
        counted = {"Sin": 3, "If": 1, "Cos": 1}
        assert survey.branches.operators == ({**counted, "Loop": 1} if loops else {**counted, "Cos": 2})


def test_an_initializer_that_is_an_input_too_is_no_input() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(parser.parse_model(HEADER + "g (float[2] x, float[2] w = {1, 2}) => (float[2] y) { y = Add(x, w) }"))
    assert read_model(model).survey.inputs == ("x",)


def test_a_model_that_was_only_read_tells_its_graph_s_fault_when_asked() -> None:
    data = helper.make_model(
        helper.make_graph(
            [helper.make_node("Sin", ["nowhere"], ["y"])],
            "g",
            [],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        ),
        ir_version=10,
        opset_imports=IMPORTS,
    ).SerializeToString()
    model = read_model(data)
    assert model.survey.node_count == 1
    assert model.fault is not None
    with pytest.raises(ModelError, match="nowhere"):
        model.inferred()
    with pytest.raises(ModelError, match="nowhere"):
        load_model(data)


def test_names_that_are_no_text_are_refused_where_they_are_looked_at() -> None:
    data = parser.parse_model(HEADER + "g (float[2] xyz) => (float[2] y) { y = Sin(xyz) }").SerializeToString()
    with pytest.raises(ModelFileError, match="UTF-8"):
        read_model(data.replace(b"xyz", b"xy\xff")).survey  # noqa: B018
