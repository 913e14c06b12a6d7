"""ONNX's own backend test suite as a list of cases, and what a session makes of one.

The suite (``onnx.backend.test``) holds a model, inputs and expected outputs per case. Here each case
is run by ONNX Runtime and by Parallax, and Parallax is held to ONNX Runtime's *outcome*: the same
outputs, or a refusal of the same class. So a case counts for us exactly where it counts for ONNX
Runtime, and cases that ONNX Runtime refuses or answers differently than the suite are still compared.
No case is random as ONNX Runtime runs them: the two runs that are compared would differ.

The cases come from the installed ``onnx`` package; nothing is downloaded.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

KINDS: tuple[str, ...] = ("node", "simple", "light", "pytorch-converted", "pytorch-operator")
"""The suite's kinds, with "light" for what the package calls "real": models whose weights are made, not stored."""

DataSet = tuple[Sequence[Any], Sequence[Any]]
"""Inputs in the order of the graph's inputs, and expected outputs in the order of its outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One test of the suite. Models are read when asked for: some light ones make hundreds of MiB of weights."""

    kind: str
    name: str
    rtol: float
    atol: float
    read_model: Callable[[], onnx.ModelProto]
    read_data: Callable[[onnx.ModelProto], list[DataSet]]

    @property
    def id(self) -> str:
        return f"{self.kind}/{self.name}"


# --- Reading the suite ------------------------------------------------------------------------------


@functools.cache
def load_cases(kind: str) -> tuple[Case, ...]:
    """All cases of one of :data:`KINDS`, sorted by name. The node cases take seconds: ONNX computes their data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the suite provokes overflows and divisions by zero on purpose
        tests = load_model_tests(kind="real" if kind == "light" else kind)
    make = {"node": _node_case, "light": _light_case}.get(kind, _folder_case)
    return tuple(sorted((make(kind, test) for test in tests), key=lambda case: case.name))


def shard_of(case: Case, shards: int) -> int:
    """Which of ``shards`` equal parts a case belongs to; the same on every machine and in every order."""
    return int.from_bytes(hashlib.blake2b(case.id.encode(), digest_size=4).digest(), "big") % shards


def _node_case(kind: str, test: Any) -> Case:
    def read_data(model: onnx.ModelProto) -> list[DataSet]:
        return [([_array(v) for v in inputs], [_array(v) for v in outputs]) for inputs, outputs in test.data_sets]

    return Case(
        kind=kind, name=test.name, rtol=test.rtol, atol=test.atol, read_model=lambda: test.model, read_data=read_data
    )


def _folder_case(kind: str, test: Any) -> Case:
    folder = Path(test.model_dir)

    def read_data(model: onnx.ModelProto) -> list[DataSet]:
        return [
            (_read_values(data, "input", model.graph.input), _read_values(data, "output", model.graph.output))
            for data in sorted(folder.glob("test_data_set*"))
        ]

    return Case(
        kind=kind,
        name=test.name,
        rtol=test.rtol,
        atol=test.atol,
        read_model=lambda: onnx.load(folder / "model.onnx"),
        read_data=read_data,
    )


def _light_case(kind: str, test: Any) -> Case:
    path = Path(onnx.__file__).parents[1] / test.url

    def read_data(model: onnx.ModelProto) -> list[DataSet]:
        initializers = {tensor.name for tensor in model.graph.initializer}
        inputs = [
            None if value.name in initializers else Runner.generate_dummy_data(value, name=test.name)
            for value in model.graph.input
        ]
        outputs = [
            numpy_helper.to_array(onnx.load_tensor(str(path.with_name(f"{path.stem}_output_{index}.pb"))))
            for index in range(len(model.graph.output))
        ]
        return [(inputs, outputs)]

    return Case(
        kind=kind,
        name=test.name,
        rtol=test.rtol,
        atol=test.atol,
        read_model=lambda: onnx.load(path),
        read_data=read_data,
    )


def _read_values(folder: Path, prefix: str, declared: Sequence[onnx.ValueInfoProto]) -> list[Any]:
    values: list[Any] = []
    for index in range(len(list(folder.glob(f"{prefix}_*.pb")))):
        content = (folder / f"{prefix}_{index}.pb").read_bytes()
        kind = declared[index].type.WhichOneof("value")
        if kind == "sequence_type":
            values.append(numpy_helper.to_list(onnx.SequenceProto.FromString(content)))
        elif kind == "optional_type":
            values.append(numpy_helper.to_optional(onnx.OptionalProto.FromString(content)))
        else:
            values.append(numpy_helper.to_array(TensorProto.FromString(content)))
    return values


def _array(value: Any) -> Any:
    """Node cases hold arrays, NumPy scalars, tensor protos and lists of them; sessions take arrays and lists."""
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, np.generic):
        return np.asarray(value)
    if isinstance(value, list):
        return [_array(item) for item in value]
    return value


# --- Running a case ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a session made of a case: the outputs of each data set, or the error and the stage it came from."""

    outputs: tuple[tuple[Any, ...], ...] = ()
    error: Exception | None = None
    stage: str = ""
    """"open" or "run" where there is an error."""
    segments: int = 1
    """Of the plan, for a session that has one."""


