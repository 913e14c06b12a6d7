"""A model as far as the default policy has to know it, from its bytes alone.

Most models are left whole, for a reason that one look at operators and weights shows. For those, loading `onnx`,
parsing the model into messages and building its graph takes longer than all else that a session does. So what that
look needs is read here from the model without its weights (see `_wire_fields`). A model of which more has to be known,
one that holds anything unusual, and one that is wrong in any way seen here, is none of this module's: it is read as
ever.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from parallax._record import dataclass
from parallax.errors import ModelFileError
from parallax.graph import ELEMENT_TYPES, NUMPY_TYPES, packed_bytes
from parallax.model._body_operators import BODY_OPERATORS, may_have_bodies
from parallax.model._digests import skeleton_digest, structure_digest
from parallax.model._files import HeldFiles, open_file
from parallax.model._survey import BranchesSeen, RowsPicked, Survey, is_row_picker
from parallax.model._versions import are_known
from parallax.model._wire import Payload, strip_weights
from parallax.model._wire_fields import (
    ATTRIBUTE,
    DATA_LOCATION,
    DATA_TYPE,
    DIMS,
    DOMAIN,
    DOUBLE_DATA,
    EXTERNAL_DATA,
    FLOAT_DATA,
    GRAPH,
    GRAPH_NAME,
    INITIALIZER,
    INPUT,
    INT32,
    INT32_DATA,
    INT64,
    INT64_DATA,
    IR_VERSION,
    MODEL,
    MODEL_GRAPH,
    NODE,
    NODE_FIELDS,
    NODE_INPUT,
    NODE_NAME,
    NODE_OUTPUT,
    OP_TYPE,
    OPSET_IMPORT,
    OUTPUT,
    RAW_DATA,
    TENSOR,
    TENSOR_NAME,
    UINT64_DATA,
    VALUE_INFO,
    OtherFormError,
    below,
    fields,
    may_have_body,
    untyped_name,
    value_info,
)

if TYPE_CHECKING:
    from parallax.model._model import Model

_ATTRIBUTE_TENSOR: Final = 0x2A
_ATTRIBUTE_FIELDS: Final = {
    **dict.fromkeys((0x0A, 0x18, 0x22, _ATTRIBUTE_TENSOR, 0x6A, 0xA0), False),
    0x40: True,
    0x4A: True,  # lists of integers and of texts
}
_ATTRIBUTE_NAME, _ATTRIBUTE_INT = 0x0A, 0x18
_BRANCH: Final = 0x32
_ATTRIBUTE_TYPE, _GRAPH_TYPE = 0xA0, 5
_BRANCH_FIELDS: Final = dict.fromkeys((_ATTRIBUTE_NAME, _BRANCH, _ATTRIBUTE_TYPE), False)
_BRANCH_NAMES: Final = [b"else_branch", b"then_branch"]
_MOST_NESTED: Final = 16
"""How deep Ifs may lie in each other to be looked into. Deeper ones are left to protobuf, which has a bound of its own.
"""
_VERSION_DOMAIN, _VERSION = 0x0A, 0x10
_OPSET: Final = {_VERSION_DOMAIN: False, _VERSION: False}
_FLOAT_BYTES: Final = {FLOAT_DATA: (1, 4), DOUBLE_DATA: (11, 8)}
"""Field -> type of the elements that it holds as they are, and bytes of each."""
_NUMBERS: Final = frozenset((INT32_DATA, INT64_DATA, UINT64_DATA))
"""Fields of numbers in pieces of seven bits, of which the last of each number is below 128."""
_BFLOAT16: Final = 16
_TYPES: Final = frozenset((*NUMPY_TYPES, _BFLOAT16))
"""Types of weights that are looked at."""
_LIFTED: Final = {4: (1,), 10: (11,)}
"""Field of a payload that was lifted out -> the types that it may be of; raw data may be of any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSummary:
    """What the default policy has to know of a model.

    The graph is sound: each tensor has one definition, which comes before its uses.
    """

    source: HeldFiles | bytes
    survey: Survey
    domains: frozenset[str]
    """Of its operators, those in branches too; "ai.onnx" written as ""."""
    weights_read: Mapping[str, tuple[int, int]]
    """Operator type -> elements of the weights that such operators read, and of how many at most one of them does."""
    weight_bytes: int
    structure_digest: str
    """As `Model.structure_digest`."""

    @property
    def files(self) -> HeldFiles:
        """The files that it was read from, as they were then."""
        return self.source if isinstance(self.source, HeldFiles) else HeldFiles(None)

    def read(self) -> Model:
        """The model itself. Raises: as `read_model`."""
        from parallax.model._model import read_model

        return read_model(self.source)


