"""Fields of protobuf messages, read from bytes that are as protobuf's own writer writes them.

To load `onnx` takes longer than to open a small model, and often little is asked of one: what types its inputs have, or
where its data lie. protobuf reads a message in many forms (a field that stands twice, say, counts the last time, or is
merged), of which its writer uses one. That one is read here, and whatever else is found is an `OtherFormError`: whoever
reads so leaves that to protobuf, and nothing is taken to mean something else than it means there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from parallax.graph import Dim, TensorInfo

# Of each message: the tag (field number << 3 | wire type) of what is known -> whether it may stand more than once.
# Wire type 0 is an integer, 2 comes with its length; see onnx.proto and protobuf's encoding guide.
IR_VERSION, MODEL_GRAPH, OPSET_IMPORT = 0x08, 0x3A, 0x42
MODEL: Final = {
    **dict.fromkeys((IR_VERSION, 0x12, 0x1A, 0x22, 0x28, 0x32, MODEL_GRAPH), False),  # who made it, the graph
    OPSET_IMPORT: True,
    0x72: True,  # operator sets, metadata
}
NODE, GRAPH_NAME, INITIALIZER, INPUT, OUTPUT, VALUE_INFO = 0x0A, 0x12, 0x2A, 0x5A, 0x62, 0x6A
GRAPH: Final = {
    NODE: True,
    GRAPH_NAME: False,
    INITIALIZER: True,
    0x52: False,
    INPUT: True,
    OUTPUT: True,
    VALUE_INFO: True,
    0x72: True,
    0x82: True,  # quantisation, metadata
}
DIMS, DATA_TYPE, TENSOR_NAME, EXTERNAL_DATA, DATA_LOCATION = 0x08, 0x10, 0x42, 0x6A, 0x70
FLOAT_DATA, INT32_DATA, INT64_DATA, RAW_DATA, DOUBLE_DATA, UINT64_DATA = 0x22, 0x2A, 0x3A, 0x4A, 0x52, 0x5A
STRING_DATA: Final = 0x32
TENSOR: Final = {
    DIMS: True,
    DATA_TYPE: False,
    TENSOR_NAME: False,
    EXTERNAL_DATA: True,
    DATA_LOCATION: False,
    **dict.fromkeys((FLOAT_DATA, INT32_DATA, INT64_DATA, RAW_DATA, DOUBLE_DATA, UINT64_DATA), False),
    STRING_DATA: True,
    0x62: False,
    0x82: True,  # what it is for, metadata
}
_NAME, _TYPE = 0x0A, 0x12
_VALUE: Final = {_NAME: False, _TYPE: False, 0x1A: False, 0x22: True}
_TENSOR_TYPE: Final = 0x0A
_TYPE_FIELDS: Final = {_TENSOR_TYPE: False, 0x32: False}
_ELEMENT, _SHAPE = 0x08, 0x12
_TENSOR_TYPE_FIELDS: Final = {_ELEMENT: False, _SHAPE: False}
_DIM: Final = 0x0A
_SHAPE_FIELDS: Final = {_DIM: True}
_DIM_VALUE, _DIM_PARAM = 0x08, 0x12
_DIM_FIELDS: Final = {_DIM_VALUE: False, _DIM_PARAM: False, 0x1A: False}

INT32: Final = 1 << 31
INT64: Final = 1 << 63

NODE_INPUT, NODE_OUTPUT, NODE_NAME, OP_TYPE, ATTRIBUTE, DOMAIN = 0x0A, 0x12, 0x1A, 0x22, 0x2A, 0x3A
NODE_FIELDS: Final = {
    NODE_INPUT: True,
    NODE_OUTPUT: True,
    NODE_NAME: False,
    OP_TYPE: False,
    ATTRIBUTE: True,
    0x32: False,
    DOMAIN: False,
    0x4A: True,  # what it is for, metadata
}
_ATTRIBUTE_TYPE: Final = b"\xa0\x01"
_BODY_MARKS: Final = (_ATTRIBUTE_TYPE + b"\x05", _ATTRIBUTE_TYPE + b"\x0a")
"""An attribute's type, where it is a graph or several. Also found where it means something else: a node that is 160
bytes long begins so, its length counted."""


class OtherFormError(Exception):
    """Not as protobuf's writer writes it, or of a kind that is not looked into: protobuf is to tell."""


