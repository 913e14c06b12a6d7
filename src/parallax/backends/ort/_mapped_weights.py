"""Weights that the runtime uses where they lie in a mapped file, without opening and mapping each of them itself."""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

if TYPE_CHECKING:
    from parallax.model import StoredWeight


class MappedWeights:
    """Initialisers of one model in one mapped file, to be lent to one session.

    Args:
        path: the file. It is mapped privately; nothing is read from it, and nothing written.
        weights: what of it to lend.

    Raises:
        OSError: the file cannot be mapped.
        TypeError, ValueError: a weight does not lie in it, or is of no type that numpy has.
    """

    def __init__(self, path: str, weights: Sequence[StoredWeight]) -> None:
        self._names = [weight.name for weight in weights]
        self._values: list[Any] = []
        if not weights:
            return
        with open(path, "rb") as file:
            # Not read-only, or numpy's arrays would be, which the runtime copies.
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        make_value = onnxruntime.OrtValue.ortvalue_from_numpy
        for weight in weights:
            # A negative offset would be taken as it is.
            if weight.offset < 0 or any(dim < 0 for dim in weight.shape):
                raise ValueError(f"weight {weight.name!r} lies at byte {weight.offset}, with shape {weight.shape}")
            array: np.ndarray[Any, Any] = np.ndarray(weight.shape, weight.dtype, mapping, weight.offset)
            self._values.append((array, make_value(array)))

    @property
    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Those weights, by name; they stay mapped as long as one of the arrays lives."""
        return {name: array for name, (array, _) in zip(self._names, self._values, strict=True)}

    def lend(self, session_options: Any) -> None:
        """Have the session that is made with these options use them in place of what the model says.

        See ``SessionOptions.add_initializer``; to be followed by `keep_for`.
        """
        for name, (_, value) in zip(self._names, self._values, strict=True):
            session_options.add_initializer(name, value)

    def keep_for(self, session: Any) -> None:
        """Stay mapped as long as this session (of the runtime's extension module) lives, whoever holds it."""
        if self._values:
            weakref.finalize(session, self._values.clear).atexit = False
