"""Size must not change what works: deep chains, many edges, weights past every 32-bit limit."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from parallax.errors import UnsafeModelError
from parallax.model import load_model
from parallax.model._functions import inline_functions
from tests.model._models import FLOAT, model, node, value

LENGTH = 20_000


def chain(length: int, *, backwards: bool = False) -> bytes:
    proto = onnx.ModelProto(ir_version=10)
    proto.opset_import.add(domain="", version=21)
    proto.graph.input.append(value("t0", (4,)))
    proto.graph.output.append(value(f"t{length}", (4,)))
    for index in reversed(range(length)) if backwards else range(length):
        proto.graph.node.add(op_type="Relu", input=[f"t{index}"], output=[f"t{index + 1}"], name=f"n{index}")
    return proto.SerializeToString()


@pytest.mark.parametrize("length", [LENGTH, pytest.param(400_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("backwards", [False, True])
def test_a_chain_far_longer_than_the_recursion_limit_loads_and_is_cut(backwards: bool, length: int) -> None:
    loaded = load_model(chain(length, backwards=backwards))
    graph = loaded.graph
    assert len(graph.nodes) == length > 10 * sys.getrecursionlimit()
    assert [graph.nodes[index].outputs[0] for index in (0, length - 1)] == ["t1", f"t{length}"]
    assert graph.predecessors[-1] == (length - 2,)
    middle = length // 2
    segment = loaded.extract([middle], [f"t{middle}"], [f"t{middle + 1}"], name="one")
    assert len(segment.proto) < 500


def test_a_cycle_through_a_long_chain_is_found() -> None:
    proto = onnx.ModelProto()
    proto.ParseFromString(chain(LENGTH))
    proto.graph.node[0].input[0] = proto.graph.node[-2].output[0]
    with pytest.raises(Exception, match=r"cycle.*\(19999 nodes\)"):
        load_model(proto)


def test_a_chain_of_functions_longer_than_the_recursion_limit_is_checked() -> None:
    """The check must not recurse, as the runtime does, which would overflow its stack."""
    proto = onnx.ModelProto()
    for index in range(5000):
        function = proto.functions.add(domain="d", name=f"F{index}")
        function.node.add(op_type=f"F{index + 1}", domain="d")
    proto.graph.node.add(op_type="F0", domain="d")
    with pytest.raises(UnsafeModelError, match="5000 deep"):
        inline_functions(proto)


def test_a_hundred_extracts_of_one_node_share_one_index() -> None:
    loaded = load_model(chain(1000))
    segments = [loaded.extract([i], [f"t{i}"], [f"t{i + 1}"], name=str(i)) for i in range(100)]
    assert len({segment.proto for segment in segments}) == 100
    assert loaded._extractor is loaded._extractor


def sparse_file(path: Path, payload: int, count: int) -> None:
    """A model of more than 2 GiB whose weights are holes: it takes no room on the disk."""
    small = model([node("Identity", "x", "y")], [value("x")], [value("y")])
    prefix = small.SerializeToString()
    heads = []
    for index in range(count):
        name = f"w{index}".encode()
        dims = b"\x08" + _varint(payload // 4)
        head = dims + b"\x10\x01" + b"\x42" + _varint(len(name)) + name + b"\x4a" + _varint(payload)
        heads.append(b"\x2a" + _varint(len(head) + payload) + head)
    graph_size = sum(len(head) + payload for head in heads)
    with path.open("wb") as file:
        file.write(prefix + b"\x3a" + _varint(graph_size))  # a second piece of the same graph
        for head in heads:
            file.write(head)
            file.seek(payload, os.SEEK_CUR)
        file.truncate()


@pytest.mark.slow
def test_a_file_of_three_gigabytes_loads_without_reading_its_weights(tmp_path: Path) -> None:
    payload = 1 << 30
    path = tmp_path / "large.onnx"
    sparse_file(path, payload, 3)
    if os.name != "nt" and path.stat().st_blocks * 512 > payload:
        pytest.skip("this file system has no sparse files")
    loaded = load_model(path)
    assert loaded.weight_bytes == 3 * payload
    segment = loaded.extract([0], ["x"], ["y", "w2"], name="last")
    assert segment.weights["w2"].shape == (payload // 4,)
    assert segment.weights["w2"][-1] == 0
    assert len(segment.proto) < 1000


@pytest.mark.slow
def test_external_data_past_four_gigabytes_is_reached(tmp_path: Path) -> None:
    offset = 5 << 30
    data = np.arange(1000, dtype=np.float32)
    with (tmp_path / "far.bin").open("wb") as file:
        file.seek(offset)
        file.write(data.tobytes())
    if os.name != "nt" and (tmp_path / "far.bin").stat().st_blocks * 512 > offset:
        pytest.skip("this file system has no sparse files")
    tensor = onnx.TensorProto(name="w", data_type=FLOAT, dims=[1000], data_location=onnx.TensorProto.EXTERNAL)
    for key, text in (("location", "far.bin"), ("offset", str(offset)), ("length", "4000")):
        tensor.external_data.add(key=key, value=text)
    path = tmp_path / "model.onnx"
    path.write_bytes(model([node("Identity", "w", "y")], [], [value("y", None)], [tensor]).SerializeToString())
    segment = load_model(path).extract([0], [], ["y"], name="all")
    np.testing.assert_array_equal(segment.weights["w"], data)


@pytest.mark.slow
def test_a_message_over_two_gigabytes_is_split_instead_of_serialised() -> None:
    """Needs about 5 GB of memory: protobuf holds the weights once, and the views' bytes are a copy."""
    proto = model([node("Add", "a b", "y")], [], [value("y", None)])
    count = 300_000_000
    for name in "ab":
        proto.graph.initializer.add(name=name, data_type=FLOAT, dims=[count]).raw_data = bytes(4 * count)
    loaded = load_model(proto)
    assert loaded.weight_bytes == 8 * count
    segment = loaded.extract([0], [], ["y"], name="all")
    assert {name: array.shape for name, array in segment.weights.items()} == {"a": (count,), "b": (count,)}
    with pytest.raises(Exception, match="over 2 GiB"):
        loaded.whole()


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
