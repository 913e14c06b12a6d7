"""How a table of the operators that another library computes right is made: trials, comparisons, rows that fit them."""

from __future__ import annotations

import ctypes
import itertools
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from parallax.backends import Backend
from parallax.backends.openvino._table import ABSENT, NodeForm
from parallax.errors import ParallaxError
from parallax.model import load_model
from tests.conformance._operator_trials import (
    FLOATS,
    NUMBERS,
    OLDEST_OPSET,
    Array,
    Trial,
    aged,
    feeds,
    variations,
    versions,
    wrap,
)

Say = Callable[[str], None]

MOST_TRIALS: Final = 70
"""Of one operator, not counting those that alone show some value of a property."""
_ATTEMPTS: Final = 3
"""So many trials that ONNX Runtime refuses are spent on one pair of properties."""
REFUSED: Final = "refused"
"""The label of trials that the other library says it cannot run: no answer, so no wrong one."""
_EXACT_INTEGER: Final = 1 << 24
_BATCH: Final = 48
_CLOSE: Final = 1e-4
_LARGEST: Final = 1 << 16
"""Elements of an operand: larger ones show nothing that smaller do not, and take time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Expected:
    """A trial with what ONNX Runtime makes of it."""

    trial: Trial
    form: NodeForm
    runs: tuple[tuple[str, tuple[Array | None, ...], tuple[Array, ...]], ...]
    """Label, operands, outputs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """What became of a trial in the other library: labels of the runs that differed, with the first difference."""

    expected: Expected
    failed: Mapping[str, str]

    @property
    def is_equal(self) -> bool:
        return not self.failed.keys() & {"plain", REFUSED}

    @property
    def is_wrong(self) -> bool:
        """Whether there was an answer, and another than ONNX Runtime's, or the process has ended."""
        return "plain" in self.failed


# --- ONNX Runtime's side ----------------------------------------------------------------------------


def fed_value(array: Array) -> Any:
    """An ``onnxruntime.OrtValue`` over the array, which must outlive it."""
    dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
    if dtype == onnx.TensorProto.BFLOAT16:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), dtype)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def taken_array(value: Any) -> Array:
    """A copy of what an ``OrtValue`` of the C extension holds."""
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.element_type()))
    content = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes()) if value.tensor_size_in_bytes() else b""
    return np.frombuffer(content, dtype).reshape(tuple(value.shape()))


def expect(trial: Trial) -> Expected | None:
    """What ONNX Runtime makes of a trial; None where it refuses it, or makes what is no tensor of `TYPES`."""
    if any(array is not None and array.size > _LARGEST for array in trial.arrays) or not trial.arrays:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            trial.model().SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception:  # no valid model
        return None
    runs = []
    for label, arrays in feeds(trial):
        if any(_is_too_large(array) for array in arrays):
            continue
        fed = {f"i{at}": fed_value(array) for at in trial.fed if (array := arrays[at]) is not None}
        try:
            made = [value._ortvalue for value in session.run_with_ort_values(None, fed)]
        except Exception:  # not on these values
            if not runs:
                return None
            continue
        if not all(value.is_tensor() and value.element_type() in NUMBERS.values() for value in made):
            return None
        outputs = tuple(taken_array(value) for value in made)
        if any(_is_too_large(output) for output in outputs):
            if not runs:
                return None
            continue
        runs.append((label, arrays, outputs))
    if not runs:
        return None
    made_types = iter([helper.np_dtype_to_tensor_dtype(output.dtype) for output in runs[0][2]])
    form = trial.form([next(made_types) if wanted else None for wanted in trial.outputs])
    return Expected(trial=trial, form=form, runs=tuple(runs))


def _is_too_large(array: Array | None) -> bool:
    """Whether it holds integers that are refused when they are fed."""
    if array is None or array.dtype not in (np.int32, np.int64) or not array.size:
        return False
    return bool(array.max() > _EXACT_INTEGER or array.min() < -_EXACT_INTEGER)


