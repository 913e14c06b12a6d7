"""Example inputs a zoo model accepts: right names, types and shapes, plausible values, reproducible."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parallax.errors import ConfigError
from parallax.zoo._card import Fill, InputInfo, ModelInfo, info


def example_inputs(name: str, *, seed: int = 0, **dims: int) -> dict[str, NDArray[Any]]:
    """Inputs for one run of a zoo model.

    Args:
        seed: the same seed and dims give the same values.
        dims: sizes for dynamic dimensions by name, e.g. `batch=4, sequence=64`; the others take their typical size.

    Returns: one array per input, C-contiguous: images (1, 3, height, width) normalised as the model was trained to
    expect, log-mel features, token ids inside the vocabulary, masks of ones.
    Raises: ConfigError for an unknown model or dimension, or a size below 1 or above what the model can take.
    """
    return example_inputs_of(info(name), seed=seed, dims=dims)


def example_inputs_of(card: ModelInfo, *, seed: int, dims: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    """`example_inputs` for a card in hand: exporters need inputs before the model is in the zoo."""
    sizes = _sizes(card, dims)
    generator = np.random.Generator(np.random.PCG64(seed))
    return {entry.name: _fill(entry, sizes, generator) for entry in card.inputs}


def _sizes(card: ModelInfo, dims: Mapping[str, int]) -> dict[str, int]:
    known = {dim.name: dim for dim in card.dynamic_dims}
    for dim_name, size in dims.items():
        if dim_name not in known:
            listed = ", ".join(known) or "none: every shape of this model is static"
            raise ConfigError(
                f"zoo model {card.name!r} has no dynamic dimension {dim_name!r}",
                fix=f"its dynamic dimensions: {listed}",
            )
        maximum = known[dim_name].maximum
        if size < 1 or (maximum is not None and size > maximum):
            allowed = "at least 1" if maximum is None else f"between 1 and {maximum}"
            raise ConfigError(f"{dim_name}={size} does not fit zoo model {card.name!r}", fix=f"make it {allowed}")
    return {dim.name: dims.get(dim.name, dim.typical) for dim in card.dynamic_dims}


def _fill(entry: InputInfo, sizes: Mapping[str, int], generator: np.random.Generator) -> NDArray[Any]:
    shape = tuple(sizes[size] if isinstance(size, str) else size for size in entry.shape)
    values = _FILLERS[entry.fill](shape, entry.parameters, generator)
    return np.ascontiguousarray(values, dtype=np.dtype(entry.dtype))


def _image(shape: tuple[int, ...], parameters: Mapping[str, Any], generator: np.random.Generator) -> NDArray[Any]:
    channels = (1, -1, 1, 1)
    mean, deviation = (np.asarray(parameters[key], np.float32).reshape(channels) for key in ("mean", "deviation"))
    return (generator.random(shape, dtype=np.float32) - mean) / deviation


def _mel(shape: tuple[int, ...], parameters: Mapping[str, Any], generator: np.random.Generator) -> NDArray[Any]:
    noise = generator.standard_normal(shape, dtype=np.float32)
    window = np.ones(8, dtype=np.float32) / 8
    smooth = np.apply_along_axis(np.convolve, -1, noise, window, "same")
    return np.clip(smooth - 0.3, -1.0, 1.5)


def _normal(shape: tuple[int, ...], parameters: Mapping[str, Any], generator: np.random.Generator) -> NDArray[Any]:
    return generator.standard_normal(shape, dtype=np.float32)


def _tokens(shape: tuple[int, ...], parameters: Mapping[str, Any], generator: np.random.Generator) -> NDArray[Any]:
    ids = generator.integers(0, parameters["vocabulary"], size=shape, dtype=np.int64)
    if "last" in parameters:
        ids[..., -1] = parameters["last"]
    if "first" in parameters:
        ids[..., 0] = parameters["first"]
    return ids


def _ones(shape: tuple[int, ...], parameters: Mapping[str, Any], generator: np.random.Generator) -> NDArray[Any]:
    return np.ones(shape, dtype=np.int64)


_FILLERS = {
    Fill.IMAGE: _image,
    Fill.MEL: _mel,
    Fill.NORMAL: _normal,
    Fill.TOKENS: _tokens,
    Fill.ONES: _ones,
}
