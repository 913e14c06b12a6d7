"""What OpenVINO computes as ONNX Runtime does: a table of operators, attributes, element types and forms that were run.

``openvino_table.json`` is made by ``tools/openvino_table.py``, which runs models of one operator in both libraries and
compares value by value; nothing in it is written by hand. A node is described by its `NodeForm`; a row of the table
holds, for one operator, the values of each of these properties with which every comparison was equal. A node with a
property outside its rows is refused: nobody knows what OpenVINO would make of it.

The properties are looked at one by one: a row allows all combinations of its values, of which many, but not all, were
run; none that was run within a row has differed.

NaNs and infinities are a matter of their own. Kernels of OpenVINO compare as the processor's instructions do: a NaN
that goes into Relu, Clip, Max or a pool comes out as a number, and maxima begin at the least finite float. A row says
what its operator ``loses`` so. Operators that choose among numbers (`_CHOOSES`) and lose any are refused. Relu, Clip,
Softmax and others are taken nevertheless, or hardly a model would be; instead a run is computed elsewhere if what it is
fed holds a NaN or an infinity, or is empty (see `OpenVinoModel`). What remains are NaNs and empty tensors that a model
makes of others within a part on OpenVINO, by 0/0 for example, and then loses there.

The table holds for one minor release of OpenVINO, whose version it states: with another one, everything is refused.
It was made on processors of AMD and of Intel, and states what is lost on either: kernels for other instructions lose
other numbers. For OpenVINO's other devices it is a condition that is necessary, not one that suffices.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from parallax.backends.ort import TYPE_NAMES
from parallax.graph import Dim, Node, OpGraph, Verdict

FILE_NAME: Final = "openvino_table.json"
FORMAT_VERSION: Final = 1
ABSENT: Final = "-"
"""The value of a property that a node does not have: an operand, output or attribute that is left out."""

NodeForm = Mapping[str, frozenset[str]]
"""Properties of a node: "in0" and "out0" (element types), "rank0", "const0" (whether the operand is a constant),
"shapes" (fixed, open, or with a dimension of 0), "since" (the version of the operator), "@axis" (what kind of value the
attribute has). Operands of an operator that takes any number share the properties of the last counted one."""

_COUNTED: Final = 3
"""From this operand on, those of an operator that takes any number of them are one property."""

_LARGEST_RANK: Final = 6
_UNKNOWN: Final = "?"
"""The rank of an operand whose rank no inference tells: no row holds it."""
_CHOOSES: Final = frozenset(
    (
        "ArgMax",
        "ArgMin",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "IsInf",
        "IsNaN",
        "Less",
        "LessOrEqual",
        "Max",
        "Min",
        "NonZero",
        "ReduceMax",
        "ReduceMin",
        "Sign",
        "TopK",
        "Where",
    )
)
"""Operators that choose among numbers, or tell them apart: a lost NaN is another choice."""
_REAL: Final = frozenset({"float", "float16", "bfloat16"})
_VARIADIC: Final = frozenset({"Concat", "Einsum", "Max", "Mean", "Min", "Sum"})
_MANY_OUTPUTS: Final = frozenset({"Split"})


@dataclass(frozen=True, slots=True)
class Operand:
    """What a node is given, or makes."""

    dtype: int
    shape: tuple[Dim, ...] | None
    is_constant: bool = False


def make_form(
    op_type: str,
    attributes: Mapping[str, object],
    inputs: Sequence[Operand | None],
    outputs: Sequence[int | None],
    *,
    since: int,
) -> NodeForm:
    """The form of a node from what it is given. Outputs by element type. None stands for what is left out."""
    form: dict[str, set[str]] = {"since": {str(since)}, "shapes": {_openness(inputs)}}
    for position, operand in enumerate(_stripped(inputs)):
        if operand is None:
            continue
        at = min(position, _COUNTED - 1) if op_type in _VARIADIC else position
        form.setdefault(f"in{at}", set()).add(TYPE_NAMES.get(operand.dtype, str(operand.dtype)))
        rank = _UNKNOWN if operand.shape is None else str(min(len(operand.shape), _LARGEST_RANK))
        form.setdefault(f"rank{at}", set()).add(rank)
        form.setdefault(f"const{at}", set()).add("yes" if operand.is_constant else "no")
    for position, dtype in enumerate(outputs):
        if dtype is not None:
            at = min(position, _COUNTED - 1) if op_type in _MANY_OUTPUTS else position
            form.setdefault(f"out{at}", set()).add(TYPE_NAMES.get(dtype, str(dtype)))
    for name, value in attributes.items():
        form[f"@{name}"] = set(_kinds(value))
    return {name: frozenset(values) for name, values in form.items()}


def _stripped(operands: Sequence[Operand | None]) -> Sequence[Operand | None]:
    held = list(operands)
    while held and held[-1] is None:
        held.pop()
    return held


def _openness(operands: Iterable[Operand | None]) -> str:
    shapes = [operand.shape for operand in operands if operand is not None and not operand.is_constant]
    if any(shape is not None and 0 in shape for shape in shapes):
        return "empty"
    return (
        "fixed" if all(shape is not None and all(isinstance(dim, int) for dim in shape) for shape in shapes) else "open"
    )


def _kinds(value: object) -> list[str]:
    """What matters of an attribute's value: text itself, of numbers their sign and whether they are 0 or 1."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Sequence):
        return sorted({kind for item in value for kind in _kinds(item)}) or ["none"]
    if isinstance(value, int):
        return ["<0" if value < 0 else str(value) if value < 2 else ">1"]
    if isinstance(value, float):
        if not math.isfinite(value):
            return [str(value)]
        return ["<0." if value < 0 else f"{value:g}." if value in (0.0, 1.0) else "<1." if value < 1 else ">1."]
    return [type(value).__name__]