# --- Choosing trials --------------------------------------------------------------------------------


def choose_trials(
    op_type: str, domain: str, seeds: Sequence[Trial], *, skip: Iterable[str] = (), say: Say = lambda _: None
) -> list[Expected]:
    """Trials of one operator that show each pair of its properties, as far as `MOST_TRIALS` go.

    Args:
        skip: keys (`trial_key`) of trials that crash ONNX Runtime.
        say: told the key of each trial before it is run.
    """
    known = versions(domain, op_type)
    newest = seeds[0].opset if seeds else 0
    opsets = [max(version, OLDEST_OPSET if not domain else 1) for version in known if version <= newest]
    opsets = sorted(set(opsets), reverse=True)
    strings: dict[str, list[bytes]] = {}
    for seed in seeds:
        for name, value in seed.attributes.items():
            if isinstance(value, bytes):
                strings.setdefault(name, [])
                strings[name] += [value] if value not in strings[name] else []
    for name, values in EDGE_STRINGS.get(op_type, {}).items():
        strings.setdefault(name, []).extend(value for value in values if value not in strings.get(name, []))
    chosen: dict[str, Expected] = {}
    seen: set[Any] = set()
    attempts: Counter[Any] = Counter()
    forbidden = set(skip)

    def consider(trial: Trial, items: Sequence[Any], values: Sequence[Any]) -> None:
        wanted = [item for item in items if item not in seen and attempts[trial.opset, item] < _ATTEMPTS]
        if not wanted:
            return
        key = trial_key(trial)
        if key in chosen or key in forbidden:
            return
        say(key)
        made = expect(trial)
        if made is None:
            attempts.update((trial.opset, item) for item in wanted)
            return
        seen.update(items)
        seen.update(values)
        chosen[key] = made

    for pairs in (False, True):
        for opset in opsets:
            for seed in seeds:
                for number, trial in enumerate(variations(aged(seed, opset), strings)):
                    if pairs and len(chosen) >= MOST_TRIALS:
                        return list(chosen.values())
                    values = sorted((name, value) for name, kinds in trial.form([]).items() for value in kinds)
                    items: list[Any] = list(values)
                    if pairs:
                        items = list(itertools.combinations(values, 2))
                    elif number == 0 and opset == opsets[0]:
                        items = [trial_key(trial)]
                    consider(trial, items, values)
    return list(chosen.values())


EDGE_STRINGS: Final[Mapping[str, Mapping[str, Sequence[bytes]]]] = {
    kind: {"auto_pad": [b"NOTSET", b"SAME_UPPER", b"SAME_LOWER", b"VALID"]}
    for kind in ("AveragePool", "Conv", "ConvInteger", "ConvTranspose", "LpPool", "MaxPool", "QLinearConv")
} | {
    "Resize": {
        "mode": [b"nearest", b"linear", b"cubic"],
        "nearest_mode": [b"round_prefer_floor", b"round_prefer_ceil", b"floor", b"ceil"],
        "coordinate_transformation_mode": [
            b"half_pixel", b"half_pixel_symmetric", b"pytorch_half_pixel", b"align_corners", b"asymmetric",
            b"tf_crop_and_resize",
        ],
        "keep_aspect_ratio_policy": [b"stretch", b"not_larger", b"not_smaller"],
    },
    "RoiAlign": {"mode": [b"avg", b"max"], "coordinate_transformation_mode": [b"half_pixel", b"output_half_pixel"]},
    "GridSample": {
        "mode": [b"linear", b"nearest", b"cubic", b"bilinear", b"bicubic"],
        "padding_mode": [b"zeros", b"border", b"reflection"],
    },
    "Pad": {"mode": [b"constant", b"reflect", b"edge", b"wrap"]},
    "DepthToSpace": {"mode": [b"DCR", b"CRD"]},
    "Gelu": {"approximate": [b"none", b"tanh"]},
    "ScatterElements": {"reduction": [b"none", b"add", b"mul", b"max", b"min"]},
    "ScatterND": {"reduction": [b"none", b"add", b"mul", b"max", b"min"]},
    "BitShift": {"direction": [b"LEFT", b"RIGHT"]},
    **{kind: {"direction": [b"forward", b"reverse", b"bidirectional"]} for kind in ("LSTM", "GRU", "RNN")},
}  # fmt: skip
"""Values of attributes that are text, beside those that the seeds have."""


