"""Made-up requests to check and measure a model with, where the caller gives none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from parallax.errors import ConfigError
from parallax.graph import RUNTIME_TYPES

SEQUENCE: Final = 16
"""The size taken for an open axis that is a length by its name, and an axis of no telling name."""

IMAGE: Final = 224
"""The size taken for the open height or width of an image."""

_LENGTHS: Final = ("seq", "len", "time", "frame", "token", "sample", "word", "text")


def example_feeds(
    inputs: Sequence[Any], *, seed: int, shapes: Mapping[str, Sequence[int]] | None = None
) -> dict[str, NDArray[Any]]:
    """Make one request of random numbers: standard normal ones, or 0 and 1, which are safe as token ids, masks and
    indices.

    Args:
        inputs: as ``InferenceSession.get_inputs`` gives them.
        seed: other seeds give other numbers of the same shapes.
        shapes: of inputs, where they are known; open axes take plausible sizes otherwise, the first of an input 1.

    Raises: ConfigError for an input that numpy has no type for.
    """
    feeds = {}
    for entry in inputs:
        element = RUNTIME_TYPES.get(entry.type)
        if element is None or element.dtype is None or element.dtype.kind == "O":
            raise ConfigError(
                f"no requests can be made up for input {entry.name!r} of type {entry.type}",
                fix="give two unlike ones with examples=[{name: array, ...}, {...}]",
            )
        shape = tuple(shapes[entry.name]) if shapes and entry.name in shapes else _shape_of(entry.shape)
        generator = np.random.default_rng([seed, *entry.name.encode()])
        if element.dtype.kind in "biu":
            # Masks that hide all would make any two requests the same.
            made = np.ones(shape, element.dtype) if "mask" in entry.name else generator.integers(0, 2, shape)
        else:
            made = generator.standard_normal(shape, np.float32)
        feeds[entry.name] = np.asarray(made).astype(element.dtype)
    return feeds


def _shape_of(declared: Sequence[Any] | None) -> tuple[int, ...]:
    return tuple(
        size if isinstance(size, int) and size >= 0 else _plausible(axis, str(size or "").lower(), len(declared or ()))
        for axis, size in enumerate(declared or ())
    )


def _plausible(axis: int, name: str, rank: int) -> int:
    if any(word in name for word in _LENGTHS):
        return SEQUENCE
    if axis == 0:
        return 1
    return IMAGE if rank == 4 and axis >= 2 else SEQUENCE
