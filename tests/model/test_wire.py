from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from parallax.errors import ModelFileError
from parallax.model._wire import LIFT_BYTES, NESTED_LIFT_BYTES, strip_weights
from tests.model._models import FLOAT, conv_model, model, node, value, weight

MARK = onnx.TensorProto.EXTERNAL


def parsed(skeleton: bytes) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    proto.ParseFromString(skeleton)
    return proto


def identity(*tensors: onnx.TensorProto) -> onnx.ModelProto:
    return model([node("Identity", "x", "y")], [value("x")], [value("y")], tensors)


def test_payloads_are_the_bytes_of_large_initializers_and_the_rest_is_untouched() -> None:
    data = conv_model().SerializeToString()
    stripped = strip_weights(data)
    original, skeleton = parsed(data), parsed(stripped.skeleton)
    assert len(stripped.skeleton) < len(data)
    for ordinal, (before, after) in enumerate(zip(original.graph.initializer, skeleton.graph.initializer, strict=True)):
        payload = stripped.initializers.get(ordinal)
        if payload is None:
            assert before == after
            continue
        assert data[payload.start : payload.end] == numpy_helper.to_array(before).tobytes()
        assert (after.name, after.data_type, list(after.dims)) == (before.name, before.data_type, list(before.dims))
        assert after.data_location == MARK
        assert not after.raw_data
        assert not after.float_data
    assert {original.graph.initializer[ordinal].name for ordinal in stripped.initializers} == {"w", "half", "typed"}
    for proto in (original, skeleton):
        del proto.graph.initializer[:]
    assert original == skeleton


@pytest.mark.parametrize("size", [LIFT_BYTES - 1, LIFT_BYTES])
def test_the_threshold_counts_payload_bytes(size: int) -> None:
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.UINT8, dims=[size], raw_data=bytes(size))
    stripped = strip_weights(identity(tensor).SerializeToString())
    assert bool(stripped.initializers) == (size >= LIFT_BYTES)


def test_a_mapped_file_gives_the_same_as_its_bytes(tmp_path: Path) -> None:
    data = conv_model().SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    from_file, from_bytes = strip_weights(mapped), strip_weights(data)
    assert from_file.skeleton == from_bytes.skeleton
    spans = [[(p.start, p.end) for p in stripped.initializers.values()] for stripped in (from_file, from_bytes)]
    assert spans[0] == spans[1]
    del from_file
    mapped.close()  # would raise if a view were left


def test_large_tensors_inside_nodes_are_lifted_and_small_ones_are_not() -> None:
    big = numpy_helper.from_array(np.zeros(NESTED_LIFT_BYTES, np.uint8), "big")
    small = numpy_helper.from_array(np.zeros(4096, np.uint8), "small")
    body = helper.make_graph([node("Identity", "big", "o")], "body", [], [value("o")], [small, big])
    proto = model(
        [
            node("Constant", "", "k", value=big),
            node("If", "c", "y", then_branch=body, else_branch=body),
        ],
        [value("c", (), onnx.TensorProto.BOOL)],
        [value("y")],
    )
    stripped = strip_weights(proto.SerializeToString())
    assert len(stripped.nested) == 3
    assert len(stripped.skeleton) < NESTED_LIFT_BYTES
    assert not stripped.initializers


def test_a_tensor_with_its_payload_in_two_pieces_is_left_to_protobuf() -> None:
    first = onnx.TensorProto(name="w", data_type=FLOAT, dims=[600], float_data=weight((300,)))
    second = onnx.TensorProto(float_data=weight((300,), 1))
    joined = first.SerializeToString() + second.SerializeToString()
    tensor = onnx.TensorProto()
    tensor.ParseFromString(joined)
    assert len(tensor.float_data) == 600
    # Written out by hand: serialising the parsed tensor would join the pieces.
    graph = b"\x2a" + _varint(len(joined)) + joined
    data = b"\x3a" + _varint(len(graph)) + graph
    stripped = strip_weights(data)
    assert stripped.skeleton == data
    assert not stripped.initializers


def test_a_graph_in_two_pieces_is_one_graph() -> None:
    first, second = identity(numpy_helper.from_array(weight((400,)), "a")), onnx.ModelProto()
    second.graph.initializer.append(numpy_helper.from_array(weight((500,), 1), "b"))
    data = first.SerializeToString() + second.SerializeToString()
    stripped = strip_weights(data)
    skeleton = parsed(stripped.skeleton)
    assert [tensor.name for tensor in skeleton.graph.initializer] == ["a", "b"]
    lengths = [stripped.initializers[ordinal].end - stripped.initializers[ordinal].start for ordinal in (0, 1)]
    assert lengths == [1600, 2000]


def test_lengths_in_more_bytes_than_needed_are_understood() -> None:
    payload = weight((400,)).tobytes()
    tensor = b"\x08\x90\x03\x10\x01" + b"\x4a" + b"\xc0\x8c\x80\x00" + payload + b"\x42\x01w"
    graph = b"\x2a" + _varint(len(tensor)) + tensor
    stripped = strip_weights(b"\x3a" + _varint(len(graph)) + graph)
    found = parsed(stripped.skeleton).graph.initializer[0]
    assert (found.name, list(found.dims), found.data_location) == ("w", [400], MARK)
    assert stripped.initializers[0].end - stripped.initializers[0].start == 1600


def test_a_cut_file_is_refused_with_the_offset() -> None:
    data = conv_model().SerializeToString()
    with pytest.raises(ModelFileError, match=r"claims \d+ bytes but only \d+ follow \(at byte \d+\)"):
        strip_weights(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x0b", "wire type 3"),
        (b"\x02\x01\x00", "field number 0"),
        (b"\x08" + b"\xff" * 11, "varint"),
        (b"\x08\xff", "middle of a field"),
        (b"\x09\x00", "past the end"),
        (b"\x3a\x02\x0d\x00", "past the end"),
    ],
)
def test_malformed_bytes_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        strip_weights(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_stripped_or_refused(data: bytes) -> None:
    try:
        stripped = strip_weights(data)
    except ModelFileError:
        return
    assert len(stripped.skeleton) <= len(data)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
