"""How a large weight is remembered without its bytes, and drawn again.

A recipe keeps the mean, deviation and range of a weight plus a seed. Drawing it gives a tensor with those figures: good
for speed, memory and numerics (nothing overflows, variances stay positive), useless for predictions. This module knows
arrays only; where recipes live in a model file is the business of `_structure`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

_CHUNK_ELEMENTS = 1 << 18  # 1 MiB of float32: the chunk stays in a core's cache between the passes over it


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Figures of one float32 tensor: values are drawn from N(mean, deviation) and clipped to [low, high].

    Invariant: low <= mean <= high and deviation >= 0, all finite. The range is the original tensor's, which keeps what
    must stay positive positive.
    """

    mean: float
    deviation: float
    low: float
    high: float
    seed: int

    def to_json(self) -> str:
        """A one-line JSON object with the fields as keys."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Recipe:
        """Inverse of `to_json`. Raises KeyError, TypeError or ValueError on anything else."""
        fields = json.loads(text)
        return Recipe(
            mean=float(fields["mean"]),
            deviation=float(fields["deviation"]),
            low=float(fields["low"]),
            high=float(fields["high"]),
            seed=int(fields["seed"]),
        )


def draw_chunks(recipe: Recipe, elements: int) -> Iterator[NDArray[np.float32]]:
    """Draw `elements` float32 values, piece by piece.

    The values depend on the recipe and on nothing else: PCG64 seeded with `recipe.seed`, NumPy's ziggurat normals in
    float32, then one multiplication and one addition rounded separately (no fused operation). The pieces of a tensor
    are one stream, so where it is cut changes nothing.

    Yields: views of one buffer that is overwritten by the next step; copy what must outlive it.
    """
    generator = np.random.Generator(np.random.PCG64(recipe.seed))
    scale, shift = np.float32(recipe.deviation), np.float32(recipe.mean)
    low, high = np.float32(recipe.low), np.float32(recipe.high)
    buffer = np.empty(min(elements, _CHUNK_ELEMENTS), dtype=np.float32)
    for start in range(0, elements, _CHUNK_ELEMENTS):
        chunk = buffer[: min(_CHUNK_ELEMENTS, elements - start)]
        generator.standard_normal(out=chunk, dtype=np.float32)
        np.multiply(chunk, scale, out=chunk)
        np.add(chunk, shift, out=chunk)
        np.clip(chunk, low, high, out=chunk)
        yield chunk