def read_summary(source: str | bytes | HeldFiles) -> ModelSummary | None:
    """Summarise a model given by path, as bytes or as the files that were opened before. Microseconds per node.

    None where it must be read as a whole, be it to say what is wrong with it.
    """
    try:
        held = HeldFiles(open_file(source)) if isinstance(source, str) else source
        data = held if isinstance(held, bytes) else held.model.buffer if held.model is not None else b""
        if data[4:8] == b"ORTM":  # ONNX Runtime's own format, whatever else it may be
            return None
        stripped = strip_weights(data)
        if stripped.nested or stripped.skeleton.count(b"location") != len(stripped.initializers):
            return None
        return _look(held, stripped.skeleton, stripped.initializers)
    except (OtherFormError, IndexError, UnicodeDecodeError, ModelFileError, OSError, ValueError):
        return None


def _look(held: HeldFiles | bytes, data: bytes, lifted: Mapping[int, Payload]) -> ModelSummary:
    ir_version = 0
    opsets: dict[str, int] = {}
    place = None
    for tag, start, stop in fields(data, 0, len(data), MODEL):
        if tag == IR_VERSION:
            ir_version = below(start, INT32)
        elif tag == OPSET_IMPORT:
            domain, version = _opset(data, start, stop)
            if domain in opsets:
                raise OtherFormError
            opsets[domain] = version
        elif tag == MODEL_GRAPH:
            place = start, stop
    if place is None or not are_known(ir_version, opsets):
        raise OtherFormError
    look = _Look(data, lifted)
    look.graph(*place)
    return ModelSummary(
        source=held,
        survey=look.survey(),
        domains=frozenset(look.domains),
        weights_read=look.weights_read(),
        weight_bytes=look.weight_bytes,
        structure_digest=structure_digest(skeleton_digest(data), {}),
    )


def _opset(data: bytes, start: int, stop: int) -> tuple[str, int]:
    domain, version = "", 0
    for tag, begin, end in fields(data, start, stop, _OPSET):
        if tag == _VERSION_DOMAIN:
            domain = data[begin:end].decode()
        else:
            version = below(begin, INT64)
    return "" if domain == "ai.onnx" else domain, version


