"""Requests of unlike lengths filled up to one length, so that they can run together, and their answers cut back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from parallax.errors import ConfigError
from parallax.graph import RUNTIME_TYPES

STEP: Final = 8
"""Requests run together whose lengths, rounded up to multiples of this, are equal."""

_OpenAxes = tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Padding:
    """Which axes are filled up, with what, and where they are in the outputs. Made by `find_padding`.

    Whether the model then answers as it does without is checked when a batcher is made, not here.
    """

    values: Mapping[str, float]
    """Input -> what it is filled up with, at its end."""
    inputs: Mapping[str, _OpenAxes]
    """Input -> its axes that are filled up, with the names of their sizes."""
    outputs: tuple[_OpenAxes, ...]
    """Of each output, the axes of those sizes."""

    def class_shape(self, name: str, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of an input by which requests are put into classes: lengths are rounded up."""
        sizes = list(shape)
        for axis, _ in self.inputs.get(name, ()):
            sizes[axis] = -(-sizes[axis] // STEP) * STEP
        return tuple(sizes)

    def filled(self, requests: Sequence[Mapping[str, NDArray[Any]]]) -> list[dict[str, NDArray[Any]]]:
        """The requests, all filled up to the longest of them."""
        longest: dict[str, int] = {}
        for request in requests:
            for size, symbol in self._lengths(request):
                longest[symbol] = max(size, longest.get(symbol, 0))
        return [{name: self._fill(name, array, longest) for name, array in request.items()} for request in requests]

    def cut_back(self, answer: Sequence[Any], request: Mapping[str, NDArray[Any]]) -> list[Any]:
        """The answer to a request that was filled up, as long as the request was."""
        lengths = {symbol: size for size, symbol in self._lengths(request)}
        cut = []
        for output, axes in zip(answer, self.outputs, strict=True):
            part = [slice(None)] * np.ndim(output)
            for axis, symbol in axes:
                part[axis] = slice(lengths[symbol])
            cut.append(np.array(output[tuple(part)]) if axes else output)
        return cut

    def _lengths(self, request: Mapping[str, NDArray[Any]]) -> list[tuple[int, str]]:
        return [(request[name].shape[axis], symbol) for name, axes in self.inputs.items() for axis, symbol in axes]

    def _fill(self, name: str, array: NDArray[Any], longest: Mapping[str, int]) -> NDArray[Any]:
        widths = [(0, 0)] * array.ndim
        for axis, symbol in self.inputs.get(name, ()):
            widths[axis] = (0, longest[symbol] - array.shape[axis])
        if not any(after for _, after in widths):
            return array
        return np.pad(array, widths, constant_values=self.values[name])


def find_padding(
    values: Mapping[str, float], inputs: Sequence[Any], outputs: Sequence[Any], *, batch_axes: Mapping[str, int]
) -> Padding:
    """What ``pad=`` means for a model.

    Args:
        values: input -> number.
        inputs, outputs: as ``InferenceSession`` describes them; open sizes are known by their names.
        batch_axes: input -> its batch axis, which is not filled up.

    Raises: ConfigError for what is no such mapping, and where it does not say enough.
    """
    if not isinstance(values, Mapping) or not values:
        raise ConfigError(
            f"pad={values!r:.80} says nothing", fix='write pad={"input_ids": 0, "attention_mask": 0}, or leave it out'
        )
    known = {entry.name: entry for entry in inputs}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"pad= names {name!r}, which is no input", fix=f"the inputs are {sorted(known)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"pad= fills {name!r} with {value!r}", fix="give a number")
        if not _holds(known[name].type, value):
            raise ConfigError(
                f"pad= fills {name!r} with {value!r}, which is no {known[name].type}", fix="give a number of that type"
            )
    axes = {entry.name: _open_axes(entry, batch_axes.get(entry.name)) for entry in inputs}
    symbols = {symbol for name in values for _, symbol in axes[name]}
    for name in values:
        if not axes[name]:
            raise ConfigError(
                f"pad= names {name!r}, which has no open axis with a name beside the batch's: {known[name].shape}",
                fix="leave it out, or export the model with that axis named",
            )
    for name, found in axes.items():
        shared = [symbol for _, symbol in found if symbol in symbols]
        if shared and name not in values:
            raise ConfigError(
                f"input {name!r} has the open size {shared[0]!r} too, and pad= does not say what it is filled up with",
                fix=f"add {name!r} to pad=",
            )
    return Padding(
        values=dict(values),
        inputs={name: axes[name] for name in values},
        outputs=tuple(
            tuple((axis, size) for axis, size in enumerate(entry.shape) if isinstance(size, str) and size in symbols)
            for entry in outputs
        ),
    )


def _open_axes(entry: Any, batch_axis: int | None) -> _OpenAxes:
    return tuple(
        (axis, size) for axis, size in enumerate(entry.shape) if isinstance(size, str) and size and axis != batch_axis
    )


def _holds(runtime_type: str, value: float) -> bool:
    """Whether a type of inputs, such as "tensor(int64)", has this number; of floating-point ones all are taken to."""
    element = RUNTIME_TYPES.get(runtime_type)
    if element is None or element.dtype is None or element.dtype.kind not in "biu":
        return True
    least, most = (0, 1) if element.dtype.kind == "b" else (np.iinfo(element.dtype).min, np.iinfo(element.dtype).max)
    return value == value // 1 and least <= value <= most
