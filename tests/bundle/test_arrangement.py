"""A bundle's data lie where kernels can use them mapped: aligned, and in the order of their use."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import parallax
from parallax.errors import ModelFileError
from parallax.model import save_arranged
from tests.bundle._models import compiled, generation


def odd_sizes(path: Path) -> Path:
    """y = x through four products of float32 [rows, 96], between which tables of odd sizes are added."""
    rng = np.random.default_rng(5)
    nodes, weights, current = [], [], "x"
    for number in range(4):
        # 4 * (8192 + 1 + 2 * number) bytes: whatever follows starts off any 16-byte boundary.
        table = rng.standard_normal(8193 + 2 * number).astype(np.float32)
        weight = (rng.standard_normal((96, 96)) / 10).astype(np.float32)
        weights += [numpy_helper.from_array(table, f"table_{number}"), numpy_helper.from_array(weight, f"w_{number}")]
        nodes += [
            helper.make_node("ReduceSum", [f"table_{number}"], [f"sum_{number}"], keepdims=0),
            helper.make_node("Gather", [f"table_{number}", "place"], [f"entry_{number}"]),
            helper.make_node("MatMul", [current, f"w_{number}"], [f"product_{number}"]),
            helper.make_node("Add", [f"product_{number}", f"entry_{number}"], [f"moved_{number}"]),
        ]
        current = f"moved_{number}"
    nodes.append(helper.make_node("Tanh", [current], ["y"]))
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 96]),
        helper.make_tensor_value_info("place", TensorProto.INT64, [1]),
    ]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 96])
    graph = helper.make_graph(nodes, "odd", inputs, [y], weights)
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def external(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from (tensor for tensor in graph.initializer if tensor.data_location == TensorProto.EXTERNAL)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from external(attribute.g)


def entries(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def packed_places(tensor: onnx.TensorProto) -> list[tuple[int, int]]:
    found = []
    for key, value in entries(tensor).items():
        if key.startswith("prepacked"):
            parts = [part.split(";") for part in value.split("|")[1:]]
            found += [(int(offset), int(length)) for offset, length, _ in parts]
    return found


@pytest.fixture
def graph(tmp_path: Path) -> onnx.GraphProto:
    """The graph of a bundle of `odd_sizes`, with its folder as ``doc_string``."""
    bundle = parallax.compile(odd_sizes(tmp_path / "odd.onnx"), tmp_path / "odd.plx")
    path = generation(bundle) / "segments" / "0000.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.doc_string = str(path.parent)
    return model.graph


def test_what_kernels_read_where_it_is_mapped_starts_on_a_cache_line(graph: onnx.GraphProto) -> None:
    plain = [int(entries(tensor)["offset"]) for tensor in external(graph)]
    packed = [place for tensor in external(graph) for place, _ in packed_places(tensor)]
    assert len(plain) == 8
    assert len(packed) == 4
    assert all(place % 64 == 0 for place in plain + packed)
    sizes = [int(entries(tensor)["length"]) for tensor in external(graph)]
    assert any(size % 64 for size in sizes), "else the runtime's own layout would have done"


def test_nothing_overlaps_and_all_lies_in_the_file(graph: onnx.GraphProto) -> None:
    spans = []
    for tensor in external(graph):
        values = entries(tensor)
        spans += [(int(values["offset"]), int(values["length"])), *packed_places(tensor)]
    spans.sort()
    for (start, size), (following, _) in itertools.pairwise(spans):
        assert start + size <= following
    assert sum(spans[-1]) <= Path(graph.doc_string, "0000.data").stat().st_size


def test_weights_that_are_packed_come_first_and_packed_forms_in_the_order_of_use(graph: onnx.GraphProto) -> None:
    packed = {tensor.name: packed_places(tensor)[0][0] for tensor in external(graph) if packed_places(tensor)}
    used = [name for node in graph.node for name in node.input if name in packed]
    assert [packed[name] for name in used] == sorted(packed.values())
    last_opened = max(int(entries(tensor)["offset"]) for tensor in external(graph) if packed_places(tensor))
    for tensor in external(graph):
        if not packed_places(tensor):
            assert int(entries(tensor)["offset"]) > last_opened
    assert min(packed.values()) > last_opened


def test_what_running_needs_shares_no_huge_page_with_what_it_does_not(tmp_path: Path) -> None:
    bundle = compiled(tmp_path, width=600)
    graph = onnx.load(generation(bundle) / "segments" / "0000.onnx", load_external_data=False).graph
    packed = [place for tensor in external(graph) for place, _ in packed_places(tensor)]
    assert len(packed) == 4
    assert min(packed) % (2 << 20) == 0
    assert (generation(bundle) / "segments" / "0000.data").stat().st_size == max(
        sum(place) for tensor in external(graph) for place in packed_places(tensor)
    )


def test_weights_keep_their_bytes(graph: onnx.GraphProto, tmp_path: Path) -> None:
    source = onnx.load(tmp_path / "odd.onnx")
    before = {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in source.graph.initializer}
    data = Path(graph.doc_string, "0000.data").read_bytes()
    compared = 0
    for tensor in external(graph):
        if tensor.name in before:
            start, size = int(entries(tensor)["offset"]), int(entries(tensor)["length"])
            assert data[start : start + size] == before[tensor.name]
            compared += 1
    assert compared == 8


def test_models_with_weights_of_odd_sizes_run(tmp_path: Path) -> None:
    path = odd_sizes(tmp_path / "odd.onnx")
    feeds: dict[str, Any] = {"x": np.ones((5, 96), np.float32), "place": np.array([17])}
    bundle = parallax.compile(path, tmp_path / "odd.plx")
    (found,) = parallax.InferenceSession(bundle).run(None, feeds)
    (expected,) = parallax.InferenceSession(path).run(None, feeds)
    np.testing.assert_array_equal(found, expected)


def test_weights_in_bodies_are_arranged_as_well(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)

    def branch(name: str) -> onnx.GraphProto:
        weight = numpy_helper.from_array(rng.standard_normal((96, 96)).astype(np.float32), f"{name}_w")
        table = numpy_helper.from_array(rng.standard_normal(9001).astype(np.float32), f"{name}_table")
        nodes = [
            helper.make_node("MatMul", ["x", f"{name}_w"], [f"{name}_p"]),
            helper.make_node("Gather", [f"{name}_table", "place"], [f"{name}_entry"]),
            helper.make_node("Add", [f"{name}_p", f"{name}_entry"], [f"{name}_y"]),
        ]
        y = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)
        return helper.make_graph(nodes, name, [], [y], [table, weight])

    node = helper.make_node("If", ["flag"], ["y"], then_branch=branch("then"), else_branch=branch("else"))
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 96]),
        helper.make_tensor_value_info("place", TensorProto.INT64, [1]),
        helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
    ]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 96])
    model = helper.make_model(
        helper.make_graph([node], "either", inputs, [y]), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    onnx.save_model(model, tmp_path / "either.onnx")
    bundle = parallax.compile(tmp_path / "either.onnx", tmp_path / "either.plx")
    stored = onnx.load(generation(bundle) / "segments" / "0000.onnx", load_external_data=False).graph
    places = [int(entries(tensor)["offset"]) for tensor in external(stored)]
    places += [place for tensor in external(stored) for place, _ in packed_places(tensor)]
    assert places
    assert all(place % 64 == 0 for place in places)
    ours, theirs = parallax.InferenceSession(bundle), parallax.InferenceSession(tmp_path / "either.onnx")
    for flag in (True, False):
        feeds: dict[str, Any] = {"x": np.ones((2, 96), np.float32), "place": np.array([3]), "flag": np.array(flag)}
        np.testing.assert_array_equal(ours.run(None, feeds)[0], theirs.run(None, feeds)[0])


def external_model(folder: Path, prepacked: str) -> Path:
    """A model on disk with one external weight that has an entry of the given form."""
    weight = numpy_helper.from_array(np.arange(4096, dtype=np.float32), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4096])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4096])
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save_model(model, folder / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    model = onnx.load(folder / "m.onnx", load_external_data=False)
    model.graph.initializer[0].external_data.add(key="prepacked_0", value=prepacked)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


@pytest.mark.parametrize("places", ["Gemm+1|12", "Gemm+1|-8;4;0", "Gemm+1|0;99999999;0"])
def test_forms_of_packed_weights_that_are_not_known_are_refused(places: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError):
        save_arranged(external_model(tmp_path, places), tmp_path / "out.onnx")


def test_checksums_and_keys_of_packed_weights_are_kept(tmp_path: Path) -> None:
    save_arranged(external_model(tmp_path, "Gemm+77|4;36;abc|100;4;"), tmp_path / "out.onnx")
    (tensor,) = onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer
    found = entries(tensor)
    key, first, second = found["prepacked_0"].split("|")
    assert key == "Gemm+77"
    assert found["location"] == "out.data"
    before, after = (tmp_path / "m.bin").read_bytes(), (tmp_path / "out.data").read_bytes()
    for part, (offset, length, checksum) in ((first, (4, 36, "abc")), (second, (100, 4, ""))):
        place, size, kept = part.split(";")
        assert (int(size), kept) == (length, checksum)
        assert after[int(place) : int(place) + length] == before[offset : offset + length]