def run_case(
    session_class: type[onnxruntime.InferenceSession], model: onnx.ModelProto, data: Sequence[DataSet], **options: Any
) -> Outcome:
    """Open ``model`` and run it on each data set. Errors are an outcome, not raised.

    One thread per session, unless ``options`` say otherwise: a thousand sessions must not make a
    thousand pools of threads, and kernels that share their work must not differ from run to run.
    """
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = 1
    session_options.log_severity_level = 4
    try:
        session = session_class(model.SerializeToString(), session_options, **options)
    except Exception as error:
        return Outcome(error=error, stage="open")
    plan = getattr(session, "plan", None)
    segments = 1 if plan is None else len(plan.segments)
    try:
        outputs = tuple(tuple(_run(session, model, inputs)) for inputs, _ in data)
    except Exception as error:
        return Outcome(error=error, stage="run", segments=segments)
    return Outcome(outputs=outputs, segments=segments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """How a session is asked for all outputs of a data set."""

    feed: dict[str, Any]
    as_ort_values: bool
    """Whether the feed holds OrtValues, and outputs come as such: for types that NumPy lacks."""

    def of(self, session: onnxruntime.InferenceSession) -> Any:
        """The outputs, as the session hands them out."""
        return session.run_with_ort_values(None, self.feed) if self.as_ort_values else session.run(None, self.feed)


def make_call(model: onnx.ModelProto, inputs: Sequence[Any]) -> Call:
    """Raises: NoWayIn where Python has no way to hand the inputs over."""
    declared = {value.name: value for value in model.graph.input}
    feed = {}
    for name, value in zip(declared, inputs, strict=False):
        if value is not None:
            feed[name] = _fed(value, declared[name].type)
        elif declared[name].type.HasField("optional_type"):
            feed[name] = None
    # Types that NumPy lacks travel as OrtValues both ways, as ONNX Runtime's documentation has it.
    if any(isinstance(value, onnxruntime.OrtValue) for value in feed.values()) or any(
        _foreign(value.type) for value in model.graph.output
    ):
        values = {
            name: value if isinstance(value, onnxruntime.OrtValue) else onnxruntime.OrtValue.ortvalue_from_numpy(value)
            for name, value in feed.items()
        }
        return Call(feed=values, as_ort_values=True)
    return Call(feed=feed, as_ort_values=False)


def _run(session: onnxruntime.InferenceSession, model: onnx.ModelProto, inputs: Sequence[Any]) -> list[Any]:
    call = make_call(model, inputs)
    outputs = call.of(session)
    return [_taken(value) for value in outputs] if call.as_ort_values else outputs


_NATIVE = frozenset(
    getattr(TensorProto, name)
    for name in (
        "FLOAT", "UINT8", "INT8", "UINT16", "INT16", "INT32", "INT64", "STRING", "BOOL", "FLOAT16", "DOUBLE",
        "UINT32", "UINT64",
    )
)  # fmt: skip


def _foreign(kind: onnx.TypeProto) -> bool:
    return kind.HasField("tensor_type") and kind.tensor_type.elem_type not in _NATIVE


def _fed(value: Any, kind: onnx.TypeProto) -> Any:
    if not _foreign(kind):
        return value
    # Elements may be packed, two or four to a byte, so the bytes are those of the proto.
    content = numpy_helper.from_array(value).raw_data
    fed = onnxruntime.OrtValue.ortvalue_from_shape_and_type(value.shape, kind.tensor_type.elem_type)
    if fed.tensor_size_in_bytes() != len(content):
        raise NoWayIn(f"{TensorProto.DataType.Name(kind.tensor_type.elem_type)} tensors")
    ctypes.memmove(fed.data_ptr(), content, len(content))
    return fed


class NoWayIn(Exception):
    """A value of this type can't be handed to ONNX Runtime, or taken from it, in Python."""


def _taken(value: onnxruntime.OrtValue) -> Any:
    if not value.is_tensor():
        raise NoWayIn("sequences beside tensors of a type that NumPy lacks")
    element = value.element_type()
    if element in _NATIVE:
        return value.numpy()
    content = np.frombuffer(ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes()), np.uint8)
    proto = TensorProto(data_type=element, dims=value.shape(), raw_data=content.tobytes())
    return numpy_helper.to_array(proto)


