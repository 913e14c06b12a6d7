"""Measures what a backend makes of zeros: the same operator with and without them, timed in turn."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from parallax._record import dataclass
from parallax.backends import Backend
from parallax.backends.ort import empty_host_value, host_bytes
from parallax.errors import ConfigError
from parallax.model import weighted_probe
from parallax.sparsity._worth import (
    CONVOLUTION,
    ELEMENTWISE,
    PRODUCT,
    ZEROS_PERMILLE,
    ZeroForm,
    ZeroTiming,
    ZeroWorth,
)

_FLOAT: Final = 1
_BLOCK: Final = 16
_DENSE: Final = "without zeros"

Floats = npt.NDArray[np.float32]

Compare = Callable[[Mapping[str, Callable[[], object]]], Mapping[str, Sequence[float]]]
"""Times calls in turn, by label; per label one duration per round, of any unit, in the order of the rounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """One operator that stands for its class. It takes some tenths of a millisecond on one core."""

    kind: str
    op_type: str
    weight_shape: tuple[int, ...]
    output_axis: int
    """Of the weight; the other one of its first two axes is that of the input channels."""
    input_shape: tuple[int, ...]
    attributes: Mapping[str, object]


_SUBJECTS: Final = (
    _Subject(
        kind=CONVOLUTION,
        op_type="Conv",
        weight_shape=(64, 64, 3, 3),
        output_axis=0,
        input_shape=(1, 64, 28, 28),
        attributes={"pads": [1, 1, 1, 1]},
    ),
    _Subject(
        kind=PRODUCT,
        op_type="MatMul",
        weight_shape=(512, 512),
        output_axis=1,
        input_shape=(128, 512),
        attributes={},
    ),
    _Subject(
        kind=ELEMENTWISE,
        op_type="Mul",
        weight_shape=(1024, 1024),
        output_axis=0,
        input_shape=(1024, 1024),
        attributes={},
    ),
)


def measure_zero_worth(
    backend: Backend,
    compare: Compare,
    *,
    width: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> ZeroWorth:
    """Time a convolution, a matrix product and an elementwise operator with zeros of each form, and without.

    Weights are constants of the model, float32, standard normal where they are no zeros. ``compare`` is called once
    per operator, with all its forms at once.

    Args:
        backend: what computes; nothing that is emulated, which computes nothing itself.
        compare: times them.
        width: threads.
        progress: called with (operators done, operators in all).

    Raises:
        BackendError: it cannot run the operators.
        ConfigError: it is emulated.
    """
    info = backend.info
    if info.is_emulated:
        raise ConfigError(
            f"{info.name} is emulated: the processor computes its answers, and a profile says the time",
            fix="measure a backend that computes: the CPU, or a device that is there",
        )
    timings: list[ZeroTiming] = []
    for number, subject in enumerate(_SUBJECTS):
        calls = {_DENSE: _call(backend, subject, None, width=width)}
        calls.update((form.value, _call(backend, subject, form, width=width)) for form in ZeroForm)
        samples = compare(calls)
        timings += [_timing(subject.kind, form, samples[form.value], samples[_DENSE]) for form in ZeroForm]
        if progress is not None:
            progress(number + 1, len(_SUBJECTS))
    return ZeroWorth(backend=info.name, version=info.version, timings=tuple(timings))


def _call(backend: Backend, subject: _Subject, form: ZeroForm | None, *, width: int) -> Callable[[], object]:
    generator = np.random.default_rng(0)
    fed = generator.standard_normal(subject.input_shape, np.float32)
    weight = generator.standard_normal(subject.weight_shape, np.float32)
    if form is ZeroForm.INPUT_90:
        fed[generator.random(fed.shape) < ZEROS_PERMILLE[form] / 1000] = 0
    elif form is not None:
        weight = with_zeros(weight, form, output_axis=subject.output_axis)
    part = weighted_probe(subject.op_type, weight, subject.input_shape, **subject.attributes)
    compiled = backend.compile(part, width=width)
    return functools.partial(compiled.run_with_ort_values, {"x": _value(fed)}, ["y"])


def with_zeros(weight: Floats, form: ZeroForm, *, output_axis: int) -> Floats:
    """A copy of a weight with zeros of a form; the same ones every time.

    Args:
        weight: its first two axes are those of channels.
        form: any but that of the input.
        output_axis: 0 or 1.
    """
    generator = np.random.default_rng(1)
    made = weight.copy()
    share = ZEROS_PERMILLE[form] / 1000
    if form in (ZeroForm.SCATTERED_50, ZeroForm.SCATTERED_90):
        made[generator.random(made.shape) < share] = 0
        return made
    outputs, inputs = made.shape[output_axis], made.shape[1 - output_axis]
    mask = np.zeros((outputs, inputs), bool)
    if form is ZeroForm.ROWS:
        mask[_some(generator, outputs, share)] = True
    elif form is ZeroForm.COLUMNS:
        mask[:, _some(generator, inputs, share)] = True
    else:
        grid = np.zeros((outputs // _BLOCK, inputs // _BLOCK), bool)
        grid.ravel()[_some(generator, grid.size, share)] = True
        mask = grid.repeat(_BLOCK, axis=0).repeat(_BLOCK, axis=1)
    made[mask if output_axis == 0 else mask.T] = 0
    return made


def _some(generator: np.random.Generator, number: int, share: float) -> npt.NDArray[np.intp]:
    return generator.permutation(number)[: round(number * share)]


def _timing(kind: str, form: ZeroForm, with_them: Sequence[float], without: Sequence[float]) -> ZeroTiming:
    ratios = [ours / theirs for ours, theirs in zip(with_them, without, strict=True)]
    low, median, high = (round(1000 * float(value)) for value in np.percentile(ratios, (25, 50, 75)))
    return ZeroTiming(
        operator=kind,
        form=form.value,
        zeros_permille=ZEROS_PERMILLE[form],
        ratio_permille=median,
        low_permille=low,
        high_permille=high,
    )


def _value(array: Floats) -> Any:
    made = empty_host_value(array.shape, _FLOAT)
    host_bytes(made)[:] = array.reshape(-1).view(np.uint8)
    return made