def fields(data: bytes, position: int, end: int, known: Mapping[int, bool]) -> Iterator[tuple[int, int, int]]:
    """Each field of a message: its tag, and its number and 0, or where its content begins and ends.

    Args:
        data: what the message lies in, from ``position`` to ``end``.
        known: tag -> whether it may stand more than once.

    Raises: OtherFormError for a field that is not known, that stands twice though it may not, or that ends elsewhere
        than the message. IndexError where ``data`` end before.
    """
    seen = 0
    while position < end:
        tag = data[position]
        position += 1
        if tag >= 0x80:
            tag, position = _varint(data, position - 1)
        repeats = known.get(tag)
        if repeats is None or (not repeats and seen >> tag & 1):
            raise OtherFormError
        seen |= 1 << tag
        value = data[position]
        position += 1
        if value >= 0x80:
            value, position = _varint(data, position - 1)
        if tag & 7 == 0:
            yield tag, value, 0
            continue
        stop = position + value
        if stop > end:
            raise OtherFormError
        yield tag, position, stop
        position = stop
    if position != end:
        raise OtherFormError


def has_body_mark(data: bytes, start: int, stop: int) -> bool:
    """Whether some attribute in there may be a graph; where none is marked so, none is. A search for a few bytes."""
    return any(data.find(mark, start, stop) >= 0 for mark in _BODY_MARKS)


def may_have_body(data: bytes, start: int, stop: int) -> bool:
    """Likewise of one node, from its attributes alone. Raises: as `fields`."""
    return has_body_mark(data, start, stop) and any(
        tag == ATTRIBUTE and has_body_mark(data, begin, end) and not _is_typed_otherwise(data, end)
        for tag, begin, end in fields(data, start, stop, NODE_FIELDS)
    )


def _is_typed_otherwise(data: bytes, end: int) -> bool:
    """Whether an attribute that ends there says that it is no graph. Fields are written in the order of their numbers,
    of which the type's is the last that attributes of a model have."""
    return data[end - 3 : end - 1] == _ATTRIBUTE_TYPE and data[end - 3 : end] not in _BODY_MARKS


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number in pieces of seven bits, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            # Longer than need be, or than 64 bits: no writer writes it so.
            if byte == 0 or value >> 64:
                raise OtherFormError
            return value, position
        shift += 7
        if shift > 63:
            raise OtherFormError


def below(value: int, bound: int) -> int:
    """A number that must be less. Those beyond are negative ones, or none of that type."""
    if value >= bound:
        raise OtherFormError
    return value


def graph_place(data: bytes) -> tuple[int, int]:
    """Where the graph of a model lies."""
    places = [(start, stop) for tag, start, stop in fields(data, 0, len(data), MODEL) if tag == MODEL_GRAPH]
    if not places:
        raise OtherFormError
    return places[0]


def value_info(data: bytes, start: int, stop: int) -> TensorInfo:
    """A ValueInfoProto whose type is a dense tensor's."""
    name, kind = "", None
    for tag, begin, end in fields(data, start, stop, _VALUE):
        if tag == _NAME:
            name = data[begin:end].decode()
        elif tag == _TYPE:
            kind = begin, end
    if kind is None:
        raise OtherFormError
    tensors = [_tensor_type(data, *place) for tag, *place in fields(data, *kind, _TYPE_FIELDS) if tag == _TENSOR_TYPE]
    if not tensors:
        raise OtherFormError
    dtype, shape = tensors[0]
    return TensorInfo(name=name, dtype=dtype, shape=shape)


def untyped_name(data: bytes, start: int, stop: int) -> str | None:
    """The name of a ValueInfoProto without a type, which a branch's output may be; None if a type is stated."""
    name = ""
    for tag, begin, end in fields(data, start, stop, _VALUE):
        if tag == _TYPE:
            return None
        if tag == _NAME:
            name = data[begin:end].decode()
    return name


def _tensor_type(data: bytes, start: int, stop: int) -> tuple[int, tuple[Dim, ...] | None]:
    dtype, shape = 0, None
    for tag, begin, end in fields(data, start, stop, _TENSOR_TYPE_FIELDS):
        if tag == _ELEMENT:
            dtype = below(begin, INT32)
        else:
            shape = tuple([_dim(data, *place) for _, *place in fields(data, begin, end, _SHAPE_FIELDS)])
    return dtype, shape


def _dim(data: bytes, start: int, stop: int) -> Dim:
    found: list[Dim] = []
    for tag, begin, end in fields(data, start, stop, _DIM_FIELDS):
        if tag == _DIM_VALUE:
            found.append(below(begin, INT64))
        elif tag == _DIM_PARAM:
            found.append(data[begin:end].decode() or None)
    if len(found) > 1:
        raise OtherFormError
    return found[0] if found else None
