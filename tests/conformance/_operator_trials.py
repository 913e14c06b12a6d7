"""Models of one operator with values to run them on, for every operator of ONNX: to compare two libraries by.

Trials grow from seeds: the node cases of ONNX's backend suite, and some of our own for what the suite lacks. From each
seed come others that differ in one respect: an element type, an attribute left out or at an edge of its range, an
operand that is a constant, has another rank or is left out, shapes that are open, an older version of the operator.
A trial is kept where ONNX Runtime runs it and where it shows a pair of properties that no kept one of its operator has.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import ml_dtypes
import numpy as np
import onnx
from onnx import defs, helper, numpy_helper

from parallax.backends.openvino._table import NodeForm, Operand, make_form
from tests.conformance._onnx_suite import load_cases

Array = np.ndarray[Any, Any]

OLDEST_OPSET: Final = 7
"""ONNX Runtime promises nothing for models of older ones."""

FLOATS: Final = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
WHOLE: Final = tuple(np.dtype(kind) for kind in (np.int32, np.int64, np.uint8, np.int8))
TYPES: Final = (*FLOATS, *WHOLE, np.dtype(np.bool_))
"""Element types that our own rules let pass at all: the others become others in OpenVINO (doubles floats)."""

NUMBERS: Final = {dtype: helper.np_dtype_to_tensor_dtype(dtype) for dtype in TYPES}
_CODES: Final = {
    f"tensor({name})": dtype
    for name, dtype in zip(
        ("float", "float16", "bfloat16", "int32", "int64", "uint8", "int8", "bool"), TYPES, strict=True
    )
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """One node and what it is fed. ``arrays`` by operand; None where it is left out."""

    op_type: str
    domain: str = ""
    opset: int
    attributes: Mapping[str, Any] = field(default_factory=dict)
    arrays: tuple[Array | None, ...]
    outputs: tuple[bool, ...] = (True,)
    constants: frozenset[int] = frozenset()
    is_open: bool = False

    @property
    def fed(self) -> tuple[int, ...]:
        """Operands that are inputs of the model."""
        return tuple(at for at, array in enumerate(self.arrays) if array is not None and at not in self.constants)

    def form(self, output_types: Sequence[int | None]) -> NodeForm:
        """As the backend describes such a node."""
        operands = [
            None
            if array is None
            else Operand(
                NUMBERS[array.dtype],
                tuple(None for _ in array.shape) if self.is_open and at not in self.constants else array.shape,
                at in self.constants,
            )
            for at, array in enumerate(self.arrays)
        ]
        plain = {
            name: value.decode() if isinstance(value, bytes) else tuple(value) if isinstance(value, list) else value
            for name, value in self.attributes.items()
            if not isinstance(value, onnx.TensorProto)
        }
        return make_form(
            self.op_type, plain, operands, output_types, since=since(self.domain, self.op_type, self.opset)
        )

    def add_to(self, graph: onnx.GraphProto, prefix: str) -> None:
        """Append the node, its inputs and initializers and (untyped) outputs, under names with this prefix."""
        names = ["" if array is None else f"{prefix}i{at}" for at, array in enumerate(self.arrays)]
        outs = [f"{prefix}o{at}" if wanted else "" for at, wanted in enumerate(self.outputs)]
        graph.node.append(
            helper.make_node(self.op_type, names, outs, name=f"{prefix}n", domain=self.domain, **self.attributes)
        )
        for at, array in enumerate(self.arrays):
            if array is None:
                continue
            if at in self.constants:
                graph.initializer.append(_stored(array, names[at]))
            else:
                shape = [f"{prefix}d{at}_{axis}" for axis in range(array.ndim)] if self.is_open else array.shape
                graph.input.append(helper.make_tensor_value_info(names[at], NUMBERS[array.dtype], shape))
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in outs if name)

    def model(self) -> onnx.ModelProto:
        """Alone."""
        graph = onnx.GraphProto(name="trial")
        self.add_to(graph, "")
        return wrap(graph, {self.domain: self.opset})


def _stored(array: Array, name: str) -> onnx.TensorProto:
    """Half of them in the typed fields of their element type, the others as raw bytes."""
    if zlib.crc32(array.tobytes()) % 2:
        return numpy_helper.from_array(array, name)
    return helper.make_tensor(name, NUMBERS[array.dtype], array.shape, array.reshape(-1).tolist())


def wrap(graph: onnx.GraphProto, opsets: Mapping[str, int]) -> onnx.ModelProto:
    """A graph as a model."""
    stated = {"": 17, **opsets}
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid(domain, version) for domain, version in stated.items()], ir_version=10
    )


# --- Schemas ----------------------------------------------------------------------------------------


def _histories() -> dict[tuple[str, str], list[int]]:
    found: dict[tuple[str, str], list[int]] = {}
    for schema in defs.get_all_schemas_with_history():
        if schema.domain in ("", "ai.onnx.ml"):
            found.setdefault((schema.domain, schema.name), []).append(schema.since_version)
    return {key: sorted(versions) for key, versions in found.items()}


HISTORIES: Final = _histories()
MICROSOFT: Final = "com.microsoft"


def versions(domain: str, op_type: str) -> list[int]:
    """The opsets since which the operator has each of its versions."""
    return HISTORIES.get((domain, op_type), [1])


def since(domain: str, op_type: str, opset: int) -> int:
    """The version that is current in an opset."""
    return max((version for version in versions(domain, op_type) if version <= opset), default=0)


def _schema(trial: Trial) -> defs.OpSchema | None:
    if trial.domain == MICROSOFT:
        return None
    try:
        return defs.get_schema(trial.op_type, trial.opset, trial.domain)
    except defs.SchemaError:
        return None


def _type_groups(trial: Trial) -> dict[str, tuple[list[int], list[np.dtype[Any]]]]:
    """Type variable -> operands of that type, and the types it may be."""
    schema = _schema(trial)
    if schema is None:
        floats = [at for at, array in enumerate(trial.arrays) if array is not None and array.dtype in FLOATS]
        return {"T": (floats, list(FLOATS))}
    allowed = {
        item.type_param_str: [_CODES[text] for text in item.allowed_type_strs if text in _CODES]
        for item in schema.type_constraints
    }
    groups: dict[str, tuple[list[int], list[np.dtype[Any]]]] = {}
    for at, array in enumerate(trial.arrays):
        if array is None:
            continue
        formal = schema.inputs[min(at, len(schema.inputs) - 1)]
        if formal.type_str in allowed:
            groups.setdefault(formal.type_str, ([], allowed[formal.type_str]))[0].append(at)
    return groups


def data_operands(trial: Trial) -> list[int]:
    """Operands that are numbers to compute with, not shapes, axes or indices."""
    return [
        at
        for operands, types in _type_groups(trial).values()
        if any(dtype in FLOATS for dtype in types) or np.dtype(np.bool_) in types
        for at in operands
    ]


# --- Seeds ------------------------------------------------------------------------------------------


def suite_seeds() -> dict[tuple[str, str], list[Trial]]:
    """The backend suite's cases of one node whose operands are tensors of `TYPES`, by operator."""
    found: dict[tuple[str, str], list[Trial]] = {}
    for case in load_cases("node"):
        model = case.read_model()
        if len(model.graph.node) != 1 or model.functions:
            continue
        node = model.graph.node[0]
        opset = max((entry.version for entry in model.opset_import if entry.domain == node.domain), default=1)
        values = dict(zip((info.name for info in model.graph.input), case.read_data(model)[0][0], strict=False))
        arrays = [values.get(name) if name else None for name in node.input]
        if any(array is None for array, name in zip(arrays, node.input, strict=True) if name):
            continue
        if any(
            array is not None and (not isinstance(array, np.ndarray) or array.dtype not in TYPES) for array in arrays
        ):
            arrays = [_nearest(array) for array in arrays]
            if any(array is None for array, name in zip(arrays, node.input, strict=True) if name):
                continue
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        if any(isinstance(value, (onnx.GraphProto, onnx.SparseTensorProto)) for value in attributes.values()):
            continue
        trial = Trial(
            op_type=node.op_type,
            domain=node.domain,
            opset=opset,
            attributes=attributes,
            arrays=tuple(arrays),
            outputs=tuple(bool(name) for name in node.output),
        )
        found.setdefault((node.domain, node.op_type), []).append(trial)
    return found


