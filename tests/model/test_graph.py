from __future__ import annotations

import copy
import pickle

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from parallax.graph import OpGraph, constant_value
from parallax.model import load_model
from tests.model._models import conv_model, model, node, value, weight

BOOL = onnx.TensorProto.BOOL


def graph_of(*nodes: onnx.NodeProto, outputs: str = "y", **fields: object) -> OpGraph:
    return load_model(
        model(nodes, [value("x")], [value(name) for name in outputs.split()], **fields)  # type: ignore[arg-type]
    ).graph


def check_invariants(graph: OpGraph) -> None:
    """What ``OpGraph`` promises, checked from the nodes alone."""
    assert [node.index for node in graph.nodes] == list(range(len(graph.nodes)))
    assert len({node.name for node in graph.nodes}) == len(graph.nodes)
    assert graph.producers == {name: node.index for node in graph.nodes for name in node.outputs if name}
    readers: dict[str, set[int]] = {}
    for each in graph.nodes:
        for name in (*each.inputs, *each.captures):
            if name:
                readers.setdefault(name, set()).add(each.index)
                if name in graph.producers:
                    assert graph.producers[name] < each.index
    assert {name: set(found) for name, found in graph.consumers.items()} == readers
    assert all(list(found) == sorted(set(found)) for found in graph.consumers.values())


def test_edges_count_each_neighbour_once_and_skip_omitted_tensors() -> None:
    graph = graph_of(
        node("Relu", "x", "a"),
        node("Mul", "a a", "b"),
        node("Clip", "b - a", "c"),
        node("Dropout", "c", "y -"),
    )
    check_invariants(graph)
    assert graph.consumers["a"] == (1, 2)
    assert "" not in graph.consumers
    assert "" not in graph.producers
    assert graph.predecessors == ((), (0,), (0, 1), (2,))
    assert graph.nodes[2].inputs == ("b", "", "a")


def test_a_file_out_of_order_is_sorted_and_otherwise_keeps_its_order() -> None:
    graph = graph_of(
        node("Add", "b c", "y", name="last"),
        node("Relu", "a", "b", name="left"),
        node("Neg", "a", "c", name="right"),
        node("Abs", "x", "a", name="first"),
    )
    check_invariants(graph)
    assert [node.name for node in graph.nodes] == ["first", "left", "right", "last"]


def test_names_are_unique_and_the_files_own_where_possible() -> None:
    graph = graph_of(
        node("Relu", "x", "a", name="same"),
        node("Relu", "a", "b", name="same"),
        node("Relu", "b", "c"),
        node("Relu", "c", "y", name="Relu_1"),
    )
    assert [node.name for node in graph.nodes] == ["same", "Relu_1_", "Relu_2", "Relu_1"]


def test_attributes_are_plain_values_and_tensors_are_left_out() -> None:
    made = node(
        "Custom",
        "x",
        "y",
        domain="test",
        one=1,
        half=0.5,
        word="w",
        ints=[1, 2],
        floats=[0.5, 1.0],
        words=["a", "b"],
        tensor=numpy_helper.from_array(np.zeros(2)),
    )
    proto = model([made], [value("x")], [value("y")])
    proto.opset_import.append(helper.make_opsetid("test", 1))
    attributes = load_model(proto).graph.nodes[0].attributes
    assert dict(attributes) == {
        "one": 1, "half": 0.5, "word": "w", "ints": (1, 2), "floats": (0.5, 1.0), "words": ("a", "b")
    }  # fmt: skip
    assert "tensor" not in attributes
    assert pickle.loads(pickle.dumps(attributes)) == dict(attributes)


def test_attributes_without_a_stated_kind_are_read_by_content() -> None:
    made = node("LeakyRelu", "x", "y", alpha=0.25)
    made.attribute[0].ClearField("type")
    assert dict(graph_of(made).nodes[0].attributes) == {"alpha": 0.25}


