"""Requests as they are submitted: checked, copied where the caller could still write to them, and put into classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from parallax.backends.ort import both
from parallax.engine import FeedBinder, FeedSpec
from parallax.errors import InputError
from parallax.graph import RUNTIME_TYPES
from parallax.serving.policy import ShapeClass

if TYPE_CHECKING:
    from parallax.model import BatchAxis
    from parallax.partition.padding import Trimming
    from parallax.serving._padding import Padding


@dataclass(frozen=True, slots=True)
class Request:
    """Holds one request: its arrays and their shapes."""

    arrays: Mapping[str, Any]
    shapes: ShapeClass


class RequestReader:
    """Makes requests of feeds. Thread-safe.

    Args:
        inputs, optional: as ``InferenceSession.get_inputs`` and ``get_overridable_initializers`` give them.
        axis: along which requests may be joined; None: not at all.
        padding: what is filled up so that requests of unlike lengths run together; None: nothing.
        trimming: how what is padded may be left out; None: not at all.
    """

    def __init__(
        self,
        inputs: Sequence[Any],
        optional: Sequence[Any],
        *,
        axis: BatchAxis | None,
        padding: Padding | None = None,
        trimming: Trimming | None = None,
    ) -> None:
        specs = [_spec(entry, required=True) for entry in inputs] + [_spec(entry, required=False) for entry in optional]
        known = [spec for spec in specs if spec is not None]
        # What numpy has no type for is left to the runtime, which says what is wrong with it when it runs.
        self._binder = FeedBinder(known) if len(known) == len(specs) else None
        self._axis = axis
        self.padding = padding
        # Where outputs keep the axis, the runs of whole requests fill them up.
        self._trimming = None if trimming is None or trimming.outputs else trimming

    def stop_joining(self) -> None:
        """Requests that are read from now on run singly."""
        self._axis = None

    def read(self, feeds: Mapping[str, Any]) -> Request:
        """Check one request's feeds.

        Raises:
            InputError: a name, type, rank or size that the model does not take; also of the class that ONNX Runtime
                raises for it.
            InputError (and TypeError): ``feeds`` is no mapping.
        """
        if not isinstance(feeds, Mapping):
            raise both(InputError, TypeError)(
                f"feeds={feeds!r:.80} map no names of inputs to arrays", fix='give {"x": array}'
            )
        if self._binder is None:
            return Request(dict(feeds), ShapeClass(key="unchecked", may_join=False))
        arrays = {name: _own(array, feeds[name]) for name, array in self._binder.arrays(feeds).items()}
        kept = self._shortened(arrays)
        return Request(kept, self._class_of(kept))

    def _shortened(self, arrays: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """Without most of the padding, so that requests of like lengths run together."""
        if self._trimming is None:
            return arrays
        from parallax.engine import trim_feeds
        from parallax.serving._padding import STEP

        trimmed = trim_feeds(self._trimming, arrays, multiple=STEP)
        return arrays if trimmed is None else trimmed.feeds

    def _class_of(self, arrays: Mapping[str, NDArray[Any]]) -> ShapeClass:
        shapes = {name: arrays[name].shape for name in sorted(arrays)}
        if self.padding is not None:
            shapes = {name: self.padding.class_shape(name, shape) for name, shape in shapes.items()}
        key, elements = tuple(shapes.items()), sum(map(math.prod, shapes.values()))
        axis = self._axis
        if axis is None or arrays.keys() != axis.inputs.keys():
            return ShapeClass(key=key, elements=elements, may_join=False)
        sizes = {_size(arrays[name], place) for name, place in axis.inputs.items()}
        rows = sizes.pop()
        if sizes or rows is None or rows < 1:
            return ShapeClass(key=key, elements=elements, may_join=False)
        return ShapeClass(key=key, elements=elements, rows=rows)


def _size(array: NDArray[Any], axis: int) -> int | None:
    return array.shape[axis] if axis < array.ndim else None


def _spec(entry: Any, *, required: bool) -> FeedSpec | None:
    element = RUNTIME_TYPES.get(entry.type)
    if element is None or element.dtype is None or element.dtype.kind == "O":
        return None
    sizes = tuple(size if isinstance(size, int) and size >= 0 else None for size in entry.shape)
    return FeedSpec(
        name=entry.name, dtype=element.dtype, type_name=element.runtime_name, shape=sizes, required=required
    )


def _own(array: NDArray[Any], given: Any) -> NDArray[Any]:
    """An array that the caller does not write to while its request waits."""
    if isinstance(given, list) or (array is not given and isinstance(given, np.ndarray) and array.base is not given):
        return array  # it was made of what was given
    if isinstance(given, np.ndarray) and not given.flags.writeable:
        return array
    return array.copy()
