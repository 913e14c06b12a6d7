"""Lift weights out of a serialised ModelProto without parsing or copying them.

protobuf would copy every weight into its own heap before we could look at the graph. Instead, this
scanner walks the wire format (protobuf encoding guide: tag, then varint, fixed or length-delimited
value) along ModelProto.graph (7) -> GraphProto.initializer (5), cuts out each large payload, and
leaves a small *skeleton* behind: the same model, in which these tensors are marked as external
data. The payloads are reported as byte ranges of the input, to be viewed in place.

Tensors deeper down (a Constant node's value, the initializers of an If, Loop or Scan body) are
lifted only when large, because they must be put back in place before anything runs them.

Cost: one step per field of the graph, independent of the size of the weights.
"""

from __future__ import annotations

import mmap

from parallax._record import dataclass
from parallax.errors import ModelFileError

Buffer = bytes | mmap.mmap
"""What can be indexed as integers and sliced as bytes at native speed."""

LIFT_BYTES = 1024
"""Initializers of the graph with a payload of at least this size are lifted."""

NESTED_LIFT_BYTES = 1 << 20
"""Threshold for tensors inside nodes: each extraction copies them, so only what would hurt is lifted."""

PAYLOAD_KEY = "parallax.payload"
"""External-data key under which a lifted tensor carries its index into ``Stripped.payloads``."""

