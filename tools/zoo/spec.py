"""What an exporter states about its model; the rest of the card is measured from the exported graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx
from torch import nn

HUGGING_FACE = (
    "Graph exported from Hugging Face transformers (Apache-2.0) with random weights; no trained weights included."
)
OWN_MODULE = (
    "Graph exported from a module of this project (Apache-2.0), written from the paper; no trained weights included."
)
IMAGENET = {"mean": [0.485, 0.456, 0.406], "deviation": [0.229, 0.224, 0.225]}


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """An input of the exported graph; string sizes name dynamic dimensions. `fill`: a value of `parallax.zoo.Fill`."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    fill: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DimSpec:
    """A dynamic dimension of inputs or outputs."""

    name: str
    typical: int
    maximum: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One model of the zoo.

    `build` returns a module in evaluation mode with sane random weights; it is called with torch's generator seeded.
    Its forward takes the inputs in order and returns a tensor, or a tuple in the order of `outputs`; those map a name
    to its dynamic axes. `export`, where given, makes the graph instead of `torch.onnx.export`.
    """

    name: str
    title: str
    task: str
    source: str
    licence: str
    build: Callable[[], nn.Module]
    inputs: tuple[InputSpec, ...]
    outputs: Mapping[str, Mapping[int, str]]
    dims: tuple[DimSpec, ...] = ()
    checked_dims: tuple[Mapping[str, int], ...] = ({},)
    checked_seeds: tuple[int, ...] = (1,)
    tolerance: float = 1e-3
    export: Callable[[nn.Module], onnx.ModelProto] | None = None


def image(side: int, *, name: str = "image", normalised: bool = True) -> InputSpec:
    """An RGB image input, (1, 3, side, side)."""
    parameters = IMAGENET if normalised else {"mean": [0.0, 0.0, 0.0], "deviation": [1.0, 1.0, 1.0]}
    return InputSpec(name=name, dtype="float32", shape=(1, 3, side, side), fill="image", parameters=parameters)