def _nearest(array: Any) -> Array | None:
    """The same numbers in one of `TYPES`, where a case has others."""
    if not isinstance(array, np.ndarray):
        return None
    if array.dtype in TYPES:
        return array
    narrower = {"float64": np.float32, "uint16": np.int32, "int16": np.int32, "uint32": np.int64, "uint64": np.int64}
    kind = narrower.get(array.dtype.name)
    return None if kind is None else array.astype(kind)


# --- Growing others from a seed ---------------------------------------------------------------------


def as_exported(trial: Trial) -> Trial:
    """The same with operands that are no data as constants."""
    data = data_operands(trial)
    return replace(
        trial, constants=frozenset(at for at, array in enumerate(trial.arrays) if array is not None and at not in data)
    )


def variations(seed: Trial, strings: Mapping[str, Sequence[bytes]]) -> Iterator[Trial]:
    """Others that differ in one respect, in this order; which of them are valid, a runtime must say.

    Operands that are no data (shapes, axes, indices) are constants to begin with, as nearly all models have them.

    Args:
        strings: values of text attributes that some seed of the operator has.
    """
    seed = as_exported(seed)
    yield seed
    made = list(itertools.chain(_retyped(seed), _reattributed(seed, strings), _reranked(seed), _shortened(seed)))
    for trial in (seed, *made):
        if trial is not seed:
            yield trial
        yield replace(trial, is_open=True)
        yield from _fixed_operands(trial)