def trial_key(trial: Trial) -> str:
    """A trial's name: the same in every process."""
    operands = ",".join(
        "-" if array is None else f"{array.dtype}{list(array.shape)}{'c' if at in trial.constants else ''}"
        for at, array in enumerate(trial.arrays)
    )
    attributes = {name: str(value)[:60] for name, value in sorted(trial.attributes.items())}
    content = zlib.crc32(b"".join(array.tobytes() for array in trial.arrays if array is not None))
    ending = f"{' open' if trial.is_open else ''} {content:08x}"
    return f"{trial.op_type}/{trial.opset} {operands} {attributes} {trial.outputs}{ending}"


# --- The other library's side -----------------------------------------------------------------------


def judge_trials(
    backend: Backend, trials: Sequence[Expected], *, alone: Iterable[str] = (), say: Say = lambda _: None
) -> Iterator[list[Judged]]:
    """Run trials on a backend, many in one model, and compare value by value.

    Args:
        alone: keys of trials to run in a model of their own, before the others.
        say: told the keys of the trials before they are run together, one a line.
    """
    apart = {name: order for order, name in enumerate(alone)}
    first = sorted(
        (item for item in trials if trial_key(item.trial) in apart), key=lambda item: apart[trial_key(item.trial)]
    )
    for item in first:
        yield _judge_batch(backend, [item], say)
    by_opset: dict[tuple[str, int], list[Expected]] = {}
    for item in trials:
        if trial_key(item.trial) not in apart:
            by_opset.setdefault((item.trial.domain, item.trial.opset), []).append(item)
    for group in by_opset.values():
        for begin in range(0, len(group), _BATCH):
            yield _judge_batch(backend, group[begin : begin + _BATCH], say)


def _judge_batch(backend: Backend, batch: Sequence[Expected], say: Say) -> list[Judged]:
    say("\n".join(trial_key(item.trial) for item in batch))
    try:
        judged = _judge_together(backend, batch)
    except (ParallaxError, RuntimeError) as error:
        if len(batch) == 1:
            return [Judged(expected=batch[0], failed={REFUSED: f"{type(error).__name__}: {error}"})]
        half = len(batch) // 2
        return _judge_batch(backend, batch[:half], say) + _judge_batch(backend, batch[half:], say)
    if len(batch) == 1:
        return judged
    # A run that goes wrong for one trial can leave the outputs of others unwritten: what failed is run again, alone.
    return [_judge_batch(backend, [item.expected], say)[0] if item.failed else item for item in judged]


def _judge_together(backend: Backend, batch: Sequence[Expected]) -> list[Judged]:
    graph = onnx.GraphProto(name="trials")
    for number, item in enumerate(batch):
        item.trial.add_to(graph, f"t{number}_")
        wanted = [at for at, given in enumerate(item.trial.outputs) if given]
        for at, made in zip(wanted, item.runs[0][2], strict=True):
            info = next(info for info in graph.output if info.name == f"t{number}_o{at}")
            shape = [None] * made.ndim if item.trial.is_open else made.shape
            info.CopyFrom(helper.make_tensor_value_info(info.name, helper.np_dtype_to_tensor_dtype(made.dtype), shape))
    first = batch[0].trial
    model = load_model(wrap(graph, {first.domain: first.opset}))
    part = backend.compile(model.extract_whole(), width=1)
    failed: list[dict[str, str]] = [{} for _ in batch]
    for turn in range(max(len(item.runs) for item in batch)):
        values, held = {}, []
        for number, item in enumerate(batch):
            _, arrays, _ = item.runs[min(turn, len(item.runs) - 1)]
            for at in item.trial.fed:
                array = arrays[at]
                assert array is not None
                held.append(fed_value(array))
                values[f"t{number}_i{at}"] = held[-1]._ortvalue
        asked = part.interface.output_names
        results = dict(zip(asked, part.run_with_ort_values(values, asked), strict=True))
        for number, item in enumerate(batch):
            if turn >= len(item.runs):
                continue
            label, _, outputs = item.runs[turn]
            names = [f"t{number}_o{at}" for at, given in enumerate(item.trial.outputs) if given]
            for name, want in zip(names, outputs, strict=True):
                difference = differs(want, taken_array(results[name]))
                if difference:
                    failed[number].setdefault(label, difference)
    return [Judged(expected=item, failed=found) for item, found in zip(batch, failed, strict=True)]