# Fields whose payload is the tensor's little-endian bytes when packed: raw_data, float_data, double_data.
_RAW_DATA, _FLOAT_DATA, _DOUBLE_DATA = 9, 4, 10
_TENSOR_PAYLOADS = frozenset((_RAW_DATA, _FLOAT_DATA, _DOUBLE_DATA))
_DATA_LOCATION = 14
# Descent: message kind -> {field number: kind of the submessage}.
_GRAPH, _NODE, _ATTRIBUTE, _TENSOR = "GraphProto", "NodeProto", "AttributeProto", "TensorProto"
_NODE_FIELDS = {5: _ATTRIBUTE}
_ATTRIBUTE_FIELDS = {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH}
_BODY_FIELDS = {1: _NODE, 5: _TENSOR}
_CHILDREN = {_NODE: _NODE_FIELDS, _ATTRIBUTE: _ATTRIBUTE_FIELDS, _GRAPH: _BODY_FIELDS}
_MAX_DEPTH = 100
"""protobuf's own limit on nested messages; deeper input is left for it to refuse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """Bytes ``start:end`` of ``buffer``, lifted out of TensorProto field ``field``, which begins at ``tag``."""

    buffer: Buffer
    tag: int
    start: int
    end: int
    field: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stripped:
    """A model without its large weights.

    ``initializers`` maps the ordinal of an initializer of the main graph to its payload;
    ``nested`` holds the payloads of lifted tensors inside nodes, which carry their index in
    ``nested`` as external data under ``PAYLOAD_KEY``.
    """

    skeleton: bytes
    initializers: dict[int, Payload]
    nested: tuple[Payload, ...]


def strip_weights(data: Buffer) -> Stripped:
    """Split a serialised ModelProto into skeleton and payloads.

    Raises:
        ModelFileError: the bytes are not a well-formed message, with the offset of the fault.
    """
    scanner = _Scanner(data)
    try:
        return scanner.model()
    except IndexError:
        raise ModelFileError(
            "the file ends in the middle of a field",
            where=f"byte {len(data)}",
            fix="the download or copy was cut short: fetch or export the model again",
        ) from None


class _Scanner:
    def __init__(self, data: Buffer) -> None:
        self.data = data
        self.view = memoryview(data)
        self.initializers: dict[int, Payload] = {}
        self.nested: list[Payload] = []
        self.ordinal = 0

    def model(self) -> Stripped:
        pieces: list[memoryview | bytes] = []
        data, end = self.data, len(self.data)
        position = copied = 0
        try:
            while position < end:
                field_start = position
                tag, position = _varint(data, position)
                if tag == 7 << 3 | 2:  # ModelProto.graph
                    length, position = _varint(data, position)
                    stop = self._check_end(position, length, end, "the graph")
                    rebuilt = self._graph(position, stop)
                    if rebuilt is not None:
                        pieces.append(self.view[copied:field_start])
                        pieces.append(_header(tag, sum(map(len, rebuilt))))
                        pieces.extend(rebuilt)
                        copied = stop
                    position = stop
                else:
                    position = self._skip(tag, position, end)
            pieces.append(self.view[copied:end])
            skeleton = b"".join(pieces)
        finally:
            # An exported view would forbid closing the mmap.
            for piece in pieces:
                if isinstance(piece, memoryview):
                    piece.release()
            self.view.release()
        return Stripped(skeleton=skeleton, initializers=self.initializers, nested=tuple(self.nested))

    def _graph(self, start: int, end: int) -> list[memoryview | bytes] | None:
        """Scan the main graph; None when nothing in it was lifted.

        The loop is written out because it runs once per node and initializer of the model.
        """
        data, view = self.data, self.view
        pieces: list[memoryview | bytes] = []
        position = copied = start
        ordinal = self.ordinal
        while position < end:
            field_start = position
            tag = data[position]
            position += 1
            if tag >= 0x80:
                tag, position = _varint(data, field_start)
            if tag & 7 != 2:
                position = self._skip(tag, position, end)
                continue
            length = data[position]
            position += 1
            if length >= 0x80:
                length, position = _varint(data, position - 1)
            stop = position + length
            if stop > end:
                self._check_end(position, length, end, "a field of the graph")
            if tag == 0x2A:  # GraphProto.initializer
                if length >= LIFT_BYTES:
                    payload = self._payload(position, stop, LIFT_BYTES)
                    if payload is not None:
                        self.initializers[ordinal] = payload
                        rebuilt = self._marked(position, stop, payload, None)
                        pieces.append(view[copied:field_start])
                        pieces.append(_header(tag, sum(map(len, rebuilt))))
                        pieces.extend(rebuilt)
                        copied = stop
                ordinal += 1
            elif tag == 0x0A and length >= NESTED_LIFT_BYTES:  # GraphProto.node
                rebuilt_node = self._message(_NODE, position, stop, 2)
                if rebuilt_node is not None:
                    pieces.append(view[copied:field_start])
                    pieces.append(_header(tag, sum(map(len, rebuilt_node))))
                    pieces.extend(rebuilt_node)
                    copied = stop
            position = stop
        self.ordinal = ordinal
        if not pieces:
            return None
        pieces.append(view[copied:end])
        return pieces

    def _message(self, kind: str, start: int, end: int, depth: int) -> list[memoryview | bytes] | None:
        """Scan a large message inside a node; None when nothing in it was lifted.

        Recursion is bounded by ``_MAX_DEPTH``, the nesting protobuf itself accepts.
        """
        if kind == _TENSOR:
            payload = self._payload(start, end, NESTED_LIFT_BYTES)
            if payload is None:
                return None
            self.nested.append(payload)
            return self._marked(start, end, payload, len(self.nested) - 1)
        if depth > _MAX_DEPTH:
            return None
        children = _CHILDREN[kind]
        pieces: list[memoryview | bytes] = []
        position = copied = start
        while position < end:
            field_start = position
            tag, position = _varint(self.data, position)
            if tag & 7 != 2:
                position = self._skip(tag, position, end)
                continue
            length, position = _varint(self.data, position)
            stop = self._check_end(position, length, end, f"a field of a {kind}")
            child = children.get(tag >> 3)
            if child is not None and length >= NESTED_LIFT_BYTES:
                rebuilt = self._message(child, position, stop, depth + 1)
                if rebuilt is not None:
                    pieces.append(self.view[copied:field_start])
                    pieces.append(_header(tag, sum(map(len, rebuilt))))
                    pieces.extend(rebuilt)
                    copied = stop
            position = stop
        if not pieces:
            return None
        pieces.append(self.view[copied:end])
        return pieces

    def _payload(self, start: int, end: int, threshold: int) -> Payload | None:
        """The one packed payload of a TensorProto, or None when it must be left to protobuf.

        A tensor with several payload fields (legal on the wire, merged by protobuf), or one that
        is external already, is left alone.
        """
        data = self.data
        found: Payload | None = None
        position = start
        while position < end:
            field_start = position
            tag, position = _varint(data, position)
            field = tag >> 3
            if tag & 7 == 2:
                length, position = _varint(data, position)
                stop = self._check_end(position, length, end, "a field of a tensor")
                if field in _TENSOR_PAYLOADS:
                    if found is not None:
                        return None
                    found = Payload(buffer=data, tag=field_start, start=position, end=stop, field=field)
                position = stop
                continue
            if field == _DATA_LOCATION and tag & 7 == 0:
                location, position = _varint(data, position)
                if location != 0:
                    return None
                continue
            if field in _TENSOR_PAYLOADS:
                return None
            position = self._skip(tag, position, end)
        if found is None or found.end - found.start < threshold:
            return None
        return found

    def _marked(self, start: int, end: int, payload: Payload, index: int | None) -> list[memoryview | bytes]:
        """A TensorProto with its payload replaced by an external-data mark."""
        return [self.view[start : payload.tag], self.view[payload.end : end], external_mark(index)]

    def _skip(self, tag: int, position: int, end: int) -> int:
        """Position after the value of a field that is not looked into."""
        wire_type = tag & 7
        if tag >> 3 == 0:
            raise _malformed("field number 0", position)
        if wire_type == 2:
            length, position = _varint(self.data, position)
            return self._check_end(position, length, end, f"field {tag >> 3}")
        if wire_type == 0:
            _, position = _varint(self.data, position)
        elif wire_type == 1:
            position += 8
        elif wire_type == 5:
            position += 4
        else:
            raise _malformed(f"wire type {wire_type}", position)
        if position > end:
            raise _malformed(f"field {tag >> 3} runs past the end of its message", position)
        return position

    def _check_end(self, position: int, length: int, end: int, what: str) -> int:
        stop = position + length
        if stop > end:
            raise ModelFileError(
                f"{what} claims {length} bytes but only {max(0, end - position)} follow",
                where=f"byte {position}",
                fix="the file is truncated or not an ONNX model: fetch or export it again",
            )
        return stop


def _varint(data: Buffer, position: int) -> tuple[int, int]:
    """Decode one varint: (value, position after it)."""
    value = data[position]
    position += 1
    if value < 0x80:
        return value, position
    value &= 0x7F
    shift = 7
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift >= 70:
            raise _malformed("a varint of more than 10 bytes", position)


def _header(tag: int, length: int) -> bytes:
    """Tag and length of a length-delimited field."""
    out = bytearray()
    for value in (tag, length):
        while value >= 0x80:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
    return bytes(out)


def external_mark(index: int | None = None) -> bytes:
    """Wire form of two TensorProto fields: data_location = EXTERNAL, and external_data entries."""
    entries = [(b"location", b"*")]
    if index is not None:
        entries.append((PAYLOAD_KEY.encode(), str(index).encode()))
    out = bytearray((_DATA_LOCATION << 3, 1))
    for key, value in entries:
        entry = _header(1 << 3 | 2, len(key)) + key + _header(2 << 3 | 2, len(value)) + value
        out += _header(13 << 3 | 2, len(entry)) + entry
    return bytes(out)


def _malformed(what: str, position: int) -> ModelFileError:
    return ModelFileError(
        f"the bytes are not a protobuf message: {what}",
        where=f"byte {position}",
        fix="check that this is an ONNX model and export it again",
    )