# --- Judging outcomes -------------------------------------------------------------------------------


class Verdict(StrEnum):
    """How our outcome stands to ONNX Runtime's."""

    IDENTICAL = "identical bit for bit"
    CLOSE = "equal within 1e-4"
    REFUSED_ALIKE = "refused alike"
    DIFFERENT = "different"


CLOSE_RTOL = 1e-4
"""Where a cut changes which fused kernel runs (see `WHY_CLOSE`). Absolutely, this times the output's magnitude."""


def passes(case: Case, data: Sequence[DataSet], outcome: Outcome) -> str:
    """Empty where the outcome is what the suite expects, by ONNX's own comparison; else what is wrong with it."""
    if outcome.error is not None:
        return f"{type(outcome.error).__name__}: {outcome.error}"
    for (_, expected), outputs in zip(data, outcome.outputs, strict=True):
        try:
            Runner.assert_similar_outputs(expected, outputs, case.rtol, case.atol)
        except (AssertionError, TypeError, AttributeError) as error:
            return f"{type(error).__name__}: {error}"
    return ""


def judge(theirs: Outcome, ours: Outcome) -> tuple[Verdict, str]:
    """Compare our outcome with ONNX Runtime's; the text says what differs."""
    if theirs.error is not None or ours.error is not None:
        return _judge_errors(theirs.error, ours.error)
    worst = Verdict.IDENTICAL
    for data_set, (their_outputs, our_outputs) in enumerate(zip(theirs.outputs, ours.outputs, strict=True)):
        if len(their_outputs) != len(our_outputs):
            return Verdict.DIFFERENT, f"{len(our_outputs)} outputs instead of {len(their_outputs)}"
        for index, (their, our) in enumerate(zip(their_outputs, our_outputs, strict=True)):
            difference = _difference(their, our)
            if difference is None:
                continue
            if difference:
                return Verdict.DIFFERENT, f"data set {data_set}, output {index}: {difference}"
            worst = Verdict.CLOSE
    return worst, ""


def _judge_errors(theirs: Exception | None, ours: Exception | None) -> tuple[Verdict, str]:
    if theirs is None:
        return Verdict.DIFFERENT, f"ONNX Runtime runs it, ours raises {type(ours).__name__}: {ours}"
    if ours is None:
        return Verdict.DIFFERENT, f"ours runs it, ONNX Runtime raises {type(theirs).__name__}: {theirs}"
    if not isinstance(ours, type(theirs)):
        return Verdict.DIFFERENT, f"{type(ours).__mro__[:3]} instead of {type(theirs).__name__}: {ours}"
    return Verdict.REFUSED_ALIKE, ""


def _difference(their: Any, our: Any) -> str | None:
    """None where bit for bit the same, empty where within tolerance, else what differs."""
    if isinstance(their, list) or isinstance(our, list):
        if type(their) is not type(our) or len(their) != len(our):
            return f"{type(our).__name__} of {len(our)} instead of {type(their).__name__} of {len(their)}"
        found = [_difference(a, b) for a, b in zip(their, our, strict=True)]
        wrong = [text for text in found if text]
        return wrong[0] if wrong else ("" if "" in found else None)
    if not isinstance(their, np.ndarray) or not isinstance(our, np.ndarray):
        same = type(their) is type(our) and (their is None or their == our)
        return None if same else f"{our!r} instead of {their!r}"
    if their.dtype != our.dtype or their.shape != our.shape:
        return f"{our.dtype}{list(our.shape)} instead of {their.dtype}{list(their.shape)}"
    if _same_bits(their, our):
        return None
    if their.dtype.kind not in "fV" and their.dtype.name not in ("bfloat16",):
        return f"{np.count_nonzero(their != our)} of {their.size} {their.dtype} elements differ"
    wide_their, wide_our = their.astype(np.float64), our.astype(np.float64)
    finite = np.abs(wide_their[np.isfinite(wide_their)])
    scale = float(finite.max()) if finite.size else 0.0
    # Narrow types can't be closer than their own last place.
    rtol = max(CLOSE_RTOL, 2.0 * _epsilon(their.dtype))
    if np.allclose(wide_our, wide_their, rtol=rtol, atol=rtol * scale, equal_nan=True):
        return ""
    with np.errstate(invalid="ignore"):
        off = np.count_nonzero(~np.isclose(wide_our, wide_their, rtol=rtol, atol=rtol * scale, equal_nan=True))
    return (
        f"{off} of {their.size} elements are off at magnitude {scale}: {wide_our.ravel()[:4]}, {wide_their.ravel()[:4]}"
    )