def node_form(graph: OpGraph, node: Node, since: int) -> NodeForm:
    """The form of a node of a graph with its types inferred."""

    def dtype(name: str) -> int:
        info = graph.tensors.get(name)
        return 0 if info is None else info.dtype

    overridable = {info.name for info in graph.overridable}

    def operand(name: str) -> Operand | None:
        if not name:
            return None
        info = graph.tensors.get(name)
        producer = graph.producers.get(name)
        constant = (name in graph.initializers and name not in overridable) or (
            producer is not None and graph.nodes[producer].op_type == "Constant"
        )
        return Operand(dtype(name), None if info is None else info.shape, constant)

    return make_form(
        node.op_type,
        node.attributes,
        [operand(name) for name in node.inputs],
        [dtype(name) if name else None for name in node.outputs],
        since=since,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Values of each property with which OpenVINO's answers were equal, in every combination that was run."""

    takes: Mapping[str, frozenset[str]]
    loses: frozenset[str] = frozenset()
    """Of "nan", "inf" and "empty": what went into the operator, and did not come out of it as in ONNX Runtime."""

    def obstacle(self, form: NodeForm) -> str | None:
        """The first property with a value that this row lacks, in words; None if there is none."""
        for name in sorted({*form, *self.takes}):
            missing = form.get(name, _NOTHING) - self.takes.get(name, _NOTHING)
            if missing:
                return _in_words(name, min(missing))
        return None


_NOTHING: Final = frozenset({ABSENT})


def _in_words(name: str, value: str) -> str:
    if name.startswith("@"):
        return f"without its attribute {name[1:]}" if value == ABSENT else f"with {name[1:]} of the kind {value!r}"
    if name == "since":
        return f"of version {value}"
    if name == "shapes":
        return f"with shapes that are {value}"
    what, at = name.rstrip("0123456789"), name[len(name.rstrip("0123456789")) :]
    noun = "output" if what == "out" else "operand"
    if value == ABSENT:
        return f"without {noun} {at}"
    if what == "rank" and value == _UNKNOWN:
        return f"with {noun} {at} of unknown rank"
    if what == "rank":
        return f"with {noun} {at} of rank {value}"
    if what == "const":
        return f"with {noun} {at} {'constant' if value == 'yes' else 'computed'}"
    return f"with {noun} {at} of type {value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTable:
    """The rows of all operators, and with what they were made."""

    openvino: str
    newest: Mapping[str, int]
    """The newest opset that was run, by domain."""
    versions: Mapping[tuple[str, str], tuple[int, ...]]
    """(domain, operator) -> opsets since which it has each of its versions."""
    rows: Mapping[tuple[str, str], tuple[Row, ...]]

    def is_for(self, version: str) -> bool:
        """Whether it was made with the same minor release."""
        return version.split(".")[:2] == self.openvino.split(".")[:2]

    def obstacle(self, graph: OpGraph, node: Node, opsets: Mapping[str, int]) -> tuple[Verdict, str] | None:
        """Why a node is not known to be computed as ONNX Runtime does, the detail in words that follow the operator's
        name; or None. ``graph`` with its types inferred."""
        domain = "" if node.domain == "ai.onnx" else node.domain
        if not domain and node.op_type == "Constant":
            return None  # not computed at all; that stored constants are read right is part of every operator's trials
        key = domain, node.op_type
        rows = self.rows.get(key)
        if not rows:
            return Verdict.UNSUPPORTED_OPERATOR, "in any form"
        opset = opsets.get(domain) or (opsets.get("ai.onnx", 0) if not domain else 0)
        if opset > self.newest.get(domain, 0):
            return Verdict.UNSUPPORTED_OPERATOR, f"of opset {opset}, which is newer than {self.newest.get(domain, 0)}"
        since = max((version for version in self.versions[key] if version <= opset), default=0)
        form = node_form(graph, node, since)
        found = [row.obstacle(form) for row in rows]
        if found[0] is not None and None not in found:
            is_open = any(_UNKNOWN in values for name, values in form.items() if name.startswith("rank"))
            return Verdict.DYNAMIC_SHAPE if is_open else Verdict.UNSUPPORTED_FORM, found[0]
        row = rows[found.index(None)]
        lost = row.loses - {"empty"}  # what is fed is checked for it, and what comes of it differs in shape
        if node.op_type in _CHOOSES and lost and any(name in _REAL for name in form.get("in0", _NOTHING)):
            return Verdict.UNSUPPORTED_FORM, f"of floats that may be {' or '.join(sorted(lost))}"
        return None


def parse_table(text: str) -> OperatorTable:
    """Read a table that `tools/openvino_table.py` has written."""
    raw: Mapping[str, Any] = json.loads(text)
    versions, rows = {}, {}
    for name, entry in raw["operators"].items():
        domain, _, op_type = name.rpartition(":")
        versions[domain, op_type] = tuple(entry["versions"])
        rows[domain, op_type] = tuple(
            Row(
                takes={key: frozenset(values.split(" ")) for key, values in row["takes"].items()},
                loses=frozenset(row.get("loses", ())),
            )
            for row in entry["rows"]
        )
    return OperatorTable(openvino=raw["openvino"], newest=raw["opsets"], versions=versions, rows=rows)


@functools.cache
def operator_table() -> OperatorTable:
    """The table that comes with the package."""
    return parse_table(_text())


@functools.cache
def openvino_table_digest() -> str:
    """Tells one table from another: what was planned with another one may send OpenVINO what it must not compute."""
    return hashlib.blake2b(_text().encode(), digest_size=6).hexdigest()


def _text() -> str:
    return (importlib.resources.files("parallax.backends.openvino") / FILE_NAME).read_text("utf-8")