def test_a_graph_can_be_copied_and_pickled() -> None:
    graph = load_model(conv_model()).inferred()
    for twin in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        assert twin == graph
        assert constant_value(twin, "shape") is not None


def test_captures_are_the_outer_tensors_that_bodies_read_at_any_depth() -> None:
    inner = helper.make_graph([node("Add", "deep here", "i")], "inner", [], [value("i")])
    other = helper.make_graph([node("Identity", "x", "j")], "other", [], [value("j")])
    then_body = helper.make_graph(
        [node("Relu", "outer", "here"), node("If", "c", "t", then_branch=inner, else_branch=other)],
        "then", [], [value("t")],
    )  # fmt: skip
    else_body = helper.make_graph([node("Add", "x w", "e")], "else", [], [value("e")], [
        numpy_helper.from_array(weight((3,)), "w")
    ])  # fmt: skip
    proto = model(
        [
            node("Relu", "x", "outer"),
            node("Neg", "x", "deep"),
            node("If", "c", "y", name="branch", then_branch=then_body, else_branch=else_body),
        ],
        [value("x"), value("c", (), BOOL)],
        [value("y")],
        {"w": weight((3,), 1)},
    )
    graph = load_model(proto).graph
    check_invariants(graph)
    branch = graph.nodes[2]
    assert set(branch.captures) == {"outer", "deep", "c", "x"}
    assert graph.predecessors[2] == (0, 1)
    assert dict(branch.bodies).keys() == {"then_branch", "else_branch"}
    assert [body.name for body, _ in graph.walk()].count("inner") == 1
    assert "w" not in branch.captures, "the body's own initializer hides the outer one"


def test_loop_bodies_define_their_own_inputs() -> None:
    body = helper.make_graph(
        [node("Identity", "go", "again"), node("Add", "state step", "next")],
        "body",
        [value("i", (), onnx.TensorProto.INT64), value("go", (), BOOL), value("state")],
        [value("again", (), BOOL), value("next")],
    )
    proto = model(
        [node("Neg", "x", "step"), node("Loop", "n - x", "y", body=body)],
        [value("x"), value("n", (), onnx.TensorProto.INT64)],
        [value("y")],
    )
    graph = load_model(proto).graph
    assert graph.nodes[1].captures == ("step",)
    assert graph.predecessors[1] == (0,)
    ((_, built),) = graph.nodes[1].bodies
    assert [info.name for info in built.inputs] == ["i", "go", "state"]


def test_local_functions_are_inlined() -> None:
    loaded = load_model(conv_model())
    assert [node.op_type for node in loaded.graph.nodes] == [
        "Conv", "Relu", "Add", "ReduceMean", "Reshape", "Constant", "If"
    ]  # fmt: skip
    assert len(loaded.graph.nodes[6].captures) == 2
    check_invariants(loaded.graph)


def test_the_onnx_domain_has_one_spelling() -> None:
    made = node("Relu", "x", "y", domain="ai.onnx")
    proto = model([made], [value("x")], [value("y")])
    proto.opset_import[0].domain = "ai.onnx"
    loaded = load_model(proto)
    assert loaded.graph.nodes[0].domain == ""
    assert loaded.opset_imports == {"": 21}


@pytest.mark.parametrize(("ir_version", "overridable"), [(3, []), (4, ["w"]), (10, ["w"])])
def test_initializers_that_are_inputs_may_be_overridden_from_ir_version_4_on(
    ir_version: int, overridable: list[str]
) -> None:
    proto = model(
        [node("Add", "x w", "y")], [value("x"), value("w")], [value("y")], {"w": weight((3,))}, opset=9,
        ir_version=ir_version,
    )  # fmt: skip
    graph = load_model(proto).graph
    assert [info.name for info in graph.inputs] == ["x"]
    assert [info.name for info in graph.overridable] == overridable
    assert (constant_value(graph, "w") is None) == bool(overridable)