def _same_bits(their: NDArray[Any], our: NDArray[Any]) -> bool:
    if their.dtype == object:
        return bool((their == our).all())
    return their.tobytes() == our.tobytes()


def _epsilon(dtype: np.dtype[Any]) -> float:
    if dtype.name == "bfloat16":
        return 2.0**-8
    if dtype.name.startswith("float8"):
        return 2.0**-2
    return float(np.finfo(dtype).eps)


# --- Reasons ----------------------------------------------------------------------------------------

# Why ONNX Runtime does not pass a case, told from its error. First match wins.
_REASONS: tuple[tuple[str, str], ...] = (
    ("Unsupported model IR version", "declares an IR version newer than this ONNX Runtime reads"),
    (
        r"only \*guarantees\* support for models stamped with official released onnx opset",
        "uses an operator set newer than this ONNX Runtime supports",
    ),
    (r"preview\.training", "training operator, absent from ONNX Runtime's inference build"),
    ("is not a registered function/op|No Op registered", "operator unknown to this ONNX Runtime"),
    (
        "Could not find an implementation|Failed to find kernel",
        "no CPU kernel in ONNX Runtime for the operator or type",
    ),
    (r"string_normalizer\.cc", "needs a locale that is not installed on this system"),
    ("^NoWayIn", "value of a type that ONNX Runtime's Python can't be handed"),
    ("InvalidGraph|Type Error|Unrecognized attribute", "model that this ONNX Runtime holds invalid"),
    ("^AssertionError|^TypeError|^AttributeError", "ONNX Runtime's answer differs from the suite's"),
    ("", "ONNX Runtime fails while opening or running it"),
)


def why_excluded(complaint: str) -> str:
    """The reason, in words a reader of the table understands, for a complaint of :func:`passes`."""
    return next(reason for pattern, reason in _REASONS if re.search(pattern, complaint))


# Case and mode -> why it may miss the suite's expected outputs though ONNX Runtime meets them. A case that meets
# them after all fails the test, so that nothing stays on this list for longer than it must.
EXCUSED: dict[tuple[str, str], str] = {}

WHY_CLOSE = (
    "attention written out operator by operator, where a cut keeps ONNX Runtime from folding the scale into the"
    " product (FusedMatMul), or ends a stretch of half precision that it computes in single precision"
)
"""The reason for every case that is equal within tolerance, not bit for bit."""


# --- All together -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """A way to open our session."""

    name: str
    options: dict[str, Any]


MODES: tuple[Mode, ...] = (
    Mode(name="default", options={}),
    Mode(name="split", options={"policy": "adaptive", "min_gain": 0, "threads": 2}),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeResult:
    """What one of our modes made of a case."""

    verdict: Verdict
    difference: str
    """What differs from ONNX Runtime's outcome, where something does."""
    passes: bool
    """By the suite's own expected outputs, and not different from ONNX Runtime's."""
    segments: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One case, judged."""

    case: Case
    complaint: str
    """Why ONNX Runtime does not pass; empty where it does."""
    modes: dict[str, ModeResult]
    """By the name of the mode."""


def examine(case: Case, session_class: type[onnxruntime.InferenceSession], modes: Sequence[Mode] = MODES) -> Result:
    """Run a case by ONNX Runtime and in each of our modes, and compare."""
    model = case.read_model()
    data = case.read_data(model)
    theirs = run_case(onnxruntime.InferenceSession, model, data)
    results = {}
    for mode in modes:
        ours = run_case(session_class, model, data, **mode.options)
        verdict, difference = judge(theirs, ours)
        results[mode.name] = ModeResult(
            verdict=verdict,
            difference=difference,
            passes=verdict is not Verdict.DIFFERENT and not passes(case, data, ours),
            segments=ours.segments,
        )
    return Result(case=case, complaint=passes(case, data, theirs), modes=results)
