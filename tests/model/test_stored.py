"""A graph whose data are to be mapped says where they lie; what it says is checked first."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from parallax.backends.ort import RuntimeOptions, save_optimised
from parallax.errors import ModelFileError
from parallax.graph import NUMPY_TYPES
from parallax.model import StoredWeight, read_stored_graph, save_arranged
from parallax.model._stored_message import parse_graph
from parallax.model._stored_wire import read_written
from parallax.model._weights import DTYPES, HANDED_OVER

DATA = "0000.data"


def made(folder: Path) -> tuple[Path, tuple[StoredWeight, ...]]:
    """A graph with a table (mapped as it is), a matrix (packed as well) and a body with a table of its own."""
    rng = np.random.default_rng(3)

    def weight(name: str, *shape: int) -> Any:
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)

    def info(name: str, *shape: int, kind: int = TensorProto.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    branches = {
        name: helper.make_graph(
            [helper.make_node("Add", ["product", f"{name}_table"], [f"{name}_out"])],
            name,
            [],
            [info(f"{name}_out", 8, 600)],
            [weight(f"{name}_table", 8, 600)],
        )
        for name in ("one", "other")
    }
    nodes = [
        helper.make_node("Gather", ["table", "place"], ["rows"]),
        helper.make_node("MatMul", ["rows", "matrix"], ["product"]),
        helper.make_node("If", ["which"], ["y"], then_branch=branches["one"], else_branch=branches["other"]),
    ]
    graph = helper.make_graph(
        nodes,
        "stored",
        [info("place", 8, kind=TensorProto.INT64), info("which", kind=TensorProto.BOOL)],
        [info("y", 8, 600)],
        [weight("table", 50, 600), weight("matrix", 600, 600)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save_model(model, folder / "model.onnx")
    save_optimised(
        str(folder / "model.onnx"),
        str(folder / "optimised.onnx"),
        data_name="optimised.data",
        options=RuntimeOptions(),
        is_part=True,
    )
    weights = save_arranged(folder / "optimised.onnx", folder / "0000.onnx")
    return folder / "0000.onnx", weights


def read(path: Path, edit: Callable[[Any], object] | None = None, **given: Any) -> Any:
    """What is read of the graph after it was edited, its data as they are."""
    model = onnx.load(path, load_external_data=False)
    if edit is not None:
        edit(model)
    size = path.with_suffix(".data").stat().st_size
    return read_stored_graph(model.SerializeToString(), **{"data_name": DATA, "data_bytes": size} | given)


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    path, weights = made(tmp_path)
    graph = read(path)
    assert graph.weights == weights
    assert "table" in {weight.name for weight in weights}
    assert [info.name for info in graph.inputs] == ["place", "which"]
    assert [info.name for info in graph.outputs] == ["y"]
    assert not graph.overridable


def test_a_graph_may_use_the_word_for_a_place_as_a_name(tmp_path: Path) -> None:
    path, weights = made(tmp_path)

    def rename(model: Any) -> None:
        model.graph.node[0].name = "location of the table"

    assert read(path, rename).weights == weights


def entry(model: Any, name: str, key: str) -> Any:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    return next(entry for entry in tensor.external_data if entry.key.startswith(key))


def set_entry(name: str, key: str, value: str) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        entry(model, name, key).value = value

    return edit


def add_entry(key: str, value: str) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        added = next(tensor for tensor in model.graph.initializer if tensor.name == "table").external_data.add()
        added.key, added.value = key, value

    return edit


def packed(change: Callable[[int, int], tuple[int, int]]) -> Callable[[Any], None]:
    """Change where a packed form lies, its key kept: the runtime would take it without looking at its size."""

    def edit(model: Any) -> None:
        tensor = next(
            tensor
            for tensor in model.graph.initializer
            if any(entry.key.startswith("prepacked") for entry in tensor.external_data)
        )
        found = next(entry for entry in tensor.external_data if entry.key.startswith("prepacked"))
        key, first, *others = found.value.split("|")
        begin, size, checksum = first.split(";")
        moved = change(int(begin), int(size))
        found.value = "|".join([key, f"{moved[0]};{moved[1]};{checksum}", *others])

    return edit


def elsewhere_in_a_node(model: Any) -> None:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "c")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "/etc/hostname"), ("offset", "0"), ("length", "16")):
        added = tensor.external_data.add()
        added.key, added.value = key, value
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def elsewhere_in_a_body(model: Any) -> None:
    body = next(node for node in model.graph.node if node.op_type == "If").attribute[0].g
    tensor = body.initializer[0]
    tensor.ClearField("raw_data")
    tensor.ClearField("external_data")
    tensor.data_location = TensorProto.EXTERNAL
    added = tensor.external_data.add()
    added.key, added.value = "location", "../elsewhere.data"


FORGERIES: dict[str, Callable[[Any], object]] = {
    "another file": set_entry("table", "location", "0001.data"),
    "a file above": set_entry("table", "location", "../0000.data"),
    "a file of the system": set_entry("table", "location", "/etc/hostname"),
    "an address in memory": set_entry("table", "location", "*/_ORT_MEM_ADDR_/*"),
    "a negative place": set_entry("table", "offset", "-64"),
    "a place beyond the end": set_entry("table", "offset", str(1 << 40)),
    "a place that is no number": set_entry("table", "offset", "0x40"),
    "a place in other digits": set_entry("table", "offset", "٦٤"),
    "a shorter weight": set_entry("table", "length", "64"),
    "a longer weight": set_entry("table", "length", str(1 << 40)),
    "two places": add_entry("offset", "0"),
    "an unknown entry": add_entry("basepath", "/"),
    "a packed form without a place": add_entry("prepacked_9", "key"),
    "a packed form beside the end": add_entry("prepacked_9", f"key|{1 << 40};64;0"),
    "a packed form that is shorter": packed(lambda begin, size: (begin, size - 64)),
    "a packed form that is longer": packed(lambda begin, size: (begin, size + 4096)),
    "a packed form that is empty": packed(lambda begin, size: (begin, 0)),
    "a packed form elsewhere": packed(lambda begin, size: (begin + 64, size)),
    "a packed form before the file": packed(lambda begin, size: (-begin, size)),
    "another shape": lambda model: model.graph.initializer[0].dims.append(2),
    "a negative shape": lambda model: model.graph.initializer[0].dims.extend([-1, -1]),
    "another type": lambda model: setattr(model.graph.initializer[0], "data_type", TensorProto.DOUBLE),
    "no type": lambda model: setattr(model.graph.initializer[0], "data_type", 4711),
    "a type that is no block of bytes": lambda model: setattr(
        model.graph.initializer[0], "data_type", TensorProto.STRING
    ),
    "a weight twice": lambda model: model.graph.initializer.append(model.graph.initializer[0]),
    "a weight less": lambda model: model.graph.initializer.pop(),
    "elsewhere, in a node": elsewhere_in_a_node,
    "elsewhere, in a body": elsewhere_in_a_body,
}


@pytest.mark.parametrize("edit", FORGERIES.values(), ids=FORGERIES)
def test_data_that_lie_otherwise_are_refused(edit: Callable[[Any], object], tmp_path: Path) -> None:
    path, _ = made(tmp_path)
    with pytest.raises(ModelFileError):
        read(path, edit)


@pytest.mark.parametrize("data_bytes", [None, 0, 4096, 1 << 40])
def test_a_file_of_data_of_another_size_is_refused(data_bytes: int | None, tmp_path: Path) -> None:
    path, _ = made(tmp_path)
    with pytest.raises(ModelFileError):
        read(path, data_bytes=data_bytes)


def test_a_file_of_data_that_nothing_uses_is_refused(tmp_path: Path) -> None:
    path, _ = made(tmp_path)
    with pytest.raises(ModelFileError, match="does not use"):
        read(path, lambda model: (model.graph.ClearField("initializer"), model.graph.ClearField("node")), data_bytes=0)


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 40, b"\x3a" + b"\xff" * 9 + b"\x01"])
def test_what_is_no_graph_is_refused_or_an_empty_one(content: bytes) -> None:
    if not content:
        assert read_stored_graph(content, data_name=DATA, data_bytes=None).outputs == ()
        return
    with pytest.raises(ModelFileError):
        read_stored_graph(content, data_name=DATA, data_bytes=None)


def test_a_weight_whose_name_is_no_text_is_not_lent(tmp_path: Path) -> None:
    path, weights = made(tmp_path)
    content = path.read_bytes().replace(b"table", b"\xff\xfe\x80ab")
    graph = read_stored_graph(content, data_name=DATA, data_bytes=path.with_suffix(".data").stat().st_size)
    assert len(graph.weights) == len(weights) - 1


@pytest.mark.parametrize("word", [b"location", b"offset", b"0000.data"])
def test_a_place_that_is_no_text_is_refused(word: bytes, tmp_path: Path) -> None:
    path, _ = made(tmp_path)
    content = path.read_bytes().replace(word, b"\xff" * len(word))
    with pytest.raises(ModelFileError):
        read_stored_graph(content, data_name=DATA, data_bytes=path.with_suffix(".data").stat().st_size)


def test_both_ways_to_read_a_graph_agree(tmp_path: Path) -> None:
    """However bytes are damaged: what is read of them without protobuf, protobuf reads as well."""
    path, _ = whole(tmp_path)
    data = path.read_bytes()
    assert read_written(data) == parse_graph(data)
    rng = np.random.default_rng(5)
    read = 0
    for _ in range(3000):
        damaged = bytearray(data)
        for place in rng.integers(len(data), size=rng.integers(1, 3)):
            damaged[place] = rng.integers(256)
        found = read_written(bytes(damaged))
        if found is not None:
            with suppress(ModelFileError):  # a node that is no message, which is left to the runtime
                assert found == parse_graph(bytes(damaged))
                read += 1
    assert read > 100


def test_bodies_and_functions_are_left_to_protobuf(tmp_path: Path) -> None:
    path, _ = made(tmp_path)
    assert read_written(path.read_bytes()) is None
    model = onnx.load(whole(tmp_path)[0], load_external_data=False)
    model.functions.append(helper.make_function("own", "f", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], []))
    assert read_written(model.SerializeToString()) is None


def test_a_node_or_an_attribute_of_any_length_is_told_from_one_with_a_body(tmp_path: Path) -> None:
    """A length of 160 and the tag of a first field look like the type of an attribute that holds graphs."""
    plain = onnx.load(whole(tmp_path)[0], load_external_data=False)
    with_body = onnx.load(made(tmp_path)[0], load_external_data=False)
    nodes, attributes = set(), set()
    for length in range(60, 180):
        for model in (plain, with_body):
            model.graph.node[0].name = "n" * length
            del model.graph.node[1].attribute[:]
            model.graph.node[1].attribute.extend(
                [helper.make_attribute("a" * length, 7), helper.make_attribute("b", 2.0)]
            )
        data = plain.SerializeToString()
        nodes.add(plain.graph.node[0].ByteSize())
        attributes.add(plain.graph.node[1].attribute[0].ByteSize())
        assert read_written(data) == parse_graph(data)
        assert read_written(with_body.SerializeToString()) is None
    assert 160 in nodes & attributes


def test_types_that_can_be_lent_are_those_that_numpy_and_the_runtime_have() -> None:
    assert {code: DTYPES[code] for code in HANDED_OVER if DTYPES[code].isbuiltin == 1} == NUMPY_TYPES


def whole(folder: Path) -> tuple[Path, tuple[StoredWeight, ...]]:
    """As `made`, without bodies; some weights lie in the graph."""
    rng = np.random.default_rng(3)
    table = numpy_helper.from_array(rng.standard_normal((50, 600)).astype(np.float32), "table")
    small = numpy_helper.from_array(rng.standard_normal(8).astype(np.float32).reshape(8, 1), "small")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "place"], ["rows"]), helper.make_node("Mul", ["rows", "small"], ["y"])],
        "whole",
        [helper.make_tensor_value_info("place", TensorProto.INT64, [8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [8, "width"])],
        [table, small],
    )
    onnx.save_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx"
    )
    save_optimised(
        str(folder / "model.onnx"),
        str(folder / "optimised.onnx"),
        data_name="optimised.data",
        options=RuntimeOptions(),
        is_part=True,
    )
    weights = save_arranged(folder / "optimised.onnx", folder / "0000.onnx")
    return folder / "0000.onnx", weights