def differs(want: Array, got: Array) -> str:
    """Empty where two outputs are the same: integers exactly, floats within 1e-4 of the largest magnitude (or two last
    places of a narrow type), NaNs and infinities in the same places; else what differs."""
    if (want.dtype, want.shape) != (got.dtype, got.shape):
        return f"{got.dtype}{list(got.shape)} instead of {want.dtype}{list(want.shape)}"
    if want.dtype not in FLOATS:
        return "" if np.array_equal(want, got) else f"{got.reshape(-1)[:6]} instead of {want.reshape(-1)[:6]}"
    close = max(_CLOSE, {"float16": 2.0**-9, "bfloat16": 2.0**-6}.get(want.dtype.name, 0))
    wide, made = want.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(wide)
    scale = float(np.abs(wide[finite]).max(initial=0))
    with np.errstate(invalid="ignore"):
        same = np.isclose(made, wide, rtol=close, atol=close * scale, equal_nan=True)
    return "" if same.all() else f"{made[~same][:6]} instead of {wide[~same][:6]}"


# --- From judgements to rows ------------------------------------------------------------------------


def fit_row(judged: Sequence[Judged]) -> dict[str, set[str]] | None:
    """Values of each property such that no trial within them has failed; None where nothing is left.

    As long as some trial within has failed, the value goes that the largest share of its trials fails with.
    """
    names = sorted({name for item in judged for name in item.expected.form})
    held = [
        ({(name, value) for name in names for value in item.expected.form.get(name, {ABSENT})}, not item.is_wrong)
        for item in judged
        if item.is_equal or item.is_wrong
    ]
    while any(not equal for _, equal in held):
        failing, all_of = Counter[Any](), Counter[Any]()
        for values, equal in held:
            all_of.update(values)
            if not equal:
                failing.update(values)
        worst = max(failing, key=lambda value: (failing[value] / all_of[value], failing[value], value))
        held = [(values, equal) for values, equal in held if worst not in values]
    if not held:
        return None
    takes: dict[str, set[str]] = {}
    for values, _ in held:
        for name, value in values:
            takes.setdefault(name, set()).add(value)
    return takes


def fit_rows(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """Rows of the table for one operator, each as JSON: at most three, each for what those before it leave out."""
    rows: list[dict[str, Any]] = []
    left = list(judged)
    for _ in range(1):
        if not any(item.is_equal for item in left):
            break
        # Failures count for every row.
        takes = fit_row([item for item in judged if item.is_wrong or item in left])
        if takes is None:
            break
        inside = [item for item in judged if _is_within(item, takes)]
        loses = sorted({label for item in inside for label in item.failed} - {"plain", REFUSED})
        row: dict[str, Any] = {"takes": {name: sorted(takes[name]) for name in sorted(takes)}}
        if loses:
            row["loses"] = loses
        rows.append(row)
        left = [item for item in left if not _is_within(item, takes)]
        if sum(item.is_equal for item in left) < 0.1 * len(judged):
            break
    return rows


def _is_within(item: Judged, takes: Mapping[str, set[str]]) -> bool:
    form = item.expected.form
    return all(form.get(name, frozenset({ABSENT})) <= takes.get(name, {ABSENT}) for name in {*takes, *form})
