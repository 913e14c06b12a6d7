"""Feeds of a cut model: from what users pass to ``run`` to the runtime's own values, and back.

Refuses what ONNX Runtime refuses, with its exception classes and its words, so that client code that
handles those keeps working. Conversion shares memory wherever the array allows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax._record import dataclass
from parallax.backends.ort import CPU_DEVICE, both
from parallax.errors import InputError
from parallax.graph import ELEMENT_TYPES, NUMPY_TYPES, TensorInfo

_InvalidInput = both(InputError, C.InvalidArgument)
_MissingInput = both(InputError, ValueError)
_NoTensor = both(InputError, RuntimeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedSpec:
    """What one model input accepts."""

    name: str
    dtype: np.dtype[Any]
    type_name: str
    """The runtime's spelling of the element type, as in ``tensor(float)``."""
    shape: tuple[int | None, ...] | None
    """None where any size is accepted; None as a whole where any rank is."""
    required: bool

    @classmethod
    def from_tensor(cls, info: TensorInfo, *, required: bool) -> FeedSpec:
        shape = None if info.shape is None else tuple(dim if isinstance(dim, int) else None for dim in info.shape)
        return cls(
            name=info.name,
            dtype=NUMPY_TYPES[info.dtype],
            type_name=ELEMENT_TYPES[info.dtype].runtime_name,
            shape=shape,
            required=required,
        )


def is_feedable(info: TensorInfo) -> bool:
    """Whether a cut model can take or give this value: a tensor of a type that numpy has.

    A model that takes or gives another (bfloat16, float8, int4), or strings, which only whole sessions convert, is run
    whole.
    """
    return info.kind == "tensor" and info.dtype in NUMPY_TYPES


@dataclass(frozen=True, slots=True)
class BoundFeeds:
    """Feeds as the runtime's values, and the arrays whose memory those share: keep both while they run."""

    values: dict[str, Any]
    """Name -> C OrtValue."""
    arrays: tuple[np.ndarray[Any, Any], ...]


class FeedBinder:
    """Turns feeds into C OrtValues, checking them as ONNX Runtime does."""

    def __init__(self, specs: Sequence[FeedSpec]) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._required = [spec.name for spec in specs if spec.required]

    def check_complete(self, feeds: Mapping[str, Any]) -> None:
        """Raises: InputError (and ValueError) if a required input is missing."""
        names = list(feeds.keys())
        missing = [name for name in self._required if name not in feeds]
        if missing:
            raise _MissingInput(
                f"Required inputs ({missing}) are missing from input feed ({names}).",
                fix="feed every input that get_inputs() lists",
            )

    def bind(self, feeds: Mapping[str, Any]) -> BoundFeeds:
        """Check the feeds and make values of them, sharing the caller's memory where its layout allows.

        Raises:
            InputError (and ValueError): a required input is missing.
            InputError (and onnxruntime's InvalidArgument): wrong name, type, rank or size.
            InputError (and RuntimeError): not a tensor at all.
            TypeError: a name that is not a string.
        """
        self.check_complete(feeds)
        values = {}
        arrays = []
        for name, value in feeds.items():
            spec = self._spec(name)
            if isinstance(value, onnxruntime.OrtValue):
                value = value._get_c_value()
            if isinstance(value, C.OrtValue):
                _check_type(spec, value)
                _check_shape(spec, value.shape())
                values[name] = value
                continue
            array = _as_array(spec, value)
            _check_shape(spec, array.shape)
            arrays.append(array)
            values[name] = C.OrtValue.ortvalue_from_numpy(array, CPU_DEVICE)
        return BoundFeeds(values, tuple(arrays))

    def arrays(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """Check the feeds as `bind` does, and give them as arrays, which share the caller's memory where they can.

        Raises: as `bind`.
        """
        self.check_complete(feeds)
        arrays = {}
        for name, value in feeds.items():
            spec = self._spec(name)
            given = value._get_c_value() if isinstance(value, onnxruntime.OrtValue) else value
            if isinstance(given, C.OrtValue):
                _check_type(spec, given)
                array: np.ndarray[Any, Any] = given.numpy()
            else:
                array = _as_array(spec, given)
            _check_shape(spec, array.shape)
            arrays[name] = array
        return arrays

    def _spec(self, name: Any) -> FeedSpec:
        spec = self._specs.get(name)
        if spec is None:
            if not isinstance(name, str):
                raise TypeError(f"input names are strings, not {type(name).__name__}")
            raise _InvalidInput(f"Invalid input name: {name}", fix=f"the model's inputs are {sorted(self._specs)}")
        return spec


def _check_type(spec: FeedSpec, value: Any) -> None:
    actual = value.data_type()
    if actual != f"tensor({spec.type_name})":
        raise _wrong_type(spec, actual)


def _as_array(spec: FeedSpec, value: Any) -> np.ndarray[Any, Any]:
    if isinstance(value, list):
        # ONNX Runtime converts lists to the type that the model wants.
        try:
            made: np.ndarray[Any, Any] = np.array(value).astype(spec.dtype)
        except (TypeError, ValueError) as error:
            raise _NoTensor(
                f"cannot turn the list into tensor({spec.type_name}): {error}",
                where=f"input {spec.name!r}",
                fix="feed a numpy array or a nested list of numbers of one length per axis",
            ) from error
        return made
    if value is None:
        raise _InvalidInput(f"None was fed for input: {spec.name}", fix="it is not optional: feed an array")
    if not isinstance(value, np.ndarray):
        raise _NoTensor(
            f"Unable to handle object of type {type(value)}",
            where=f"input {spec.name!r}",
            fix="feed a numpy array, a nested list or an OrtValue",
        )
    array = np.asarray(value)
    if array.dtype != spec.dtype:
        native = array.dtype.newbyteorder("=")
        if native != spec.dtype:
            raise _wrong_type(spec, _runtime_type(native))
        array = array.astype(spec.dtype)
    return array if array.flags.c_contiguous else array.copy(order="C")


def _check_shape(spec: FeedSpec, shape: Sequence[int]) -> None:
    expected = spec.shape
    if not expected:  # an unknown rank; and the runtime takes one element as well as a scalar
        return
    if len(shape) != len(expected):
        raise _InvalidInput(
            f"Invalid rank for input: {spec.name} Got: {len(shape)} Expected: {len(expected)}",
            fix="Please fix either the inputs/outputs or the model.",
        )
    wrong = [
        f" index: {axis} Got: {got} Expected: {want}"
        for axis, (got, want) in enumerate(zip(shape, expected, strict=True))
        if want is not None and got != want
    ]
    if wrong:
        raise _InvalidInput(
            f"Got invalid dimensions for input: {spec.name} for the following indices\n" + "\n".join(wrong),
            fix="Please fix either the inputs/outputs or the model.",
        )


def _wrong_type(spec: FeedSpec, actual: str) -> Exception:
    return _InvalidInput(
        f"Unexpected input data type. Actual: ({actual}) , expected: (tensor({spec.type_name}))",
        where=f"input {spec.name!r}",
        fix="convert the array with .astype",
    )


def _runtime_type(dtype: np.dtype[Any]) -> str:
    for code, candidate in NUMPY_TYPES.items():
        if candidate == dtype:
            return ELEMENT_TYPES[code].runtime_type
    return f"numpy {dtype}"