class _Look:
    """One pass over a graph. Initializers come after the nodes that read them, so what nodes do is kept until then."""

    def __init__(self, data: bytes, lifted: Mapping[int, Payload], depth: int = 0) -> None:
        self.data = data
        self.lifted = lifted
        self.depth = depth
        self.operators: Counter[str] = Counter()
        self.domains: set[str] = set()
        self.weight_bytes = 0
        self._inputs: list[str] = []
        self._outputs: list[str] = []
        self._elements: dict[str, int] = {}  # of initializers
        self._shapes: dict[str, Sequence[int]] = {}  # of these
        self._stated: dict[str, int] = {}  # elements of inputs
        self._pickers: list[tuple[str, str]] = []
        self._reads: list[tuple[str, list[str]]] = []
        self._captured: dict[int, set[str]] = {}  # number of an If -> names that its branches read of this graph
        self._branches: list[_Branch] = []  # those of Ifs in them too
        self._writes: list[list[str]] = []
        self._names: set[str] = set()  # of nodes
        self._largest = 0

    def graph(self, start: int, stop: int) -> None:
        data = self.data
        ordinal = 0
        for tag, begin, end in fields(data, start, stop, GRAPH):
            if tag == NODE:
                self._node(begin, end)
            elif tag == INITIALIZER:
                self._initializer(begin, end, self.lifted.get(ordinal))
                ordinal += 1
            elif tag == GRAPH_NAME:
                data[begin:end].decode()  # a name that is no text is refused
            elif tag in (INPUT, OUTPUT, VALUE_INFO):
                self._value(tag, begin, end)
        self._check_names()

    def survey(self) -> Survey:
        picked, branches = RowsPicked(), BranchesSeen()
        stated = {**self._stated, **self._elements}
        for table, indices in self._pickers:
            picked.note(self._shapes.get(table), stated.get(indices))
        for branch in self._branches:
            branches.note(branch.operators, branch._largest)
        return Survey(
            node_count=len(self._reads),
            operators=dict(self.operators),
            with_bodies=len(self._captured),
            loops=0,
            branches=branches.seen(),
            inputs=tuple([name for name in self._inputs if name not in self._elements]),
            outputs=tuple(self._outputs),
            largest_elements=self._largest,
            picked_rows=dict(picked.rows),
            row_pickers=picked.nodes,
        )

    def weights_read(self) -> dict[str, tuple[int, int]]:
        """As `ModelSummary.weights_read`."""
        elements = self._elements
        read: dict[str, tuple[int, int]] = {}
        for op_type, reads in self._reads:
            found = [elements[name] for name in reads if name in elements]
            if found:
                total, most = read.get(op_type, (0, 0))
                read[op_type] = total + sum(found), max(most, len(found))
        return read

    def _value(self, tag: int, start: int, stop: int) -> None:
        """An input, an output or a stated intermediate."""
        info = value_info(self.data, start, stop)
        # A size that is left open counts as 1, as it does where costs are estimated.
        elements = self._note_size([dim if isinstance(dim, int) else 1 for dim in info.shape or ()])
        if tag != VALUE_INFO:
            if info.dtype not in NUMPY_TYPES:
                raise OtherFormError
            (self._inputs if tag == INPUT else self._outputs).append(info.name)
            if tag == INPUT:
                self._stated[info.name] = elements

    def _note_size(self, dims: Sequence[int]) -> int:
        elements = math.prod(dims)
        self._largest = max(self._largest, elements)
        return elements

    def _note_name(self, name: str) -> None:
        """Two nodes of one name are something that the runtime refuses."""
        if name and name in self._names:
            raise OtherFormError
        self._names.add(name)

    def _node(self, start: int, stop: int) -> None:
        data = self.data
        op_type = domain = ""
        reads: list[str] = []
        writes: list[str] = []
        attributes: list[tuple[int, int]] = []
        for tag, begin, end in fields(data, start, stop, NODE_FIELDS):
            if tag == NODE_INPUT:
                reads.append(data[begin:end].decode())
            elif tag == NODE_OUTPUT:
                writes.append(data[begin:end].decode())
            elif tag == OP_TYPE:
                op_type = data[begin:end].decode()
            elif tag == NODE_NAME:
                self._note_name(data[begin:end].decode())
            elif tag == DOMAIN:
                domain = data[begin:end].decode()
            elif tag == ATTRIBUTE:
                attributes.append((begin, end))
        domain = "" if domain == "ai.onnx" else domain
        if op_type in BODY_OPERATORS or (may_have_bodies(op_type, domain) and may_have_body(data, start, stop)):
            self._note_branches(op_type, domain, attributes)
        elif op_type == "Constant":
            for place in attributes:
                for tag, begin, end in fields(data, *place, _ATTRIBUTE_FIELDS):
                    if tag == _ATTRIBUTE_TENSOR:
                        self._tensor(begin, end, None)
        elif is_row_picker(op_type, domain, len(reads)) and all(_is_axis_0(data[b:e]) for b, e in attributes):
            self._pickers.append((reads[0], reads[1]))
        self.operators[op_type] += 1
        self.domains.add(domain)
        self._reads.append((op_type, reads))
        self._writes.append(writes)

    def _note_branches(self, op_type: str, domain: str, attributes: Sequence[tuple[int, int]]) -> None:
        """Look into an If. Raises: OtherFormError for any other operator with a body, whose time cannot be told."""
        if op_type != "If" or domain or self.depth == _MOST_NESTED:
            raise OtherFormError
        names: list[bytes] = []
        captured: set[str] = set()
        for place in attributes:
            found = {tag: (begin, end) for tag, begin, end in fields(self.data, *place, _BRANCH_FIELDS)}
            begin, end = found.get(_ATTRIBUTE_NAME, (0, 0))
            names.append(self.data[begin:end])
            if _BRANCH not in found or found.get(_ATTRIBUTE_TYPE) != (_GRAPH_TYPE, 0):
                raise OtherFormError
            branch = _Branch(self.data, self.depth + 1)
            branch.graph(*found[_BRANCH])
            captured |= branch.free
            self._branches += [branch, *branch._branches]
            self.domains |= branch.domains
        if sorted(names) != _BRANCH_NAMES:
            raise OtherFormError
        self._captured[len(self._reads)] = captured

    def _initializer(self, start: int, stop: int, payload: Payload | None) -> None:
        name, dims, size_bytes = self._tensor(start, stop, payload)
        if not name or name in self._elements:
            raise OtherFormError
        self._shapes[name] = dims
        self._elements[name] = math.prod(dims)
        self.weight_bytes += size_bytes

    def _tensor(self, start: int, stop: int, payload: Payload | None) -> tuple[str, list[int], int]:
        """Name, shape and bytes of a tensor that holds what its type and shape say."""
        data = self.data
        name = ""
        data_type = 0
        dims: list[int] = []
        contents: list[tuple[int, int, int]] = []
        is_marked = False
        for tag, begin, end in fields(data, start, stop, TENSOR):
            if tag == DIMS:
                dims.append(below(begin, INT64))
            elif tag == DATA_TYPE:
                data_type = below(begin, INT32)
            elif tag == TENSOR_NAME:
                name = data[begin:end].decode()
            elif tag in (EXTERNAL_DATA, DATA_LOCATION):
                is_marked = True
            elif tag in _FLOAT_BYTES or tag in _NUMBERS or tag == RAW_DATA:
                contents.append((tag, begin, end))
        if data_type not in _TYPES or is_marked != (payload is not None) or len(contents) > 1:
            raise OtherFormError
        elements = self._note_size(dims)
        size_bytes = packed_bytes(elements, ELEMENT_TYPES[data_type].bits)
        if payload is not None:
            is_right = (
                not contents
                and payload.end - payload.start == size_bytes
                and data_type in _LIFTED.get(payload.field, (data_type,))
            )
        elif contents:
            is_right = self._holds(*contents[0], data_type, elements, size_bytes)
        else:
            is_right = not elements
        if not is_right:
            raise OtherFormError
        return name, dims, size_bytes

    def _holds(self, tag: int, begin: int, end: int, data_type: int, elements: int, size_bytes: int) -> bool:
        """Whether a field of a tensor holds so many elements of that type."""
        if tag == RAW_DATA:
            return end - begin == size_bytes
        if tag in _FLOAT_BYTES:
            kind, each = _FLOAT_BYTES[tag]
            return data_type == kind and end - begin == elements * each
        return sum(byte < 0x80 for byte in self.data[begin:end]) == elements

    def _check_names(self) -> None:
        """All that is read is defined."""
        if self._free_names():
            raise OtherFormError

    def _free_names(self) -> set[str]:
        """What is read and not defined. All else is defined once, and before what reads it."""
        if len(set(self._inputs)) != len(self._inputs):
            raise OtherFormError
        known = {"", *self._inputs, *self._elements}
        made: set[str] = set()
        free: set[str] = set()
        for number, ((_, reads), writes) in enumerate(zip(self._reads, self._writes, strict=True)):
            if not known.issuperset(reads):
                free |= {*reads} - known
            if number in self._captured:
                free |= self._captured[number] - known
            for name in writes:
                if name:
                    if name in known:
                        raise OtherFormError
                    known.add(name)
                    made.add(name)
        # An output that no operator computes is something that only a whole session gives.
        if not made.issuperset(self._outputs) or made & free:
            raise OtherFormError
        return free


@functools.lru_cache(maxsize=64)
def _is_axis_0(attribute: bytes) -> bool:
    """Whether an attribute is ``axis``, of value 0. Models have thousands of attributes, of which few differ."""
    found = {tag: (begin, end) for tag, begin, end in fields(attribute, 0, len(attribute), _ATTRIBUTE_FIELDS)}
    begin, end = found.get(_ATTRIBUTE_NAME, (0, 0))
    return attribute[begin:end] == b"axis" and not found.get(_ATTRIBUTE_INT, (0, 0))[0]


class _Branch(_Look):
    """One pass over a branch of an If, which has no inputs and may read any tensor of the graphs around it."""

    def __init__(self, data: bytes, depth: int) -> None:
        super().__init__(data, {}, depth)  # models with payloads in branches are not looked at
        self.free: set[str] = set()
        """What it reads of the graphs around it."""

    def _value(self, tag: int, start: int, stop: int) -> None:
        if tag == INPUT:
            raise OtherFormError
        name = untyped_name(self.data, start, stop) if tag == OUTPUT else None
        if name is None:
            super()._value(tag, start, stop)
        else:
            self._outputs.append(name)

    def _check_names(self) -> None:
        self.free = self._free_names()