def aged(trial: Trial, opset: int) -> Trial:
    """The same for an older opset: operands that were attributes then become some."""
    older = replace(trial, opset=opset)
    schema, newer = _schema(older), _schema(trial)
    if schema is None or newer is None:
        return older
    attributes, arrays = dict(trial.attributes), list(trial.arrays)
    for at, array in enumerate(arrays):
        name = newer.inputs[min(at, len(newer.inputs) - 1)].name
        name = {"roi": "", "constant_value": "value", "K": "k"}.get(name, name)
        if array is None or name not in schema.attributes or (at < len(schema.inputs) and at == 0):
            continue
        listed = schema.attributes[name].type in (onnx.defs.OpSchema.AttrType.INTS, onnx.defs.OpSchema.AttrType.FLOATS)
        attributes[name] = (
            array.reshape(-1).tolist() if listed else array.reshape(-1)[:1].tolist()[0] if array.size else 0
        )
        arrays[at] = None
    while arrays and arrays[-1] is None:
        arrays.pop()
    attributes = {name: value for name, value in attributes.items() if name in schema.attributes}
    return replace(older, attributes=attributes, arrays=tuple(arrays))


def _retyped(trial: Trial) -> Iterator[Trial]:
    for operands, types in _type_groups(trial).values():
        for dtype in types:
            arrays = list(trial.arrays)
            for at in operands:
                arrays[at] = _as(arrays[at], dtype)
            if any(
                a is not None and b is not None and a.dtype != b.dtype
                for a, b in zip(arrays, trial.arrays, strict=True)
            ):
                yield replace(trial, arrays=tuple(arrays))


def _as(array: Array | None, dtype: np.dtype[Any]) -> Array:
    assert array is not None
    if dtype in WHOLE and array.dtype in FLOATS:
        wide = array.astype(np.float32)
        array = np.rint(wide * (40 if np.abs(wide).max(initial=0) <= 3 else 1))
    if dtype == np.uint8:
        array = np.abs(array.astype(np.float32))
    return np.asarray(array).astype(dtype)