def test_small_constants_have_their_values_within_reach() -> None:
    graph = graph_of(
        node("Constant", "", "a", value=numpy_helper.from_array(np.array([1, 2]))),
        node("Constant", "", "b", value_int=3),
        node("Constant", "", "c", value_floats=[0.5, 1.5]),
        node("Constant", "", "d", value_string="text"),
        node("Constant", "", "e", value=numpy_helper.from_array(np.zeros(2000))),
        node("Relu", "x", "y"),
        initializers={"small": np.array([7], np.int64), "large": weight((1000,)), "medium": np.zeros(257, np.float32)},
    )
    found = {name: constant_value(graph, name) for name in ("a", "b", "c", "small")}
    assert {name: array.tolist() for name, array in found.items() if array is not None} == {
        "a": [1, 2], "b": 3, "c": [0.5, 1.5], "small": [7]
    }  # fmt: skip
    assert all(not array.flags.writeable for array in found.values() if array is not None)
    assert [constant_value(graph, name) for name in ("d", "e", "large", "medium", "x", "y", "nothing")] == [None] * 7
    assert set(graph.constants) == {"a", "b", "c", "small"}


def test_an_undecodable_constant_is_no_constant() -> None:
    made = node("Constant", "", "y", value=numpy_helper.from_array(np.zeros(3)))
    made.attribute[0].t.dims[:] = [2**40]
    assert constant_value(graph_of(made), "y") is None


def test_declared_types_are_those_of_the_file() -> None:
    sequence = helper.make_tensor_sequence_value_info("s", onnx.TensorProto.FLOAT, None)
    optional = onnx.ValueInfoProto(name="o")
    optional.type.optional_type.elem_type.tensor_type.elem_type = onnx.TensorProto.INT64
    mapping = onnx.ValueInfoProto(name="m")
    mapping.type.map_type.key_type = onnx.TensorProto.STRING
    mapping.type.map_type.value_type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    sparse = onnx.ValueInfoProto(name="p")
    sparse.type.sparse_tensor_type.elem_type = onnx.TensorProto.DOUBLE
    proto = model(
        [node("Relu", "x", "y")],
        [value("x", ("batch", 3, None, -1)), sequence, optional, mapping, sparse],
        [value("y", None), value("w", (400,))],
        {"w": weight((400,))},
    )
    graph = load_model(proto).graph
    kinds = {info.name: (info.kind, info.dtype, info.shape) for info in graph.inputs}
    assert kinds == {
        "x": ("tensor", 1, ("batch", 3, None, None)),
        "s": ("sequence", 1, None),
        "o": ("optional", 7, None),
        "m": ("map", 1, None),
        "p": ("sparse", 11, None),
    }
    assert graph.tensors["w"].shape == (400,)
    assert graph.tensors["w"].is_static
    assert not graph.tensors["x"].is_static
    assert graph.tensors["y"].shape is None


def test_sparse_initializers_are_initializers() -> None:
    sparse = onnx.SparseTensorProto(dims=[3])
    sparse.values.CopyFrom(numpy_helper.from_array(np.array([5], np.float32), "w"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([1]), "i"))
    graph = graph_of(node("Add", "x w", "y"), sparse_initializer=[sparse])
    assert graph.initializers["w"].shape == (3,)


@given(st.data())
def test_any_order_of_nodes_in_the_file_is_sorted(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 30))
    nodes = []
    for index in range(count):
        reads = data.draw(st.lists(st.integers(-1, index - 1), min_size=1, max_size=3))
        names = " ".join("x" if read < 0 else f"t{read}" for read in reads)
        nodes.append(node("Sum", names, f"t{index}", name=f"n{index}"))
    shuffled = data.draw(st.permutations(nodes))
    graph = load_model(model(shuffled, [value("x")], [value(f"t{count - 1}")])).graph
    check_invariants(graph)
    assert {node.name for node in graph.nodes} == {node.name for node in nodes}
