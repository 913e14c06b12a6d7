"""Every way a model can be bad that we know of: refused with the family, the place and the remedy."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from parallax.errors import (
    ConfigError,
    ModelError,
    ModelFileError,
    ParallaxError,
    UnsafeModelError,
    UnsupportedModelError,
)
from parallax.model import load_model
from tests.model._models import changed, conv_model, model, node, value, weight


def adder(*nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    return model(
        nodes or (node("Add", "x w", "y", name="add"),),
        [value("x")],
        [value(name) for name in outputs],
        {"w": np.ones(3, np.float32)},
    )


def with_dims(proto: onnx.ModelProto, *dims: int) -> None:
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].dims.extend(dims)


def big_weight() -> onnx.ModelProto:
    return model([node("Add", "x w", "y")], [value("x", (1000,))], [value("y", (1000,))], {"w": weight((1000,))})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\x00" * 100, "field number 0"),
        (b"<!DOCTYPE html>", "HTML"),
        (b"PK\x03\x04....", "ZIP"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b'{"graph": {}}', "JSON"),
        (bytes(range(200, 256)), "at .*byte"),
        (conv_model().SerializeToString()[:-1], "byte"),
        (conv_model().SerializeToString()[:3000], "byte"),
    ],
)
def test_what_is_not_a_model_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=message) as from_path:
        load_model(path)
    assert str(path) in str(from_path.value)
    assert from_path.value.fix
    with pytest.raises(ModelFileError, match=message):
        load_model(content)


def test_a_runtime_format_file_is_named_as_such() -> None:
    with pytest.raises(UnsupportedModelError, match=r"\.ort format"):
        load_model(b"\x18\x00\x00\x00ORTM" + bytes(100))


def test_paths_that_are_no_readable_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no such file.*missing\.onnx"):
        load_model(tmp_path / "missing.onnx")
    with pytest.raises(ModelFileError, match="is a folder"):
        load_model(str(tmp_path))
    with pytest.raises(ModelFileError, match=r"null|NUL|no such file"):
        load_model("a\0b")
    if sys.platform != "win32":
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ModelFileError, match="not a regular file"):
            load_model(tmp_path / "pipe")


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret.onnx"
    path.write_bytes(adder().SerializeToString())
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(ModelFileError, match="Permission"):
        load_model(path)


@pytest.mark.parametrize("source", [None, 3, ["model.onnx"]])
def test_what_is_neither_path_nor_bytes_nor_message_is_refused(source: object) -> None:
    with pytest.raises(ConfigError, match=r"path, bytes or onnx\.ModelProto"):
        load_model(source)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "family", "message"),
    [
        (lambda m: m.ClearField("graph"), ModelFileError, "no graph"),
        (lambda m: m.ClearField("opset_import"), ModelFileError, "no operator set"),
        (lambda m: m.ClearField("ir_version"), ModelFileError, "no IR version"),
        (lambda m: setattr(m.opset_import[0], "version", 0), ModelFileError, "opset 0"),
        (
            lambda m: setattr(m.opset_import[0], "version", 9999),
            UnsupportedModelError,
            r"ai\.onnx opset 9999.*up to \d+",
        ),
        (lambda m: setattr(m, "ir_version", 9999), UnsupportedModelError, r"IR version 9999.*up to \d+"),
        (
            lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx.ml", 99)),
            UnsupportedModelError,
            r"ai\.onnx\.ml opset 99.*up to \d+",
        ),
        (lambda m: with_dims(m, -3), ModelError, r"negative size.*tensor 'w'"),
        (lambda m: with_dims(m, -3, -1), ModelError, "negative size"),
        (lambda m: with_dims(m, 0, -1), ModelError, "negative size"),
        (lambda m: with_dims(m, 2**62, 2**62), ModelError, r"needs \d+ bytes but its data has 12"),
        (lambda m: with_dims(m, 4), ModelError, "needs 16 bytes but its data has 12"),
        (lambda m: setattr(m.graph.initializer[0], "data_type", 999), ModelError, "element type 999"),
        (lambda m: setattr(m.graph.initializer[0], "data_type", 0), ModelError, "element type 0"),
        (lambda m: m.graph.initializer[0].ClearField("raw_data"), ModelError, "needs 3 elements but holds 0"),
        (lambda m: m.graph.input.append(value("x")), ModelError, "'x' is declared twice"),
        (lambda m: m.graph.node.append(node("Relu", "x", "w")), ModelError, "'w' is both an initializer"),
        (lambda m: m.graph.node.append(node("Relu", "w", "x")), ModelError, "'x' is both a graph input"),
        (lambda m: m.graph.node.append(node("Relu", "x", "y")), ModelError, r"'y' is produced by both .*'add'"),
        (lambda m: m.graph.node.append(node("Relu", "ghost", "z")), ModelError, r"'ghost' is neither .*node #1"),
        (
            lambda m: m.graph.output.append(value("ghost")),
            ModelError,
            "nothing in the graph produces its output 'ghost'",
        ),
    ],
)
def test_a_damaged_model_is_refused(
    change: Callable[[onnx.ModelProto], object], family: type[ParallaxError], message: str
) -> None:
    with pytest.raises(family, match=message) as raised:
        load_model(changed(adder(), change).SerializeToString())
    assert raised.value.fix


@pytest.mark.parametrize("dims", [(999,), (2**40, 2**40), (-1000,), (1000, 0)])
def test_a_large_weight_whose_shape_disagrees_is_refused(dims: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="tensor 'w'"):
        load_model(changed(big_weight(), lambda m: with_dims(m, *dims)).SerializeToString())


def test_typed_data_of_another_type_is_refused() -> None:
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.INT32, dims=[400], float_data=weight((400,)))
    proto = model([node("Identity", "w", "y")], [value("x")], [value("y")], [tensor])
    with pytest.raises(ModelError, match="tensor 'w'"):
        load_model(proto.SerializeToString())


def test_a_cycle_is_named_node_by_node() -> None:
    proto = adder(
        node("Add", "x c", "a", name="first"),
        node("Relu", "a", "b", name="second"),
        node("Relu", "b", "c", name="third"),
        node("Relu", "c", "y", name="innocent"),
    )
    with pytest.raises(ModelError, match="cycle") as raised:
        load_model(proto)
    for name in ("first", "second", "third"):
        assert f"'{name}'" in str(raised.value)
    assert "innocent" not in str(raised.value)


def test_a_node_that_feeds_itself_is_a_cycle() -> None:
    with pytest.raises(ModelError, match="cycle: node 'loop'"):
        load_model(adder(node("Add", "x y", "y", name="loop")))


def test_faults_in_a_body_name_the_body() -> None:
    body = helper.make_graph([node("Relu", "x", "t"), node("Neg", "x", "t")], "b", [], [value("t")])
    other = helper.make_graph([node("Relu", "x", "t")], "b", [], [value("t")])
    proto = model(
        [node("If", "c", "y", name="choose", then_branch=body, else_branch=other)],
        [value("x"), value("c", (), onnx.TensorProto.BOOL)],
        [value("y")],
    )
    with pytest.raises(ModelError, match=r"'t' is produced by both.*node 'choose' \(If\), body 'then_branch'"):
        load_model(proto)


def test_a_body_reading_what_no_scope_defines_is_refused() -> None:
    body = helper.make_graph([node("Relu", "ghost", "t")], "b", [], [value("t")])
    proto = model(
        [node("If", "c", "y", then_branch=body, else_branch=body)],
        [value("c", (), onnx.TensorProto.BOOL)],
        [value("y")],
    )
    with pytest.raises(ModelError, match="'ghost' is neither"):
        load_model(proto)


def test_functions_that_call_each_other_in_a_circle_are_refused() -> None:
    proto = adder(node("F", "x", "y", domain="d"))
    for name, callee in (("F", "G"), ("G", "F")):
        proto.functions.append(
            helper.make_function(
                "d", name, ["a"], ["b"], [node(callee, "a", "b", domain="d")], [helper.make_opsetid("d", 1)]
            )
        )
    proto.opset_import.append(helper.make_opsetid("d", 1))
    with pytest.raises(UnsafeModelError, match="calls itself"):
        load_model(proto)


def test_functions_that_would_fill_the_memory_when_inlined_are_refused() -> None:
    proto = adder(node("F0", "x", "y", domain="d"))
    for level in range(40):
        callee = f"F{level + 1}" if level < 39 else "Relu"
        domain = "d" if level < 39 else ""
        body = [node(callee, "a", "t", domain=domain), node(callee, "t", "b", domain=domain)]
        imports = [helper.make_opsetid("d", 1), helper.make_opsetid("", 21)]
        proto.functions.append(helper.make_function("d", f"F{level}", ["a"], ["b"], body, imports))
    proto.opset_import.append(helper.make_opsetid("d", 1))
    with pytest.raises(UnsafeModelError, match=r"\d{13} nodes"):
        load_model(proto)


def test_bodies_nested_deeper_than_protobuf_reads_are_refused() -> None:
    graph = helper.make_graph([node("Identity", "x", "y")], "leaf", [], [value("y")]).SerializeToString()
    for _ in range(200):
        attribute = b"\x0a\x01t" + _field(6, graph) + b"\xa0\x01\x05"
        graph = _field(1, b"\x12\x01y" + b"\x22\x02If" + _field(5, attribute))
    with pytest.raises(ModelFileError, match="not an ONNX model"):
        load_model(b"\x08\x0a" + _field(7, graph) + b"\x42\x02\x10\x15")


def test_names_that_are_not_text_are_refused_and_free_text_is_mended() -> None:
    data = adder().SerializeToString()
    assert data.count(b"add") == 1
    with pytest.raises(ModelFileError, match="UTF-8"):
        load_model(data.replace(b"add", b"\xff\xfe\xfd"))
    documented = changed(adder(), lambda m: setattr(m, "doc_string", "cafes")).SerializeToString()
    loaded = load_model(documented.replace(b"cafes", b"caf\xe9s"))
    assert loaded.extract([0], ["x"], ["y"], name="all").proto


REAL = conv_model().SerializeToString()


def examine(data: bytes) -> None:
    """Load and use a model in every way that reads more of it; only our own errors may come out."""
    try:
        loaded = load_model(data)
        graph = loaded.inferred()
        for _, each in graph.walk():
            dict(each.attributes)
        dict(graph.tensors)
        dict(graph.constants)
        for name in graph.producers:
            loaded.can_split_at(name)
        names = [[info.name for info in infos] for infos in (graph.inputs, graph.outputs)]
        loaded.extract(range(len(graph.nodes)), *names, name="all")
    except ParallaxError:
        return
    assert loaded.structure_digest


@given(st.integers(0, len(REAL)))
def test_any_truncation_loads_or_is_refused(size: int) -> None:
    examine(REAL[:size])


@given(st.lists(st.tuples(st.integers(0, len(REAL) - 1), st.integers(1, 255)), min_size=1, max_size=8))
def test_any_flipped_bits_load_or_are_refused(flips: list[tuple[int, int]]) -> None:
    data = bytearray(REAL)
    for position, mask in flips:
        data[position] ^= mask
    examine(bytes(data))


def test_many_random_changes_to_the_structure_load_or_are_refused() -> None:
    proto = conv_model()
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].raw_data = b""  # less payload, so that changes hit structure
    data = proto.SerializeToString()
    chance = random.Random(7)
    for _ in range(1500):
        damaged = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 6))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        examine(bytes(damaged))


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ParallaxError):
        load_model(data)


def test_shapes_computed_from_huge_constants_allocate_nothing() -> None:
    huge = numpy_helper.from_array(np.array([2**40, 2**20], np.int64), "huge")
    proto = model(
        [
            node("ConstantOfShape", "huge", "a"),
            node("Range", "zero end one", "r"),
            node("Expand", "x huge", "e"),
            node("Tile", "x2 huge", "t"),
            node("Shape", "t", "s"),
            node("OneHot", "i depth pair", "o"),
        ],
        [value("x", (1, 1)), value("x2", (1, 1)), value("i", (1,), onnx.TensorProto.INT64)],
        [value(name, None) for name in "aret"]
        + [value(n, None, onnx.TensorProto.INT64) for n in "s"]
        + [value("o", None)],
        [
            huge,
            numpy_helper.from_array(np.array(0, np.int64), "zero"),
            numpy_helper.from_array(np.array(2**60, np.int64), "end"),
            numpy_helper.from_array(np.array(1, np.int64), "one"),
            numpy_helper.from_array(np.array(2**60, np.int64), "depth"),
            numpy_helper.from_array(np.array([0, 1], np.float32), "pair"),
        ],
    )
    graph = load_model(proto).inferred()
    assert graph.tensors["a"].shape == (2**40, 2**20)


def _field(number: int, content: bytes) -> bytes:
    out = bytearray([number << 3 | 2])
    size = len(content)
    while size >= 0x80:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out) + content