_INTEGERS: Final = (-1, 0, 1, 2)
_REALS: Final = (0.0, 0.5, -0.5, 1.0, 2.5)


def _reattributed(trial: Trial, strings: Mapping[str, Sequence[bytes]]) -> Iterator[Trial]:
    schema = _schema(trial)
    for name in trial.attributes:
        yield replace(trial, attributes={key: value for key, value in trial.attributes.items() if key != name})
    names = set(trial.attributes) | (set() if schema is None else set(schema.attributes))
    for name in sorted(names):
        for value in _edges(trial, schema, name, strings):
            if trial.attributes.get(name) != value:
                yield replace(trial, attributes={**trial.attributes, name: value})


def _edges(
    trial: Trial, schema: defs.OpSchema | None, name: str, strings: Mapping[str, Sequence[bytes]]
) -> Sequence[Any]:
    held = trial.attributes.get(name)
    stated = None if schema is None else schema.attributes.get(name)
    kind = None if stated is None else str(stated.type).rpartition(".")[2]
    if isinstance(held, bytes) or kind == "STRING":
        return list(strings.get(name, ()))
    if isinstance(held, bool | int) or kind == "INT":
        return _INTEGERS
    if isinstance(held, float) or kind == "FLOAT":
        return _REALS
    if isinstance(held, list) and held and isinstance(held[0], int):
        uneven = [held[0] + 1, *held[1:]]
        return [
            [0] * len(held),
            [1] * len(held),
            [2] * len(held),
            uneven,
            held[::-1],
            [-1] * len(held),
            [entry - 6 for entry in held],
        ]
    return ()


def _reranked(trial: Trial) -> Iterator[Trial]:
    data = [at for at in data_operands(trial) if trial.arrays[at] is not None]
    for rank in range(7):
        for group in ([data] if len(data) > 1 else []) + [[at] for at in data]:
            arrays = list(trial.arrays)
            for at in group:
                arrays[at] = _of_rank(arrays[at], rank)
            if any(a is not b for a, b in zip(arrays, trial.arrays, strict=True)):
                yield replace(trial, arrays=tuple(arrays))


def _of_rank(array: Array | None, rank: int) -> Array | None:
    if array is None or array.ndim == rank:
        return array
    if array.ndim < rank:
        return array.reshape((1,) * (rank - array.ndim) + array.shape)
    return np.asarray(array[(0,) * (array.ndim - rank)]) if array.size else array


def _shortened(trial: Trial) -> Iterator[Trial]:
    schema = _schema(trial)
    if schema is None:
        return
    single = defs.OpSchema.FormalParameterOption.Single
    optional = [
        at
        for at, array in enumerate(trial.arrays)
        if array is not None and schema.inputs[min(at, len(schema.inputs) - 1)].option != single
    ]
    for count in range(1, min(len(optional), 5) + 1):
        for left_out in itertools.combinations(optional, count):
            arrays = [None if at in left_out else array for at, array in enumerate(trial.arrays)]
            while arrays and arrays[-1] is None:
                arrays.pop()
            yield replace(trial, arrays=tuple(arrays))
    for at in range(len(trial.outputs)):
        if sum(trial.outputs) > 1 and trial.outputs[at]:
            outputs = [wanted and other != at for other, wanted in enumerate(trial.outputs)]
            while outputs and not outputs[-1]:
                outputs.pop()
            yield replace(trial, outputs=tuple(outputs))


def _fixed_operands(trial: Trial) -> Iterator[Trial]:
    held = [at for at, array in enumerate(trial.arrays) if array is not None]
    choices = [frozenset(held[1:]), *(trial.constants ^ {at} for at in held), frozenset[int]()]
    for constants in dict.fromkeys(choices):
        if constants != trial.constants:
            yield replace(trial, constants=constants)
            if len(constants) < len(held):
                yield replace(trial, constants=constants, is_open=True)


