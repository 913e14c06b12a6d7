"""A model that is only looked at is one that reading it whole would say the same of."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no types
from onnx import TensorProto, helper, numpy_helper

from parallax.errors import ModelError
from parallax.model import ModelSummary, load_model, read_model, read_summary
from parallax.planner._default_policy import DENSE, ONE_CORE, why_whole_at_sight
from parallax.planner._planning import _plan_unasked

MUTATIONS = 1500


def tensor(name: str, *shape: int, dtype: Any = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.arange(int(np.prod(shape))).reshape(shape).astype(dtype), name)


def model(*, width: int = 8) -> onnx.ModelProto:
    """A product, constants in several forms, a list as an attribute, an open size, a stated intermediate."""
    typed = helper.make_tensor("typed", TensorProto.INT64, [2], [-1, width])
    floats = helper.make_tensor("floats", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    nodes = [
        helper.make_node("Constant", [], ["shape"], value=typed, name="shape_of"),
        helper.make_node("Constant", [], ["half"], value=tensor("", 1)),
        helper.make_node("MatMul", ["x", "w"], ["product"], name="product"),
        helper.make_node("Add", ["product", "b"], ["sum"], domain="ai.onnx"),
        helper.make_node("Mul", ["sum", "half"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "shape"], ["reshaped"]),
        helper.make_node("Transpose", ["reshaped"], ["y"], perm=[1, 0]),
    ]
    graph = helper.make_graph(
        nodes,
        "summarised",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [width, None])],
        [
            tensor("w", width, width),
            tensor("b", width),
            floats,
            tensor("unread", 3, dtype=np.int64),
            tensor("half_precision", 5, dtype=np.float16),
            tensor("empty", 0),
        ],
        value_info=[helper.make_tensor_value_info("sum", TensorProto.FLOAT, [7, 3, width])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    made.producer_name = "tests"
    entry = made.metadata_props.add()
    entry.key, entry.value = "labels", "cat,dog"
    return made


def seen(proto: onnx.ModelProto) -> ModelSummary | None:
    return read_summary(proto.SerializeToString())


def check_same(look: ModelSummary, data: bytes) -> None:
    """What was seen is what is read, and the graph can be built."""
    whole = load_model(data)
    assert look.survey == whole.survey
    assert look.weight_bytes == whole.weight_bytes
    assert look.structure_digest == whole.structure_digest
    assert look.domains == {node.domain for _, node in whole.graph.walk()}
    assert whole.why_whole is None
    assert {info.name for info in whole.graph.outputs} <= whole.graph.producers.keys()
    weights = whole.graph.initializers
    for op_type, (elements, most) in look.weights_read.items():
        read = [
            [name for name in node.inputs if name in weights] for node in whole.graph.nodes if node.op_type == op_type
        ]
        assert most == max(map(len, read))
        assert elements == sum(int(np.prod(weights[name].shape)) for names in read for name in names)


def branch(name: str, *nodes: onnx.NodeProto, dtype: int | None = None) -> onnx.GraphProto:
    """A branch that gives ``out``: of no type, as expanded functions leave it, or of a stated one."""
    out = onnx.ValueInfoProto(name="out") if dtype is None else helper.make_tensor_value_info("out", dtype, ["n", 11])
    return helper.make_graph(nodes, name, [], [out], [tensor("inner", 4, 5)] if dtype else [])


def choice(condition: str, output: str, *, then: onnx.GraphProto, other: onnx.GraphProto) -> onnx.NodeProto:
    return helper.make_node("If", [condition], [output], then_branch=then, else_branch=other)


def branching() -> onnx.ModelProto:
    """`model` with two Ifs, of which one holds another, that read what is around them."""
    proto = model()
    deep = branch("deep", helper.make_node("Add", ["sum", "half"], ["out"], domain="ai.onnx"))
    flat = branch("flat", helper.make_node("Identity", ["b"], ["out"]), dtype=TensorProto.FLOAT)
    constant = helper.make_node("Constant", [], ["no"], value=tensor("", dtype=np.bool_))
    nested = branch("nested", constant, choice("no", "out", then=deep, other=flat))
    proto.graph.node.extend(
        [
            helper.make_node("Constant", [], ["yes"], value=tensor("", dtype=np.bool_)),
            choice("yes", "z0", then=nested, other=flat),
            choice("yes", "z1", then=flat, other=deep),
        ]
    )
    return proto


def test_branches_are_seen_as_they_are_read() -> None:
    data = branching().SerializeToString()
    look = read_summary(data)
    assert look is not None
    check_same(look, data)
    assert (look.survey.with_bodies, look.survey.loops, look.survey.branches.graphs) == (2, 0, 6)
    assert look.survey.branches.largest_elements == 20
    for cores in (2, 8):
        reason = why_whole_at_sight(look, cores=cores)
        assert reason is not None
        assert _plan_unasked(read_model(data), cores=cores).provenance.reason == reason


def test_what_is_in_branches_counts_as_what_is_beside_them() -> None:
    for node in (helper.make_node("EPContext", [], ["out"]), helper.make_node("Own", ["x"], ["out"], domain="own")):
        proto = branching()
        proto.graph.node[-1].attribute[0].g.CopyFrom(branch("foreign", node))
        look = seen(proto)
        assert look is not None
        assert why_whole_at_sight(look, cores=2) is None


def test_ifs_among_dense_layers_are_planned() -> None:
    proto = model(width=600)
    same = branch("same", helper.make_node("Identity", ["sum"], ["out"]))
    constant = helper.make_node("Constant", [], ["yes"], value=tensor("", dtype=np.bool_))
    proto.graph.node.extend([constant, choice("yes", "z", then=same, other=same)])
    look = seen(proto)
    assert look is not None
    assert why_whole_at_sight(look, cores=2) is None


@pytest.mark.parametrize("width", [1, 8, 600])
def test_a_summary_says_what_the_model_says(width: int) -> None:
    data = model(width=width).SerializeToString()
    look = read_summary(data)
    assert look is not None
    check_same(look, data)
    assert look.read().structure_digest == look.structure_digest


def test_files_and_bytes_are_seen_alike(tmp_path: Any) -> None:
    proto = model(width=600)
    path = tmp_path / "model.onnx"
    onnx.save_model(proto, path)
    at_path, as_bytes = read_summary(str(path)), seen(proto)
    assert at_path is not None
    assert as_bytes is not None
    assert at_path.structure_digest == as_bytes.structure_digest
    assert at_path.files.model is not None
    assert as_bytes.files.model is None
    path.unlink()
    again = read_summary(at_path.files)
    assert again is not None
    assert again.structure_digest == at_path.structure_digest
    assert at_path.read().graph.nodes == load_model(proto).graph.nodes


@pytest.mark.parametrize("cores", [1, 2, 8])
@pytest.mark.parametrize("width", [1, 8, 200, 600])
def test_reasons_are_those_of_planning(width: int, cores: int) -> None:
    data = model(width=width).SerializeToString()
    look = read_summary(data)
    assert look is not None
    reason = why_whole_at_sight(look, cores=cores)
    if width == 200 and cores > 1:
        assert reason is None, "neither dense nor small: planning looks into it"
    else:
        assert reason is not None
        assert (reason == ONE_CORE) is (cores == 1)
        assert (reason == DENSE) is (width == 600 and cores > 1)
        assert _plan_unasked(read_model(data), cores=cores).provenance.reason == reason


def test_a_dense_model_is_never_one_that_planning_calls_small() -> None:
    """The fewest weights that count as dense, spread over most operators, on the fewest cores."""
    nodes, weights = [], []
    for number in range(1001):
        nodes.append(helper.make_node("Gemm", ["x", f"w{number}", f"b{number}"], [f"y{number}"]))
        weights += [tensor(f"w{number}", 50, 1), tensor(f"b{number}", 50, 1)]
    graph = helper.make_graph(
        nodes,
        "many",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [50, 50])],
        [helper.make_tensor_value_info("y0", TensorProto.FLOAT, [50, 1])],
        weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    look = seen(proto)
    assert look is not None
    assert why_whole_at_sight(look, cores=2) == DENSE
    assert _plan_unasked(read_model(proto), cores=2).provenance.reason == DENSE


def _with_branch(*nodes: onnx.NodeProto, **attributes: Any) -> Callable[[onnx.ModelProto], None]:
    """An If of which one branch holds these nodes."""

    def change(proto: onnx.ModelProto) -> None:
        sound = branch("sound", helper.make_node("Identity", ["sum"], ["out"]))
        held = {"then_branch": branch("other", *nodes), "else_branch": sound, **attributes}
        condition = helper.make_node("Constant", [], ["yes"], value=tensor("", dtype=np.bool_))
        proto.graph.node.extend([condition, helper.make_node("If", ["yes"], ["z"], **held)])
        proto.graph.node.append(helper.make_node("Relu", ["x"], ["late"]))

    return change


def _loop(*, output: str) -> onnx.NodeProto:
    flags = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go", "on")]
    trip = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    body = helper.make_graph([helper.make_node("Identity", ["go"], ["on"])], "body", [trip, flags[0]], [flags[1]])
    return helper.make_node("Loop", ["", "yes"], [output], body=body)


def _with_loop(proto: onnx.ModelProto) -> None:
    condition = helper.make_node("Constant", [], ["yes"], value=tensor("", dtype=np.bool_))
    proto.graph.node.extend([condition, _loop(output="z")])


def _nested(depth: int) -> onnx.GraphProto:
    node = helper.make_node("Identity", ["sum"], ["out"])
    for _ in range(depth):
        inner = branch("inner", node)
        node = choice("yes", "out", then=inner, other=branch("leaf", helper.make_node("Identity", ["sum"], ["out"])))
    return branch("outer", node)


def _with_function(proto: onnx.ModelProto) -> None:
    function = helper.make_function(
        "own", "f", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("own", 1))


def _with_own_body(proto: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    proto.graph.node.append(helper.make_node("Own", ["x"], ["z"], domain="own", body=body))


def _external(proto: onnx.ModelProto) -> None:
    weight = proto.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", "weights.bin"


UNUSUAL: dict[str, Callable[[onnx.ModelProto], object]] = {
    "a loop": _with_loop,
    "a loop in a branch": _with_branch(_loop(output="out")),
    "a branch that reads what nothing makes": _with_branch(helper.make_node("Relu", ["none"], ["out"])),
    "a branch that reads what is made later": _with_branch(helper.make_node("Relu", ["late"], ["out"])),
    "a branch in another order": _with_branch(
        helper.make_node("Relu", ["first"], ["out"]), helper.make_node("Relu", ["x"], ["first"])
    ),
    "a branch that makes a tensor twice": _with_branch(
        helper.make_node("Relu", ["x"], ["out"]), helper.make_node("Relu", ["b"], ["out"])
    ),
    "a branch that does not make its output": _with_branch(helper.make_node("Relu", ["x"], ["in"])),
    "a branch with an input": _with_branch(
        then_branch=helper.make_graph(
            [helper.make_node("Relu", ["own"], ["out"])],
            "g",
            [helper.make_tensor_value_info("own", TensorProto.FLOAT, [2])],
            [onnx.ValueInfoProto(name="out")],
        )
    ),
    "a branch that is none": _with_branch(helper.make_node("Relu", ["x"], ["out"]), else_branch=3),
    "a third branch": _with_branch(
        helper.make_node("Relu", ["x"], ["out"]), more=branch("more", helper.make_node("Relu", ["x"], ["out"]))
    ),
    "branches nested deeply": _with_branch(then_branch=_nested(16)),
    "a function": _with_function,
    "a body of an operator of the caller's": _with_own_body,
    "data in another file": _external,
    "an initializer twice": lambda proto: proto.graph.initializer.append(tensor("w", 8, 8)),
    "an initializer without a name": lambda proto: proto.graph.initializer.append(tensor("", 2)),
    "an initializer that a node makes": lambda proto: proto.graph.initializer.append(tensor("sum", 2)),
    "an input that a node makes": lambda proto: proto.graph.input.append(
        helper.make_tensor_value_info("sum", TensorProto.FLOAT, [2])
    ),
    "an input twice": lambda proto: proto.graph.input.append(proto.graph.input[0]),
    "a tensor that nothing makes": lambda proto: proto.graph.node.append(helper.make_node("Relu", ["none"], ["z"])),
    "a tensor that two nodes make": lambda proto: proto.graph.node.append(helper.make_node("Relu", ["x"], ["y"])),
    "nodes in another order": lambda proto: proto.graph.node.sort(key=lambda node: node.op_type == "MatMul"),
    "two nodes of one name": lambda proto: proto.graph.node.append(
        helper.make_node("Relu", ["x"], ["z"], name="product")
    ),
    "an output that is an input": lambda proto: proto.graph.output.append(proto.graph.input[0]),
    "an output that is an initializer": lambda proto: proto.graph.output.append(
        helper.make_tensor_value_info("w", TensorProto.FLOAT, [8, 8])
    ),
    "a sparse initializer": lambda proto: proto.graph.sparse_initializer.add(),
    "too few bytes": lambda proto: setattr(proto.graph.initializer[0], "raw_data", b"\0" * 8),
    "too few numbers": lambda proto: proto.graph.initializer[2].dims.append(2),
    "a negative size": lambda proto: proto.graph.initializer[0].dims.__setitem__(0, -1),
    "a packed type": lambda proto: setattr(proto.graph.initializer[1], "data_type", TensorProto.INT4),
    "a type of the future": lambda proto: setattr(proto.graph.initializer[1], "data_type", 99),
    "texts": lambda proto: proto.graph.initializer.append(helper.make_tensor("t", TensorProto.STRING, [1], [b"a"])),
    "an input of texts": lambda proto: setattr(proto.graph.input[0].type.tensor_type, "elem_type", TensorProto.STRING),
    "an input of no type": lambda proto: proto.graph.input[0].ClearField("type"),
    "a sequence": lambda proto: proto.graph.output.append(
        helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    ),
    "an operator set of the future": lambda proto: setattr(proto.opset_import[0], "version", 99),
    "an operator set that never was": lambda proto: setattr(proto.opset_import[0], "version", 0),
    "an operator set twice": lambda proto: proto.opset_import.append(helper.make_opsetid("ai.onnx", 16)),
    "no operator set": lambda proto: proto.ClearField("opset_import"),
    "a format of the future": lambda proto: setattr(proto, "ir_version", 99),
    "no version of the format": lambda proto: proto.ClearField("ir_version"),
    "no graph": lambda proto: proto.ClearField("graph"),
    "the mark of another format": lambda proto: setattr(proto, "producer_name", "ORTM"),
}


@pytest.mark.parametrize("what", UNUSUAL)
def test_what_is_unusual_is_read_as_a_whole(what: str) -> None:
    proto = model()
    UNUSUAL[what](proto)
    assert seen(proto) is None


def test_branches_are_unusual_only_where_they_differ() -> None:
    """What the unusual branches differ from is looked into."""
    for change in (_with_branch(helper.make_node("Relu", ["x"], ["out"])), _with_branch(then_branch=_nested(15))):
        proto = model()
        change(proto)
        look = seen(proto)
        assert look is not None
        check_same(look, proto.SerializeToString())


@pytest.mark.parametrize(
    "data", [b"", b"<html>", b'{"a": 1}', b"PK\x03\x04", b"version https://git-lfs", bytes(100), b"\xff" * 100]
)
def test_what_is_no_model_is_not_seen(data: bytes) -> None:
    assert read_summary(data) is None


def test_what_cannot_be_opened_is_not_seen(tmp_path: Any) -> None:
    assert read_summary(str(tmp_path)) is None
    assert read_summary(str(tmp_path / "none.onnx")) is None
    assert read_summary("\0") is None


@pytest.mark.parametrize("make", [model, branching])
def test_damaged_bytes_are_seen_as_protobuf_reads_them_or_not_at_all(make: Callable[[], onnx.ModelProto]) -> None:
    data = make().SerializeToString()
    rng = np.random.default_rng(11)
    same = 0
    for _ in range(MUTATIONS):
        damaged = bytearray(data)
        for place in rng.integers(len(data), size=rng.integers(1, 3)):
            damaged[place] = rng.integers(256)
        look = read_summary(bytes(damaged))
        if look is not None:
            # Nobody looked inside of attributes. The runtime refuses what is no message there, and then it is read.
            with suppress(DecodeError):
                onnx.ModelProto().ParseFromString(bytes(damaged))
                check_same(look, bytes(damaged))
                same += 1
    assert same > MUTATIONS // 20, "most damage to weights and names leaves a model"


@pytest.mark.parametrize("cut", range(1, 120, 7))
def test_a_model_cut_short_is_not_seen(cut: int) -> None:
    data = model().SerializeToString()
    look = read_summary(data[:-cut])
    if look is not None:  # what is missing was a whole field at the end
        check_same(look, data[:-cut])


def test_a_model_that_is_not_seen_is_refused_by_reading_it() -> None:
    proto = model()
    UNUSUAL["too few bytes"](proto)
    with pytest.raises(ModelError, match="needs 256 bytes but its data has 8"):
        load_model(proto)