# --- Values -----------------------------------------------------------------------------------------


_LOOPS_BY_VALUE: Final = frozenset({"MaxRoiPool", "NonMaxSuppression", "Range", "Resize", "RoiAlign", "Upsample"})
"""Operators whose later operands say how often they loop: an infinity there is a loop without end."""


_VARIANCE: Final = {"BatchNormalization": 4}
"""Operands of which a root is taken: of negative numbers, no value matters but the NaN that follows."""


def feeds(trial: Trial) -> Iterator[tuple[str, tuple[Array | None, ...]]]:
    """What to run a trial on, labelled: "plain" values first; then "nan", "inf" and "empty" ones."""
    yield "plain", trial.arrays
    data = [at for at in data_operands(trial) if at in trial.fed]
    rng = np.random.default_rng(zlib.crc32(repr((trial.op_type, sorted(trial.attributes), len(data))).encode()))
    if data and trial.op_type not in _LOOPS_BY_VALUE:
        drawn = _with(trial, data, lambda array: _drawn(array, rng))
        yield (
            "plain",
            tuple(
                np.abs(array) if array is not None and at == _VARIANCE.get(trial.op_type) else array
                for at, array in enumerate(drawn)
            ),
        )
    real = [at for at in data if trial.arrays[at].dtype in FLOATS]  # type: ignore[union-attr]
    if trial.op_type in _LOOPS_BY_VALUE:
        data, real = data[:1], [at for at in real if at == 0 and trial.op_type != "Range"]
    if real:
        yield "plain", _with(trial, real, lambda array: _sprinkled(array, (0.0, -0.0)))
        for group in dict.fromkeys(((real[0],), (real[-1],), tuple(real))):
            yield "nan", _with(trial, group, lambda array: _sprinkled(array, (np.nan,)))
            yield "inf", _with(trial, group, lambda array: _sprinkled(array, (np.inf, -np.inf)))
        yield "inf", _with(trial, real[:1], lambda array: np.full_like(array, -np.inf))
        yield "nan", _with(trial, real[:1], lambda array: np.full_like(array, np.nan))
    if trial.is_open and trial.fed:
        first = trial.arrays[trial.fed[0]]
        assert first is not None
        if first.ndim:
            yield (
                "empty",
                _with(
                    trial,
                    [
                        at
                        for at in trial.fed
                        if (array := trial.arrays[at]) is not None and array.ndim and len(array) == len(first)
                    ],
                    lambda array: array[:0],
                ),
            )
            yield "empty", _with(trial, trial.fed[:1], lambda array: array[..., :0])


def _with(trial: Trial, operands: Sequence[int], change: Callable[[Array], Array]) -> tuple[Array | None, ...]:
    return tuple(
        np.array(change(array), order="C") if array is not None and at in operands else array
        for at, array in enumerate(trial.arrays)
    )


def _drawn(array: Array, rng: np.random.Generator) -> Array:
    """Other values of the same type: with ties, zeros and both signs; bytes of their whole range."""
    if array.dtype in FLOATS:
        return np.asarray(np.rint(rng.standard_normal(array.shape) * 6) / 4).astype(array.dtype)
    if array.dtype == np.bool_:
        return np.asarray(rng.integers(0, 2, array.shape)).astype(np.bool_)
    if array.dtype == np.uint8:
        return np.asarray(rng.integers(1, 256, array.shape)).astype(np.uint8)
    low = 128 if array.dtype == np.int8 else 1000
    drawn = np.asarray(rng.integers(-low, low, array.shape))
    return np.where(drawn == 0, 1, drawn).astype(array.dtype)


def _sprinkled(array: Array, values: Sequence[float]) -> Array:
    flat = array.copy().reshape(-1)
    for at in range(0, flat.size, 3):
        flat[at] = values[at // 3 % len(values)]
    return flat.reshape(array.shape)
